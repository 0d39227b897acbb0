"""Finds numbers that are not finite (nan or inf) in weights and scores."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class NotFiniteError(ArithmeticError):
    """The weights or the scores of a search are not finite."""


def refuse_nan(score_sum: Tensor) -> None:
    """Raises NotFiniteError if `score_sum` (), the sum of all scores that a search read, is nan.

    It is read once, after the loop. A forbidden word has the score -inf; only +inf and nan turn the sum into nan.
    """
    if bool(score_sum.isnan()):
        raise NotFiniteError


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Describes the first of the named tensors that holds nan or inf; None if all numbers are finite."""
    for name, tensor in tensors:
        if tensor.is_floating_point() and not tensor.is_meta and not bool((finite := torch.isfinite(tensor)).all()):
            count = finite.numel() - int(finite.sum())
            return f"{name}: {count} of its {tensor.numel()} numbers are not finite (nan or inf)"
    return None


def why_not_finite(models: Iterable[nn.Module]) -> str:
    """The error message for scores that are not finite: the tensor that causes them, and how to mend it."""
    for model in models:
        if found := not_finite(model.state_dict().items()):
            return f"{found}, and so are the scores; load a checkpoint from before, or train again at a lower learning_rate"
        dtype = next(model.parameters()).dtype
        if dtype == torch.float16:
            return "scores: not finite, although every weight is: float16 overflows here; load in bfloat16 or float32"
    return "scores: not finite, although every weight is; the weights are too large to compute with"


__all__ = ["NotFiniteError", "not_finite", "refuse_nan", "why_not_finite"]
