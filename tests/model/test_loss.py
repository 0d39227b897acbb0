"""The loss in chunks: value and gradients of torch's cross entropy, without all logits at once."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from hf_rnn_seq2seq.model import loss
from hf_rnn_seq2seq.model.loss import chunked_cross_entropy, output_loss
from tests.helpers.models import batch, tiny_model


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Seven rows of which two have no label, four units, nine words."""
    generator = torch.Generator().manual_seed(0)
    rows, weight, bias = (
        torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for shape in ((7, 4), (9, 4), (9,))
    )
    return rows, weight, bias, torch.tensor([3, -100, 8, 0, 0, -100, 5])


@pytest.mark.parametrize(
    ("size", "smoothing", "biased"), list(itertools.product([1, 3, 7, 100], [0.0, 0.2], [True, False])), ids=str
)
def test_chunks_change_neither_value_nor_gradients(size: int, smoothing: float, biased: bool) -> None:
    rows, weight, bias, labels = inputs()
    leaves = [rows, weight, *([bias] * biased)]
    found = chunked_cross_entropy(rows, weight, bias if biased else None, labels, smoothing, size)
    logits = F.linear(rows, weight, bias if biased else None)
    expected = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)
    torch.testing.assert_close(found, expected)
    known = torch.autograd.grad(3 * expected, leaves)
    torch.testing.assert_close(torch.autograd.grad(3 * found, leaves), known)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("biased", [True, False])
def test_logits_are_widened_some_rows_at_a_time(
    dtype: torch.dtype, biased: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For each type and block, value and gradients are those of the cross entropy of the same logits."""
    rows, weight, bias, labels = inputs()
    leaves = [tensor.detach().to(dtype).requires_grad_() for tensor in (rows, weight, bias)[: 3 if biased else 2]]
    logits = F.linear(*leaves).to(torch.promote_types(dtype, torch.float32))
    expected = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.1)
    known = torch.autograd.grad(expected, leaves)
    near = {torch.bfloat16: {"rtol": 0.02, "atol": 0.02}}.get(dtype, {})
    for block in (1, 2 * len(weight), 10**6):
        monkeypatch.setattr(loss, "BLOCK", block)
        found = chunked_cross_entropy(*leaves, *[None] * (3 - len(leaves)), labels, 0.1, 5)
        torch.testing.assert_close(found, expected, rtol=1e-4 if near else 1e-6, atol=0.01 if near else 1e-6)
        for own, gradient in zip(torch.autograd.grad(found, leaves), known, strict=True):
            torch.testing.assert_close(own, gradient, **near)


def test_gradcheck() -> None:
    rows, weight, bias, labels = inputs()
    assert torch.autograd.gradcheck(lambda *x: chunked_cross_entropy(*x, labels, 0.1, 3), (rows, weight, bias))


@pytest.mark.parametrize("frozen", [0, 1, 2])
def test_gradients_of_frozen_parameters_are_not_computed(frozen: int) -> None:
    *leaves, labels = inputs()
    known = torch.autograd.grad(chunked_cross_entropy(*leaves, labels, 0.1, 3), leaves)
    leaves[frozen].requires_grad_(False)
    total = chunked_cross_entropy(*leaves, labels, 0.1, 3)
    assert [gradient is None for gradient in total.grad_fn.gradients] == [place == frozen for place in range(3)]
    total.backward()
    for place, (leaf, gradient) in enumerate(zip(leaves, known, strict=True)):
        assert leaf.grad is None if place == frozen else torch.equal(leaf.grad, gradient)


def test_logits_become_their_gradient_on_a_cpu() -> None:
    """In training no other tensor of their size is saved for the backward pass or created by it."""
    rows, weight, bias, labels = inputs()
    head = nn.Linear(4, 9).double()
    kept: list[int] = []
    with saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda tensor: tensor):
        total = output_loss(rows[None], head, labels[None], 0.0, budget=2**20)
    assert total.grad_fn.name() == "_ChunkedCrossEntropyBackward" and max(kept) < 5 * 9
    with torch.no_grad():
        torch.testing.assert_close(output_loss(rows[None], head, labels[None], 0.0, budget=2**20), total)


def test_a_second_backward_pass_gives_the_same() -> None:
    rows, weight, bias, labels = inputs()
    total = chunked_cross_entropy(rows, weight, bias, labels, 0.1, 3) * 0.5
    first = [grad.clone() for grad in torch.autograd.grad(total, [rows, weight, bias], retain_graph=True)]
    torch.testing.assert_close(list(torch.autograd.grad(total, [rows, weight, bias])), first)


def test_without_labels_the_loss_is_zero() -> None:
    rows, weight, bias, _ = inputs()
    total = chunked_cross_entropy(rows, weight, bias, torch.full((7,), -100), 0.1, 3)
    total.backward()
    assert total == 0 and not rows.grad.any() and not weight.grad.any() and not bias.grad.any()


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights_sum_their_gradient_in_thirty_two(kind: torch.dtype) -> None:
    rows, weight, bias, labels = inputs(kind)
    total = chunked_cross_entropy(rows, weight, bias, labels, 0.0, 1)
    total.backward()
    assert total.dtype == torch.float32 and weight.grad.dtype == kind
    exact = [part.detach().double().requires_grad_() for part in (rows, weight, bias)]
    F.cross_entropy(F.linear(*exact), labels, reduction="sum").backward()
    for part, wide in zip((rows, weight, bias), exact, strict=True):
        torch.testing.assert_close(part.grad.double(), wide.grad, rtol=0.02, atol=0.02)


def test_autocast_gives_gradients_of_the_weights_own_type() -> None:
    rows, weight, bias, labels = inputs(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        total = chunked_cross_entropy(rows, weight, bias, labels, 0.1, 3)
    total.backward()
    expected = F.cross_entropy(F.linear(rows, weight, bias), labels, reduction="sum", label_smoothing=0.1)
    assert total.dtype == torch.float32 and weight.grad.dtype == torch.float32
    torch.testing.assert_close(total, expected, rtol=0.02, atol=0)


def test_few_numbers_of_rows_where_each_has_products_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN compiles a product for each number of rows; rows are added that count for nothing."""
    seen, plain = [], loss.product
    monkeypatch.setattr(loss, "product", lambda left, *more: seen.append(len(left)) or plain(left, *more))
    head, generator = nn.Linear(4, 9), torch.Generator().manual_seed(0)
    for labeled in (0, 1, 20, 32, 33):
        readout = torch.randn(2, 24, 4, generator=generator).requires_grad_()
        labels = torch.arange(48).remainder(9).masked_fill(torch.arange(48) >= labeled, -100).view(2, 24)
        with torch.autocast("cpu", torch.bfloat16):
            found = output_loss(readout, head, labels, 0.1, 2**20)
        expected = F.cross_entropy(head(readout).flatten(0, 1), labels.flatten(), reduction="sum", label_smoothing=0.1)
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0)
        for own, other in zip(
            *(torch.autograd.grad(one, (readout, *head.parameters())) for one in (found, expected)), strict=True
        ):
            torch.testing.assert_close(own, other, rtol=0.05, atol=0.05)
    assert {count for count in seen if count} == {32, 64}


