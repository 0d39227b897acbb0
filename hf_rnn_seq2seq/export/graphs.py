"""Encoder and decoder step as two graphs of tensors, for torch.export and for what is made from it.

The first graph reads a source and gives all that decoding starts from; the second reads one target word of each row.
Batch and source length stay free in both.
"""

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hf_rnn_seq2seq.errors import ExportError

# The recurrence as one operation whose length stays free: torch's own kernels are unrolled to the length of the
# example. torch runs it as packed sequences; ONNX has an operator for it.
OPERATION = "hf_rnn_seq2seq::recurrence"
KERNELS = ("lstm", "gru", "rnn_tanh", "rnn_relu")
# Sizes of the example that is traced; 0 and 1 would be taken for constants.
ROWS, SOURCE = 3, 5


class Programs(NamedTuple):
    """The two exported graphs, with the names of what goes in and out, in order."""

    encoder: torch.export.ExportedProgram
    decoder: torch.export.ExportedProgram
    state: list[str]  # what a decoder step takes and gives, first axis: rows
    memory: list[str]  # what a decoder step reads of the source and leaves as it is
    shows_weights: bool  # whether a step also gives the attention weights


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
    """One recurrent layer over rows of `lengths` real positions.

    Args:
        inputs: (batch, time, inputs).
        hidden: (batch, hidden), the state before; `cell` likewise, read by the LSTM only.
        lengths: (batch,), at least 1.
        kind: one of KERNELS; weights as torch lays them out.

    Returns:
        outputs (batch, time, hidden), zero past a row's length; hidden and cell after each row's last position.
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
    """input_ids and attention_mask (batch, source) -> the state before the first word, then the memory."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def start(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Any, Any]:
        """The decoder's first state and its view of the source, as the model's classes hold them."""
        base = self.model.model
        source = base.encoder(input_ids, attention_mask)
        layers, summary = base.bridge(source)
        memory = base.decoder.read_source(source.last_hidden_state, source.source_mask, summary, source.source_ids)
        return base.decoder.start_state(layers, memory), memory

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, ...]:
        state, memory = self.start(input_ids, attention_mask)
        # One tensor may serve two purposes (keys and values, h and c); every output is its own.
        return tuple(tensor.clone() for tensor in (*state.tensors(), *present(memory)))


