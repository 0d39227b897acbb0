"""The fused scan: equal to the time loop; with hooks, checkpointing and autocast."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from hf_rnn_seq2seq.model.scan import ScanMixer, ScanPlan, attention_scan
from hf_rnn_seq2seq.model.scan_steps import ScanLayer, ScanSource
from tests.helpers.models import batch, tiny_model

BEFORE = {"attention_order": "before_cell"}
CELLS: dict[str, dict[str, Any]] = {
    "lstm": {},
    "gru": {"cell_type": "gru"},
    "gru, reset before": {"cell_type": "gru", "gru_reset": "before"},
}
SCORES: dict[str, dict[str, Any]] = {
    "general": {},
    "scaled_dot": {"attention_type": "scaled_dot"},
    "concat": {"attention_type": "concat"},
    "normed_additive": {"attention_type": "normed_additive"},
    "two heads": {"attention_type": "multi_head", "num_attention_heads": 2, "attention_size": 6},
    "window": {"attention_type": "window", "window_components": 2},
}
STACKS: dict[str, dict[str, Any]] = {
    "one": {},
    "bottom of two": {"decoder_layers": 2, "attention_layer": "bottom"},
    "three": {"decoder_layers": 3},
    "three, residual": {"decoder_layers": 3, "residual_start": 2},
}
ORDERS: dict[str, dict[str, Any]] = {
    "fed vector": {},
    "fed vector with the word": {"readout_embedding": True},
    "fed context": {"readout": "linear"},
    "before": BEFORE,
    "before, all layers": BEFORE | {"context_layers": "all"},
    "before, all layers, skips": BEFORE | {"context_layers": "all", "skip_connections": True},
    "fed context, skips": {"readout": "linear", "skip_connections": True},
}
DROPOUTS: dict[str, dict[str, Any]] = {
    "": {},
    "dropout": {"dropout": 0.3, "recurrent_dropout": 0.2, "weight_drop": 0.3},
    "variational": {"dropout": 0.3, "variational_dropout": True},
}


def cases() -> dict[str, dict[str, Any]]:
    """Every pair of values of two axes is in some case, since the axes advance by different steps."""
    axes = [CELLS, SCORES, STACKS, ORDERS, DROPOUTS]
    found = {}
    for first, second in itertools.combinations(range(len(axes)), 2):
        pairs = itertools.product(axes[first], axes[second])
        for turn, (one, two) in enumerate(pairs):
            names = [list(axis)[(turn + number) % len(axis)] for number, axis in enumerate(axes)]
            names[first], names[second] = one, two
            chosen = [axis[name] for axis, name in zip(axes, names, strict=True)]
            found[" | ".join(names)] = {key: value for options in chosen for key, value in options.items()}
    return found


CASES = cases()


def objective(output: Any) -> Tensor:
    """A number that depends on logits, every layer's states and weights, at each position with another factor."""
    read = [output.logits, *output.decoder_hidden_states, *output.cross_attentions]
    return output.loss + sum((part * torch.arange(part.numel()).view_as(part).sin()).sum() for part in read)


def outputs_and_gradients(options: dict[str, Any], path: str) -> tuple[list[Tensor], dict[str, Tensor]]:
    model = tiny_model(**options, decoder_recurrence=path).train()
    torch.manual_seed(1)
    actual = model(**batch(), skip_logits=False, output_hidden_states=True, output_attentions=True)
    objective(actual).backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}
    return [actual.loss, actual.logits, *actual.decoder_hidden_states, *actual.cross_attentions], gradients


@pytest.mark.thinned(2)
@pytest.mark.parametrize("case", CASES)
def test_the_scan_equals_the_loop(case: str) -> None:
    """Outputs, attention weights and the gradient of every parameter, with the same dropout masks."""
    found, gradients = outputs_and_gradients(CASES[case], "scan")
    expected, known = outputs_and_gradients(CASES[case], "loop")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(gradients, known)


