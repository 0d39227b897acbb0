"""`generate()`: cached equals uncached, and a row of a batch equals the row alone."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.generation.streamers import BaseStreamer
from transformers.modeling_outputs import BaseModelOutput

from hf_rnn_seq2seq import RnnSeq2SeqForConditionalGeneration
from tests.helpers.models import END, PAD, SOURCES, START, mask, pad, tiny_model

Model = RnnSeq2SeqForConditionalGeneration

# One model for each kind of thing the cache carries.
KINDS: dict[str, dict[str, Any]] = {
    "input feeding": {"encoder_layers": 2, "decoder_layers": 2},
    "no feeding": {"input_feeding": False, "cell_type": "gru"},
    "before the cell": {"attention_order": "before_cell", "attention_type": "additive", "readout_state": "previous"},
    "bottom": {"attention_layer": "bottom", "decoder_layers": 3, "context_layers": "all"},
    "skips": {"skip_connections": True, "decoder_layers": 2},
    "every step": {"context": "every_step", "cell_type": "gru", "readout": "maxout"},
    "coverage": {"attention_type": "additive", "coverage": "sum", "attention_normalization": "sparsemax"},
    "coverage gru, gate": {
        "attention_type": "normed_additive",
        "attention_order": "before_cell",
        "coverage": "gru",
        "context_gate": "both",
    },
    "initial state": {"context": "initial_state", "decoder_layers": 2},
    "local_m": {"attention_window": "local_m", "attention_window_size": 1, "input_feeding": False},
    "multi head": {"attention_type": "multi_head", "num_attention_heads": 2},
}
LENGTH = 9


@pytest.fixture(params=KINDS, scope="module")
def model(request: pytest.FixtureRequest) -> Model:
    return generator(**KINDS[request.param])


@pytest.fixture(scope="module")
def plain() -> Model:
    return generator(**KINDS["input feeding"])


def generator(**options: Any) -> Model:
    """The first random model for which one sentence ends early, none at the first word, and one never."""
    for seed in range(100):
        model = tiny_model(seed=seed, deviation=1.2, **options).requires_grad_(False)
        model.lm_head.bias[END] += 1.0
        model.generation_config.max_new_tokens = LENGTH
        lengths = [len(words(row)) for row in model.generate(**sources())]
        if 3 <= min(lengths) < LENGTH < max(lengths):
            return model
    raise AssertionError("no such model")


def sources(rows: list[list[int]] = SOURCES, *, left: bool = False) -> dict[str, Tensor]:
    return {"input_ids": pad(rows, left=left), "attention_mask": mask(rows, left=left)}


def words(row: Tensor) -> list[int]:
    """The words up to the end or the padding after it, with the start token."""
    found = row.tolist()
    return found[: found.index(END) + 1] if END in found else found


def next_word_scores(model: Model, source: list[int], target: list[int]) -> Tensor:
    """Log-probabilities (vocab,) of the word after `target`, by a pass over the whole target without a cache."""
    actual = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([target]), use_cache=False)
    assert actual.cache is None
    return actual.logits[0, -1].log_softmax(-1)


def test_greedy_takes_the_best_word_again_and_again(model: Model) -> None:
    found = model.generate(**sources())
    for source, row in zip(SOURCES, found, strict=True):
        target = [START]
        while len(target) <= LENGTH and target[-1] != END:
            target.append(int(next_word_scores(model, source, target).argmax()))
        assert words(row) == target
        assert row[len(target) :].tolist() == [PAD] * (len(row) - len(target))


@pytest.mark.thinned(5)  # every model and every search, not every pair of them
@pytest.mark.parametrize(
    "search",
    [
        {},
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 4, "length_penalty": 0.6, "early_stopping": True},
        {"do_sample": True, "num_return_sequences": 2},
        {"do_sample": True, "num_beams": 3},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
    ],
    ids=str,
)
def test_cached_equals_uncached(model: Model, search: dict[str, Any]) -> None:
    actual = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        kept = {"return_dict_in_generate": True, "output_scores": True, "use_cache": use_cache}
        actual.append(model.generate(**sources(), **search, **kept))
    cached, uncached = actual
    assert (cached.cache is None, uncached.cache is None) == (False, True)
    assert torch.equal(cached.sequences, uncached.sequences)
    torch.testing.assert_close(cached.scores, uncached.scores)
    returned = search.get("num_return_sequences", 1) * len(SOURCES)
    assert len(cached.sequences) == returned


@pytest.mark.thinned(3)
@pytest.mark.parametrize("search", [{}, {"num_beams": 3}], ids=["greedy", "beam"])
def test_each_row_of_a_batch_equals_the_row_alone_with_any_padding(model: Model, search: dict[str, Any]) -> None:
    alone = [words(model.generate(**sources([row]), **search)[0]) for row in SOURCES]
    for left in (False, True):
        assert [words(row) for row in model.generate(**sources(left=left), **search)] == alone
    # Without a mask the pad token marks the padding.
    assert [words(row) for row in model.generate(input_ids=pad(SOURCES), **search)] == alone


@pytest.mark.thinned(3)
@pytest.mark.parametrize("search", [{}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beam"])
def test_transition_scores_are_the_log_probabilities_of_a_forward_pass(model: Model, search: dict[str, Any]) -> None:
    actual = model.generate(**sources(), **search, return_dict_in_generate=True, output_scores=True)
    beams = actual.get("beam_indices")
    scores = model.compute_transition_scores(
        actual.sequences, actual.scores, *([] if beams is None else [beams]), normalize_logits=beams is None
    )
    each = search.get("num_return_sequences", 1)
    for number, row in enumerate(actual.sequences):
        target = words(row)
        for place, word in enumerate(target[1:], 1):
            expected = next_word_scores(model, SOURCES[number // each], target[:place])[word]
            # generate() keeps scores in float32.
            torch.testing.assert_close(scores[number, place - 1], expected.float())


def test_cross_attentions_and_hidden_states_of_each_step(model: Model) -> None:
    shown = {"output_attentions": True, "output_hidden_states": True, "return_dict_in_generate": True}
    actual = model.generate(**sources(), **shown)
    whole = model(
        **sources(), decoder_input_ids=actual.sequences[:, :-1], **(shown | {"return_dict_in_generate": None})
    )
    steps = actual.sequences.shape[1] - 1
    hidden = [torch.cat([step[number] for step in actual.decoder_hidden_states], 1) for number in range(2)]
    torch.testing.assert_close(hidden, list(whole.decoder_hidden_states[:2]))
    if model.config.context != "attention":
        assert actual.cross_attentions is None or actual.cross_attentions[0] is None
        return
    weights = torch.cat([step[0] for step in actual.cross_attentions], 2)
    assert weights.shape == (len(SOURCES), model.config.num_attention_heads, steps, pad(SOURCES).shape[1])
    torch.testing.assert_close(weights, whole.cross_attentions[0])


class Collect(BaseStreamer):
    """Collects the words."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = False

    def put(self, value: Tensor) -> None:
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        self.ended = True


