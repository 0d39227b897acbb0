"""Matrix products of the training step that have a faster form than torch's own name for them."""

import torch
from torch import Tensor
from torch.nn import functional as F


def affine(addend: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """addend + rows @ weight.T without a graph: (n, in), (out, in) and (n, out) or (out,) -> (n, out)."""
    if rows.device.type == "cpu" and rows.dtype in (torch.bfloat16, torch.float16):
        # In 16 bits a product and a sum are faster as two operations (330 against 230 GFLOP/s on a Zen 5 core).
        return F.linear(rows, weight).add_(addend)
    return torch.addmm(addend, rows, weight.t())


def outer(left: Tensor, right: Tensor, out: Tensor | None = None) -> Tensor:
    """Sum over positions and rows of left x right: (..., L), (..., R) -> (L, R), one product, written to `out`."""
    return torch.mm(left.flatten(0, -2).t(), right.flatten(0, -2), out=out)


__all__ = ["affine", "outer"]
