"""The attentional recurrence under teacher forcing as one autograd node.

`RnnDecoder` computes the same with a loop over `step`, one graph of small operations per position. Here the forward pass
stores only what the backward pass cannot recompute cheaply, and the backward pass computes every weight gradient with one
product over all positions. Covered: any number of attended layers of LSTM or GRU cells, dot, additive and multi-head
scores, the window of Graves, attention before the cells or after them with feeding, every dropout. Everything else takes the loop; outputs and
gradients of the two are equal.

Tensors are time-major here: (target, batch, ...). Gates are in torch's order. With layers 1 to L, d and k the dropout
masks, the state h and the output o (= h, or h plus its input with a residual connection):

    h_t^l = cell_l([d^l o_t^{l-1}, x], k^l h_{t-1}^l);  the word vector's product g_t replaces layer 1's input below, and
                                                        with skip connections each layer adds its own
    before the cell:  x = x_t, q = h_{t-1}^L               after the cell:  x = x_{t-1}, q = o_t^L
    read_t = softmax(score(q, keys)) values  (or the window's weights times the values)
    x_t = read_t,  W_m read_t,  or Luong's attentional vector tanh(W_m read_t + W_o o_t^L + e_t)

With one head, Luong's W_m is applied to the values before the loop.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from .matmul import affine, compute_dtype, outer, product, without_autocast
from .scan_cells import CELLS, ScanCell, ScanLayer
from .scan_scores import EXACT, ScanScore, ScanSource, score_class


class ScanMixer(NamedTuple):
    """From the context that was read to the vector x; X extra, R read, H hidden."""

    feed: Tensor | None  # (B, X): the vector fed to the first position; None before the cell
    read_weight: Tensor | None  # (X, R); None if x is the context itself
    output_weight: Tensor | None  # (X, H): the state's part of the attentional vector
    projected: Tensor | None  # (T, B, X): the word vectors' part of it


class ScanPlan(NamedTuple):
    """Static arguments of the scan, without a gradient."""

    cell: str  # a name of `CELLS`
    mask: Tensor  # bool (batch, source), True where attention is allowed; a row may allow no word
    before_cell: bool
    residual: tuple[bool, ...]  # per layer
    reads_extra: tuple[bool, ...]  # per layer


class ScanOutputs(NamedTuple):
    """All positions of the recurrence, and the LSTM's cells after the last one."""

    extra: Tensor  # (T, B, X)
    weights: Tensor  # (T, B x heads, S)
    state: Tensor | None  # what the attention carries, after the last position
    hidden: tuple[Tensor, ...]  # (T, B, H) per layer
    cells: tuple[Tensor, ...]  # (B, H) per layer; empty for the GRU


def attention_scan(layers: list[ScanLayer], source: ScanSource, mixer: ScanMixer, plan: ScanPlan) -> ScanOutputs:
    """Runs the recurrence over all positions.

    Under autocast everything is computed in its type, but for what a window carries. The outputs share memory with what the backward pass reads: do
    not write into them.
    """
    like = layers[0].projected
    dtype = compute_dtype(like)
    tensors = [tensor for group in (source, mixer, *layers) for tensor in group]
    exact = {ScanSource._fields.index(name) for name in EXACT}
    tensors = [tensor if tensor is None or place in exact else tensor.to(dtype) for place, tensor in enumerate(tensors)]
    with without_autocast(like):
        extra, weights, state, *rest = _Scan.apply(plan, *tensors)
    return ScanOutputs(extra, weights, state, tuple(rest[: len(layers)]), tuple(rest[len(layers) :]))


