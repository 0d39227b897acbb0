"""The cache of `generate()`: every tensor is moved, repeated, selected and restored exactly."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from hf_rnn_seq2seq import RnnSeq2SeqCache
from tests.helpers.models import SOURCES, mask, pad, tiny_model

# What each model keeps: decoder states, the fed vector, positions, and the source as the decoder reads it.
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "lstm, 2 layers, fed": ({"decoder_layers": 2, "encoder_layers": 2}, 2 * 2 + 1 + 1 + 3),
    "lstm, fed, scanned": ({}, 2 + 1 + 1 + 3),
    "gru, not fed": ({"cell_type": "gru", "input_feeding": False}, 1 + 1 + 3),
    "every step": ({"context": "every_step"}, 2 + 1 + 1),
    "coverage": ({"attention_type": "additive", "coverage": "gru", "coverage_size": 3}, 2 + 1 + 1 + 1 + 3),
    "coverage, not fed": ({"attention_type": "additive", "coverage": "sum", "input_feeding": False}, 2 + 1 + 1 + 3),
    "initial state": ({"context": "initial_state"}, 2 + 1),
    "multi head": ({"attention_type": "multi_head", "num_attention_heads": 2}, 2 + 1 + 1 + 3),
}
PREFIX = torch.tensor([[1, 5, 6, 7], [1, 9, 3, 3], [1, 4, 4, 8]])


def read(kind: str, tokens: int = 4, *, record: bool = False) -> tuple[Any, RnnSeq2SeqCache]:
    """A model, and its cache after the first words of `PREFIX`."""
    model = tiny_model(**KINDS[kind][0]).requires_grad_(False)
    cache = RnnSeq2SeqCache()
    if record:
        cache.activate_past_recording()
    sources = {"input_ids": pad(SOURCES), "attention_mask": mask(SOURCES)}
    model(**sources, decoder_input_ids=PREFIX[:, :tokens], cache=cache, use_cache=True)
    return model, cache


def next_logits(model: Any, cache: RnnSeq2SeqCache) -> Tensor:
    """After one more word, the same in every row."""
    word = torch.full((cache.batch_size, 1), 6)
    return model(decoder_input_ids=word, cache=cache, use_cache=True).logits[:, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_tensors_of_a_cache(kind: str) -> None:
    _, cache = read(kind)
    assert len(cache.states) == KINDS[kind][1]
    assert {len(tensor) for tensor in cache.states} == {3} == {cache.batch_size}
    assert (cache.get_seq_length(), cache.is_initialized) == (4, True)
    assert len(cache) == len(cache.layers) == KINDS[kind][0].get("decoder_layers", 1)
    for number, layer in enumerate(cache.state.layers):
        for state, tensor in enumerate(layer):
            assert cache.get_recurrent_state(number, state) is tensor
    assert repr(cache) == f"RnnSeq2SeqCache(length=4, tensors={len(cache.states)})"
    # Every tensor that differs between the rows must be moved with them: no two rows are equal by chance.
    told_apart = [tensor for tensor in cache.states if len(tensor.unique(dim=0)) == 3]
    assert len(told_apart) == len(cache.states) - 1  # all but the positions


def test_an_empty_cache() -> None:
    cache = RnnSeq2SeqCache()
    assert (cache.get_seq_length(), cache.states, cache.is_initialized) == (0, (), False)
    assert (len(cache), cache.layers, cache.batch_size) == (0, [], 0)
    cache.reorder_cache(torch.tensor([0]))
    cache.crop(0)
    assert cache.states == ()


@pytest.mark.parametrize("record", [False, True], ids=["", "recording"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_tensor_is_moved_repeated_and_selected(kind: str, record: bool) -> None:
    for move, rows in (
        (lambda cache: cache.reorder_cache(torch.tensor([2, 2, 0])), [2, 2, 0]),
        (lambda cache: cache.batch_repeat_interleave(2), [0, 0, 1, 1, 2, 2]),
        (lambda cache: cache.batch_select_indices(torch.tensor([1])), [1]),
    ):
        model, cache = read(kind, record=record)
        before, logits = [tensor.clone() for tensor in cache.states], next_logits(*read(kind))
        move(cache)
        assert [tensor.shape[1:] for tensor in cache.states] == [tensor.shape[1:] for tensor in before]
        for after, tensor in zip(cache.states, before, strict=True):
            assert torch.equal(after, tensor[rows])
        torch.testing.assert_close(next_logits(model, cache), logits[rows])
        if record:
            cache.crop(-1)
            cache.crop(-1)  # to the third word of what the rows now are
            torch.testing.assert_close(next_logits(model, cache), next_logits(*read(kind, 3))[rows])


@pytest.mark.parametrize("kind", KINDS)
def test_crop_restores_earlier_states_exactly(kind: str) -> None:
    for dropped in range(5):
        model, cache = read(kind, record=True)
        cache.crop(-dropped)
        assert cache.get_seq_length() == 4 - dropped
        if dropped < 4:
            for tensor, expected in zip(cache.states, read(kind, 4 - dropped)[1].states, strict=True):
                torch.testing.assert_close(tensor, expected)
        if dropped:
            model(decoder_input_ids=PREFIX[:, 4 - dropped :], cache=cache, use_cache=True)
        torch.testing.assert_close(next_logits(model, cache), next_logits(*read(kind)))


def test_crop_refuses_a_positive_number() -> None:
    model, cache = read("lstm, 2 layers, fed", record=True)
    with pytest.raises(ValueError, match=r"crop\(3\): must be 0 or negative; -2 removes the last two tokens"):
        cache.crop(3)
    assert cache.get_seq_length() == 4
    torch.testing.assert_close(next_logits(model, cache), next_logits(*read("lstm, 2 layers, fed")))


def test_crop_refuses_tokens_that_were_not_recorded() -> None:
    _, cache = read("gru, not fed")
    before = cache.states
    with pytest.raises(ValueError, match=r"crop\(-2\): 0 tokens were recorded of 4 read"):
        cache.crop(-2)
    assert all(map(torch.equal, cache.states, before)) and cache.get_seq_length() == 4


def test_recording_from_the_middle() -> None:
    model, cache = read("gru, not fed", 2)
    cache.activate_past_recording()
    model(decoder_input_ids=PREFIX[:, 2:], cache=cache, use_cache=True)
    cache.crop(-2)
    torch.testing.assert_close(next_logits(model, cache), next_logits(*read("gru, not fed", 2)))
    cache.crop(-1)
    with pytest.raises(ValueError, match="0 tokens were recorded of 2 read"):
        cache.crop(-1)


@pytest.mark.parametrize("record", [False, True], ids=["", "recording"])
@pytest.mark.parametrize("kind", KINDS)
def test_word_by_word_equals_all_at_once(kind: str, record: bool) -> None:
    model, whole = read(kind)
    cache, logits = RnnSeq2SeqCache(), []
    if record:
        cache.activate_past_recording()
    for step in PREFIX.split([1, 2, 1], 1):
        sources = {} if cache.is_initialized else {"input_ids": pad(SOURCES), "attention_mask": mask(SOURCES)}
        logits.append(model(**sources, decoder_input_ids=step, cache=cache, use_cache=True).logits)
    at_once = model(input_ids=pad(SOURCES), attention_mask=mask(SOURCES), decoder_input_ids=PREFIX)
    torch.testing.assert_close(torch.cat(logits, 1), at_once.logits)
    for tensor, expected in zip(cache.states, whole.states, strict=True):
        torch.testing.assert_close(tensor, expected)


def test_reset_forgets_the_source() -> None:
    model, cache = read("lstm, 2 layers, fed", record=True)
    cache.reset()
    assert (cache.states, cache.get_seq_length()) == ((), 0)
    other = pad([row[::-1] for row in SOURCES])
    actual = model(input_ids=other, decoder_input_ids=PREFIX, cache=cache)
    torch.testing.assert_close(actual.logits, model(input_ids=other, decoder_input_ids=PREFIX).logits)


def test_a_cache_of_another_kind_is_refused() -> None:
    model, _ = read("lstm, 2 layers, fed")
    with pytest.raises(ValueError, match="cache of type DynamicCache: must be an RnnSeq2SeqCache or None"):
        model(input_ids=pad(SOURCES), decoder_input_ids=PREFIX, cache=DynamicCache())


def test_a_cache_under_its_old_name_is_refused() -> None:
    model, cache = read("lstm, 2 layers, fed")
    with pytest.raises(ValueError, match="past_key_values: the argument is called cache"):
        model(decoder_input_ids=PREFIX, past_key_values=cache)


def test_use_cache_false_returns_no_cache_and_advances_a_given_one() -> None:
    model, cache = read("lstm, 2 layers, fed")
    actual = model(input_ids=pad(SOURCES), decoder_input_ids=PREFIX, use_cache=False)
    assert actual.cache is None
    assert model(input_ids=pad(SOURCES), decoder_input_ids=PREFIX).cache.get_seq_length() == 4
    assert cache.to("meta").states[0].device.type == "meta"