def test_a_streamer_gets_each_word(plain: Model) -> None:
    streamer = Collect()
    found = plain.generate(**sources(SOURCES[:1]), streamer=streamer)
    assert streamer.ended and streamer.tokens == found[0].tolist()


def test_a_prompt_is_continued(model: Model) -> None:
    whole = model.generate(**sources())
    longer = model.generate(**sources(), decoder_input_ids=whole[:, :2], max_new_tokens=LENGTH - 1)
    assert torch.equal(longer, whole)
    # A prompt that greedy search would not have written.
    prompt = torch.tensor([[START, 7, 7, 4]] * 3)
    found = model.generate(**sources(), decoder_input_ids=prompt, num_beams=2)
    assert torch.equal(found[:, :4], prompt)
    assert torch.equal(found, model.generate(**sources(), decoder_input_ids=prompt, num_beams=2, use_cache=False))


def test_left_padded_prompts_equal_each_prompt_alone(model: Model) -> None:
    prompts = [[START, 7], [START, 5, 6, 8], [START]]
    mixed = {"decoder_input_ids": pad(prompts, left=True), "decoder_attention_mask": mask(prompts, left=True)}
    for search in ({}, {"num_beams": 2}, {"use_cache": False}):
        found = model.generate(**sources(), **mixed, **search)
        for row, source, prompt in zip(found, SOURCES, prompts, strict=True):
            alone = model.generate(**sources([source]), decoder_input_ids=torch.tensor([prompt]), **search)
            assert words(row[4 - len(prompt) :]) == words(alone[0])