class _Inputs(NamedTuple):
    source: ScanSource
    mixer: ScanMixer
    layers: list[ScanLayer]

    @classmethod
    def of(cls, tensors: list[Tensor | None]) -> "_Inputs":
        """The groups of a flat list."""
        source, mixer = len(ScanSource._fields), len(ScanMixer._fields)
        starts = range(source + mixer, len(tensors), len(ScanLayer._fields))
        layers = [ScanLayer(*tensors[start : start + len(ScanLayer._fields)]) for start in starts]
        return cls(ScanSource(*tensors[:source]), ScanMixer(*tensors[source : source + mixer]), layers)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, plan: ScanPlan, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        inputs = _Inputs.of(list(tensors))
        steps = inputs.layers[0].projected.shape[0]
        cell, kind = _classes(plan, inputs.source)
        cells = [cell(layer, steps) for layer in inputs.layers]
        score = kind(inputs.source, plan.mask, steps)
        hidden, extra = _run(inputs, plan, cells, score)
        ctx.plan, ctx.steps = plan, steps
        # Everything is saved as a tensor, so that hooks on saved tensors (offloading, checkpointing) see all of it.
        buffers = [getattr(part, name) for part in (score, *cells) for name in part.saved]
        ctx.present = [tensor is not None for tensor in tensors]
        ctx.save_for_backward(*[tensor for tensor in tensors if tensor is not None], extra, *hidden, *buffers)
        last = [cell.cells[steps] for cell in cells] if plan.cell == "lstm" else []
        return (
            extra[1:],
            score.weights,
            score.end(),
            *[states[1:] for states in hidden],
            *[cell.clone() for cell in last],
        )

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        plan, saved = ctx.plan, iter(ctx.saved_tensors)
        inputs = _Inputs.of([next(saved) if present else None for present in ctx.present])
        count = len(inputs.layers)
        extra, hidden = next(saved), [next(saved) for _ in range(count)]
        cell, kind = _classes(plan, inputs.source)
        score = kind(inputs.source, plan.mask, ctx.steps, [next(saved) for _ in kind.saved])
        cells = [cell(layer, ctx.steps, [next(saved) for _ in cell.saved]) for layer in inputs.layers]
        *others, rest = *gradients[:3], gradients[3:]
        grads = ScanOutputs(*others, rest[:count], rest[count:])
        with without_autocast(extra):
            found = _Backward(inputs, plan, cells, score, hidden, extra).run(grads)
        return None, *[tensor for group in (found.source, found.mixer, *found.layers) for tensor in group]


def _classes(plan: ScanPlan, source: ScanSource) -> tuple[type[ScanCell], type[ScanScore]]:
    """The classes of the cells and of the score."""
    return CELLS[plan.cell], score_class(source)


def _run(inputs: _Inputs, plan: ScanPlan, cells: list[ScanCell], score: ScanScore) -> tuple[list[Tensor], Tensor]:
    """The forward loop: states (T + 1, B, H) of each layer and the vectors x (T + 1, B, X), from before position 1."""
    layers, mixer, first = inputs.layers, inputs.mixer, inputs.layers[0]
    steps, batch = first.projected.shape[:2]
    reads = inputs.source.values.shape[2] * score.heads
    width = reads if mixer.read_weight is None else len(mixer.read_weight)
    hidden = [layer.hidden.new_empty(steps + 1, *layer.hidden.shape) for layer in layers]
    for states, layer in zip(hidden, layers, strict=True):
        states[0] = layer.hidden
    extra = first.hidden.new_empty(steps + 1, batch, width)
    if mixer.feed is not None:
        extra[0] = mixer.feed
    for t in range(steps):
        if plan.before_cell:
            _mix(mixer, t, score.read(t, hidden[-1][t]), None, extra[t + 1])
        entering, output = extra[t + 1 if plan.before_cell else t], None
        for number, (layer, cell) in enumerate(zip(layers, cells, strict=True)):
            parts = (
                [] if output is None else [output if layer.input_mask is None else output * _at(layer.input_mask, t)]
            )
            if plan.reads_extra[number]:
                parts = [*parts, entering]
            after = hidden[number][t + 1]
            cell.forward(t, parts, hidden[number][t], after)
            output = after + parts[0] if plan.residual[number] else after
        if not plan.before_cell:
            _mix(mixer, t, score.read(t, output), output, extra[t + 1])
    return hidden, extra


def _mix(mixer: ScanMixer, t: int, read: Tensor, output: Tensor | None, out: Tensor) -> None:
    """Writes x of one position to `out` (batch, extra)."""
    if mixer.read_weight is not None:
        read = product(read, mixer.read_weight.t())
    if mixer.output_weight is None:
        out.copy_(read)
        return
    if mixer.projected is not None:
        read += mixer.projected[t]
    torch.tanh(affine(read, output, mixer.output_weight), out=out)


def _at(sequence: Tensor, t: int) -> Tensor:
    """A mask's position t; a sequence of one mask serves all positions."""
    return sequence[t if len(sequence) > 1 else 0]


