"""The attentional recurrence under teacher forcing as one autograd node.

`RnnDecoder` computes the same with a loop over `step`, one graph of small operations per position. The forward pass here
stores only what the backward pass cannot recompute cheaply, and the backward pass computes every weight gradient with one
product over all positions. Covered: any number of attended layers of LSTM or GRU cells, dot, additive and multi-head
scores, the window of Graves, attention before the cells or after them with feeding, every dropout. Everything else takes
the loop; outputs and gradients of the two are equal. `attended_scan` runs it for a decoder, and `scan_refusal` says why a
decoder is not covered.

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
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx, once_differentiable

from .attention import Attention
from .decoder_state import Attended, DecoderState, LoopConstants, Memory
from .departures import departure, live_departure
from .matmul import LINEAR, affine, compute_dtype, linear, outer, product, without_autocast
from .readout import Readout
from .recurrence import KERNELS, RecurrentLayer
from .scan_steps import CELLS, EXACT, ScanCell, ScanLayer, ScanScore, ScanSource, score_class
from .window_attention import Window

# Options of the attention, and the only value of each that the scan covers.
COVERED = {"attention_window": "global", "attention_normalization": "softmax"}
COVERED |= {"coverage": "none", "context_gate": "none", "attention_alignment": "soft"}

# Methods that the scan calls, so that an override of them takes effect. The scan replaces all others.
LIVE_OF_ATTENTION = ("project_keys", "project_values", "start", "scan_form", "energy_weight", "_split")
LIVE_OF_A_LAYER = ("step_weights", "recurrent_mask", "zoneout_masks", "zero_state", "calls_kernel")


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

    Under autocast everything is computed in its type, but for what a window carries. The outputs share memory with what
    the backward pass reads: do not write into them.
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
            score.final_state(),
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
        self.score.receive_final(grads.state)
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


# ---------------------------------------------------------------- the attended layers of a decoder


def scan_refusal(decoder: nn.Module) -> str | None:
    """The reason why the fused scan does not cover an `RnnDecoder` that needs a time loop; None if it does."""
    config = decoder.config
    if config.cell_type not in ("lstm", "gru"):
        return f"cell_type={config.cell_type!r}"
    for name, covered in COVERED.items():
        if getattr(config, name) != covered:
            return f"{name}={getattr(config, name)!r}"
    for number, layer in enumerate(decoder.layers[: decoder.attended]):
        if reason := departure(layer, RecurrentLayer, LIVE_OF_A_LAYER):
            return f"layers.{number}: {reason}"
        if reason := live_departure(layer.kernel, KERNELS):
            return f"layers.{number}.kernel: {reason}"
        if layer.norm_input is not None or len(layer.transitions):
            return "layer normalization or deep transition"
        if layer.zoneout is not None:
            return f"zoneout {layer.zoneout}"
    if reason := attention_departure(decoder.attention):
        return f"attention_type={config.attention_type!r}: {reason}"
    if decoder.attention.scan_form() is None:
        return f"attention_type={config.attention_type!r}"
    if decoder.feeds_readout and config.skip_connections and config.decoder_layers > 1:
        return "skip_connections=True with a readout that is fed back"
    if decoder.feeds_readout and (reason := readout_departure(decoder.readout)):
        return f"readout: {reason}"
    return None


def attention_departure(attention: nn.Module) -> str | None:
    """What an attention does in addition to its `scan_form`, or None."""
    if not isinstance(attention, Attention):
        return f"{type(attention).__name__} in its place"
    if reason := departure(attention, form_author(attention), LIVE_OF_ATTENTION):
        return reason
    reasons = ((name, _part_departure(part)) for name, part in attention.named_children() if part is not None)
    return next((f"{name}: {reason}" for name, reason in reasons if reason), None)


def _part_departure(part: nn.Module) -> str | None:
    if not isinstance(part, Window):
        return departure(part, LINEAR)
    return departure(part, Window) or departure(part.project, LINEAR)


def form_author(attention: Attention) -> type[Attention]:
    """The class that gave an attention its `scan_form`."""
    return next(cls for cls in type(attention).__mro__ if "scan_form" in vars(cls))


def readout_departure(readout: nn.Module) -> str | None:
    """What a readout, or its projection, does in addition to the equation of `Readout`, or None."""
    if (reason := departure(readout, Readout)) or readout.project is None:
        return reason
    reason = departure(readout.project, LINEAR)
    return reason and f"project: {reason}"


def attended_scan(
    decoder: nn.Module, embedded: Tensor, state: DecoderState, memory: Memory, loop: LoopConstants
) -> Attended:
    """The attended layers over all positions: `RnnDecoder.step` over time as one autograd node.

    Args:
        decoder: the `RnnDecoder`.
        embedded: (batch, target, embedding), word vectors.
        state: before the first position.
        memory: the source.
        loop: weights and dropout masks of the pass.
    """
    form, words = decoder.attention.scan_form(), embedded.transpose(0, 1)
    keys, values = memory.keys, memory.values
    if keys.dim() == 4:  # (batch, heads, source, width): heads become rows
        keys, values = keys.flatten(0, 1), values.flatten(0, 1)
    mixer = ScanMixer(state.feed, form.read_weight, None, None)
    if decoder.feeds_readout:
        values, mixer = _attentional_vector(decoder, words, values, mixer)
    reset_before = decoder.layers[0].reset_before
    plan = ScanPlan(
        cell="gru_reset_before" if reset_before else decoder.config.cell_type,
        mask=memory.mask,
        before_cell=decoder.before_cell,
        residual=tuple(decoder.residual(number) for number in range(decoder.attended)),
        reads_extra=tuple(decoder.extra_size(number) > 0 for number in range(decoder.attended)),
    )
    center = None if form.bias is None else state.attention
    source = ScanSource(
        keys * form.scale if form.scale != 1 else keys, values, form.query_weight, form.energy, form.bias, center
    )
    # The GRU's reset gate multiplies the recurrent product with its bias; elsewhere the two biases are one.
    separate = plan.cell == "gru"
    layers = [
        _layer(number, words, state, loop, separate, decoder.skips_to(number)) for number in range(decoder.attended)
    ]
    scan = attention_scan(layers, source, mixer, plan)
    outputs = [scan.hidden[0]]
    for number in range(1, decoder.attended):
        mask, hidden = loop.input_masks[number], scan.hidden[number]
        below = outputs[-1] if mask is None else outputs[-1] * mask
        outputs.append(hidden + below if plan.residual[number] else hidden)
    extra = scan.extra.transpose(0, 1)
    ends = zip([hidden[-1] for hidden in scan.hidden], *[scan.cells] * (plan.cell == "lstm"), strict=True)
    return Attended(
        states=tuple(ends),
        outputs=tuple(output.transpose(0, 1) for output in outputs),
        context=None if decoder.feeds_readout else extra,
        weights=scan.weights.unflatten(1, (len(embedded), -1)).permute(1, 2, 0, 3),
        attention_state=scan.state,
        readout=extra if decoder.feeds_readout else None,
        feed=scan.extra[-1] if decoder.feed_size else None,
    )


def _attentional_vector(
    decoder: nn.Module, words: Tensor, values: Tensor, mixer: ScanMixer
) -> tuple[Tensor, ScanMixer]:
    """Luong's tanh(W [h; c; e]) in parts: the context and the word vector are projected before the loop."""
    size, width = decoder.config.hidden_size, decoder.config.context_width
    weight = decoder.readout.project.weight
    parts = weight.split([size, width, weight.shape[1] - size - width], 1)
    state, context, word = (part.contiguous() for part in parts)  # `product` is slow otherwise
    if mixer.read_weight is None:
        values = linear(values, context)
    else:
        mixer = mixer._replace(read_weight=context @ mixer.read_weight)
    projected = linear(words, word) if decoder.readout.reads_embedding else None
    return values, mixer._replace(output_weight=state, projected=projected)


def _layer(
    number: int, words: Tensor, state: DecoderState, loop: LoopConstants, separate_biases: bool, skips: bool
) -> ScanLayer:
    """One layer's part of the scan; the first reads `words` (target, batch, embedding), with skip connections all do."""
    weights, hidden = loop.weights[number], state.layers[number]
    bias = weights.below_bias if separate_biases else weights.below_bias + weights.recurrent_bias
    columns = [weights.recurrent] if weights.extra is None else [weights.extra, weights.recurrent]
    below = weights.below.split([hidden[0].shape[1], words.shape[2]] if skips else weights.below.shape[1], 1)
    if number:
        columns = [below[0], *columns]
    reads_words = skips or not number
    return ScanLayer(
        hidden=hidden[0],
        cell=hidden[1] if len(hidden) == 2 else None,
        weight=torch.cat(columns, 1),
        bias=None if reads_words else bias,
        recurrent_bias=weights.recurrent_bias if separate_biases else None,
        projected=linear(words, below[-1].contiguous(), bias) if reads_words else None,
        recurrent_mask=loop.recurrent_masks[number],
        input_mask=loop.input_masks[number],
    )
