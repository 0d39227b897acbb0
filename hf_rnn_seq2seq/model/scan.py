"""The attentional recurrence under teacher forcing as one autograd node.

`RnnDecoder` computes the same thing with a loop over `step`, one graph of small operations per position. Here the
forward pass keeps only what the backward pass cannot recompute cheaply, and the backward pass makes every weight
gradient with one product over all positions. Covered: one attended layer, LSTM or GRU (reset after), dot or additive
scores, attention before the cell or after it with feeding. Everything else takes the loop; the two agree in outputs
and gradients.

Tensors are time-major here: (target, batch, ...). Gates are in torch's order.

    before the cell:  a_t = align(h_{t-1});  x_t = a_t values;  h_t = cell(g_t, x_t, h_{t-1})
    after the cell:   h_t = cell(g_t, x_{t-1}, h_{t-1});  a_t = align(h_t);  x_t = a_t values
                      or, feeding Luong's attentional vector, x_t = tanh(a_t values + W h_t), values read by W_c already
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class ScanInputs(NamedTuple):
    """What the recurrence reads; B batch, T target, S source, H hidden, G gates, X extra, A score, all tensors."""

    projected: Tensor  # (T, B, G): the input product and its bias
    hidden: Tensor  # (B, H): the state before the first position
    cell: Tensor | None  # (B, H): the LSTM's cell
    feed: Tensor | None  # (B, X): the vector fed to the first position; None before the cell
    extra_weight: Tensor  # (G, X)
    recurrent_weight: Tensor  # (G, H)
    recurrent_bias: Tensor  # (G,)
    keys: Tensor  # (B, S, A); A is H for the dot score, scale included
    values: Tensor  # (B, S, X)
    query_weight: Tensor | None  # (A, H): additive score
    energy: Tensor | None  # (A,): additive score
    output_weight: Tensor | None  # (X, H): the state's part of the attentional vector


class ScanOutputs(NamedTuple):
    """Every position of the recurrence, and the cell after the last."""

    hidden: Tensor  # (T, B, H)
    extra: Tensor  # (T, B, X): contexts, or attentional vectors
    weights: Tensor  # (T, B, S)
    cell: Tensor  # (B, H); empty for the GRU


def attention_scan(inputs: ScanInputs, mask: Tensor, before_cell: bool) -> ScanOutputs:
    """Runs the recurrence over all positions.

    Under autocast everything is computed in its type.

    Args:
        inputs: what the recurrence reads.
        mask: bool (batch, source), True where attention is allowed; a row that allows nothing gets zero weights.
        before_cell: the attention asks with the state before the cell, not after it.
    """
    device = inputs.projected.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else inputs.projected.dtype
    tensors = [None if tensor is None else tensor.to(dtype) for tensor in inputs]
    with torch.autocast(device, enabled=False):
        return ScanOutputs(*_Scan.apply(mask, before_cell, *tensors))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mask: Tensor, before_cell: bool, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        x = ScanInputs(*tensors)
        steps, batch, gates = x.projected.shape
        size, new = x.hidden.shape[1], x.projected.new_empty
        cell = (_Lstm if x.cell is not None else _Gru)(x, steps)
        align = (_Dot if x.energy is None else _Additive)(x, mask, steps)
        hidden, extra = new(steps + 1, batch, size), new(steps + 1, batch, x.extra_weight.shape[1])
        hidden[0] = x.hidden
        if x.feed is not None:
            extra[0] = x.feed
        for t in range(steps):
            if before_cell:
                extra[t + 1] = align.read(t, hidden[t])
                cell.forward(t, extra[t + 1], hidden[t], hidden[t + 1])
                continue
            cell.forward(t, extra[t], hidden[t], hidden[t + 1])
            read = align.read(t, hidden[t + 1])
            if x.output_weight is None:
                extra[t + 1] = read
            else:
                torch.addmm(read, hidden[t + 1], x.output_weight.t(), out=extra[t + 1]).tanh_()
        ctx.before_cell, ctx.cell, ctx.align = before_cell, cell, align
        ctx.present = [tensor is not None for tensor in tensors]
        ctx.save_for_backward(*[tensor for tensor in tensors if tensor is not None], hidden, extra)
        last = cell.cells[steps].clone() if x.cell is not None else new(0)
        return hidden[1:].clone(), extra[1:].clone(), align.weights.clone(), last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        given = iter(ctx.saved_tensors)
        x = ScanInputs(*[next(given) if present else None for present in ctx.present])
        hidden, extra = given
        cell, align, before_cell = ctx.cell, ctx.align, ctx.before_cell
        with torch.autocast(hidden.device.type, enabled=False):
            return None, None, *_backward(x, hidden, extra, cell, align, before_cell, ScanOutputs(*grads))


def _backward(x, hidden, extra, cell, align, before_cell, grads: ScanOutputs) -> ScanInputs:
    """Gradients of everything in `ScanInputs`, walking back in time; names starting with d are gradients."""
    steps = hidden.shape[0] - 1
    width = extra.shape[2]
    cell.start_backward(x)
    align.start_backward(x)
    d_read = torch.empty_like(extra[1:])
    d_hidden, d_extra = torch.zeros_like(x.hidden), hidden.new_zeros(hidden.shape[1], width)
    d_cell = grads.cell.clone() if x.cell is not None else None
    for t in range(steps - 1, -1, -1):
        d_hidden = d_hidden + grads.hidden[t]
        if not before_cell:
            d_out = d_extra + grads.extra[t]
            if x.output_weight is not None:
                d_out = torch.ops.aten.tanh_backward(d_out, extra[t + 1])
                d_hidden = torch.addmm(d_hidden, d_out, x.output_weight)
            d_read[t] = d_out
            d_hidden = align.backward(t, d_out, grads.weights[t], d_hidden)
        d_extra, d_hidden = cell.backward(t, d_hidden, d_cell, hidden[t])
        if before_cell:
            torch.add(d_extra, grads.extra[t], out=d_read[t])
            d_hidden = align.backward(t, d_read[t], grads.weights[t], d_hidden)
    asked = hidden[:-1] if before_cell else hidden[1:]
    d_keys, d_query_weight, d_energy = align.finish(asked)
    d_extra_weight, d_recurrent_weight, d_recurrent_bias = cell.finish(extra[1:] if before_cell else extra[:-1], hidden)
    return ScanInputs(
        projected=cell.d_projected,
        hidden=d_hidden,
        cell=d_cell,
        feed=None if before_cell else d_extra,
        extra_weight=d_extra_weight,
        recurrent_weight=d_recurrent_weight,
        recurrent_bias=d_recurrent_bias,
        keys=d_keys,
        values=torch.bmm(align.weights.permute(1, 2, 0), d_read.transpose(0, 1)),
        query_weight=d_query_weight,
        energy=d_energy,
        output_weight=None if x.output_weight is None else _outer(d_read, asked),
    )


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Sum over positions and rows of left x right: (T, B, L), (T, B, R) -> (L, R), one product."""
    return left.flatten(0, 1).t() @ right.flatten(0, 1)


