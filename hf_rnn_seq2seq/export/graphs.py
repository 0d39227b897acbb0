"""The encoder and one decoder step as two graphs of tensors, for torch.export and formats made from it, such as ONNX.

The first graph reads the sources and returns the first state and the memory of the decoder; the second reads one target
word per row. Batch size and source length are dynamic in both.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.model.decoder_state import DecoderState, Memory
from hf_rnn_seq2seq.model.dropout import State
from hf_rnn_seq2seq.model.modeling_rnn_seq2seq import RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.model.recurrence import RecurrentLayer

# The recurrence as one operation of dynamic length: torch.export unrolls the kernels of torch to the length of the
# example. torch runs it on packed sequences; ONNX has an operator for it.
OPERATION = "hf_rnn_seq2seq::recurrence"
KERNELS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
# Sizes of the traced example; torch.export takes 0 and 1 for constants.
ROWS, SOURCE = 3, 5


class Programs(NamedTuple):
    """The two exported graphs and the names of their tensors, in order."""

    encoder: torch.export.ExportedProgram
    decoder: torch.export.ExportedProgram
    state: list[str]  # inputs and outputs of a decoder step, first axis: rows
    memory: list[str]  # inputs of each decoder step, computed from the source
    has_weights: bool  # whether a step also returns attention weights


@torch.library.custom_op(OPERATION, mutates_args=())
def recurrence(
    inputs: Tensor,
    hidden: Tensor,
    cell: Tensor,
    lengths: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor,
    bias_hh: Tensor,
    kind: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """One recurrent layer over rows with `lengths` positions that are not padding.

    Args:
        inputs: (batch, time, inputs).
        hidden: (batch, hidden), the first state; `cell` likewise, used by the LSTM only.
        lengths: (batch,), at least 1.
        kind: one of KERNELS. The weights have the layout of torch.

    Returns:
        outputs (batch, time, hidden), zero past a row's length; hidden and cell after the last position of each row.
    """
    packed = nn.utils.rnn.pack_padded_sequence(inputs, lengths.cpu(), batch_first=True, enforce_sorted=False)
    order = packed.sorted_indices
    start = hidden[order].unsqueeze(0).contiguous()
    weights = [weight_ih, weight_hh, bias_ih, bias_hh]
    options = (weights, True, 1, 0.0, False, False)
    ended = torch.zeros_like(cell).unsqueeze(0)
    if kind == "lstm":
        first = (start, cell[order].unsqueeze(0).contiguous())
        data, end, ended = torch.lstm(packed.data, packed.batch_sizes, first, *options)
    else:
        data, end = getattr(torch, kind)(packed.data, packed.batch_sizes, start, *options)
    back = packed.unsorted_indices
    sequence = nn.utils.rnn.PackedSequence(data, packed.batch_sizes, order, back)
    outputs, _ = nn.utils.rnn.pad_packed_sequence(sequence, batch_first=True, total_length=inputs.shape[1])
    return outputs.contiguous(), end[0][back], ended[0][back]


@recurrence.register_fake
def _(inputs, hidden, cell, lengths, weight_ih, weight_hh, bias_ih, bias_hh, kind):
    outputs = inputs.new_empty(inputs.shape[0], inputs.shape[1], hidden.shape[1])
    return outputs, torch.empty_like(hidden), torch.empty_like(cell)


class EncoderGraph(nn.Module):
    """input_ids and attention_mask (batch, source) -> the first state, then the memory."""

    def __init__(self, model: RnnSeq2SeqForConditionalGeneration) -> None:
        super().__init__()
        self.model = model

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[DecoderState, Memory]:
        """The first state and the memory of the decoder."""
        base = self.model.model
        source = base.encoder(input_ids, attention_mask)
        layers, summary = base.bridge(source)
        memory = base.decoder.prepare_memory(source.last_hidden_state, source.source_mask, summary, source.source_ids)
        return base.decoder.start_state(layers, memory), memory

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        state, memory = self.start(input_ids, attention_mask)
        # The same tensor may be keys and values, or h and c; exported outputs must be distinct.
        return tuple(tensor.clone() for tensor in (*state.tensors(), *present(memory)))


class DecoderGraph(nn.Module):
    """The last word of each row (rows,), state and memory -> logits (rows, vocab), weights, the next state.

    `state` and `memory` are examples of the structure; `forward` replaces their tensors.
    """

    def __init__(self, model: RnnSeq2SeqForConditionalGeneration, state: DecoderState, memory: Memory) -> None:
        super().__init__()
        self.model = model
        self.state, self.memory = state, memory

    def forward(self, words: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        base, words = self.model.model, words.unsqueeze(1)
        given = iter(tensors)
        state = self.state.map(lambda _: next(given))
        memory = type(self.memory)(*(None if tensor is None else next(given) for tensor in self.memory))
        trace = base.decoder(base.decoder.embed(words), state, memory)
        weights, after = trace.weights, trace.state
        alignment = base.alignment(trace, state, memory, words)
        if alignment is None:
            logits = self.model.score_words(trace.readout, base.copying(trace, memory))
        else:
            logits, weights, carried = self.model.sum_positions(alignment)
            after = after if carried is None else after._replace(attention=carried[:, -1])
        found = (logits[:, 0],) if weights is None else (logits[:, 0], weights[:, :, 0])
        return (*found, *(tensor.clone() for tensor in after.tensors()))


def present(memory: Memory) -> list[Tensor]:
    """The tensors of a memory that are not None."""
    return [tensor for tensor in memory if tensor is not None]


def check(model: nn.Module) -> None:
    """Raises ArgumentError for a model of another class, or with encoder layers that are not one operation."""
    if not isinstance(model, RnnSeq2SeqForConditionalGeneration):
        raise ArgumentError(f"{type(model).__name__}: only RnnSeq2SeqForConditionalGeneration can be exported")
    if model.config.encoder is not None:
        raise ArgumentError(
            f"encoder={model.config.encoder.model_type!r}: only models whose encoder is recurrent and reads words can "
            "be exported; train one without encoder"
        )
    for name, layer in model.get_encoder().named_modules():
        if not isinstance(layer, RecurrentLayer):
            continue
        options = {
            "layer_norm": layer.norm_input is not None,
            "gru_reset='before'": layer.reset_before,
            "encoder_transition_depth above 1": len(layer.transitions) > 0,
            "zoneout": layer.zoneout is not None,
        }
        reasons = [option for option, is_set in options.items() if is_set]
        if reasons:
            raise ArgumentError(
                f"{reasons[0]}: encoder layer {name} has no kernel of dynamic length; train without this option"
            )


def export_programs(model: RnnSeq2SeqForConditionalGeneration) -> Programs:
    """Exports a model, which must be in float32 on the CPU, in evaluation mode; the model itself is not changed.

    Raises:
        ArgumentError: the model has an option that cannot be exported.
    """
    check(model)
    model = _exportable(model)
    encoder = EncoderGraph(model)
    ids = torch.full((ROWS, SOURCE), model.config.eos_token_id or 0)
    mask = torch.ones(ROWS, SOURCE, dtype=torch.long)
    rows, source = torch.export.Dim("rows"), torch.export.Dim("source")
    both = {0: rows, 1: source}
    with torch.no_grad():
        state, memory = encoder.start(ids, mask)
        longer = encoder.start(ids.repeat(1, 2), mask.repeat(1, 2))
        try:
            first = torch.export.export(encoder, (ids, mask), dynamic_shapes=(both, both), strict=False)
            decoder = DecoderGraph(model, state, memory)
            tensors = tuple(tensor.clone() for tensor in (*state.tensors(), *present(memory)))
            axes = []
            for short, long in zip(tensors, (*longer[0].tensors(), *present(longer[1])), strict=True):
                # A monotonic alignment carries a number for each source position after those of the readout.
                more = {axis: short.shape[axis] - SOURCE for axis in range(1, short.dim())}
                grown = {axis: more[axis] for axis in more if short.shape[axis] != long.shape[axis]}
                axes.append({0: rows, **{axis: source + extra if extra else source for axis, extra in grown.items()}})
            words = torch.full((ROWS,), model.config.decoder_start_token_id or 0)
            shapes = {"words": {0: rows}, "tensors": tuple(axes)}
            second = torch.export.export(decoder, (words, *tensors), dynamic_shapes=shapes, strict=False)
            has_weights = decoder(words, *tensors)[1].dim() == 3
        except Exception as error:  # torch raises many classes
            reason = " ".join(str(error).split())[:300]
            raise ArgumentError(
                f"attention_type={model.config.attention_type!r}: torch.export failed: {reason}"
            ) from error
    names = [name for name, tensor in zip(memory._fields, memory, strict=True) if tensor is not None]
    return Programs(first, second, _state_names(state), names, has_weights)


def _state_names(state: DecoderState) -> list[str]:
    """The names of `DecoderState.tensors`, in order."""
    names = [f"{'hc'[part]}{number}" for number, layer in enumerate(state.layers, 1) for part in range(len(layer))]
    return names + [name for name in ("feed", "position", "attention") if getattr(state, name) is not None]


def _exportable(model: RnnSeq2SeqForConditionalGeneration) -> RnnSeq2SeqForConditionalGeneration:
    """A copy in evaluation mode whose recurrent layers can be exported."""
    model = copy.deepcopy(model).eval()
    for part, kind in ((model.get_encoder(), _EncoderLayer), (model.get_decoder(), _DecoderLayer)):
        for layer in part.modules():
            if isinstance(layer, RecurrentLayer):
                layer.__class__ = kind
    return model


class _EncoderLayer(RecurrentLayer):
    """A layer over time, as one operation."""

    def forward(
        self, inputs: Tensor, state: State | None = None, lengths: Tensor | None = None, hold: None = None
    ) -> tuple[Tensor, State]:
        state = self.zero_state(inputs) if state is None else state
        if lengths is None:
            lengths = torch.full_like(inputs[:, 0, 0], inputs.shape[1], dtype=torch.long)
        weights = self.step_weights()
        outputs, *end = recurrence(
            inputs,
            state[0],
            state[1] if len(state) == 2 else torch.zeros_like(state[0]),
            lengths,
            weights.below,
            weights.recurrent,
            weights.below_bias,
            weights.recurrent_bias,
            self.cell_type,
        )
        return outputs, tuple(end[: len(state)])


class _DecoderLayer(RecurrentLayer):
    """A layer at one position, by the equation of its cell instead of a kernel."""

    def forward(
        self, inputs: Tensor, state: State | None = None, lengths: None = None, hold: None = None
    ) -> tuple[Tensor, State]:
        weights = self.step_weights()
        after = self.step(F.linear(inputs[:, 0], weights.below, weights.below_bias), state, weights)
        return after[0].unsqueeze(1), after


__all__ = ["DecoderGraph", "EncoderGraph", "Programs", "export_programs", "present", "recurrence"]
