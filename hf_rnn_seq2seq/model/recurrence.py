"""One recurrent layer: `step` is its equation, `forward` runs it over time.

Axes: batch, time, hidden; gates are blocks of `hidden` columns in torch's order (LSTM: input, forget, cell, output;
GRU: reset, update, new). A state is a tuple of (batch, hidden) tensors: (h, c) for the LSTM, (h,) for the others.
"""

import contextlib
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config_checks import ConfigError
from .departures import override, live_departure
from .dropout import State, dropout_mask, zone_out, zoneout_masks
from .matmul import linear, without_autocast

# Large enough that a sigmoid of it is exactly 0 or 1 in every floating-point type, small enough for float16.
_SATURATED = 3.0e4

_KERNELS: dict[str, type[nn.RNNBase]] = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn_tanh": nn.RNN, "rnn_relu": nn.RNN}
KERNELS = (nn.LSTM, nn.GRU, nn.RNN)

# Methods that torch's fused kernel replaces in one call.
_EQUATION = ("step", "first_cell", "transit", "zone_out", "step_weights")


@lru_cache
def _lstm_runs_in(dtype: torch.dtype) -> bool:
    """Whether this CPU runs torch's LSTM kernel under autocast to `dtype`.

    Autocast gives every bfloat16 LSTM to oneDNN, which refuses it on a processor without AVX512 or its like.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return True
    state = torch.zeros(1, 1, 1, device="cpu")
    weights = [torch.zeros(4, 1, device="cpu")] * 2 + [torch.zeros(4, device="cpu")] * 2
    try:
        with torch.no_grad(), torch.autocast("cpu", dtype):
            torch.lstm(state, (state, state), weights, True, 1, 0.0, False, False, True)
    except RuntimeError:
        return False
    return True


class StepWeights(NamedTuple):
    """A cell's weights cut once before a time loop: slicing a parameter at every step would cost a full-size gradient."""

    below: Tensor  # (gates, below): the columns of the input weight that read the layer below
    below_bias: Tensor  # (gates,)
    extra: Tensor | None  # (gates, extra): the columns that read what only the step knows
    recurrent: Tensor  # (gates, hidden)
    recurrent_bias: Tensor  # (gates,)
    # (gates, hidden) each: the recurrent weights of the cells after the first; None if a cell calls its product.
    later: tuple[Tensor | None, ...] = ()


