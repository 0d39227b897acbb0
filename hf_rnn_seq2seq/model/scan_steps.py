"""One position of the fused scan, forward and backward: the cells and the attention, in place.

Weight gradients are computed over all positions at once. `recurrence._cell` is the readable equation of each cell;
`lstm_state` and `activate_gru` compute the same in place, for the scan (training) and for `FusedStep` (decoding). Masked
scores follow the convention of attention.py.

Tensors are (batch, ...) at one position and (target, batch, ...) over all of them. `ScanLayer.weight` holds the columns
that read the cell's inputs, then those that read its own state. Heads are rows: with several heads, keys, values and weights
have batch x heads rows. Names that start with d_ are gradients.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .attention import mask_bias
from .matmul import affine, outer, product
from .window_attention import HIGHEST_EXPONENT, gaussians, places

_sigmoid_backward, _tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward


# ---------------------------------------------------------------- cells


class ScanLayer(NamedTuple):
    """The inputs of one layer of the recurrence; T target, B batch, H hidden, G gates, I inputs known in the loop only."""

    hidden: Tensor  # (B, H): the state before the first position
    cell: Tensor | None  # (B, H): the LSTM's cell
    weight: Tensor  # (G, I + H)
    bias: Tensor | None  # (G,): of a layer without `projected`
    recurrent_bias: Tensor | None  # (G,): of the product that the GRU's reset gate multiplies
    projected: Tensor | None  # (T, B, G): the product of the word vectors and the bias, of a layer that reads them
    recurrent_mask: Tensor | None  # (B, H): recurrent dropout
    input_mask: Tensor | None  # (T or 1, B, H): dropout of the layer below's output; layers above the first


def lstm_state(
    update: Tensor,
    forget: Tensor,
    new: Tensor,
    output: Tensor,
    before: Tensor,
    cell: Tensor | None = None,
    hidden: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h and c of the LSTM from its activated gates and the cell `before`, written to `hidden` and `cell` if given."""
    cell = torch.mul(forget, before, out=cell).addcmul_(update, new)
    return torch.tanh(cell, out=hidden).mul_(output), cell


def activate_gru(
    sums: Tensor, recurrent: Tensor, before: Tensor, gates: Tensor | None = None, hidden: Tensor | None = None
) -> Tensor:
    """h of the GRU from the products (batch, gates) of its inputs and of its state; `sums` is overwritten.

    The activated gates are written to `gates` (default: `sums`), the state to `hidden` if given.
    """
    size = before.shape[1]
    gates = sums if gates is None else gates
    opened = torch.sigmoid(sums[:, : 2 * size].add_(recurrent[:, : 2 * size]), out=gates[:, : 2 * size])
    new = torch.tanh(sums[:, 2 * size :].addcmul_(opened[:, :size], recurrent[:, 2 * size :]), out=gates[:, 2 * size :])
    return torch.lerp(new, before, opened[:, size:], out=hidden)


class ScanCell:
    """Base of the cells: buffers over all positions, and the gradients of weights and biases.

    Args:
        layer: what the cell reads.
        steps: number of positions.
        buffers: the tensors that `saved` names, from the forward pass; None in the forward pass, which allocates them.
    """

    saved: tuple[str, ...] = ("gates",)
    reads_together = False  # one product for inputs and state

    def __init__(self, layer: ScanLayer, steps: int, buffers: Sequence[Tensor] | None = None) -> None:
        self.layer, self.steps, self.size = layer, steps, layer.hidden.shape[1]
        self.weight = layer.weight
        self.inputs = self.weight.shape[1] - self.size
        # Cells with two products multiply by dense matrices.
        columns = () if self.reads_together else self.weight.split((self.inputs, self.size), 1)
        self.columns = tuple(part.contiguous() for part in columns)
        if buffers is None:
            self.allocate()
        else:
            for name, tensor in zip(self.saved, buffers, strict=True):
                setattr(self, name, tensor)
            self.d_gates = torch.empty_like(self.gates)

    def allocate(self) -> None:
        batch = self.layer.hidden.shape[0]
        self.gates = self.layer.hidden.new_empty(self.steps, batch, self.weight.shape[0])

    def dropped(self, hidden: Tensor) -> Tensor:
        """A state as the recurrent product reads it: with recurrent dropout."""
        return hidden if self.layer.recurrent_mask is None else hidden * self.layer.recurrent_mask

    def addend(self, t: int) -> Tensor:
        """The part of the gates' sums that is known before the loop."""
        return self.layer.bias if self.layer.projected is None else self.layer.projected[t]

    def forward(self, t: int, parts: list[Tensor], before: Tensor, after: Tensor) -> None:
        """Writes the state `after` (batch, hidden) from the inputs' `parts` and the state `before`."""
        raise TypeError("a subclass must define forward")

    def backward(self, t: int, d_hidden: Tensor, d_cell: Tensor | None, before: Tensor) -> tuple[Tensor, Tensor]:
        """Gradients of the inputs (batch, inputs) and of the state before; `d_cell` is updated in place."""
        raise TypeError("a subclass must define backward")

    def finish(self, parts: list[Tensor], before: Tensor) -> ScanLayer:
        """Gradients of the weights from all positions' inputs and states before, without those of the states."""
        d_weight = torch.empty_like(self.weight)
        start = 0
        for part in parts:
            outer(self.d_gates, part, d_weight[:, start : start + part.shape[2]])
            start += part.shape[2]
        self.recurrent_gradient(self.dropped(before), d_weight[:, start:])
        return ScanLayer(
            hidden=None,
            cell=None,
            weight=d_weight,
            bias=None if self.layer.bias is None else total(self.d_gates),
            recurrent_bias=None,
            projected=None if self.layer.projected is None else self.d_gates,
            recurrent_mask=None,
            input_mask=None,
        )

    def recurrent_gradient(self, before: Tensor, out: Tensor) -> None:
        outer(self.d_gates, before, out)


