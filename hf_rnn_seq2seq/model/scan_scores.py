"""The attention of the fused scan: one position forward and backward, source-side gradients over all positions at once.

Heads are rows: with several heads, keys, values and weights have batch x heads rows. Masked scores follow the convention
of attention.py. Names that start with d_ are gradients.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import mask_bias
from .matmul import outer, product
from .window_attention import HIGHEST_EXPONENT, gaussians, places

# Inputs of the attention that autocast leaves as they are: small steps of a window are added up.
EXACT = ("bias", "center")


class ScanSource(NamedTuple):
    """The inputs of the attention; B batch, S source, A score, R read, all heads together for the two weights."""

    keys: Tensor  # (B x heads, S, A of a head), scale included
    values: Tensor  # (B x heads, S, R of a head)
    query_weight: Tensor | None = None  # (A, H): additive and multi-head scores; of a window (3 x components, H)
    energy: Tensor | None = None  # (A,): additive score
    bias: Tensor | None = None  # (3 x components,): window
    center: Tensor | None = None  # (B, components): window, before the first position


class ScanScore:
    """Base of the scores: the softmax over the source, the context, and their gradients.

    Args:
        source: what the attention reads.
        mask: bool (batch, source), True where attention is allowed.
        steps: number of target positions.
        buffers: the tensors that `saved` names, from the forward pass; None in the forward pass, which allocates them.
    """

    saved: tuple[str, ...] = ("weights",)

    def __init__(self, source: ScanSource, mask: Tensor, steps: int, buffers: Sequence[Tensor] | None = None) -> None:
        self.source, self.batch = source, len(mask)
        self.keys, self.values = source.keys, source.values
        self.heads = len(self.keys) // len(mask)
        if buffers is None:
            self.allocate(mask, steps)
        else:
            for name, tensor in zip(self.saved, buffers, strict=True):
                setattr(self, name, tensor)
            self.d_scores = torch.empty_like(self.weights)
            self.start_backward()

    def end(self) -> Tensor | None:
        """What the attention carries, after the last position."""
        return None

    def start_at_end(self, d_state: Tensor | None) -> None:
        """Begins the backward pass with the gradient of `end()`."""

    def allocate(self, mask: Tensor, steps: int) -> None:
        keys = self.keys
        mask = mask.repeat_interleave(self.heads, 0) if self.heads > 1 else mask
        self.bias = mask_bias(mask, keys.dtype).unsqueeze(1)
        # Without any allowed word, the softmax of a row would be uniform. Looking costs a synchronization on a device.
        whole = mask.device.type == "cpu" and bool(mask.any(1).all())
        self.allowed = None if whole else mask.unsqueeze(1).to(keys.dtype)
        self.weights = keys.new_empty(steps, *mask.shape)
        query_weight = self.source.query_weight
        self.queries = None if query_weight is None else keys.new_empty(steps, self.batch, len(query_weight))

    def query(self, t: int, state: Tensor) -> Tensor:
        """The query of a decoder state: (batch, hidden) -> (batch, score), all heads together."""
        return product(state, self.source.query_weight.t(), self.queries[t])

    def score(self, query: Tensor) -> Tensor:
        """(batch, score) -> (batch x heads, 1, source), masked."""
        raise TypeError("a subclass must define score")

    def read(self, t: int, state: Tensor) -> Tensor:
        """(batch, hidden) -> (batch, read)."""
        weights = torch.softmax(self.score(self.query(t, state)), -1)
        if self.allowed is not None:
            weights *= self.allowed
        self.weights[t] = weights[:, 0]
        return torch.bmm(weights, self.values).view(self.batch, -1)

    def reads(self) -> Tensor:
        """The contexts of all positions: (target, batch, read)."""
        return torch.bmm(self.weights.transpose(0, 1), self.values).transpose(0, 1).reshape(*self._shape(), -1)

    def _shape(self) -> tuple[int, int]:
        return len(self.weights), self.batch

    def start_backward(self) -> None:
        """Makes the buffers of the backward pass."""

    def backward(self, t: int, d_read: Tensor, d_weights: Tensor | None, d_state: Tensor) -> Tensor:
        """`d_state` (batch, hidden) plus the gradient through the attention weights."""
        d_query = self.query_gradient(t, d_read, d_weights)
        if self.source.query_weight is None:
            return d_query.add_(d_state)
        return product(d_query, self.source.query_weight).add_(d_state)

    def query_gradient(self, t: int, d_read: Tensor, d_weights: Tensor | None) -> Tensor:
        """The gradient of the query (batch, score); keeps that of the scores."""
        d, weights = self.weight_gradient(d_read, d_weights), self.weights[t]
        self.d_scores[t] = torch.ops.aten._softmax_backward_data(d, weights, -1, weights.dtype)
        return self.score_backward(t, self.d_scores[t])

    def weight_gradient(self, d_read: Tensor, d_weights: Tensor | None) -> Tensor:
        """The gradient of one position's weights (batch x heads, source)."""
        d_rows, read_by = d_read.reshape(len(self.keys), 1, -1), self.values.transpose(1, 2)
        if d_weights is None:
            return torch.bmm(d_rows, read_by)[:, 0]
        return torch.baddbmm(d_weights.unsqueeze(1), d_rows, read_by)[:, 0]

    def score_backward(self, t: int, d_scores: Tensor) -> Tensor:
        """(batch x heads, source) -> the gradient of the query (batch, score)."""
        raise TypeError("a subclass must define score_backward")

    def finish(self, state: Tensor, d_read: Tensor) -> ScanSource:
        """Gradients of the source's side, from the queries' states and the contexts' gradients, (target, batch, ...)."""
        d_values = torch.bmm(self.weights.permute(1, 2, 0), self._rows(d_read))
        return self.score_gradients(state)._replace(values=d_values)

    def score_gradients(self, state: Tensor) -> ScanSource:
        """As `finish`, without the gradient of the values."""
        raise TypeError("a subclass must define score_gradients")

    def _rows(self, sequence: Tensor) -> Tensor:
        """(target, batch, heads x width) -> (batch x heads, target, width)."""
        return sequence.reshape(len(sequence), len(self.keys), -1).transpose(0, 1)


