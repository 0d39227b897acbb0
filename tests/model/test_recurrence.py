"""A single recurrent layer: each path computes the equation, and a dropout mask is the same for a whole sentence."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_rnn_seq2seq.model.recurrence import RecurrentLayer
from tests.helpers import references
from tests.helpers.models import randomize, tiny_config

INPUTS, HIDDEN, BATCH, TIME = 3, 4, 3, 5
LENGTHS = torch.tensor([5, 2, 4])
KINDS: dict[str, dict[str, Any]] = {
    "lstm": {"cell_type": "lstm"},
    "gru": {"cell_type": "gru"},
    "tanh": {"cell_type": "rnn_tanh"},
    "relu": {"cell_type": "rnn_relu"},
    "gru, reset before": {"cell_type": "gru", "gru_reset": "before"},
    "lstm, normalized": {"cell_type": "lstm", "layer_norm": True},
    "gru, normalized": {"cell_type": "gru", "layer_norm": True},
    "gru, reset before, normalized": {"cell_type": "gru", "gru_reset": "before", "layer_norm": True},
    "tanh, normalized": {"cell_type": "rnn_tanh", "layer_norm": True},
    "lstm, deep": {"cell_type": "lstm", "transition_depth": 3},
    "gru, deep, normalized": {"cell_type": "gru", "transition_depth": 2, "layer_norm": True},
}


def build(kind: str, **options: Any) -> tuple[RecurrentLayer, Tensor, tuple[Tensor, ...]]:
    """A layer, what it reads (batch, time, inputs), and a state that is not zero."""
    layer = RecurrentLayer(input_size=INPUTS, hidden_size=HIDDEN, **KINDS[kind], **options).double()
    randomize(layer)
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(BATCH, TIME, INPUTS, generator=generator, dtype=torch.float64, requires_grad=True)
    parts = 2 if KINDS[kind]["cell_type"] == "lstm" else 1
    state = torch.randn(parts, BATCH, HIDDEN, generator=generator, dtype=torch.float64, requires_grad=True)
    return layer, inputs, tuple(state.unbind())


def alone(
    layer: RecurrentLayer,
    kind: str,
    inputs: Tensor,
    state: tuple[Tensor, ...],
    keep: Tensor | None = None,
    weights: dict[str, Tensor] | None = None,
    still: list[tuple[Tensor, ...]] | None = None,
    **fields: Any,
) -> list[list[tuple[Tensor, ...]]]:
    """Per row, the state after each of its real positions, by the reference.

    `weights` stand for the layer's own, `still` (per position, each batch first) says what does not move, `fields` are
    the config's.
    """
    options = {name: value for name, value in KINDS[kind].items() if name != "transition_depth"}
    config = tiny_config(**options, **fields)
    weights = weights or layer.state_dict(keep_vars=True)
    return [
        references.layer(
            config,
            weights,
            list(inputs[row, : LENGTHS[row]]),
            tuple(part[row] for part in state),
            None if keep is None else keep[row],
            None if still is None else [tuple(part[row].double() for part in masks) for masks in still],
        )
        for row in range(BATCH)
    ]


def compare(
    layer: RecurrentLayer, outputs: Tensor, ends: tuple[Tensor, ...], expected: list, read: list[Tensor]
) -> None:
    """Outputs at real positions, states at each row's end, and the gradients of both."""
    found = [outputs[row, : LENGTHS[row]] for row in range(BATCH)]
    known = [torch.stack([state[0] for state in states]) for states in expected]
    torch.testing.assert_close(found, known)
    known_ends = [torch.stack([states[-1][part] for states in expected]) for part in range(len(ends))]
    torch.testing.assert_close(list(ends), known_ends)
    gradients = []
    for tensors in ([*found, *ends], [*known, *known_ends]):
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        value = (flat * torch.arange(len(flat), dtype=flat.dtype).cos()).sum()
        gradients.append(torch.autograd.grad(value, [*layer.parameters(), *read], allow_unused=True))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", KINDS)
def test_ragged_rows_equal_the_equation(kind: str) -> None:
    layer, inputs, state = build(kind)
    outputs, ends = layer(inputs, state, lengths=LENGTHS)
    compare(layer, outputs, ends, alone(layer, kind, inputs, state), [inputs, *state])


@pytest.mark.parametrize("kind", ["lstm", "gru", "relu", "lstm, deep", "gru, reset before"])
def test_held_positions_keep_the_state(kind: str) -> None:
    """Positions that are padding, at the left end or in the middle, leave the state as it was."""
    layer, inputs, state = build(kind)
    hold = torch.zeros(BATCH, 8, dtype=torch.bool)
    spread = torch.full((BATCH, 8, INPUTS), 9.0, dtype=torch.float64)
    places = [[0, 1, 4, 5, 7], [3, 6], [2, 3, 4, 5]]
    for row, real in enumerate(places):
        hold[row] = True
        hold[row, real] = False
        spread[row, real] = inputs[row, : len(real)]
    outputs, ends = layer(spread, state, hold=hold)
    gathered = inputs.new_zeros(BATCH, TIME, HIDDEN)
    for row, real in enumerate(places):
        gathered[row, : len(real)] = outputs[row, real]
    compare(layer, gathered, ends, alone(layer, kind, inputs, state), [inputs, *state])


