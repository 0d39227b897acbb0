"""Matrix products by the faster of two libraries of torch, and the type of products under autocast.

torch multiplies float32 matrices on a CPU with MKL, which runs its AVX2 code on processors that are not Intel's. oneDNN,
which torch includes too, generates AVX512 code for all of them: on a Zen 5 core it takes 0.4 to 0.6 of MKL's time for the
products of a training step, and 0.2 to 0.6 for those of decoding, whose weights can be packed once. It has no fast code
for a weight with strided rows (a thousand times slower): torch computes such a product. In bfloat16 a product and a sum
are faster as two operations (330 against 230 GFLOP/s). In all other cases these functions are torch's own.

The choice depends on the processor and on the sizes only, so that a run repeats bit for bit.
"""

import platform
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional as F

# Below these numbers of multiplications, terms of a sum or rows MKL takes the same time or less.
SMALLEST, FEWEST_TERMS, FEWEST_ROWS = 2**20, 16, 4
SMALLEST_PACKED = 2**16  # elements of a weight


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The type of products with `tensor`: autocast's if it is on, else the tensor's own."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """A context in which operations on the device of `tensor` keep the types of their inputs."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


@lru_cache
def onednn_is_faster() -> bool:
    """Whether float32 products on the CPU go through oneDNN: an AVX512 processor of another maker than MKL's."""
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):
        return False
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    if not all(hasattr(torch.ops.mkldnn, name) for name in ("_linear_pointwise", "_reorder_linear_weight")):
        return False
    try:
        maker = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")[:400]
    except OSError:
        maker = platform.processor()
    return "AuthenticAMD" in maker


def compiles_products(rows: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN compiles the product of these rows, anew for each number: 7 ms for one with a vocabulary."""
    if rows.device.type == "cpu" and compute_dtype(rows) in (torch.bfloat16, torch.float16):
        return True
    return _by_onednn(rows, weight)


def _by_onednn(rows: Tensor, weight: Tensor) -> bool:
    # An exported graph must use operations that exist elsewhere, and must not depend on sizes.
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return False
    if not _is_float32_on_cpu(rows) or weight.dtype != torch.float32:
        return False
    outputs, terms = weight.shape
    count = rows.numel()
    if terms < FEWEST_TERMS or count < FEWEST_ROWS * terms or count * outputs < SMALLEST:
        return False
    return (weight.is_contiguous() or weight.t().is_contiguous()) and onednn_is_faster()


def _is_float32_on_cpu(tensor: Tensor) -> bool:
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _onednn(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")


def affine(addend: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """addend + rows @ weight.T without a graph: (n, in), (out, in) and (n, out) or (out,) -> (n, out)."""
    if _by_onednn(rows, weight):
        return _onednn(rows, weight, addend) if addend.dim() == 1 else _onednn(rows, weight).add_(addend)
    if rows.device.type == "cpu" and rows.dtype in (torch.bfloat16, torch.float16):
        return F.linear(rows, weight).add_(addend)
    return torch.addmm(addend, rows, weight.t())


def product(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """left @ right without a graph: (n, k), (k, m) -> (n, m), written to `out`."""
    if _by_onednn(left, right.t()):
        result = _onednn(left, right.t())
        return result if out is None else out.copy_(result)
    return torch.mm(left, right, out=out)


def outer(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Sum over positions and rows of left x right: (..., L), (..., R) -> (L, R), one product, written to `out`."""
    left, right = left.flatten(0, -2), right.flatten(0, -2)
    turned = out is None and len(left) * left.shape[1] > right.numel() + left.shape[1] * right.shape[1]
    if turned and _by_onednn(right.t(), left.t()):
        # oneDNN copies its left matrix into row order; here the transposed product and its copy are smaller.
        return _onednn(right.t(), left.t()).t().contiguous()
    return product(left.t(), right, out)


def linear(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.linear` with a graph: (..., in), (out, in), (out,) -> (..., out)."""
    if not _by_onednn(rows, weight) or torch.is_autocast_enabled("cpu"):
        return F.linear(rows, weight, bias)
    return _Linear.apply(rows, weight, bias)


class Linear(nn.Linear):
    """`nn.Linear` with the faster product."""

    def forward(self, rows: Tensor) -> Tensor:
        return linear(rows, self.weight, self.bias)


LINEAR = (nn.Linear, Linear)  # modules that are defined by their weight and bias


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _onednn(rows, weight, bias)

    @staticmethod
    def backward(ctx: FunctionCtx, d_result: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight = ctx.saved_tensors
        needed, flat = ctx.needs_input_grad, d_result.flatten(0, -2)
        d_bias = flat.sum(0) if needed[2] else None
        if torch.is_grad_enabled():  # for a second derivative: torch's own products have one
            return d_result @ weight, flat.t() @ rows.flatten(0, -2), d_bias
        d_rows = product(flat, weight).view_as(rows) if needed[0] else None
        return d_rows, outer(flat, rows) if needed[1] else None, d_bias


class PackedProduct:
    """x W^T + b without a graph for a constant weight: oneDNN reads a copy in its own order.

    Args:
        weight: (out, in), float32 on the CPU.
        bias: (out,) or None.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        # The number of rows is a hint; 16 is fast for one row and for many.
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, 16)
        self.bias = bias

    def __call__(self, rows: Tensor) -> Tensor:
        return _onednn(rows, self.weight, self.bias)


def packs(weight: Tensor) -> bool:
    """Whether `PackedProduct` is faster for a weight (out, in)."""
    return weight.numel() >= SMALLEST_PACKED and _is_float32_on_cpu(weight) and onednn_is_faster()