class DotScore(ScanScore):
    """score = key . h"""

    def query(self, t: int, state: Tensor) -> Tensor:
        return state

    def score(self, query: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, query.reshape(len(self.keys), 1, -1), self.keys.transpose(1, 2))

    def score_backward(self, t: int, d_scores: Tensor) -> Tensor:
        return torch.bmm(d_scores.unsqueeze(1), self.keys)[:, 0]

    def score_gradients(self, state: Tensor) -> ScanSource:
        return ScanSource(torch.bmm(self.d_scores.permute(1, 2, 0), state.transpose(0, 1)), None)


class ProjectedDotScore(DotScore):
    """score = key . W_q h, in one head or several"""

    saved = ("weights", "queries")

    def query(self, t: int, state: Tensor) -> Tensor:
        return ScanScore.query(self, t, state)

    def start_backward(self) -> None:
        self.d_queries = torch.empty_like(self.queries)

    def score_backward(self, t: int, d_scores: Tensor) -> Tensor:
        torch.bmm(d_scores.unsqueeze(1), self.keys, out=self.d_queries[t].view(len(self.keys), 1, -1))
        return self.d_queries[t]

    def score_gradients(self, state: Tensor) -> ScanSource:
        d_keys = torch.bmm(self.d_scores.permute(1, 2, 0), self._rows(self.queries))
        return ScanSource(d_keys, None, outer(self.d_queries, state))