def test_the_default_state_is_zero() -> None:
    layer, inputs, state = build("lstm")
    zeros = tuple(torch.zeros_like(part) for part in state)
    torch.testing.assert_close(layer(inputs), layer(inputs, zeros))
    assert [part.shape for part in layer.zero_state(inputs)] == [(BATCH, HIDDEN)] * 2


@pytest.mark.parametrize("kind", ["lstm", "gru", "relu", "gru, reset before", "lstm, normalized"])
def test_recurrent_dropout_drops_the_same_for_a_whole_sentence(kind: str) -> None:
    layer, inputs, state = build(kind, recurrent_dropout=0.4)
    torch.manual_seed(5)
    keep = layer.recurrent_mask(inputs)
    assert set(keep.unique().tolist()) == {0.0, 1 / 0.6} and keep.shape == (BATCH, HIDDEN)
    assert len(keep.unique(dim=0)) > 1  # each sentence has its own
    torch.manual_seed(5)
    outputs, ends = layer(inputs, state, lengths=LENGTHS)
    compare(layer, outputs, ends, alone(layer, kind, inputs, state, keep), [inputs, *state])
    layer.eval()
    assert layer.recurrent_mask(inputs) is None
    torch.testing.assert_close(layer(inputs, state), layer(inputs, state))


@pytest.mark.parametrize("kind", ["lstm", "gru", "tanh", "relu"])
def test_the_kernel_and_the_loop_agree_in_float32_and_bfloat16(kind: str) -> None:
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.08)):
        layer, inputs, state = build(kind)
        layer, inputs = layer.to(dtype), inputs.to(dtype)
        state = tuple(part.to(dtype) for part in state)
        fused, loop = layer(inputs, state), layer(inputs, state, hold=torch.zeros(BATCH, TIME, dtype=torch.bool))
        torch.testing.assert_close(fused, loop, atol=tolerance, rtol=tolerance)
        ragged = layer(inputs, state, lengths=LENGTHS)
        assert ragged[0].dtype == dtype
        for row, length in enumerate(LENGTHS):
            end = layer(inputs[row : row + 1, :length], tuple(part[row : row + 1] for part in state))[1]
            here = tuple(part[row : row + 1] for part in ragged[1])
            torch.testing.assert_close(here, end, atol=tolerance, rtol=tolerance)


def test_values_at_padding_have_no_effect() -> None:
    """Values after a row's end affect neither its states nor any gradient."""
    layer, inputs, state = build("lstm")
    actual = []
    for filler in (0.0, 1e4):
        given = inputs.detach().clone()
        for row, length in enumerate(LENGTHS):
            given[row, length:] = filler
        given.requires_grad_()
        outputs, ends = layer(given, state, lengths=LENGTHS)
        value = sum(part.sum() for part in ends) + sum(outputs[row, :n].sum() for row, n in enumerate(LENGTHS))
        actual.append((ends, torch.autograd.grad(value, [*layer.parameters(), given])))
    torch.testing.assert_close(*actual)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_the_kernel_reads_its_state_from_one_piece_of_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN refuses another ("rnn: hx is not contiguous"); the CPU's kernels take it."""
    layer, inputs, state = build(kind)
    wide = tuple(torch.stack([part, part], 1)[:, 0] for part in state)
    assert not any(part.is_contiguous() for part in wide)
    seen: list[Tensor] = []
    name = KINDS[kind]["cell_type"]
    kernel = getattr(torch.nn.modules.rnn._VF, name)

    def watched(inputs: Tensor, hx: Any, *rest: Any) -> Any:
        seen.extend([hx] if isinstance(hx, Tensor) else hx)
        return kernel(inputs, hx, *rest)

    monkeypatch.setattr(torch.nn.modules.rnn._VF, name, watched, raising=False)
    layer(inputs, wide)
    assert seen and all(part.is_contiguous() for part in seen)


@pytest.mark.parametrize("grad", [True, False])
def test_autocast_runs_the_lstm_kernel_on_every_processor(grad):
    # torch's own LSTM raises under bfloat16 autocast on a CPU without AVX512.
    layer = RecurrentLayer("lstm", 5, 7)
    inputs, lengths = torch.randn(3, 4, 5), torch.tensor([4, 2, 3])
    with torch.set_grad_enabled(grad):
        expected, _ = layer(inputs, lengths=lengths)
        with torch.autocast("cpu", torch.bfloat16):
            outputs, (_, cell) = layer(inputs, lengths=lengths)
            again, _ = layer(inputs.bfloat16(), (outputs[:, 0].bfloat16(), cell.bfloat16()))
    torch.testing.assert_close(outputs[0].float(), expected[0], rtol=0.05, atol=0.02)
    assert torch.isfinite(again.float()).all()