class _Backward:
    """The backward pass, from the last position to the first; names that start with d_ are gradients."""

    def __init__(
        self,
        inputs: _Inputs,
        plan: ScanPlan,
        cells: list[ScanCell],
        score: ScanScore,
        hidden: list[Tensor],
        extra: Tensor,
    ) -> None:
        self.inputs, self.plan, self.cells, self.score = inputs, plan, cells, score
        self.hidden, self.extra = hidden, extra
        self.d_mixed = torch.empty_like(extra[1:])  # of x before its tanh
        self.d_hidden = [torch.zeros_like(states[0]) for states in hidden]
        self.d_cell = [None] * len(hidden)

    def run(self, grads: ScanOutputs) -> _Inputs:
        mixer, plan = self.inputs.mixer, self.plan
        if plan.cell == "lstm":
            given = zip(grads.cells, self.d_hidden, strict=True)
            self.d_cell = [torch.zeros_like(like) if d is None else d.clone() for d, like in given]
        d_feed = None if plan.before_cell else torch.zeros_like(self.extra[0])
        self.score.start_at_end(grads.state)
        for t in range(len(self.extra) - 2, -1, -1):
            d_weights = None if grads.weights is None else grads.weights[t]
            d_given = None if grads.extra is None else grads.extra[t]
            d_output = None
            if not plan.before_cell:
                d_mixed = d_feed if d_given is None else d_feed + d_given
                d_output = self._unmix(t, d_mixed, d_weights)
            d_feed = self._through_layers(t, d_output, grads.hidden)
            if plan.before_cell:
                if d_given is None:
                    self.d_mixed[t] = d_feed
                else:
                    torch.add(d_feed, d_given, out=self.d_mixed[t])
                self.d_hidden[-1] = self.score.backward(t, self._d_read(t), d_weights, self.d_hidden[-1])
        return self._finish(mixer, None if plan.before_cell else d_feed)

    def _unmix(self, t: int, d_extra: Tensor, d_weights: Tensor | None) -> Tensor:
        """The gradient of the top layer's output (batch, hidden) from that of x_t."""
        mixer = self.inputs.mixer
        if mixer.output_weight is None:
            self.d_mixed[t] = d_extra
            d_output = torch.zeros_like(self.d_hidden[-1])
        else:
            torch.ops.aten.tanh_backward.grad_input(d_extra, self.extra[t + 1], grad_input=self.d_mixed[t])
            d_output = product(self.d_mixed[t], mixer.output_weight)
        return self.score.backward(t, self._d_read(t), d_weights, d_output)

    def _d_read(self, t: int) -> Tensor:
        weight = self.inputs.mixer.read_weight
        return self.d_mixed[t] if weight is None else product(self.d_mixed[t], weight)

    def _through_layers(self, t: int, d_output: Tensor | None, given: tuple[Tensor | None, ...]) -> Tensor:
        """Position t of all layers, the top one first; returns the gradient of the x that entered."""
        plan, d_extra = self.plan, None
        for number in range(len(self.cells) - 1, -1, -1):
            d_state = self.d_hidden[number]
            if given[number] is not None:
                d_state = d_state + given[number][t]
            if d_output is not None:
                d_state = d_state + d_output
            cell = self.cells[number]
            d_inputs, self.d_hidden[number] = cell.backward(t, d_state, self.d_cell[number], self.hidden[number][t])
            if plan.reads_extra[number]:
                d_entering = d_inputs[:, -self.extra.shape[2] :]
                d_extra = d_entering if d_extra is None else d_extra + d_entering
            if number:
                d_below = d_inputs[:, : self.hidden[0].shape[2]]
                d_below = d_below + d_output if plan.residual[number] and d_output is not None else d_below
                mask = self.inputs.layers[number].input_mask
                d_output = d_below if mask is None else d_below * _at(mask, t)
        return d_extra

    def _finish(self, mixer: ScanMixer, d_feed: Tensor | None) -> _Inputs:
        """The gradients that are summed over positions, with one product for each weight."""
        plan, score, layers, output = self.plan, self.score, [], None
        entering = self.extra[1:] if plan.before_cell else self.extra[:-1]
        for number, cell in enumerate(self.cells):
            mask = self.inputs.layers[number].input_mask
            parts = [] if output is None else [output if mask is None else output * mask]
            output = self.hidden[number][1:] + parts[0] if plan.residual[number] else self.hidden[number][1:]
            if plan.reads_extra[number]:
                parts = [*parts, entering]
            layer = cell.finish(parts, self.hidden[number][:-1])
            layers.append(layer._replace(hidden=self.d_hidden[number], cell=self.d_cell[number]))
        d_mixed = self.d_mixed
        d_read = d_mixed if mixer.read_weight is None else d_mixed @ mixer.read_weight
        queries = self.hidden[-1][:-1] if plan.before_cell else output
        return _Inputs(
            score.finish(queries, d_read),
            ScanMixer(
                feed=d_feed,
                read_weight=None if mixer.read_weight is None else outer(d_mixed, score.reads()),
                output_weight=None if mixer.output_weight is None else outer(d_mixed, output),
                projected=None if mixer.projected is None else d_mixed,
            ),
            layers,
        )
