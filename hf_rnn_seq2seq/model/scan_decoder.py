"""The decoder's attended layers as one fused scan, and which decoders the scan covers."""

import torch
from torch import Tensor, nn

from .attention import Attention
from .decoder_state import Attended, DecoderState, LoopConstants, Memory
from .departures import departure, live_departure
from .matmul import LINEAR, linear
from .readout import Readout
from .recurrence import KERNELS, RecurrentLayer
from .scan import ScanMixer, ScanPlan, attention_scan
from .scan_cells import ScanLayer
from .scan_scores import ScanSource
from .window_attention import Window

# Options of the attention, and the only value of each that the scan covers.
COVERED = {"attention_window": "global", "attention_normalization": "softmax"}
COVERED |= {"coverage": "none", "context_gate": "none", "attention_alignment": "soft"}

# Methods that the scan calls, so that an override of them takes effect. The scan replaces all others.
LIVE_OF_ATTENTION = ("project_keys", "project_values", "start", "scan_form", "energy_weight", "_split")
LIVE_OF_A_LAYER = ("step_weights", "recurrent_mask", "zoneout_masks", "zero_state", "calls_kernel")


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
