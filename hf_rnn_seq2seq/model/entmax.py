"""Attention weights that can be exactly zero: sparsemax and entmax, in place of softmax.

Over scores z, p = argmax_p p . z + H_alpha(p) with Tsallis' entropy H_alpha; its solution is
p_i = [(alpha - 1) z_i - tau]_+ ^ (1 / (alpha - 1)) with the tau for which p sums to 1 (Peters 2019, section 3). alpha = 2
is sparsemax (Martins and Astudillo 2016, equation 2), and alpha -> 1 softmax. The last axis is normalized.
"""

import math

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from .configuration_rnn_seq2seq import RnnSeq2SeqConfig


class SparseWeights(nn.Module):
    """Scores -> weights by sparsemax or entmax; with `entmax_learned` each head has its own alpha in (1, 2).

    A learned alpha is 1 + sigmoid(a) (Correia 2019, section 3), and starts as `entmax_alpha`.
    """

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.fixed = 2.0 if config.attention_normalization == "sparsemax" else float(config.entmax_alpha)
        self.free = (
            nn.Parameter(torch.full((config.num_attention_heads,), self.start)) if config.entmax_learned else None
        )

    @property
    def start(self) -> float:
        """The initial value of a learned a."""
        return math.log((self.fixed - 1) / (2 - self.fixed))

    def forward(self, scores: Tensor, mask: Tensor) -> Tensor:
        """(batch, heads, target, source); masked as in `attention.masked_softmax`."""
        exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
        alpha: float | Tensor = self.fixed
        if self.free is not None:
            alpha = 1 + torch.sigmoid(self.free.to(exact.dtype)).view(1, -1, 1, 1)
        weights = entmax(exact.masked_fill(~mask, torch.finfo(exact.dtype).min), alpha)
        return weights.masked_fill(~mask, 0.0).to(scores.dtype)


def entmax(scores: Tensor, alpha: float | Tensor) -> Tensor:
    """Entmax over the last axis, in the type of `scores`; alpha is above 1, a tensor of it broadcastable to the rows."""
    tensor = alpha if isinstance(alpha, Tensor) else scores.new_full((), alpha)
    return _Entmax.apply(scores, tensor, None if isinstance(alpha, Tensor) else alpha)


class _Entmax(torch.autograd.Function):
    """The Jacobian on the support is diag(s) - s s' / sum(s), s = p^(2 - alpha) (Peters 2019, section 3)."""

    @staticmethod
    def forward(ctx: FunctionCtx, scores: Tensor, alpha: Tensor, fixed: float | None) -> Tensor:
        # The largest is 0 now and tau is at least -1: lower scores have no weight; the clamp keeps their sums finite.
        scaled = ((scores - scores.amax(-1, keepdim=True)) * (alpha - 1)).clamp(min=-2)
        if fixed == 2:
            weights = (scaled - _sparsemax_threshold(scaled)).clamp(min=0)
        elif fixed == 1.5:
            weights = (scaled - _entmax15_threshold(scaled)).clamp(min=0) ** 2
        else:
            power = 1 / (alpha - 1)
            weights = (scaled - _bisected_threshold(scaled, power)).clamp(min=0) ** power
            weights = weights / weights.sum(-1, keepdim=True)
        ctx.save_for_backward(weights, alpha)
        return weights

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, d_weights: Tensor) -> tuple[Tensor | None, ...]:
        weights, alpha = ctx.saved_tensors
        support = weights > 0
        # The power of a zero weight would not be zero.
        slope = torch.where(support, weights.clamp(min=torch.finfo(weights.dtype).tiny) ** (2 - alpha), 0.0)
        skewed = slope / slope.sum(-1, keepdim=True)
        d_scores = slope * (d_weights - (d_weights * skewed).sum(-1, keepdim=True))
        d_alpha = None
        if ctx.needs_input_grad[1]:
            # Correia 2019, proposition 1.
            logs = torch.where(support, weights * weights.clamp(min=torch.finfo(weights.dtype).tiny).log(), 0.0)
            change = (weights - skewed) / (alpha - 1) ** 2
            change = change - (logs - skewed * logs.sum(-1, keepdim=True)) / (alpha - 1)
            d_alpha = (d_weights * change).sum_to_size(alpha.shape)
        return d_scores, d_alpha, None


def _sparsemax_threshold(scaled: Tensor) -> Tensor:
    """tau of sparsemax (Martins and Astudillo 2016, algorithm 1): from the largest k whose k-th score is above it."""
    ordered = scaled.sort(-1, descending=True).values
    count = torch.arange(1, scaled.shape[-1] + 1, device=scaled.device, dtype=scaled.dtype)
    thresholds = (ordered.cumsum(-1) - 1) / count
    last = (ordered > thresholds).sum(-1, keepdim=True).clamp(min=1)
    return thresholds.gather(-1, last - 1)


def _entmax15_threshold(scaled: Tensor) -> Tensor:
    """tau of 1.5-entmax (Peters 2019, section 3), over scores already halved."""
    ordered = scaled.sort(-1, descending=True).values
    count = torch.arange(1, scaled.shape[-1] + 1, device=scaled.device, dtype=scaled.dtype)
    # Among the first k: their mean, and their summed squared distance from it.
    mean = ordered.cumsum(-1) / count
    spread = (ordered**2).cumsum(-1) - count * mean**2
    thresholds = mean - ((1 - spread) / count).clamp(min=0).sqrt()
    last = (thresholds <= ordered).sum(-1, keepdim=True).clamp(min=1)
    return thresholds.gather(-1, last - 1)


def _bisected_threshold(scaled: Tensor, power: Tensor) -> Tensor:
    """tau for any alpha, by bisection of its interval until the type has no number in between."""
    low = torch.full_like(scaled[..., :1], -1.0)
    width = torch.ones_like(low) - scaled.shape[-1] ** (-1 / power)
    for _ in range(60 if scaled.dtype == torch.float64 else 30):
        width = width / 2
        middle = low + width
        low = torch.where(((scaled - middle).clamp(min=0) ** power).sum(-1, keepdim=True) >= 1, middle, low)
    return low
