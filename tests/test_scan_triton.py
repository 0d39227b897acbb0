"""Triton's kernels compute what the eager scan computes. They run in Triton's interpreter here, not on a GPU."""

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.models import batch, tiny_model
from tests.test_scan import BEFORE, outputs_and_gradients, scan, scan_inputs

pytest.importorskip(
    "triton",
    minversion="3.7",
    reason="no triton (it comes with torch for CUDA, or by itself) whose interpreter knows numpy 2.4",
)

CASES: dict[str, dict[str, Any]] = {
    "lstm, general, more than a tile": {"hidden_size": 100, "deviation": 0.2},
    "lstm, additive, before": BEFORE | {"attention_type": "additive"},
    "lstm, two heads, two layers": {
        "attention_type": "multi_head",
        "num_attention_heads": 2,
        "attention_size": 6,
        "decoder_layers": 2,
        "dropout": 0.3,
    },
    "gru, scaled dot": {"cell_type": "gru", "attention_type": "scaled_dot"},
    "gru, concat, recurrent dropout": {"cell_type": "gru", "attention_type": "concat", "recurrent_dropout": 0.2},
    "gru, reset before": BEFORE | {"cell_type": "gru", "gru_reset": "before"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_model_computes_the_same_with_kernels(case: str) -> None:
    """Outputs, attention weights and the gradient of every parameter, with the same dropout masks."""
    options = CASES[case] | {"dtype": torch.float32}
    found, gradients = outputs_and_gradients(options, "triton")
    wanted, known = outputs_and_gradients(options, "scan")
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(gradients, known, rtol=1e-3, atol=1e-4)


def outputs_and_input_gradients(plan: Any, tensors: list[Tensor | None]) -> tuple[list[Tensor], list[Tensor]]:
    inputs = [None if tensor is None else tensor.detach().float() for tensor in tensors]
    leaves = [tensor.requires_grad_() for tensor in inputs if tensor is not None]
    found = scan(plan, inputs)
    total = sum((part * torch.arange(part.numel()).view_as(part).sin()).sum() for part in found)
    return found, torch.autograd.grad(total, leaves, allow_unused=True)


@pytest.mark.parametrize("form", ["dot", "additive", "heads"])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_kernels_are_the_eager_scan(cell: str, form: str) -> None:
    """Whoever calls it: also where a row allows nothing, and the gradient of every input."""
    tensors, plan = scan_inputs(cell, form, before=True, layers=2)
    for mask in (plan.mask, torch.tensor([[True, True, True], [False, False, False]])):
        eager = plan._replace(mask=mask)
        wanted, known = outputs_and_input_gradients(eager, tensors)
        found, gradients = outputs_and_input_gradients(eager._replace(kernels=True), tensors)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(gradients, known, rtol=1e-3, atol=1e-4)
        # The two round differently: so it was the kernels that ran.
        assert any(not torch.equal(left, right) for left, right in zip(found, wanted, strict=True))


def test_without_a_gpu_the_eager_scan_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET")
    eager, asked = (tiny_model(decoder_recurrence=path).float().train() for path in ("scan", "triton"))
    assert torch.equal(eager(**batch()).loss, asked(**batch()).loss)
