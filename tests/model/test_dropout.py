"""Dropout and zoneout of recurrent weights, states and words: the equations use the drawn masks."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_rnn_seq2seq.model.dropout import drop, drop_words, dropout_mask, zone_out
from tests.helpers.models import tiny_model
from tests.model.test_recurrence import BATCH, HIDDEN, KINDS, LENGTHS, TIME, alone, build, compare


def dropped_weights(layer: Any, seed: int) -> dict[str, Tensor]:
    """The layer's parameters, the recurrent ones as a pass that begins with `seed` drops them."""
    torch.manual_seed(seed)
    cut = layer.step_weights()
    weights = layer.state_dict(keep_vars=True) | {"kernel.weight_hh_l0": cut.recurrent}
    return weights | {f"transitions.{number}.recurrent.weight": weight for number, weight in enumerate(cut.later)}


@pytest.mark.parametrize("kind", KINDS)
def test_weight_drop_has_one_mask_for_a_pass(kind: str) -> None:
    """In the kernels and in the loop, with gradients; recurrent weights only; not in evaluation."""
    layer, inputs, state = build(kind, weight_drop=0.4)
    weights = dropped_weights(layer, 5)
    for name, own in layer.named_parameters():
        if name.endswith(("weight_hh_l0", "recurrent.weight")):
            shares = (weights[name] / own).detach()
            assert 0.2 < float((shares == 0).double().mean()) < 0.6
            torch.testing.assert_close(shares[shares != 0], torch.full_like(shares[shares != 0], 1 / 0.6))
        else:
            assert weights[name] is own
    expected = alone(layer, kind, inputs, state, weights=weights)
    torch.manual_seed(5)
    compare(layer, *layer(inputs, state, lengths=LENGTHS), expected, [inputs, *state])
    torch.manual_seed(5)
    looped = layer(inputs, state, hold=torch.zeros(BATCH, TIME, dtype=torch.bool))
    torch.manual_seed(5)
    torch.testing.assert_close(layer(inputs, state), looped)
    layer.eval()
    expected = alone(layer, kind, inputs, state)
    compare(layer, *layer(inputs, state, lengths=LENGTHS), expected, [inputs, *state])


def test_zoneout_by_hand() -> None:
    """Krueger 2016, equations 3 and 4, of two units: the cell at 1/2 and h at 1/4 in evaluation; drawn in training."""
    before = (torch.tensor([[4.0, 8.0]]), torch.tensor([[2.0, 6.0]]))
    after = (torch.tensor([[0.0, 4.0]]), torch.tensor([[4.0, 2.0]]))
    mixed = zone_out((0.25, 0.5), before, after)
    assert [part.tolist() for part in mixed] == [[[1.0, 5.0]], [[3.0, 4.0]]]
    masks = (torch.tensor([[True, False]]), torch.tensor([[False, True]]))
    drawn = zone_out((0.25, 0.5), before, after, masks)
    assert [part.tolist() for part in drawn] == [[[4.0, 4.0]], [[4.0, 6.0]]]


@pytest.mark.parametrize("kind", KINDS)
def test_zoneout_keeps_units_in_training_and_their_share_in_evaluation(kind: str) -> None:
    fields: dict[str, Any] = {"zoneout": 0.3}
    if KINDS[kind]["cell_type"] == "lstm":
        fields["zoneout_cell"] = 0.6
    layer, inputs, state = build(kind, zoneout=tuple(fields.values()))
    torch.manual_seed(5)
    still = layer.zoneout_masks(inputs, TIME)
    assert [part.shape for part in still[0]] == [(BATCH, HIDDEN)] * len(state)
    torch.manual_seed(5)
    outputs, ends = layer(inputs, state, lengths=LENGTHS)
    compare(layer, outputs, ends, alone(layer, kind, inputs, state, still=still), [inputs, *state])
    kept = torch.stack([masks[0] for masks in still], 1)
    old = torch.cat([state[0].unsqueeze(1), outputs[:, :-1]], 1)
    assert torch.equal(outputs[kept], old[kept]) and not torch.equal(outputs[~kept], old[~kept])
    layer.eval()
    assert layer.zoneout_masks(inputs, TIME) == [None] * TIME
    outputs, ends = layer(inputs, state, lengths=LENGTHS)
    compare(layer, outputs, ends, alone(layer, kind, inputs, state, **fields), [inputs, *state])


def test_zoneout_draws_each_position_sentence_and_tensor_independently() -> None:
    layer, inputs, _ = build("lstm", zoneout=(0.05, 0.5))
    drawn = layer.zoneout_masks(inputs[:1].expand(60, -1, -1), 50)
    masks = [torch.stack(parts).double() for parts in zip(*drawn, strict=True)]
    for mask, rate in zip(masks, (0.05, 0.5), strict=True):
        assert mask.shape == (50, 60, HIDDEN) and abs(float(mask.mean()) - rate) < 0.02
        for axis in range(3):
            assert mask.unique(dim=axis).shape[axis] > 1