class RecurrentLayer(nn.Module):
    """A recurrent layer of one direction.

    Args:
        cell_type: `lstm`, `gru`, `rnn_tanh` or `rnn_relu`.
        input_size: width of what it reads at each position.
        hidden_size: width of its state.
        gru_reset: `after` or `before` the recurrent product.
        layer_norm: normalize the two products and, in the LSTM, the cell (Ba 2016, equations 20 to 29).
        transition_depth: cells applied one after the other at each position; those after the first read no input
            (Pascanu 2014; Miceli Barone 2017, section 2.3.1).
        recurrent_dropout: probability on h(t-1), one mask for all positions (Gal and Ghahramani 2016).
        transition_input_size: width of what the second cell reads: the context of the conditional GRU; 0 for nothing.
        weight_drop: probability on each recurrent weight, one mask for a whole pass over a batch (Merity 2017, section 2).
        zoneout: probability that a unit keeps its old value at a position, for each tensor of the state (Krueger 2016);
            None: no zoneout.

    The fused kernel of torch (cuDNN on a GPU) runs unless layer normalization, `gru_reset="before"`, a deep
    transition, zoneout, recurrent dropout in training, or masked positions need the time loop.
    """

    def __init__(
        self,
        cell_type: str,
        input_size: int,
        hidden_size: int,
        gru_reset: str = "after",
        layer_norm: bool = False,
        transition_depth: int = 1,
        recurrent_dropout: float = 0.0,
        transition_input_size: int = 0,
        weight_drop: float = 0.0,
        zoneout: tuple[float, ...] | None = None,
    ) -> None:
        super().__init__()
        self.cell_type = cell_type
        self.hidden_size = hidden_size
        self.reset_before = cell_type == "gru" and gru_reset == "before"
        self.recurrent_dropout = recurrent_dropout
        self.weight_drop = weight_drop
        self.zoneout = zoneout if zoneout is not None and any(zoneout) else None
        options = {"nonlinearity": cell_type.removeprefix("rnn_")} if cell_type.startswith("rnn_") else {}
        # The kernel module holds the weights, for the time loop too, so that a checkpoint is the same for all paths.
        self.kernel = _KERNELS[cell_type](input_size, hidden_size, batch_first=True, **options)
        gates = self.kernel.weight_hh_l0.shape[0]
        self.norm_input = nn.LayerNorm(gates) if layer_norm else None
        self.norm_hidden = nn.LayerNorm(gates) if layer_norm else None
        self.norm_cell = nn.LayerNorm(hidden_size) if layer_norm and cell_type == "lstm" else None
        self.transitions = nn.ModuleList(
            TransitionCell(cell_type, hidden_size, self.reset_before, layer_norm, 0 if k else transition_input_size)
            for k in range(transition_depth - 1)
        )

    def zero_state(self, like: Tensor) -> State:
        """A state of zeros for the batch of `like` (batch, ...)."""
        zeros = like.new_zeros(like.shape[0], self.hidden_size)
        return (zeros, zeros) if self.cell_type == "lstm" else (zeros,)

    def step_weights(self, extra_size: int = 0) -> StepWeights:
        """Weights for `step`, whose `extra` input is `extra_size` wide; in training with `weight_drop` on the recurrent ones."""
        kernel = self.kernel
        below, extra = kernel.weight_ih_l0, None
        if extra_size:
            # The gradients of a split are written to one tensor; two slices would each make a whole one, and add them.
            below, extra = below.split([kernel.input_size - extra_size, extra_size], 1)
        return StepWeights(
            below=below,
            below_bias=kernel.bias_ih_l0,
            extra=extra,
            recurrent=self._drop_weight(kernel.weight_hh_l0),
            recurrent_bias=kernel.bias_hh_l0,
            later=tuple(self._later_weight(number) for number in range(len(self.transitions))),
        )

    def calls_kernel(self) -> bool:
        """Whether the kernel has to be called, because of a hook on it or another module in its place.

        Raises:
            ConfigError: an option computes the cell from the kernel's weights.
        """
        if live_departure(self.kernel, KERNELS) is None:
            return False
        option = self._reads_weights()
        if option is None:
            return True
        # Hooks of all modules run for whatever is called, and here the kernel never is.
        if reason := live_departure(self.kernel, KERNELS, everywhere=False):
            raise ConfigError(f"{option}: computes the cell from the kernel's weights, and would leave out {reason}")
        return False

    def _reads_weights(self) -> str | None:
        if self.norm_input is not None:
            return "layer_norm=True"
        if self.reset_before:
            return "gru_reset='before'"
        for name in ("recurrent_dropout", "weight_drop"):
            if self.training and getattr(self, name) > 0:
                return f"{name}={getattr(self, name)} in training"
        name = override(self, RecurrentLayer, _EQUATION)
        return None if name is None else f"{name}() of {type(self).__name__}"

    def _later_weight(self, number: int) -> Tensor | None:
        product = self.transitions[number].recurrent
        reason = live_departure(product, (nn.Linear,))
        if reason is None:
            return self._drop_weight(product.weight)
        if self.training and self.weight_drop > 0:
            raise ConfigError(f"weight_drop={self.weight_drop}: cannot drop weights of a transition with {reason}")
        return None

    def _drop_weight(self, weight: Tensor) -> Tensor:
        return weight * dropout_mask(weight, self.weight_drop) if self.training and self.weight_drop > 0 else weight

    def step(
        self,
        projected: Tensor,
        state: State,
        weights: StepWeights,
        extra: Tensor | None = None,
        recurrent_mask: Tensor | None = None,
        zoneout_mask: State | None = None,
    ) -> State:
        """One position: the cell's equation, then the deep transition's, then zoneout.

        Args:
            projected: (batch, gates), the product of the layer below with its columns of the input weight.
            state: the state before.
            weights: from `step_weights`.
            extra: (batch, extra), the part of the input that only this step knows.
            recurrent_mask: (batch, hidden), from `recurrent_mask`.
            zoneout_mask: from `zoneout_masks`, at this position.
        """
        after = self.transit(self.first_cell(projected, state, weights, extra, recurrent_mask), weights)
        return self.zone_out(state, after, zoneout_mask)

    def first_cell(
        self,
        projected: Tensor,
        state: State,
        weights: StepWeights,
        extra: Tensor | None = None,
        recurrent_mask: Tensor | None = None,
        gate_factors: tuple[Tensor, Tensor] | None = None,
    ) -> State:
        """The cell that reads the layer below; arguments as `step`.

        `gate_factors`, (batch, hidden) each, multiply the products of every gate: the first factor those of the layer
        below and of the state, the second factor the product of `extra`.
        """
        extra_product = None if extra is None else linear(extra, weights.extra)
        factor = None
        if gate_factors is not None:
            blocks = projected.shape[-1] // self.hidden_size
            factor, extra_factor = (each.repeat(1, blocks) for each in gate_factors)
            projected, extra_product = projected * factor, extra_product * extra_factor
        projected = projected if extra_product is None else projected + extra_product
        return _cell(self, projected, state, weights.recurrent, weights.recurrent_bias, recurrent_mask, factor)

    def transit(self, state: State, weights: StepWeights, context: Tensor | None = None) -> State:
        """The cells after the first; the second reads `context` (batch, transition inputs) if it has weights for it."""
        for cell, weight in zip(self.transitions, weights.later, strict=True):
            state = cell(state, weight, context)
            context = None
        return state

    def zone_out(self, before: State, after: State, masks: State | None = None) -> State:
        """Zoneout of the cells' state `after`, from the state `before` the position; `masks` as in `step`."""
        return after if self.zoneout is None else zone_out(self.zoneout, before, after, masks)

    def forward(
        self, inputs: Tensor, state: State | None = None, lengths: Tensor | None = None, hold: Tensor | None = None
    ) -> tuple[Tensor, State]:
        """The layer over time.

        Args:
            inputs: (batch, time, inputs).
            state: the state before the first position; zeros if None.
            lengths: (batch,) real positions of each row, counted from the left; all if None.
            hold: bool (batch, time), True where the state passes through unchanged (a masked position).

        Returns:
            outputs (batch, time, hidden), and the state after each row's last real position. Outputs past a row's
            length are unspecified.
        """
        state = self.zero_state(inputs) if state is None else state
        dropping = self.training and self.recurrent_dropout > 0
        if self.calls_kernel():
            return self._called(inputs, state, lengths, hold)
        looping = self.norm_input is not None or self.reset_before or len(self.transitions) or self.zoneout is not None
        if looping or dropping or hold is not None or override(self, RecurrentLayer, _EQUATION):
            return self._loop(inputs, state, lengths, hold)
        under_autocast = inputs.device.type == "cpu" and torch.is_autocast_enabled("cpu")
        if under_autocast and self.cell_type == "lstm" and not _lstm_runs_in(torch.get_autocast_dtype("cpu")):
            with without_autocast(inputs):
                dtype = self.kernel.weight_ih_l0.dtype
                return self._fused(inputs.to(dtype), tuple(tensor.to(dtype) for tensor in state), lengths)
        return self._fused(inputs, state, lengths)

    def recurrent_mask(self, like: Tensor) -> Tensor | None:
        """A recurrent dropout mask (batch, hidden) for all positions; None if nothing is dropped."""
        if not (self.training and self.recurrent_dropout > 0):
            return None
        return dropout_mask(like.new_empty(like.shape[0], self.hidden_size), self.recurrent_dropout)

    def zoneout_masks(self, like: Tensor, steps: int) -> list[State | None]:
        """For each of `steps` positions the units that keep their value, bool (batch, hidden) per tensor of the state."""
        if not (self.training and self.zoneout is not None):
            return [None] * steps
        masks = zoneout_masks(self.zoneout, like, steps, self.hidden_size)
        return list(zip(*(mask.unbind() for mask in masks), strict=True))

    def _loop(self, inputs: Tensor, state: State, lengths: Tensor | None, hold: Tensor | None) -> tuple[Tensor, State]:
        weights, mask = self.step_weights(), self.recurrent_mask(inputs)
        zoneout = self.zoneout_masks(inputs, inputs.shape[1])
        padding = None if hold is None else hold.unsqueeze(-1).unbind(1)
        states = []
        for time, projected in enumerate(linear(inputs, weights.below, weights.below_bias).unbind(1)):
            after = self.step(projected, state, weights, recurrent_mask=mask, zoneout_mask=zoneout[time])
            if padding is not None:
                after = tuple(torch.where(padding[time], old, new) for old, new in zip(state, after, strict=True))
            state = after
            states.append(state)
        outputs = torch.stack([s[0] for s in states], 1)
        if lengths is None:
            return outputs, state
        return outputs, tuple(_at_end(torch.stack(tensors, 1), lengths) for tensors in zip(*states, strict=True))

    def _called(
        self, inputs: Tensor, state: State, lengths: Tensor | None, hold: Tensor | None
    ) -> tuple[Tensor, State]:
        """The layer over time by calls of the kernel: one, or one at each position if something happens between two."""
        deep = len(self.transitions) > 0 or self.zoneout is not None
        # An LSTM kernel returns the cell after the last position only.
        if not (deep or hold is not None or (lengths is not None and self.cell_type == "lstm")):
            outputs, end = self._call_kernel(inputs, state)
            return outputs, end if lengths is None else (_at_end(outputs, lengths), *end[1:])
        later = StepWeights(None, None, None, None, None, tuple(map(self._later_weight, range(len(self.transitions)))))
        zoneout = self.zoneout_masks(inputs, inputs.shape[1])
        outputs, states = [], []
        for time in range(inputs.shape[1]):
            output, after = self._call_kernel(inputs[:, time : time + 1], state)
            output = output[:, 0]
            if deep:
                after = self.zone_out(state, self.transit((output, *after[1:]), later), zoneout[time])
                output = after[0]
            if hold is not None:
                padding = hold[:, time, None]
                after = tuple(torch.where(padding, old, new) for old, new in zip(state, after, strict=True))
                output = torch.where(padding, state[0], output)
            state = after
            outputs.append(output)
            states.append(state)
        outputs = torch.stack(outputs, 1)
        if lengths is None:
            return outputs, state
        return outputs, tuple(_at_end(torch.stack(tensors, 1), lengths) for tensors in zip(*states, strict=True))

    def _call_kernel(self, inputs: Tensor, state: State) -> tuple[Tensor, State]:
        begin = tuple(tensor.unsqueeze(0).contiguous() for tensor in state)
        lacks = self._lacks_backward(inputs)
        with torch.backends.cudnn.flags(enabled=False) if lacks else contextlib.nullcontext():
            outputs, end = self.kernel(inputs, begin if self.cell_type == "lstm" else begin[0])
        end = end if self.cell_type == "lstm" else (end,)
        return outputs, tuple(tensor.squeeze(0) for tensor in end)

    def _lacks_backward(self, inputs: Tensor) -> bool:
        """Whether cuDNN would keep nothing for the backward pass, as in evaluation mode."""
        return inputs.is_cuda and not self.training and torch.is_grad_enabled()

    def _fused(self, inputs: Tensor, state: State, lengths: Tensor | None) -> tuple[Tensor, State]:
        kernel, is_lstm = self.kernel, self.cell_type == "lstm"
        start = tuple(tensor.unsqueeze(0).contiguous() for tensor in state)  # as cuDNN demands
        begin = start if is_lstm else start[0]
        weight, recurrent = kernel.weight_ih_l0, self._drop_weight(kernel.weight_hh_l0)
        if is_lstm and lengths is not None:
            inputs, weight = self._marked(inputs, lengths)
        same_weights = weight is kernel.weight_ih_l0 and recurrent is kernel.weight_hh_l0
        # The modes compute the same: one layer has no dropout.
        training = self.training or self._lacks_backward(inputs)
        if same_weights and training == self.training:
            outputs, end = kernel(inputs, begin)
            end = end if is_lstm else (end,)
        else:
            weights = [weight, recurrent, kernel.bias_ih_l0, kernel.bias_hh_l0]
            if not same_weights:
                # cuDNN needs one chunk of memory.
                chunk = torch.cat([part.flatten() for part in weights]).split([part.numel() for part in weights])
                weights = [part.view_as(whole) for part, whole in zip(chunk, weights, strict=True)]
            run = getattr(torch, self.cell_type)
            outputs, *end = run(inputs, begin, weights, True, 1, 0.0, training, False, True)
        end = tuple(tensor.squeeze(0) for tensor in end)
        if lengths is not None:
            end = (_at_end(outputs, lengths), *end[1:])
        return outputs, end

    def _marked(self, inputs: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and input weight that make the LSTM kernel keep each row's cell after the row has ended.

        The kernel returns the cell after the last position only. To make this the cell at each row's end, one more input
        column marks padding; it drives the forget gate to 1 and the input gate to 0. That costs one copy of the weights.
        On a CPU at nine tenths real words it is 1.4 (bfloat16) to 1.8 times (float32) as fast as packing, and the lengths
        are not read back from a device.
        """
        weight, size = self.kernel.weight_ih_l0, self.hidden_size
        ended = torch.arange(inputs.shape[1], device=inputs.device) >= lengths.to(inputs.device)[:, None]
        mark = inputs.new_zeros(4 * size, 1)
        mark[:size], mark[size : 2 * size] = -_SATURATED, _SATURATED
        inputs = torch.cat([inputs, ended.unsqueeze(-1).to(inputs.dtype)], -1)
        return inputs, torch.cat([weight, mark.to(weight.dtype)], 1)


class TransitionCell(nn.Module):
    """A cell of the deep transition (Miceli Barone 2017, section 2.3.1, equation for k > 1).

    It reads no input; as the second cell of a conditional GRU (section 2.1) it reads the context.
    """

    def __init__(
        self, cell_type: str, hidden_size: int, reset_before: bool, layer_norm: bool, input_size: int = 0
    ) -> None:
        super().__init__()
        self.cell_type = cell_type
        self.reset_before = reset_before
        gates = hidden_size * {"lstm": 4, "gru": 3}.get(cell_type, 1)
        self.recurrent = nn.Linear(hidden_size, gates)
        self.bias = nn.Parameter(torch.zeros(gates))
        self.below = nn.Linear(input_size, gates, bias=False) if input_size else None
        self.norm_input = nn.LayerNorm(gates) if layer_norm and input_size else None
        self.norm_hidden = nn.LayerNorm(gates) if layer_norm else None
        self.norm_cell = nn.LayerNorm(hidden_size) if layer_norm and cell_type == "lstm" else None

    def forward(self, state: State, weight: Tensor | None, context: Tensor | None = None) -> State:
        """The next state, tensors of (batch, hidden).

        Args:
            state: the state before.
            weight: the recurrent weight; None: the module `recurrent` is called.
            context: (batch, inputs), for the second cell of a conditional GRU.
        """
        projected = self.bias.expand(state[0].shape[0], -1)
        if self.below is not None:
            projected = projected + self.below(context)
        return _cell(self, projected, state, weight, None if weight is None else self.recurrent.bias)


def _cell(
    layer: nn.Module,
    projected: Tensor,
    state: State,
    weight: Tensor | None,
    bias: Tensor | None,
    recurrent_mask: Tensor | None = None,
    factor: Tensor | None = None,
) -> State:
    """The equations of the four cells, with the layer normalization of `layer` if it has any.

    Args:
        layer: a `RecurrentLayer` or `TransitionCell`.
        projected: (batch, gates), the product of the inputs.
        state: the state before.
        weight, bias: of the recurrent product; without a weight `layer.recurrent` is called.
        recurrent_mask: (batch, hidden), recurrent dropout.
        factor: (batch, gates), multiplies the recurrent product.
    """
    hidden = state[0] if recurrent_mask is None else state[0] * recurrent_mask
    projected = _normalize(layer, layer.norm_input, projected)
    if layer.cell_type == "gru" and layer.reset_before:
        return (_gru_reset_before(layer, projected, state[0], hidden, weight, bias),)
    product = layer.recurrent(hidden) if weight is None else linear(hidden, weight, bias)
    recurrent = _normalize(layer, layer.norm_hidden, product)
    recurrent = recurrent if factor is None else recurrent * factor
    if layer.cell_type == "lstm":
        update, forget, new, output = (projected + recurrent).chunk(4, -1)
        cell = torch.sigmoid(forget) * state[1] + torch.sigmoid(update) * torch.tanh(new)
        cell_output = cell if layer.norm_cell is None else layer.norm_cell(cell)
        return torch.sigmoid(output) * torch.tanh(cell_output), cell
    if layer.cell_type == "gru":
        reset_x, update_x, new_x = projected.chunk(3, -1)
        reset_h, update_h, new_h = recurrent.chunk(3, -1)
        update = torch.sigmoid(update_x + update_h)
        new = torch.tanh(new_x + torch.sigmoid(reset_x + reset_h) * new_h)
        return ((1 - update) * new + update * state[0],)
    return ((torch.tanh if layer.cell_type == "rnn_tanh" else torch.relu)(projected + recurrent),)


def _gru_reset_before(
    layer: nn.Module,
    projected: Tensor,
    before: Tensor,
    hidden: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
) -> Tensor:
    """The GRU of Cho 2014, equations 5 to 8: the reset gate acts on h(t-1) before the recurrent product.

    Here z weighs the old state, as in Cho 2014 and torch; Bahdanau 2014 writes 1 - z for it.
    """
    size = before.shape[-1]
    blocks = slice(2 * size), slice(2 * size, None)
    weights = (
        (None, None)
        if weight is None
        else zip(weight.split((2 * size, size)), bias.split((2 * size, size)), strict=True)
    )

    def recur(states: Tensor, block: slice, affine: tuple[Tensor, Tensor] | None) -> Tensor:
        product = layer.recurrent(states)[:, block] if affine is None else linear(states, *affine)
        return _normalize_block(layer.norm_hidden, product, block)

    gate_weights, new_weights = weights
    reset, update = torch.sigmoid(projected[:, : 2 * size] + recur(hidden, blocks[0], gate_weights)).chunk(2, -1)
    new = recur(reset * hidden, blocks[1], new_weights)
    new = torch.tanh(projected[:, 2 * size :] + new)
    return (1 - update) * new + update * before


def _normalize(layer: nn.Module, norm: nn.LayerNorm | None, product: Tensor) -> Tensor:
    """A product (batch, gates) normalized; the GRU's two gates together and its candidate by itself, as in Ba 2016."""
    if norm is None or layer.cell_type != "gru":
        return product if norm is None else norm(product)
    gates = product.shape[-1] // 3 * 2
    blocks = slice(gates), slice(gates, None)
    return torch.cat([_normalize_block(norm, product[:, block], block) for block in blocks], -1)


def _normalize_block(norm: nn.LayerNorm | None, part: Tensor, block: slice) -> Tensor:
    """`part`, the columns `block` of a product, normalized by themselves."""
    if norm is None:
        return part
    return F.layer_norm(part, part.shape[-1:], norm.weight[block], norm.bias[block], norm.eps)


def _at_end(sequence: Tensor, lengths: Tensor) -> Tensor:
    """(batch, time, hidden) -> (batch, hidden) at each row's last real position."""
    return states_at(sequence, lengths.to(sequence.device).unsqueeze(1) - 1).squeeze(1)


def states_at(states: Tensor, index: Tensor) -> Tensor:
    """The states (batch, n, width) of the positions `index`, (batch, m), of each row: (batch, m, width).

    `gather` copies single numbers where this copies rows, and takes four times as long on a CPU.
    """
    batch, length, width = states.shape
    rows = index + length * torch.arange(batch, device=index.device).unsqueeze(1)
    return states.reshape(-1, width).index_select(0, rows.flatten()).view(*index.shape, width)