class _Lstm:
    """i, f, o = sigmoid; n = tanh; c_t = f c_{t-1} + i n; h_t = o tanh(c_t)."""

    def __init__(self, x: ScanInputs, steps: int) -> None:
        batch, size = x.hidden.shape
        # One product for both inputs of the cell.
        self.weight = torch.cat([x.extra_weight, x.recurrent_weight], 1)
        self.projected = x.projected + x.recurrent_bias
        self.gates = torch.empty_like(x.projected)
        self.cells = x.projected.new_empty(steps + 1, batch, size)
        self.cells[0] = x.cell
        self.size = size

    def forward(self, t: int, extra: Tensor, before: Tensor, after: Tensor) -> None:
        gates, size = self.gates[t], self.size
        torch.addmm(self.projected[t], torch.cat([extra, before], 1), self.weight.t(), out=gates)
        gates[:, : 2 * size].sigmoid_()
        gates[:, 2 * size : 3 * size].tanh_()
        gates[:, 3 * size :].sigmoid_()
        update, forget, new, output = gates.chunk(4, 1)
        torch.mul(forget, self.cells[t], out=self.cells[t + 1]).addcmul_(update, new)
        torch.tanh(self.cells[t + 1], out=after).mul_(output)

    def start_backward(self, x: ScanInputs) -> None:
        self.d_projected = torch.empty_like(self.gates)

    def backward(self, t: int, d_hidden: Tensor, d_cell: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
        update, forget, new, output = self.gates[t].chunk(4, 1)
        d_update, d_forget, d_new, d_output = self.d_projected[t].chunk(4, 1)
        shown = torch.tanh(self.cells[t + 1])
        sigmoid, tanh = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
        sigmoid.grad_input(d_hidden * shown, output, grad_input=d_output)
        d_cell += tanh(d_hidden * output, shown)
        sigmoid.grad_input(d_cell * new, update, grad_input=d_update)
        sigmoid.grad_input(d_cell * self.cells[t], forget, grad_input=d_forget)
        tanh.grad_input(d_cell * update, new, grad_input=d_new)
        d_cell *= forget
        return torch.mm(self.d_projected[t], self.weight).split((self.weight.shape[1] - self.size, self.size), 1)

    def finish(self, extra: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias = self.d_projected.sum((0, 1), dtype=torch.promote_types(hidden.dtype, torch.float32)).to(hidden.dtype)
        return _outer(self.d_projected, extra), _outer(self.d_projected, hidden[:-1]), bias


class _Gru:
    """r, z = sigmoid; n = tanh(x_n + r (W_n h + b_n)); h_t = (1 - z) n + z h_{t-1}."""

    def __init__(self, x: ScanInputs, steps: int) -> None:
        self.extra_weight, self.recurrent_weight = x.extra_weight, x.recurrent_weight
        self.bias, self.projected = x.recurrent_bias, x.projected
        self.gates = torch.empty_like(x.projected)
        self.inner = x.projected.new_empty(steps, *x.hidden.shape)  # W_n h + b_n
        self.size = x.hidden.shape[1]

    def forward(self, t: int, extra: Tensor, before: Tensor, after: Tensor) -> None:
        gates, size = self.gates[t], self.size
        torch.addmm(self.projected[t], extra, self.extra_weight.t(), out=gates)
        recurrent = torch.addmm(self.bias, before, self.recurrent_weight.t())
        gates[:, : 2 * size].add_(recurrent[:, : 2 * size]).sigmoid_()
        self.inner[t] = recurrent[:, 2 * size :]
        reset, update, new = gates.chunk(3, 1)
        new.addcmul_(reset, self.inner[t]).tanh_()
        torch.lerp(new, before, update, out=after)

    def start_backward(self, x: ScanInputs) -> None:
        self.d_projected = torch.empty_like(self.gates)
        self.d_recurrent = torch.empty_like(self.gates)

    def backward(self, t: int, d_hidden: Tensor, d_cell: None, before: Tensor) -> tuple[Tensor, Tensor]:
        size = self.size
        reset, update, new = self.gates[t].chunk(3, 1)
        d_reset, d_update, d_new = self.d_projected[t].chunk(3, 1)
        sigmoid, tanh = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward
        tanh.grad_input(d_hidden * (1 - update), new, grad_input=d_new)
        sigmoid.grad_input(d_hidden * (before - new), update, grad_input=d_update)
        sigmoid.grad_input(d_new * self.inner[t], reset, grad_input=d_reset)
        self.d_recurrent[t, :, : 2 * size] = self.d_projected[t, :, : 2 * size]
        torch.mul(d_new, reset, out=self.d_recurrent[t, :, 2 * size :])
        d_before = torch.addmm(d_hidden * update, self.d_recurrent[t], self.recurrent_weight)
        return torch.mm(self.d_projected[t], self.extra_weight), d_before

    def finish(self, extra: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bias = self.d_recurrent.sum((0, 1), dtype=torch.promote_types(hidden.dtype, torch.float32)).to(hidden.dtype)
        return _outer(self.d_projected, extra), _outer(self.d_recurrent, hidden[:-1]), bias


class _Align:
    """Weights and reading, for any score; the softmax and its gradient are the same for all."""

    def __init__(self, x: ScanInputs, mask: Tensor, steps: int) -> None:
        self.keys, self.values = x.keys, x.values
        bias = torch.zeros(mask.shape, dtype=x.keys.dtype, device=mask.device)
        self.bias = bias.masked_fill(~mask, torch.finfo(x.keys.dtype).min).unsqueeze(1)
        # Where a row allows nothing, the softmax would be uniform. Looking costs a synchronisation on a device.
        whole = mask.device.type == "cpu" and bool(mask.any(1).all())
        self.allowed = None if whole else mask.unsqueeze(1).to(x.keys.dtype)
        self.weights = x.projected.new_empty(steps, *mask.shape)

    def score(self, t: int, asked: Tensor) -> Tensor:
        """(batch, hidden) -> (batch, 1, source), masked."""
        raise TypeError("a subclass defines score")

    def read(self, t: int, asked: Tensor) -> Tensor:
        """(batch, hidden) -> (batch, values)."""
        weights = torch.softmax(self.score(t, asked), -1)
        if self.allowed is not None:
            weights *= self.allowed
        self.weights[t] = weights[:, 0]
        return torch.bmm(weights, self.values)[:, 0]

    def start_backward(self, x: ScanInputs) -> None:
        self.d_scores = torch.empty_like(self.weights)

    def backward(self, t: int, d_read: Tensor, d_weights: Tensor, d_asked: Tensor) -> Tensor:
        """Adds to `d_asked` (batch, hidden) what flows through the weights."""
        d = torch.baddbmm(d_weights.unsqueeze(1), d_read.unsqueeze(1), self.values.transpose(1, 2))[:, 0]
        weights = self.weights[t]
        self.d_scores[t] = torch.ops.aten._softmax_backward_data(d, weights, -1, weights.dtype)
        return self.score_backward(t, self.d_scores[t], d_asked)

    def score_backward(self, t: int, d_scores: Tensor, d_asked: Tensor) -> Tensor:
        raise TypeError("a subclass defines score_backward")


class _Dot(_Align):
    """score = key . h"""

    def score(self, t: int, asked: Tensor) -> Tensor:
        return torch.baddbmm(self.bias, asked.unsqueeze(1), self.keys.transpose(1, 2))

    def score_backward(self, t: int, d_scores: Tensor, d_asked: Tensor) -> Tensor:
        return torch.baddbmm(d_asked.unsqueeze(1), d_scores.unsqueeze(1), self.keys)[:, 0]

    def finish(self, asked: Tensor) -> tuple[Tensor, None, None]:
        return torch.bmm(self.d_scores.permute(1, 2, 0), asked.transpose(0, 1)), None, None


class _Additive(_Align):
    """score = v . tanh(key + W_q h); the tanh is computed again on the way back, since keeping it would cost
    (target, batch, source, score)."""

    def __init__(self, x: ScanInputs, mask: Tensor, steps: int) -> None:
        super().__init__(x, mask, steps)
        self.weight, self.energy = x.query_weight, x.energy
        self.queries = x.projected.new_empty(steps, len(mask), len(x.energy))

    def _combined(self, t: int) -> Tensor:
        return torch.add(self.keys, self.queries[t].unsqueeze(1)).tanh_()

    def score(self, t: int, asked: Tensor) -> Tensor:
        torch.mm(asked, self.weight.t(), out=self.queries[t])
        return (self._combined(t) @ self.energy).unsqueeze(1) + self.bias

    def start_backward(self, x: ScanInputs) -> None:
        super().start_backward(x)
        self.d_queries = torch.empty_like(self.queries)
        # Sums over many positions, so in float32 at least.
        wide = torch.promote_types(self.keys.dtype, torch.float32)
        self.d_keys = torch.zeros_like(self.keys, dtype=wide)
        self.d_energy = torch.zeros_like(self.energy, dtype=wide)

    def score_backward(self, t: int, d_scores: Tensor, d_asked: Tensor) -> Tensor:
        combined = self._combined(t)
        self.d_energy += combined.flatten(0, 1).t() @ d_scores.flatten()
        d = combined.square_().neg_().add_(1).mul_(d_scores.unsqueeze(-1)).mul_(self.energy)
        self.d_keys += d
        torch.sum(d, 1, out=self.d_queries[t])
        return torch.addmm(d_asked, self.d_queries[t], self.weight)

    def finish(self, asked: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = self.keys.dtype
        return self.d_keys.to(dtype), _outer(self.d_queries, asked), self.d_energy.to(dtype)


__all__ = ["ScanInputs", "ScanOutputs", "attention_scan"]