def test_word_vectors_or_encoder_outputs_in_place_of_words(model: Model) -> None:
    expected = model.generate(**sources(), num_beams=2)
    vectors = model.get_input_embeddings()(pad(SOURCES))
    assert torch.equal(model.generate(inputs_embeds=vectors, attention_mask=mask(SOURCES), num_beams=2), expected)
    read = model.get_encoder()(**sources())
    for _ in range(2):  # what the caller hands over stays as it is
        assert torch.equal(model.generate(encoder_outputs=read, num_beams=2), expected)
    assert torch.equal(model.generate(encoder_outputs=read, attention_mask=mask(SOURCES), num_beams=2), expected)
    start, shorter = torch.full((3, 1), START), mask(SOURCES)
    shorter[:, 0] = 0
    hidden = model(encoder_outputs=read, attention_mask=shorter, decoder_input_ids=start, output_attentions=True)
    if model.config.context == "attention":
        assert not hidden.cross_attentions[0][..., 0].any(), "a mask hides more than the encoder's own"
    with pytest.raises(ValueError, match=r"attention_mask of shape \(3, 2\): must be \(batch, source\)"):
        model(encoder_outputs=read, attention_mask=shorter[:, :2], decoder_input_ids=start)


@pytest.mark.parametrize("bridge", ["mean", "zero"])
@pytest.mark.parametrize("kind", [BaseModelOutput, tuple], ids=["BaseModelOutput", "tuple"])
def test_outputs_of_another_encoder_are_read_with_attention_mask(bridge: str, kind: type) -> None:
    model = generator(bridge=bridge)
    states = model.get_encoder()(**sources()).last_hidden_state
    foreign = BaseModelOutput(last_hidden_state=states) if kind is BaseModelOutput else (states,)
    start = torch.full((3, 1), START)
    actual = [
        model(decoder_input_ids=start, encoder_outputs=foreign, attention_mask=mask(SOURCES)),
        model(decoder_input_ids=start, **sources()),
    ]
    torch.testing.assert_close(actual[0].logits, actual[1].logits)
    if kind is BaseModelOutput:
        for search in ({}, {"num_beams": 2}):
            found = model.generate(encoder_outputs=foreign, attention_mask=mask(SOURCES), **search)
            assert torch.equal(found, model.generate(**sources(), **search))


def test_a_bridge_refuses_encoder_outputs_without_final_states(plain: Model) -> None:
    states = plain.get_encoder()(**sources()).last_hidden_state
    with pytest.raises(ValueError, match="final_state.*bridge='dense'.*'mean' or 'zero'"):
        plain(decoder_input_ids=torch.full((3, 1), START), encoder_outputs=BaseModelOutput(last_hidden_state=states))


@pytest.mark.thinned(3)
@pytest.mark.parametrize("row", SOURCES, ids=str)
def test_assisted_decoding_equals_greedy(model: Model, row: list[int]) -> None:
    expected = model.generate(**sources([row]), max_new_tokens=20)
    assistant = tiny_model(seed=5, hidden_size=3, cell_type="rnn_tanh", context="initial_state")
    # An assistant that guesses wrong most of the time, one that is always right, and words of the prompt.
    for help_ in ({"assistant_model": assistant}, {"assistant_model": model}, {"prompt_lookup_num_tokens": 3}):
        found = model.generate(**sources([row]), max_new_tokens=20, **help_)
        # transformers 5.8 may say one word more than `max_new_tokens` when the prompt is looked up.
        assert torch.equal(found[:, : expected.shape[1]], expected) and found.shape[1] <= expected.shape[1]