class Launches(TorchDispatchMode):
    """Counts operations."""

    count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


def test_blocks_are_for_cpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each operation is a kernel launch there: their number depends on the chunks, not on the caches of a CPU."""
    counts = []
    for block in (1, 10**6):
        leaves = [tensor.detach().to("meta").requires_grad_() for tensor in inputs()[:3]]
        monkeypatch.setattr(loss, "BLOCK", block)
        with Launches() as launches:
            chunked_cross_entropy(*leaves, inputs()[3].to("meta"), 0.1, 100).backward()
        counts.append(launches.count)
    assert counts[0] == counts[1]


class Largest(TorchDispatchMode):
    """Records the largest number of rows of 40,000 logits that an operation returns."""

    rows = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.dim() == 2 and made.shape[1] == 40_000:
            self.rows = max(self.rows, made.shape[0])
        return made


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_model_computes_chunks_above_its_budget(smoothing: float) -> None:
    """40,000 words are 160 kB of logits a position: more than a mebibyte for eleven labels, six positions a chunk."""
    known = None
    for megabytes in (512, 1):
        model = tiny_model(vocab_size=40_000, label_smoothing=smoothing, logits_memory_mb=megabytes).float().train()
        with Largest() as seen:
            loss = model(**batch(), skip_logits=True).loss
            loss.backward()
        found = loss.detach(), {name: parameter.grad for name, parameter in model.named_parameters()}
        assert seen.rows == (11 if megabytes == 512 else 6)
        known = known or found
        torch.testing.assert_close(found, known)


def test_a_wrapped_output_layer_is_called() -> None:
    """With an adapter or a hook the layer computes more than the product with its weight."""

    class Doubled(nn.Linear):
        def forward(self, rows: Tensor) -> Tensor:
            return 2 * super().forward(rows)

    rows, weight, bias, labels = inputs()
    for kind, factor in ((Doubled, 2), (nn.Linear, 1)):
        head = kind(4, 9).double()
        head.weight, head.bias = nn.Parameter(weight.detach()), nn.Parameter(bias.detach())
        found = output_loss(rows[None], head, labels[None], 0.0, budget=1)
        logits = factor * F.linear(rows, weight, bias)
        torch.testing.assert_close(found, F.cross_entropy(logits, labels, reduction="sum"))


@pytest.mark.parametrize("options", [{}, {"attention_order": "before_cell", "attention_type": "additive"}])
@pytest.mark.parametrize("megabytes", [1, 512])
def test_a_training_step_reads_nothing_back_from_its_device(options: dict, megabytes: int) -> None:
    """Meta tensors have no values: an operation that waits for one (item, nonzero, a condition on a tensor) raises."""
    sizes = {"vocab_size": 40_000, "decoder_layers": 2, "dropout": 0.1, "label_smoothing": 0.1}
    model = tiny_model(**options, **sizes, logits_memory_mb=megabytes).float().train().to("meta")
    given = {name: tensor.to("meta") for name, tensor in batch().items()}
    model(**given, num_items_in_batch=11).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("fields", [{}, {"copy_mechanism": True}, {"attention_alignment": "monotonic"}], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_label_that_is_no_word_is_refused(fields: dict[str, Any], smoothing: float) -> None:
    """Only -100 is none; -1, the mark of other collators, must not be learned as word 0."""
    model = tiny_model(**fields, label_smoothing=smoothing).train()
    rows = batch()
    model(**rows).loss.backward()
    inputs_of_decoder = model.prepare_decoder_input_ids_from_labels(rows["labels"])
    rows["labels"][0, 0] = -1
    with pytest.raises((IndexError, RuntimeError)):
        model(**rows, decoder_input_ids=inputs_of_decoder).loss.backward()


def test_labels_of_32_bits_count_as_those_of_64() -> None:
    for training in (True, False):
        model, rows = tiny_model().train(training), batch()
        expected = model(**rows).loss
        torch.testing.assert_close(model(**rows | {"labels": rows["labels"].int()}).loss, expected)