class AdditiveScore(ScanScore):
    """score = v . tanh(key + W_q h).

    The backward pass computes the tanh again: to keep it would take (target, batch, source, score) numbers.
    """

    saved = ("weights", "queries")

    def _combined(self, query: Tensor) -> Tensor:
        return torch.add(self.keys, query.unsqueeze(1)).tanh_()

    def score(self, query: Tensor) -> Tensor:
        return (self._combined(query) @ self.source.energy).unsqueeze(1) + self.bias

    def start_backward(self) -> None:
        self.d_queries = torch.empty_like(self.queries)
        # Sums over many positions, so in float32 at least.
        wide = torch.promote_types(self.keys.dtype, torch.float32)
        self.d_keys = torch.zeros_like(self.keys, dtype=wide)
        self.d_energy = torch.zeros_like(self.source.energy, dtype=wide)

    def score_backward(self, t: int, d_scores: Tensor) -> Tensor:
        combined = self._combined(self.queries[t])
        self.d_energy += combined.flatten(0, 1).t() @ d_scores.flatten()
        d = combined.square_().neg_().add_(1).mul_(d_scores.unsqueeze(-1)).mul_(self.source.energy)
        self.d_keys += d
        return torch.sum(d, 1, out=self.d_queries[t])

    def score_gradients(self, state: Tensor) -> ScanSource:
        dtype = self.keys.dtype
        return ScanSource(self.d_keys.to(dtype), None, outer(self.d_queries, state), self.d_energy.to(dtype))


class WindowScore(ScanScore):
    """The window of window_attention.py: weights by its functions, without a softmax; no keys."""

    saved = ("weights", "sums", "functions", "centers")

    def __init__(self, source: ScanSource, mask: Tensor, steps: int, buffers: Sequence[Tensor] | None = None) -> None:
        self.places, self.padding = places(mask, source.center.dtype), ~mask
        super().__init__(source, mask, steps, buffers)

    def allocate(self, mask: Tensor, steps: int) -> None:
        center = self.source.center
        self.weights = self.keys.new_empty(steps, *mask.shape)
        self.sums = center.new_empty(steps, *center.shape[:1], len(self.source.bias))
        self.functions = center.new_empty(steps, *center.shape, mask.shape[1])
        self.centers = center.new_empty(steps + 1, *center.shape)
        self.centers[0] = center

    def end(self) -> Tensor:
        return self.centers[-1].clone()

    def read(self, t: int, state: Tensor) -> Tensor:
        torch.add(product(state, self.source.query_weight.t()), self.source.bias, out=self.sums[t])
        functions, self.centers[t + 1] = gaussians(self.sums[t], self.places, self.centers[t])
        self.functions[t] = functions.masked_fill_(self.padding.unsqueeze(1), 0.0)
        self.weights[t] = self.functions[t].sum(1)
        return torch.bmm(self.weights[t].unsqueeze(1), self.values)[:, 0]

    def start_backward(self) -> None:
        self.d_sums = torch.empty_like(self.sums)

    def start_at_end(self, d_state: Tensor | None) -> None:
        self.d_center = torch.zeros_like(self.source.center) if d_state is None else d_state.clone()

    def query_gradient(self, t: int, d_read: Tensor, d_weights: Tensor | None) -> Tensor:
        """The derivatives of equations 46 to 51; those of the centers are added up from the last position on."""
        d = self.weight_gradient(d_read, d_weights).unsqueeze(1) * self.functions[t]  # (batch, components, source)
        distance = self.centers[t + 1].unsqueeze(2) - self.places.unsqueeze(1)
        _, width, step = self.sums[t].clamp(max=HIGHEST_EXPONENT).exp().chunk(3, -1)
        d_importance, d_width, d_step = self.d_sums[t].chunk(3, -1)
        torch.sum(d, 2, out=d_importance)
        d *= distance
        self.d_center.addcmul_(width, d.sum(2), value=-2)
        torch.mul(width, (d * distance).sum(2), out=d_width).neg_()
        torch.mul(self.d_center, step, out=d_step)
        self.d_sums[t].masked_fill_(self.sums[t] > HIGHEST_EXPONENT, 0.0)
        return self.d_sums[t].to(self.keys.dtype)

    def score_gradients(self, state: Tensor) -> ScanSource:
        d_weight = outer(self.d_sums.to(self.keys.dtype), state)
        d_bias = self.d_sums.sum((0, 1)).to(self.source.bias.dtype)
        return ScanSource(None, None, d_weight, None, d_bias, self.d_center)


def score_class(source: ScanSource) -> type[ScanScore]:
    """The class of the score that has these weights."""
    if source.center is not None:
        return WindowScore
    if source.energy is not None:
        return AdditiveScore
    return DotScore if source.query_weight is None else ProjectedDotScore