def test_assisted_sampling_and_prompts(plain: Model) -> None:
    prompt = torch.tensor([[START, 7, 4, 7]])
    expected = plain.generate(**sources(SOURCES[:1]), decoder_input_ids=prompt, max_new_tokens=20)
    found = plain.generate(
        **sources(SOURCES[:1]), decoder_input_ids=prompt, max_new_tokens=20, prompt_lookup_num_tokens=2
    )
    assert torch.equal(found, expected)


def test_continuation_from_a_returned_cache(model: Model) -> None:
    whole = model.generate(**sources(), max_new_tokens=8, min_new_tokens=8)
    first = model.generate(**sources(), max_new_tokens=3, min_new_tokens=3, return_dict_in_generate=True)
    assert first.cache.get_seq_length() == 3
    second = model.generate(
        **sources(),
        decoder_input_ids=first.sequences,
        cache=first.cache,
        max_new_tokens=5,
        min_new_tokens=5,
    )
    assert torch.equal(second, whole)


@pytest.mark.parametrize("masked", [False, True], ids=["", "with a mask"])
def test_a_continued_cache_equals_that_of_one_pass(plain: Model, masked: bool) -> None:
    options = {"eos_token_id": -1, "return_dict_in_generate": True, "output_scores": True}
    whole = plain.generate(**sources(), max_new_tokens=4, **options)
    first = plain.generate(**sources(), max_new_tokens=3, **options)
    given = {"decoder_input_ids": first.sequences}
    if masked:
        given["decoder_attention_mask"] = torch.ones_like(first.sequences)
    second = plain.generate(**sources(), **given, cache=first.cache, max_new_tokens=1, **options)
    assert torch.equal(second.sequences, whole.sequences)
    torch.testing.assert_close(first.scores + second.scores, whole.scores)
    assert second.cache is first.cache and second.cache.get_seq_length() == 4
    torch.testing.assert_close(second.cache.states, whole.cache.states)
    for layer, expected in zip(second.cache.layers, whole.cache.layers, strict=True):
        torch.testing.assert_close(layer.recurrent_states, expected.recurrent_states)
    with pytest.raises(ValueError, match="decoder_input_ids of 4 tokens: the cache has read 4; pass the whole seq"):
        plain.generate(**sources(), **given, cache=second.cache, max_new_tokens=1)


def test_generation_config_of_a_checkpoint(plain: Model, tmp_path: Path) -> None:
    Model(plain.config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "generation_config.json").read_text())
    written.pop("transformers_version")
    assert written == {
        "_from_model_config": True,
        "bos_token_id": START,
        "decoder_start_token_id": START,
        "eos_token_id": END,
        "max_length": 129,
        "pad_token_id": PAD,
        "output_attentions": False,
        "output_hidden_states": False,
        "use_cache": True,
    }
    loaded = Model.from_pretrained(tmp_path)
    assert (loaded.generation_config.max_length, loaded.generation_config.max_new_tokens) == (129, None)
    # An end that the model never writes, so that the length alone stops it.
    assert loaded.generate(**sources(SOURCES[:1]), eos_token_id=-1).shape == (1, 129)


def test_ids_that_differ_from_the_usual_ones() -> None:
    model = generator(pad_token_id=4, bos_token_id=7, eos_token_id=9, decoder_start_token_id=8)
    found = model.generate(input_ids=torch.tensor([[5, 6, 9], [3, 9, 4]]))
    assert found[:, 0].tolist() == [8, 8]
    assert model.generation_config.pad_token_id == 4 and model.generation_config.eos_token_id == 9
    alone = model.generate(input_ids=torch.tensor([[3, 9]]))
    width = alone.shape[1]
    assert torch.equal(found[1:, :width], alone)
