"""One position of decoding for the commonest shape, in fewer and larger products, and the choice of a step.

The shape: one LSTM or GRU layer, multiplicative attention after the cell, tanh readout. The input product is a table
over the vocabulary, the recurrent products are one, and the readout's context product moves to the source side.

Axes: rows (sentences times beams), beams, source, hidden, vocab. Masks are True where attention is allowed.
"""

import copy
import threading
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import Attention, DotAttention
from .copying import Copying
from .regularisation import zone_out
from .search_step import GeneralStep, SearchState, StepOutput, product, repeat_rows

WEIGHT_TYPES = ("float32", "bfloat16", "int8")

# A table of vocabulary x gates pays while it stays in reach of the caches' larger levels and of memory.
MAX_TABLE_BYTES = 256 * 2**20


class FusedStep(GeneralStep):
    """One position where one LSTM or GRU layer asks after the cell: fewer and larger products.

    With W_c = [W_s W_v], tanh(W_c [s; c]) = tanh(W_s s + sum a_i (W_v v_i)), so W_v is applied once per source word.
    """

    def __init__(self, model: nn.Module, int8: bool = False) -> None:
        super().__init__(model, int8)
        config, layer, readout = model.config, self.decoder.layers[0], self.decoder.readout
        size, feed = config.hidden_size, self.decoder.feed_size
        self.is_lstm, self.size, self.feeds = config.cell_type == "lstm", size, bool(feed)
        self.scale, self.zoneout = self.decoder.attention.scale, layer.zoneout
        cut = layer.step_weights(feed)
        order = torch.arange(self._gates(size), device=cut.below.device)
        if self.is_lstm:  # torch orders input, forget, cell, output; here the three sigmoids stand together
            order = torch.cat([order[: 2 * size], order[3 * size :], order[2 * size : 3 * size]])
        bias = cut.below_bias + cut.recurrent_bias if self.is_lstm else cut.below_bias
        self.below, self.below_bias = cut.below[order].detach(), bias[order].detach()
        parts = [cut.recurrent[order]] + ([cut.extra[order]] if self.feeds else [])
        if self.is_lstm:
            self.recurrent = product(torch.cat(parts, 1), None, int8)
        else:
            self.recurrent = product(cut.recurrent, cut.recurrent_bias, int8)
            self.fed = product(cut.extra, None, int8) if self.feeds else None
        table_bytes = config.vocab_size * len(order) * self.below.element_size()
        self.table = self._inputs(self._embedding().weight) if table_bytes <= MAX_TABLE_BYTES else None
        weight = readout.project.weight.detach()
        if self.copies:  # the gate is one more unit of the readout, taken before the tanh
            gate = self.decoder.copy_gate.project
            context, state, word = gate.weight.detach().split([config.context_width, size, config.embedding_size], 1)
            weight = torch.cat([weight, torch.cat([state, context], 1)])
            self.word_gate = F.linear(self._words(self._embedding().weight), word, gate.bias).detach().squeeze(1)
        self.read_state = product(weight[:, :size], None, int8)
        self.read_context = weight[:, size:].contiguous()

    def _gates(self, size: int) -> int:
        return size * (4 if self.is_lstm else 3)

    def _embedding(self) -> nn.Embedding:
        return self.decoder.embed_tokens

    def _words(self, embedded: Tensor) -> Tensor:
        """Word vectors (..., embedding) as the decoder reads them."""
        return torch.relu(embedded) if self.config.embedding_activation == "relu" else embedded

    def _inputs(self, embedded: Tensor) -> Tensor:
        """The input product of word vectors (..., embedding)."""
        return F.linear(self._words(embedded), self.below, self.below_bias).detach()

    def start(self, source: Any, beams: int) -> SearchState:
        layers, _ = self.base.bridge(source)
        memory = self.decoder.read_source(source.last_hidden_state, source.source_mask, None, source.source_ids)
        values = memory.values.masked_fill(~memory.mask.unsqueeze(-1), 0)
        # A masked word's weight is exactly zero after this; where a row has no word at all its values are zero.
        barrier = torch.zeros_like(memory.keys[:, :, 0]).masked_fill(~memory.mask, -3e4).unsqueeze(1)
        held = (
            memory.keys.transpose(1, 2).contiguous(),
            F.linear(values, self.read_context),
            barrier,
            memory.source_ids,
        )
        rows = layers[0]
        if self.feeds:
            rows += (rows[0].new_zeros(len(rows[0]), self.decoder.feed_size),)
        return repeat_rows(SearchState(rows, held), beams)

    def __call__(self, tokens: Tensor, state: SearchState, need_weights: bool = False) -> StepOutput:
        keys, values, barrier, source_ids = state.source
        projected = self._inputs(self._embedding()(tokens)) if self.table is None else self.table[tokens]
        rows = self._lstm(projected, state.rows) if self.is_lstm else self._gru(projected, state.rows)
        if self.zoneout is not None:
            rows = zone_out(self.zoneout, state.rows[: len(rows)], rows)
        hidden = rows[0]
        asked = hidden.view(len(keys), -1, self.size)
        scores = torch.baddbmm(barrier, asked, keys, alpha=self.scale)
        weights = scores.softmax(-1)
        readout = self.read_state(hidden).view(len(keys), -1, values.shape[2])
        readout = torch.baddbmm(readout, weights, values)
        if need_weights or self.copies:
            weights = weights.masked_fill(barrier < 0, 0.0)
        shown = weights.flatten(0, 1) if need_weights else None
        if self.copies:
            gate = readout[..., -1] + self.word_gate[tokens].view(len(keys), -1)
            readout, copying = readout[..., :-1], Copying(gate, weights, source_ids)
        readout = readout.tanh_().flatten(0, 1)
        if self.feeds:
            rows += (readout,)
        told = (readout, copying) if self.copies else readout
        return StepOutput(told, shown, SearchState(rows, state.source))

    def _lstm(self, gates: Tensor, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        size = self.size
        read = torch.cat([rows[0], rows[2]], 1) if self.feeds else rows[0]
        gates = gates.add_(self.recurrent(read))
        opened = gates[:, : 3 * size].sigmoid_()
        cell = opened[:, size : 2 * size] * rows[1]
        cell.addcmul_(opened[:, :size], gates[:, 3 * size :].tanh_())
        return opened[:, 2 * size :] * torch.tanh(cell), cell

    def _gru(self, gates: Tensor, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        size, hidden = self.size, rows[0]
        recurrent = self.recurrent(hidden)
        if self.feeds:
            gates = gates.add_(self.fed(rows[1]))
        opened = gates[:, : 2 * size].add_(recurrent[:, : 2 * size]).sigmoid_()
        new = gates[:, 2 * size :].addcmul_(opened[:, :size], recurrent[:, 2 * size :]).tanh_()
        return (torch.lerp(new, hidden, opened[:, size:]),)


def can_fuse(model: nn.Module) -> bool:
    """Whether `FusedStep` is the model's step."""
    config, decoder = model.config, model.model.decoder
    return (
        isinstance(decoder.attention, DotAttention)
        and decoder.attention.scan_form() is not None  # not a subclass with a score of its own
        and type(decoder.attention).forward is Attention.forward
        and config.decoder_layers == 1
        and config.cell_type in ("lstm", "gru")
        and not (config.layer_norm or decoder.layers[0].reset_before or len(decoder.layers[0].transitions))
        and decoder.readout.reads_context
        and (decoder.copy_gate is None or isinstance(decoder.copy_gate.project, nn.Linear))
        and config.attention_window == "global"
        and config.attention_normalization == "softmax"
        and config.context_gate == "none"
        and config.attention_order == "after_cell"
        and config.residual_start != 1
        and config.readout == "tanh"
        and isinstance(decoder.readout.project, nn.Linear)  # an adapter in its place must be called
        and not config.readout_embedding
        and (decoder.feeds_readout or not config.input_feeding)
    )


def build_step(model: nn.Module, weight_type: str = "float32") -> GeneralStep:
    """The fastest step for `model`, kept with it until its weights change.

    Args:
        weight_type: `float32` leaves the model's own type; `bfloat16` computes encoder and decoder with bfloat16
            weights and states; `int8` computes the decoder's products with 8-bit weights (CPU only).

    Raises:
        ValueError: the weight type is unknown, or int8 is asked for on another device than the CPU.
    """
    if weight_type not in WEIGHT_TYPES:
        raise ValueError(f"weight_type={weight_type!r}: must be one of {', '.join(WEIGHT_TYPES)}")
    if weight_type == "int8" and model.device.type != "cpu":
        raise ValueError(f"weight_type='int8': the model is on {model.device.type}; 8-bit products need the CPU")
    with _ONE_BUILDS:
        kept, mark = _KEPT.setdefault(model, {}), weights_mark(model)
        if kept.get(weight_type, (None,))[0] != mark:
            own = copy.deepcopy(model).to(torch.bfloat16) if weight_type == "bfloat16" else model
            step = (FusedStep if can_fuse(own) else GeneralStep)(own, weight_type == "int8")
            kept[weight_type] = (mark, step)
        return kept[weight_type][1]


def weights_mark(model: nn.Module) -> tuple[Any, ...]:
    """Changes when the weights do: by an operation in place, by another tensor, or (sampled) behind `.data`."""
    marks = []
    for parameter in model.parameters():
        flat = parameter.detach().reshape(-1)
        sample = flat[:: max(1, len(flat) // 16)][:17].sum()
        version = None if parameter.is_inference() else parameter._version
        marks.append((parameter.data_ptr(), version, parameter.dtype, sample))
    samples = torch.stack([mark[3].float() for mark in marks]).tolist()
    return tuple((*mark[:3], sample) for mark, sample in zip(marks, samples, strict=True))


# Threads that decode with one model share its step.
_ONE_BUILDS = threading.Lock()

# A step holds parts of its model and not the model, so that an entry goes when the model does.
_KEPT: "weakref.WeakKeyDictionary[nn.Module, dict[str, tuple[Any, Any]]]" = weakref.WeakKeyDictionary()


__all__ = ["WEIGHT_TYPES", "FusedStep", "build_step", "can_fuse", "weights_mark"]