class LstmCell(ScanCell):
    """i, f, o = sigmoid; n = tanh; c_t = f c_{t-1} + i n; h_t = o tanh(c_t)."""

    saved = ("gates", "cells")
    reads_together = True

    def allocate(self) -> None:
        super().allocate()
        self.cells = self.layer.hidden.new_empty(self.steps + 1, *self.layer.hidden.shape)
        self.cells[0] = self.layer.cell

    def forward(self, t: int, parts: list[Tensor], before: Tensor, after: Tensor) -> None:
        # One product for everything the cell reads.
        sums = affine(self.addend(t), torch.cat([*parts, self.dropped(before)], 1), self.weight)
        gates, size = self.gates[t], self.size
        torch.sigmoid(sums[:, : 2 * size], out=gates[:, : 2 * size])
        torch.tanh(sums[:, 2 * size : 3 * size], out=gates[:, 2 * size : 3 * size])
        torch.sigmoid(sums[:, 3 * size :], out=gates[:, 3 * size :])
        lstm_state(*gates.chunk(4, 1), self.cells[t], self.cells[t + 1], after)

    def backward(self, t: int, d_hidden: Tensor, d_cell: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        self.gate_gradients(t, d_hidden, d_cell)
        d_inputs, d_before = product(self.d_gates[t], self.weight).split((self.inputs, self.size), 1)
        return d_inputs, self.dropped(d_before)

    def gate_gradients(self, t: int, d_hidden: Tensor, d_cell: Tensor) -> None:
        """Writes the gradient of the sums (batch, gates); `d_cell` becomes that of the cell before."""
        update, forget, new, output = self.gates[t].chunk(4, 1)
        d_update, d_forget, d_new, d_output = self.d_gates[t].chunk(4, 1)
        cell_output = torch.tanh(self.cells[t + 1])
        _sigmoid_backward.grad_input(d_hidden * cell_output, output, grad_input=d_output)
        d_cell += _tanh_backward(d_hidden * output, cell_output)
        _sigmoid_backward.grad_input(d_cell * new, update, grad_input=d_update)
        _sigmoid_backward.grad_input(d_cell * self.cells[t], forget, grad_input=d_forget)
        _tanh_backward.grad_input(d_cell * update, new, grad_input=d_new)
        d_cell *= forget


class GruCell(ScanCell):
    """r, z = sigmoid; n = tanh(x_n + r (W_n h + b_n)); h_t = (1 - z) n + z h_{t-1}."""

    saved = ("gates", "inner")

    def __init__(self, layer: ScanLayer, steps: int, buffers: Sequence[Tensor] | None = None) -> None:
        super().__init__(layer, steps, buffers)
        if buffers is not None:
            self.d_recurrent = torch.empty_like(self.gates)

    def allocate(self) -> None:
        super().allocate()
        self.inner = self.layer.hidden.new_empty(self.steps, *self.layer.hidden.shape)  # W_n h + b_n

    def forward(self, t: int, parts: list[Tensor], before: Tensor, after: Tensor) -> None:
        sums = affine(self.addend(t), _join(parts), self.columns[0])
        recurrent = affine(self.layer.recurrent_bias, self.dropped(before), self.columns[1])
        self.inner[t] = recurrent[:, 2 * self.size :]
        activate_gru(sums, recurrent, before, self.gates[t], after)

    def backward(self, t: int, d_hidden: Tensor, d_cell: None, before: Tensor) -> tuple[Tensor, Tensor]:
        self.gate_gradients(t, d_hidden, before)
        update = self.gates[t, :, self.size : 2 * self.size]
        d_before = self.dropped(product(self.d_recurrent[t], self.columns[1])).addcmul_(d_hidden, update)
        return product(self.d_gates[t], self.columns[0]), d_before

    def gate_gradients(self, t: int, d_hidden: Tensor, before: Tensor) -> None:
        """Writes the gradients of the two sums (batch, gates)."""
        size = self.size
        reset, update, new = self.gates[t].chunk(3, 1)
        d_reset, d_update, d_new = self.d_gates[t].chunk(3, 1)
        _tanh_backward.grad_input(d_hidden * (1 - update), new, grad_input=d_new)
        _sigmoid_backward.grad_input(d_hidden * (before - new), update, grad_input=d_update)
        _sigmoid_backward.grad_input(d_new * self.inner[t], reset, grad_input=d_reset)
        d_recurrent = self.d_recurrent[t]
        d_recurrent[:, : 2 * size] = self.d_gates[t, :, : 2 * size]
        torch.mul(d_new, reset, out=d_recurrent[:, 2 * size :])

    def finish(self, parts: list[Tensor], before: Tensor) -> ScanLayer:
        return super().finish(parts, before)._replace(recurrent_bias=total(self.d_recurrent))

    def recurrent_gradient(self, before: Tensor, out: Tensor) -> None:
        outer(self.d_recurrent, before, out)


class GruResetBeforeCell(ScanCell):
    """r, z = sigmoid; n = tanh(x_n + W_n (r h)); h_t = (1 - z) n + z h_{t-1} (Cho 2014, equations 5 to 8)."""

    def forward(self, t: int, parts: list[Tensor], before: Tensor, after: Tensor) -> None:
        gates, size, hidden = self.gates[t], self.size, self.dropped(before)
        below, recurrent = self.columns
        sums = affine(self.addend(t), _join(parts), below)
        torch.sigmoid(affine(sums[:, : 2 * size], hidden, recurrent[: 2 * size]), out=gates[:, : 2 * size])
        reset, update, new = gates.chunk(3, 1)
        torch.tanh(affine(sums[:, 2 * size :], reset * hidden, recurrent[2 * size :]), out=new)
        torch.lerp(new, before, update, out=after)

    def backward(self, t: int, d_hidden: Tensor, d_cell: None, before: Tensor) -> tuple[Tensor, Tensor]:
        size, recurrent = self.size, self.columns[1]
        reset, update, new = self.gates[t].chunk(3, 1)
        d_reset, d_update, d_new = self.d_gates[t].chunk(3, 1)
        _tanh_backward.grad_input(d_hidden * (1 - update), new, grad_input=d_new)
        _sigmoid_backward.grad_input(d_hidden * (before - new), update, grad_input=d_update)
        d_reset_state = product(d_new, recurrent[2 * size :])
        _sigmoid_backward.grad_input(d_reset_state * self.dropped(before), reset, grad_input=d_reset)
        d_before = product(self.d_gates[t, :, : 2 * size], recurrent[: 2 * size]).addcmul_(d_reset_state, reset)
        d_before = self.dropped(d_before).addcmul_(d_hidden, update)
        return product(self.d_gates[t], self.columns[0]), d_before

    def recurrent_gradient(self, before: Tensor, out: Tensor) -> None:
        size = self.size
        outer(self.d_gates[..., : 2 * size], before, out[: 2 * size])
        outer(self.d_gates[..., 2 * size :], self.gates[..., :size] * before, out[2 * size :])


CELLS: dict[str, type[ScanCell]] = {"lstm": LstmCell, "gru": GruCell, "gru_reset_before": GruResetBeforeCell}


def total(gradients: Tensor) -> Tensor:
    """(T, B, width) summed over the many positions and rows, in float32 at least."""
    wide = torch.promote_types(gradients.dtype, torch.float32)
    return gradients.sum((0, 1), dtype=wide).to(gradients.dtype)


def _join(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


# ---------------------------------------------------------------- attention


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

    def final_state(self) -> Tensor | None:
        """What the attention carries, after the last position."""
        return None

    def receive_final(self, d_state: Tensor | None) -> None:
        """Begins the backward pass with the gradient of `final_state()`."""

    def allocate(self, mask: Tensor, steps: int) -> None:
        keys = self.keys
        mask = mask.repeat_interleave(self.heads, 0) if self.heads > 1 else mask
        self.bias = mask_bias(mask, keys.dtype).unsqueeze(1)
        # Without any allowed word, the softmax of a row would be uniform. Looking costs a synchronization on a device.
        whole = not torch.compiler.is_compiling() and mask.device.type == "cpu" and bool(mask.any(1).all())
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

    def final_state(self) -> Tensor:
        return self.centers[-1].clone()

    def read(self, t: int, state: Tensor) -> Tensor:
        torch.add(product(state, self.source.query_weight.t()), self.source.bias, out=self.sums[t])
        functions, self.centers[t + 1] = gaussians(self.sums[t], self.places, self.centers[t])
        self.functions[t] = functions.masked_fill_(self.padding.unsqueeze(1), 0.0)
        self.weights[t] = self.functions[t].sum(1)
        return torch.bmm(self.weights[t].unsqueeze(1), self.values)[:, 0]

    def start_backward(self) -> None:
        self.d_sums = torch.empty_like(self.sums)

    def receive_final(self, d_state: Tensor | None) -> None:
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
