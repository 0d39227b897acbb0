"""Matrix products of the training step, each by the library that makes it fastest on this processor.

torch multiplies float32 matrices on a CPU with MKL, which runs its AVX2 code on processors that are not Intel's. oneDNN,
which torch carries too, generates AVX512 code for all: on one Zen 5 core it takes 0.45 to 0.55 of MKL's time for most
products of a training step. But some layouts, which input feeding meets, it computes by plain loops, a hundred times
slower; so it is taken only where the environment says `RNN_SEQ2SEQ_ONEDNN=1`. In bfloat16 a product and a sum are
faster as two operations (330 against 230 GFLOP/s). Everywhere else these functions are torch's own.
"""

import os
import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Multiplications and rows below which the two libraries take the same time, or MKL less.
_SMALLEST, _FEWEST_ROWS = 2**20, 4


@lru_cache
def onednn_is_faster() -> bool:
    """Whether float32 products on the CPU go through oneDNN: asked for, on an AVX512 processor of another maker than MKL's."""
    if os.environ.get("RNN_SEQ2SEQ_ONEDNN") != "1":
        return False
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512" or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    try:
        maker = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:400]
    except OSError:
        maker = platform.processor()
    return "AuthenticAMD" in maker


def _by_onednn(rows: Tensor, weight: Tensor) -> bool:
    # What records operations for another place must find those that other places have; and its sizes are left free, so
    # nothing may depend on how large they are.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if rows.dtype != torch.float32 or rows.device.type != "cpu" or weight.dtype != torch.float32:
        return False
    count = rows.numel()
    return not (count * weight.shape[0] < _SMALLEST or count < _FEWEST_ROWS * weight.shape[1]) and onednn_is_faster()


def affine(addend: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """addend + rows @ weight.T without a graph: (n, in), (out, in) and (n, out) or (out,) -> (n, out)."""
    if _by_onednn(rows, weight):
        if addend.dim() == 1:
            return _onednn(rows, weight, addend)
        return _onednn(rows, weight).add_(addend)
    if rows.device.type == "cpu" and rows.dtype in (torch.bfloat16, torch.float16):
        return F.linear(rows, weight).add_(addend)
    return torch.addmm(addend, rows, weight.t())


def product(left: Tensor, right: Tensor) -> Tensor:
    """left @ right without a graph: (n, k), (k, m) -> (n, m)."""
    if _by_onednn(left, right.t()):
        return _onednn(left, right.t())
    return torch.mm(left, right)


def outer(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Sum over positions and rows of left x right: (..., L), (..., R) -> (L, R), one product, written to `out`."""
    left, right = left.flatten(0, -2), right.flatten(0, -2)
    if _by_onednn(left.t(), right.t()):
        found = _onednn(left.t(), right.t())
        return found if out is None else out.copy_(found)
    return torch.mm(left.t(), right, out=out)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` with a graph: (..., in), (out, in), (out,) -> (..., out)."""
    if not _by_onednn(rows, weight) or torch.is_autocast_enabled("cpu"):
        return F.linear(rows, weight, bias)
    if torch.is_grad_enabled():
        return _Linear.apply(rows, weight, bias)
    return _onednn(rows, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` with the faster product."""

    def forward(self, rows: Tensor) -> Tensor:
        return linear(rows, self.weight, self.bias)


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.biased = bias is not None
        return _onednn(rows, weight, bias)

    @staticmethod
    def backward(ctx: Any, d_result: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        wanted, flat = ctx.needs_input_grad, d_result.flatten(0, -2)
        d_bias = flat.sum(0) if wanted[2] and ctx.biased else None
        if torch.is_grad_enabled():  # a gradient of the gradient is asked for: torch's own products have one
            return d_result @ weight, flat.t() @ rows.flatten(0, -2), d_bias
        d_rows = product(flat, weight).view_as(rows) if wanted[0] else None
        return d_rows, outer(flat, rows) if wanted[1] else None, d_bias


__all__ = ["Linear", "affine", "linear", "onednn_is_faster", "outer", "product"]
