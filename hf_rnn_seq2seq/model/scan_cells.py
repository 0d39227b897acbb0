"""The cells in place: one position forward, one backward, and weight gradients over all positions at once.

`recurrence._cell` is the readable equation of each cell. `lstm_state` and `activate_gru` compute the same in place, for
the fused scan (training) and for `FusedStep` (decoding).

Tensors are (batch, ...) at one position and (target, batch, ...) over all of them. `ScanLayer.weight` holds the columns
that read the cell's inputs, then those that read its own state. Names that start with d_ are gradients.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .matmul import affine, outer, product

_sigmoid_backward, _tanh_backward = torch.ops.aten.sigmoid_backward, torch.ops.aten.tanh_backward


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