def test_every_pair_of_options_is_compared() -> None:
    axes = [CELLS, SCORES, STACKS, ORDERS, DROPOUTS]
    seen = [case.split(" | ") for case in CASES]
    for first, second in itertools.combinations(range(len(axes)), 2):
        pairs = {(names[first], names[second]) for names in seen}
        assert pairs == set(itertools.product(axes[first], axes[second]))


def scan_inputs(cell: str, form: str, before: bool, layers: int) -> tuple[list[Tensor | None], ScanPlan]:
    """Random inputs of a scan: two positions, two rows (of which one sees a single word), three units."""
    generator = torch.Generator().manual_seed(0)
    steps, rows, source, size, extra, heads = 2, 2, 3, 3, 2, 2 if form == "heads" else 1
    gates = size * (4 if cell == "lstm" else 3)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    def layer(number: int) -> ScanLayer:
        width = (size if number else extra) + size
        return ScanLayer(
            draw(rows, size),
            draw(rows, size) if cell == "lstm" else None,
            draw(gates, width),
            draw(gates) if number else None,
            draw(gates) if cell == "gru" else None,
            None if number else draw(steps, rows, gates),
            torch.tensor([[0.0, 1.25, 1.25]] * rows, dtype=torch.float64),
            torch.tensor([[[2.0, 0.0, 2.0]] * rows] * steps, dtype=torch.float64) if number else None,
        )

    score = {
        "dot": (draw(rows, source, size), draw(rows, source, extra), None, None, None, None),
        "additive": (draw(rows, source, 4), draw(rows, source, extra), draw(4, size), draw(4), None, None),
        "heads": (draw(rows * heads, source, 2), draw(rows * heads, source, 3), draw(4, size), None, None, None),
        "window": (
            torch.zeros(rows, source, 1).double(),
            draw(rows, source, extra),
            draw(6, size),
            None,
            draw(6),
            draw(rows, 2),
        ),
    }[form]
    mixed = draw(extra, 6) if form == "heads" else None
    after = (draw(rows, extra), mixed, draw(extra, size), draw(steps, rows, extra))
    mixer = (None, mixed, None, None) if before else after
    tensors = [*score, *mixer, *itertools.chain(*(layer(number) for number in range(layers)))]
    mask = torch.tensor([[True, True, True], [False, True, False]])
    residual = tuple(number == 1 for number in range(layers))
    return tensors, ScanPlan(cell, mask, before, residual, (True,) + (False,) * (layers - 1))


def scan(plan: ScanPlan, tensors: list[Tensor | None]) -> list[Tensor]:
    source, mixer, width = ScanSource(*tensors[:6]), ScanMixer(*tensors[6:10]), len(ScanLayer._fields)
    layers = [ScanLayer(*tensors[start : start + width]) for start in range(10, len(tensors), width)]
    done = attention_scan(layers, source, mixer, plan)
    return [done.extra, done.weights, *done.hidden, *done.cells, *([] if done.state is None else [done.state])]


@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("form", ["dot", "additive", "heads", "window"])
@pytest.mark.parametrize("cell", ["lstm", "gru", "gru_reset_before"])
def test_gradcheck(cell: str, form: str, before: bool) -> None:
    """Analytic against numerical gradients in float64, of every input of two layers at once."""
    tensors, plan = scan_inputs(cell, form, before, layers=2)
    places = [place for place, tensor in enumerate(tensors) if tensor is not None and tensor.requires_grad]

    def function(*given: Tensor) -> tuple[Tensor, ...]:
        filled = list(tensors)
        for place, tensor in zip(places, given, strict=True):
            filled[place] = tensor
        return tuple(scan(plan, filled))

    assert torch.autograd.gradcheck(function, [tensors[place] for place in places], fast_mode=True)