class DecoderGraph(nn.Module):
    """The last word of each row (rows,), state and memory -> logits (rows, vocab), weights, the next state."""

    def __init__(self, model: Any, state: Any, memory: Any) -> None:
        super().__init__()
        self.model = model
        self.state, self.memory = state, memory  # as patterns: their tensors are replaced

    def forward(self, words: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        decoder = self.model.model.decoder
        given = iter(tensors)
        state = self.state.map(lambda _: next(given))
        memory = type(self.memory)(*(None if tensor is None else next(given) for tensor in self.memory))
        trace = decoder(decoder.embed(words.unsqueeze(1)), state, memory)
        logits = self.model.score_words(trace.readout, self.model.model.copying(trace, memory))[:, 0]
        weights = () if trace.weights is None else (trace.weights[:, :, 0],)
        return (logits, *weights, *(tensor.clone() for tensor in trace.state.tensors()))


def present(memory: Any) -> list[Tensor]:
    """The tensors that a memory has."""
    return [tensor for tensor in memory if tensor is not None]


def check(model: Any) -> None:
    """Raises ExportError for a model of another family, or with layers that torch and ONNX have no kernel for."""
    if getattr(model.config, "model_type", None) != "rnn_seq2seq" or not hasattr(model, "lm_head"):
        raise ExportError(f"{type(model).__name__}: only RnnSeq2SeqForConditionalGeneration is exported")
    for name, layer in model.get_encoder().named_modules():
        if not hasattr(layer, "kernel"):
            continue
        reasons = {
            "layer_norm": layer.norm_input is not None,
            "gru_reset='before'": layer.reset_before,
            "encoder_transition_depth above 1": len(layer.transitions) > 0,
            "zoneout": layer.zoneout is not None,
        }
        found = [reason for reason, holds in reasons.items() if holds]
        if found:
            raise ExportError(
                f"{found[0]}: encoder layer {name} has no kernel that leaves the length of the source free"
            )


def export_programs(model: Any) -> Programs:
    """Exports a model in evaluation mode, in float32, on the CPU; the model itself is not changed.

    Raises:
        ExportError: the model has a setting that cannot be exported.
    """
    check(model)
    encoder = EncoderGraph(model)
    ids = torch.full((ROWS, SOURCE), model.config.eos_token_id or 0)
    mask = torch.ones(ROWS, SOURCE, dtype=torch.long)
    rows, source = torch.export.Dim("rows"), torch.export.Dim("source")
    both = {0: rows, 1: source}
    with torch.no_grad(), _replaced_layers(model):
        state, memory = encoder.start(ids, mask)
        longer = encoder.start(ids.repeat(1, 2), mask.repeat(1, 2))
        try:
            first = torch.export.export(encoder, (ids, mask), dynamic_shapes=(both, both), strict=False)
            decoder = DecoderGraph(model, state, memory)
            tensors = tuple(tensor.clone() for tensor in (*state.tensors(), *present(memory)))
            axes = []
            for short, long in zip(tensors, (*longer[0].tensors(), *present(longer[1])), strict=True):
                grown = [axis for axis in range(1, short.dim()) if short.shape[axis] != long.shape[axis]]
                axes.append({0: rows, **dict.fromkeys(grown, source)})
            words = torch.full((ROWS,), model.config.decoder_start_token_id or 0)
            shapes = {"words": {0: rows}, "tensors": tuple(axes)}
            second = torch.export.export(decoder, (words, *tensors), dynamic_shapes=shapes, strict=False)
            weighs = decoder(words, *tensors)[1].dim() == 3
        except Exception as error:  # what torch cannot trace, it tells in many classes
            reason = " ".join(str(error).split())[:300]
            raise ExportError(
                f"attention_type={model.config.attention_type!r}: torch.export failed: {reason}"
            ) from error
    names = [name for name, tensor in zip(memory._fields, memory, strict=True) if tensor is not None]
    return Programs(first, second, _state_names(state), names, weighs)


def _state_names(state: Any) -> list[str]:
    """In the order of `DecoderState.tensors`."""
    names = [f"{'hc'[part]}{number}" for number, layer in enumerate(state.layers, 1) for part in range(len(layer))]
    return names + [name for name in ("feed", "position", "attention") if getattr(state, name) is not None]


@contextlib.contextmanager
def _replaced_layers(model: Any) -> Iterator[None]:
    """The recurrent layers in the form that can be exported, and the model in evaluation mode, meanwhile."""
    layers = [layer for layer in model.modules() if hasattr(layer, "kernel") and hasattr(layer, "step_weights")]
    encoder = set(model.get_encoder().modules())
    was_training = model.training
    model.eval()
    for layer in layers:
        layer.forward = _as_operation(layer) if layer in encoder else _as_step(layer)
    try:
        yield
    finally:
        model.train(was_training)
        for layer in layers:
            del layer.forward


def _as_operation(layer: Any) -> Any:
    def forward(inputs: Tensor, state: Any = None, lengths: Tensor | None = None, hold: None = None) -> Any:
        state = layer.zero_state(inputs) if state is None else state
        if lengths is None:
            lengths = torch.full_like(inputs[:, 0, 0], inputs.shape[1], dtype=torch.long)
        weights = layer.step_weights()
        cell = state[1] if len(state) == 2 else torch.zeros_like(state[0])
        outputs, *end = recurrence(
            inputs,
            state[0],
            cell,
            lengths,
            weights.below,
            weights.recurrent,
            weights.below_bias,
            weights.recurrent_bias,
            layer.cell_type,
        )
        return outputs, tuple(end[: len(state)])

    return forward


def _as_step(layer: Any) -> Any:
    """One position by the cell's equation: nothing is left for a kernel to do."""

    def forward(inputs: Tensor, state: Any, lengths: None = None, hold: None = None) -> Any:
        weights = layer.step_weights()
        after = layer.step(F.linear(inputs[:, 0], weights.below, weights.below_bias), state, weights)
        return after[0].unsqueeze(1), after

    return forward


__all__ = ["DecoderGraph", "EncoderGraph", "Programs", "export_programs", "present", "recurrence"]