@pytest.mark.parametrize(
    "options",
    [{}, {"cell_type": "gru", "input_feeding": False}, {"attention_layer": "bottom", "decoder_layers": 2}],
    ids=str,
)
def test_the_whole_model_zones_out(options: dict[str, Any]) -> None:
    """At a rate of almost 1 the state stays at its start, in training and in evaluation."""
    model = tiny_model(**options, zoneout=1 - 1e-12, bridge="zero")
    words = torch.randint(3, 10, (4, 5))
    for _ in range(2):
        actual = model(input_ids=words, decoder_input_ids=words, output_hidden_states=True)
        for states in (*actual.encoder_hidden_states[1:], *actual.decoder_hidden_states[1:]):
            torch.testing.assert_close(states, torch.zeros_like(states), atol=1e-9, rtol=0)
        model.train()


def test_a_dropout_mask_has_its_rate_and_independent_units() -> None:
    torch.manual_seed(0)
    mask = dropout_mask(torch.empty(1001, 503, dtype=torch.float64), 0.3).flatten()
    assert torch.equal(mask.unique(), torch.tensor([0.0, 1 / 0.7], dtype=torch.float64))
    gone = (mask == 0).double()
    assert abs(float(gone.mean()) - 0.3) < 0.003
    # Four units share a random number of 64 bits: neighbors at every distance are unrelated.
    for distance in range(1, 9):
        together = float((gone[distance:] * gone[:-distance]).mean())
        assert abs(together - 0.09) < 0.003
    torch.manual_seed(0)
    assert torch.equal(dropout_mask(torch.empty(1001, 503, dtype=torch.float64), 0.3).flatten(), mask)


@pytest.mark.parametrize("probability", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("shape", [(), (1,), (3, 0), (2, 3, 5)])
def test_a_mask_of_any_shape_and_probability(shape: tuple[int, ...], probability: float) -> None:
    mask = dropout_mask(torch.empty(shape, dtype=torch.bfloat16), probability)
    assert mask.shape == shape and mask.dtype == torch.bfloat16 and not mask.requires_grad
    assert mask.isfinite().all() and (probability != 1e-9 or bool((mask == 1).all()))


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # tracing is deprecated, and works
def test_a_mask_can_be_traced() -> None:
    traced = torch.jit.trace(lambda x: drop(x, 0.5, True, False), torch.ones(2, 3, 4), check_trace=False)
    assert set(traced(torch.ones(2, 3, 4)).unique().tolist()) <= {0.0, 2.0}


WORDS = torch.tensor([[5, 6, 5, 7, 5, 6], [6, 6, 5, 5, 8, 9], [5, 6, 5, 7, 5, 6]])


def test_words_are_dropped_by_type_or_by_token() -> None:
    """By type: all occurrences in a sentence or none, each sentence independently; a kept word is scaled."""
    torch.manual_seed(0)
    ids = WORDS.repeat(300, 1)
    by_type = drop_words(torch.ones(900, 6, 2), 0.3, True, ids)
    by_token = drop_words(torch.ones(900, 6, 2), 0.3, True)
    torch.testing.assert_close(by_type.unique(), torch.tensor([0.0, 1 / 0.7]))
    alike = ids.unsqueeze(2) == ids.unsqueeze(1)
    for dropped, whole in ((by_type, True), (by_token, False)):
        assert torch.equal(dropped[..., 0], dropped[..., 1])
        gone = dropped[..., 0] == 0
        assert bool((gone.unsqueeze(2) == gone.unsqueeze(1))[alike].all()) == whole
        assert abs(float(gone.double().mean()) - 0.3) < 0.03
        # Two sentences of the same words lose different ones, and two words of a sentence are drawn apart.
        assert (gone[::3] != gone[2::3]).any() and (gone[:, 0] != gone[:, 1]).any()


def test_by_type_on_both_sides_of_a_model() -> None:
    model = tiny_model(word_dropout=0.5, word_dropout_unit="type", embedding_size=6).train()
    torch.manual_seed(0)
    words = torch.randint(3, 7, (12, 9))
    actual = model(input_ids=words, decoder_input_ids=words, output_hidden_states=True)
    alike = words.unsqueeze(2) == words.unsqueeze(1)
    for vectors in (actual.encoder_hidden_states[0], actual.decoder_hidden_states[0]):
        gone = (vectors == 0).all(-1)
        assert (gone.unsqueeze(2) == gone.unsqueeze(1))[alike].all() and 0.2 < float(gone.double().mean()) < 0.8


def test_by_type_needs_the_words() -> None:
    model = tiny_model(word_dropout=0.5, word_dropout_unit="type")
    vectors = torch.zeros(2, 3, 5, dtype=torch.float64)
    model.get_encoder()(inputs_embeds=vectors)
    model.train()
    with pytest.raises(ValueError, match="inputs_embeds: word_dropout_unit='type' needs input_ids in training"):
        model.get_encoder()(inputs_embeds=vectors)