def test_the_scan_reads_nothing_in_a_row_without_allowed_words() -> None:
    tensors, plan = scan_inputs("lstm", "dot", before=True, layers=1)
    mask = torch.tensor([[True, True, True], [False, False, False]])
    extra, weights, *_ = scan(plan._replace(mask=mask), tensors)
    assert not extra[:, 1].any() and not weights[:, 1].any() and weights[:, 0].all()


def test_exponents_of_a_window_have_no_gradient_above_their_bound() -> None:
    """As in the loop, whose `clamp` has none there."""
    gradients = {}
    for path in ("scan", "loop"):
        model = tiny_model(**SCORES["window"], decoder_recurrence=path).train()
        bias = model.model.decoder.attention.window_over_source.bias
        with torch.no_grad():
            bias[1] = 12.0
        model(**batch(), output_attentions=True).cross_attentions[0].log1p().sum().backward()
        assert not bias.grad[1] and bias.grad[3]
        gradients[path] = {name: parameter.grad for name, parameter in model.named_parameters()}
    torch.testing.assert_close(gradients["scan"], gradients["loop"])


def test_saved_tensor_hooks_see_every_saved_tensor() -> None:
    """Offloading and checkpointing rely on it: no tensor of the size of all positions is hidden from them."""
    tensors, plan = scan_inputs("lstm", "additive", before=True, layers=2)
    packed: list[Tensor] = []
    with saved_tensors_hooks(lambda tensor: packed.append(tensor) or len(packed) - 1, packed.__getitem__):
        done = scan(plan, tensors)
    node = done[0].grad_fn
    while node.name() != "_ScanBackward":
        node = node.next_functions[0][0]
    hidden = [value for value in vars(node).values() if isinstance(value, Tensor)]
    assert not hidden and sum(tensor.shape[0] >= 2 for tensor in packed) > 8


def test_a_second_backward_pass_gives_the_same() -> None:
    tensors, plan = scan_inputs("lstm", "dot", before=False, layers=1)
    leaves = [tensor for tensor in tensors if tensor is not None and tensor.requires_grad]
    total = sum(part.square().sum() for part in scan(plan, tensors))
    first = torch.autograd.grad(total, leaves, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(total, leaves), first)


@pytest.mark.parametrize("options", [{}, BEFORE | {"attention_type": "additive"}], ids=["after", "before"])
def test_gradient_checkpointing_changes_nothing(options: dict[str, Any]) -> None:
    """Of the encoder's layers, as `activation_checkpointing_enable` does it, and around the whole model."""

    runs: list[int] = []

    def gradients(enabled: bool, whole: bool) -> dict[str, Tensor]:
        model = tiny_model(**options, encoder_layers=2, decoder_recurrence="scan").train()
        model.get_encoder().layers[1].forward_layer.register_forward_hook(lambda *_: runs.append(1))
        if enabled:
            model.activation_checkpointing_enable()
        given = batch()
        loss = checkpoint(lambda: model(**given).loss, use_reentrant=False) if whole else model(**given).loss
        loss.backward()
        return {name: parameter.grad for name, parameter in model.named_parameters()}

    plain = gradients(False, False)
    torch.testing.assert_close(gradients(True, False), plain)
    assert len(runs) == 1 + 2  # forward, and again on the way back
    torch.testing.assert_close(gradients(False, True), plain)


@pytest.mark.parametrize("options", [{}, BEFORE | {"attention_type": "additive", "cell_type": "gru"}, SCORES["window"]])
def test_autocast_computes_in_sixteen_bits_and_stays_near(options: dict[str, Any]) -> None:
    model = tiny_model(**options, dtype=torch.float32, deviation=0.3, decoder_recurrence="scan").train()
    exact = model(**batch())
    exact.loss.backward()
    expected = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        actual = model(**batch(), output_attentions=True)
    actual.loss.backward()
    assert actual.cross_attentions[0].dtype == torch.bfloat16
    torch.testing.assert_close(actual.loss, exact.loss, rtol=0.02, atol=0)
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - expected[name]).norm() <= 0.06 * expected[name].norm() + 1e-3, name
