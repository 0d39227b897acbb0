"""The attention of the fused scan: one position forward and backward, source-side gradients over all positions at once.

Heads are rows: where there are several, keys, values and weights have batch x heads rows. Names starting with d_ are
gradients.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .products import outer


class ScanSource(NamedTuple):
    """What the attention reads; B batch, S source, A score, R read, all heads together for the two weights."""

    keys: Tensor  # (B x heads, S, A of a head), scale included
    values: Tensor  # (B x heads, S, R of a head)
    query_weight: Tensor | None  # (A, H): additive and multi-head scores
    energy: Tensor | None  # (A,): additive score


class ScanScore:
    """Weights and reading, for any score; the softmax and its gradient are the same for all."""

    saved: tuple[str, ...] = ("weights",)

    def __init__(self, source: ScanSource, mask: Tensor, steps: int, kept: Sequence[Tensor] | None = None) -> None:
        self.source, self.batch = source, len(mask)
        self.keys, self.values = source.keys, source.values
        self.heads = len(self.keys) // len(mask)
        if kept is None:
            self.allocate(mask, steps)
        else:
            for name, tensor in zip(self.saved, kept, strict=True):
                setattr(self, name, tensor)
            self.d_scores = torch.empty_like(self.weights)
            self.start_backward()

    def allocate(self, mask: Tensor, steps: int) -> None:
        keys = self.keys
        mask = mask.repeat_interleave(self.heads, 0) if self.heads > 1 else mask
        bias = torch.zeros(mask.shape, dtype=keys.dtype, device=mask.device)
        self.bias = bias.masked_fill_(~mask, torch.finfo(keys.dtype).min).unsqueeze(1)
        # Where a row allows nothing, the softmax would be uniform. Looking costs a synchronisation on a device.
        whole = mask.device.type == "cpu" and bool(mask.any(1).all())
        self.allowed = None if whole else mask.unsqueeze(1).to(keys.dtype)
        self.weights = keys.new_empty(steps, *mask.shape)
        query_weight = self.source.query_weight
        self.queries = None if query_weight is None else keys.new_empty(steps, self.batch, len(query_weight))

    def score(self, t: int, asked: Tensor) -> Tensor:
        """(batch, hidden) -> (batch x heads, 1, source), masked."""
        raise TypeError("a subclass defines score")

    def read(self, t: int, asked: Tensor) -> Tensor:
        """(batch, hidden) -> (batch, read)."""
        weights = torch.softmax(self.score(t, asked), -1)
        if self.allowed is not None:
            weights *= self.allowed
        self.weights[t] = weights[:, 0]
        return torch.bmm(weights, self.values).view(self.batch, -1)

    def reads(self) -> Tensor:
        """What was read at all positions: (target, batch, read)."""
        return torch.bmm(self.weights.transpose(0, 1), self.values).transpose(0, 1).reshape(*self._shape(), -1)

    def _shape(self) -> tuple[int, int]:
        return len(self.weights), self.batch

    def start_backward(self) -> None:
        """Makes the buffers of the backward pass."""

    def backward(self, t: int, d_read: Tensor, d_weights: Tensor | None, d_asked: Tensor) -> Tensor:
        """`d_asked` (batch, hidden) with what flows through the weights added."""
        d_rows, read_by = d_read.reshape(len(self.keys), 1, -1), self.values.transpose(1, 2)
        if d_weights is None:
            d = torch.bmm(d_rows, read_by)[:, 0]
        else:
            d = torch.baddbmm(d_weights.unsqueeze(1), d_rows, read_by)[:, 0]
        weights = self.weights[t]
        self.d_scores[t] = torch.ops.aten._softmax_backward_data(d, weights, -1, weights.dtype)
        return self.score_backward(t, self.d_scores[t], d_asked)

    def score_backward(self, t: int, d_scores: Tensor, d_asked: Tensor) -> Tensor:
        raise TypeError("a subclass defines score_backward")

    def finish(self, asked: Tensor, d_read: Tensor) -> ScanSource:
        """Gradients of the source's side, from what asked and the gradients of what was read, (target, batch, ...)."""
        d_keys, d_query_weight, d_energy = self.score_gradients(asked)
        d_values = torch.bmm(self.weights.permute(1, 2, 0), self._rows(d_read))
        return ScanSource(d_keys, d_values, d_query_weight, d_energy)

    def score_gradients(self, asked: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        raise TypeError("a subclass defines score_gradients")

    def _rows(self, sequence: Tensor) -> Tensor:
        """(target, batch, heads x width) -> (batch x heads, target, width)."""
        return sequence.reshape(len(sequence), len(self.keys), -1).transpose(0, 1)


class DotScore(ScanScore):
    """score = key . h"""

    def score(self, t: int, asked: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, asked.unsqueeze(1), self.keys.transpose(1, 2))

    def score_backward(self, t: int, d_scores: Tensor, d_asked: Tensor) -> Tensor:
        return torch.baddbmm(d_asked.unsqueeze(1), d_scores.unsqueeze(1), self.keys)[:, 0]

    def score_gradients(self, asked: Tensor) -> tuple[Tensor, None, None]:
        return torch.bmm(self.d_scores.permute(1, 2, 0), asked.transpose(0, 1)), None, None


class ProjectedDotScore(ScanScore):
    """score = key . W_q h, in one head or several"""

    saved = ("weights", "queries")

    def score(self, t: int, asked: Tensor) -> Tensor:
        self.queries[t] = torch.mm(asked, self.source.query_weight.t())
        return torch.baddbmm(self.bias, self.queries[t].view(len(self.keys), 1, -1), self.keys.transpose(1, 2))

    def start_backward(self) -> None:
        self.d_queries = torch.empty_like(self.queries)

    def score_backward(self, t: int, d_scores: Tensor, d_asked: Tensor) -> Tensor:
        d_query = self.d_queries[t]
        torch.bmm(d_scores.unsqueeze(1), self.keys, out=d_query.view(len(self.keys), 1, -1))
        return torch.mm(d_query, self.source.query_weight).add_(d_asked)

    def score_gradients(self, asked: Tensor) -> tuple[Tensor, Tensor, None]:
        return torch.bmm(self.d_scores.permute(1, 2, 0), self._rows(self.queries)), outer(self.d_queries, asked), None


class AdditiveScore(ScanScore):
    """score = v . tanh(key + W_q h); the tanh is computed again on the way back, since keeping it would cost
    (target, batch, source, score)."""

    saved = ("weights", "queries")

    def _combined(self, t: int) -> Tensor:
        return torch.add(self.keys, self.queries[t].unsqueeze(1)).tanh_()

    def score(self, t: int, asked: Tensor) -> Tensor:
        self.queries[t] = torch.mm(asked, self.source.query_weight.t())
        return (self._combined(t) @ self.source.energy).unsqueeze(1) + self.bias

    def start_backward(self) -> None:
        self.d_queries = torch.empty_like(self.queries)
        # Sums over many positions, so in float32 at least.
        wide = torch.promote_types(self.keys.dtype, torch.float32)
        self.d_keys = torch.zeros_like(self.keys, dtype=wide)
        self.d_energy = torch.zeros_like(self.source.energy, dtype=wide)

    def score_backward(self, t: int, d_scores: Tensor, d_asked: Tensor) -> Tensor:
        combined = self._combined(t)
        self.d_energy += combined.flatten(0, 1).t() @ d_scores.flatten()
        d = combined.square_().neg_().add_(1).mul_(d_scores.unsqueeze(-1)).mul_(self.source.energy)
        self.d_keys += d
        torch.sum(d, 1, out=self.d_queries[t])
        return torch.mm(self.d_queries[t], self.source.query_weight).add_(d_asked)

    def score_gradients(self, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = self.keys.dtype
        return self.d_keys.to(dtype), outer(self.d_queries, asked), self.d_energy.to(dtype)


def score_class(source: ScanSource) -> type[ScanScore]:
    """The score that the given weights make."""
    if source.energy is not None:
        return AdditiveScore
    return DotScore if source.query_weight is None else ProjectedDotScore


__all__ = ["ScanScore", "ScanSource", "score_class"]
