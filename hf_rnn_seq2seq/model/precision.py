"""Types of numbers, and numbers that a type cannot hold.

Operations that are one autograd node choose their type once, by themselves, which is what autocast asks of them.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn


def compute_dtype(tensor: Tensor) -> torch.dtype:
    """The type of products with `tensor`: autocast's where it is on, else the tensor's own."""
    device = tensor.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return tensor.dtype


def without_autocast(tensor: Tensor) -> AbstractContextManager:
    """A context in which operations on the device of `tensor` keep the types of their inputs."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


class NotFiniteError(ArithmeticError):
    """The weights or the scores of a search are not finite."""


def refuse_nan(doubt: Tensor) -> None:
    """Raises NotFiniteError if `doubt` (), the sum of all scores a search looked at, is nan: read once, behind the loop.

    -inf is the score of a word that may not be said; only +inf and nan make nan of it.
    """
    if bool(doubt.isnan()):
        raise NotFiniteError


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """The first of the named tensors that holds nan or inf, and how many; None where every number is finite."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.is_meta and not bool((finite := torch.isfinite(tensor)).all()):
            count = finite.numel() - int(finite.sum())
            return f"{name}: {count} of its {tensor.numel()} numbers are not finite (nan or inf)"
    return None


def why_not_finite(models: Iterable[nn.Module]) -> str:
    """What to say of scores that are not finite: the tensor they come from and how to mend it."""
    for model in models:
        if found := not_finite(model.state_dict().items()):
            return f"{found}, and so are the scores; load a checkpoint from before, or train again at a lower learning_rate"
        kind = next(model.parameters()).dtype
        if kind == torch.float16:
            return "scores: not finite, although every weight is: float16 overflows here; load in bfloat16 or float32"
    return "scores: not finite, although every weight is; the weights are too large to compute with"


__all__ = ["NotFiniteError", "compute_dtype", "not_finite", "refuse_nan", "why_not_finite", "without_autocast"]
