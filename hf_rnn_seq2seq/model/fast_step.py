"""One position of decoding for all beams of all sentences, with one copy of each source.

`rows` are sentences times beams; beams of a sentence stand together. `GeneralStep` runs the decoder itself for any
configuration, and asks its attention with the beams on the target axis. `FusedStep` equals it for the commonest shape (one LSTM or GRU layer, multiplicative attention after the cell, tanh readout) with the
input product as a table, one recurrent product, and the readout's context product moved to the source side.

Axes: rows, beams, source, hidden, vocab. Masks are True where attention is allowed.
"""

import copy
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import AdditiveAttention, DotAttention, LocationAttention, MultiHeadAttention

WEIGHT_TYPES = ("float32", "bfloat16", "int8")

# A table of vocabulary x gates pays while it stays in reach of the caches' larger levels and of memory.
MAX_TABLE_BYTES = 256 * 2**20


class SearchState(NamedTuple):
    """The decoder between two positions: (possibly nested) tuples of tensors."""

    rows: Any  # first axis rows
    source: Any  # first axis sentences: one copy for all beams


class StepOutput(NamedTuple):
    """What one position gives."""

    readout: Any  # (rows, readout), what `scores` reads
    weights: Tensor | None  # (rows, source), attention averaged over heads, where asked for
    state: SearchState


def map_tensors(structure: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """`function` applied to every tensor of nested tuples; None stays None."""
    if structure is None:
        return None
    if isinstance(structure, Tensor):
        return function(structure)
    mapped = [map_tensors(part, function) for part in structure]
    return type(structure)(*mapped) if hasattr(structure, "_fields") else tuple(mapped)


def select(state: SearchState, rows: Tensor | None, sentences: Tensor | None) -> SearchState:
    """Row i becomes row `rows[i]`, sentence i becomes sentence `sentences[i]`; None leaves them as they are."""
    return SearchState(
        state.rows if rows is None else map_tensors(state.rows, lambda tensor: tensor.index_select(0, rows)),
        state.source
        if sentences is None
        else map_tensors(state.source, lambda tensor: tensor.index_select(0, sentences)),
    )


def repeat_rows(state: SearchState, beams: int) -> SearchState:
    """Each sentence's row `beams` times; the sources stay single."""
    if beams == 1:
        return state
    return state._replace(rows=map_tensors(state.rows, lambda tensor: tensor.repeat_interleave(beams, 0)))


# ---------------------------------------------------------------- products


class Int8Product:
    """x W^T + b with 8-bit weights (one scale per output) and 8-bit activations (one scale per call)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.detach().float().cpu()
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)
        zero = torch.zeros(len(weight), dtype=torch.long)
        quantised = torch.quantize_per_channel(weight, scale.double(), zero, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(quantised, None if bias is None else bias.detach().float())

    def __call__(self, states: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(states, self.packed)


def product(weight: Tensor, bias: Tensor | None, int8: bool) -> Callable[[Tensor], Tensor]:
    """x -> x W^T + b."""
    if int8:
        return Int8Product(weight, bias)
    return partial(F.linear, weight=weight.detach().contiguous(), bias=None if bias is None else bias.detach())


# ---------------------------------------------------------------- any configuration


class BeamsAsTargets(nn.Module):
    """An attention whose queries may have several rows a sentence: they stand on its target axis and share the keys."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, positions: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `Attention.forward` of one target position, for (rows, 1, hidden) queries and (sentences, ...) keys."""
        beams = len(query) // len(mask)
        if beams == 1:
            return self.attention(query, keys, values, mask, positions, state)
        query, positions = query.view(-1, beams, query.shape[-1]), positions.view(-1, beams)
        context, weights, state = self.attention(query, keys, values, mask, positions, state)
        return context.flatten(0, 1).unsqueeze(1), weights.transpose(1, 2).flatten(0, 1).unsqueeze(2), state


class GeneralStep:
    """One position of any model of the family: `RnnDecoder.forward` with the source shared by the beams.

    Args:
        model: an `RnnSeq2SeqForConditionalGeneration`.
        int8: compute the output product with 8-bit weights.
    """

    def __init__(self, model: nn.Module, int8: bool = False) -> None:
        self.base, self.head, self.config = model.model, model.lm_head, model.config
        self.output = product(self.head.weight, self.head.bias, int8)
        self.decoder = self.base.decoder
        attention = self.decoder.attention
        # The decoder's own parameters and layers behind another attention; the model's decoder stays as it is.
        self.sharing = copy.copy(self.decoder)
        self.sharing._modules = dict(self.decoder._modules)
        if attention is not None:
            self.sharing._modules["attention"] = BeamsAsTargets(attention)
        # Only an attention of the user's may carry something from step to step; it then needs a row for each beam.
        built_in = (AdditiveAttention, DotAttention, LocationAttention, MultiHeadAttention)
        self.may_carry = attention is not None and not isinstance(attention, built_in)
        self.carries = False

    @property
    def vocab_size(self) -> int:
        """Number of target words."""
        return self.config.vocab_size

    @property
    def has_weights(self) -> bool:
        """Whether there are attention weights to return."""
        return self.decoder.attention is not None

    def read(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        encoder_outputs: Any = None,
    ) -> Any:
        """The encoder's output for a batch of sources, or `encoder_outputs` with a mask."""
        if encoder_outputs is None:
            encoder_outputs = self.base.encoder(input_ids, attention_mask, inputs_embeds)
        return self.base._encoder_output(encoder_outputs, attention_mask)

    def source_mask(self, source: Any) -> Tensor:
        """bool (sentences, source) of an encoder's output."""
        return source.source_mask

    def start(self, source: Any, beams: int) -> SearchState:
        """The state before the first position from an encoder's output, for `beams` rows a sentence."""
        layers, summary = self.base.bridge(source)
        memory = self.decoder.read_source(source.last_hidden_state, source.source_mask, summary)
        first = self.decoder.start_state(layers)
        if self.may_carry:
            query = layers[0][0].new_zeros(len(first.position), 1, self.config.hidden_size)
            self.carries = self.decoder.attention(query, *memory[:3], first.position[:, None], None)[2] is not None
        state = repeat_rows(SearchState((first, summary), memory._replace(summary=None)), beams)
        if self.carries:
            state = state._replace(source=map_tensors(state.source, lambda t: t.repeat_interleave(beams, 0)))
        return state

    def select(self, state: SearchState, rows: Tensor | None, sentences: Tensor | None) -> SearchState:
        """As the function of this name; sources that each beam holds for itself move with their beam."""
        return select(state, rows, rows if self.carries else sentences)

    def scores(self, readout: Any, words: Tensor | None = None) -> Tensor:
        """Logits (rows, vocab) in float32, or (rows, words) of the words asked for."""
        if words is None:
            return self.output(readout).float()
        bias = None if self.head.bias is None else self.head.bias[words]
        return F.linear(readout, self.head.weight[words], bias).float()

    def __call__(self, tokens: Tensor, state: SearchState, need_weights: bool = False) -> StepOutput:
        """Reads one token a row: (rows,)."""
        (before, summary), memory = state
        embedded = self.decoder.embed(tokens.unsqueeze(1))
        trace = self.sharing(embedded, before, memory._replace(summary=summary))
        weights = trace.weights[:, :, -1].mean(1) if need_weights else None
        return StepOutput(trace.readout[:, -1], weights, SearchState((trace.state, summary), memory))


# ---------------------------------------------------------------- one layer, multiplicative attention


class FusedStep(GeneralStep):
    """One position where one LSTM or GRU layer asks after the cell: fewer and larger products.

    With W_c = [W_s W_v], tanh(W_c [s; c]) = tanh(W_s s + sum a_i (W_v v_i)), so W_v is applied once per source word.
    """

    def __init__(self, model: nn.Module, int8: bool = False) -> None:
        super().__init__(model, int8)
        config, layer, readout = model.config, self.decoder.layers[0], self.decoder.readout
        size, feed = config.hidden_size, self.decoder.feed_size
        self.is_lstm, self.size, self.feeds = config.cell_type == "lstm", size, bool(feed)
        self.scale = self.decoder.attention.scale
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
        self.read_state = product(weight[:, :size], None, int8)
        self.read_context = weight[:, size:].contiguous()

    def _gates(self, size: int) -> int:
        return size * (4 if self.is_lstm else 3)

    def _embedding(self) -> nn.Embedding:
        return self.decoder.embed_tokens

    def _inputs(self, embedded: Tensor) -> Tensor:
        """The input product of word vectors (..., embedding)."""
        if self.config.embedding_activation == "relu":
            embedded = torch.relu(embedded)
        return F.linear(embedded, self.below, self.below_bias).detach()

    def start(self, source: Any, beams: int) -> SearchState:
        layers, _ = self.base.bridge(source)
        memory = self.decoder.read_source(source.last_hidden_state, source.source_mask, None)
        values = memory.values.masked_fill(~memory.mask.unsqueeze(-1), 0)
        # A masked word's weight is exactly zero after this; where a row has no word at all its values are zero.
        barrier = torch.zeros_like(memory.keys[:, :, 0]).masked_fill(~memory.mask, -3e4).unsqueeze(1)
        held = (memory.keys.transpose(1, 2).contiguous(), F.linear(values, self.read_context), barrier)
        rows = layers[0]
        if self.feeds:
            rows += (rows[0].new_zeros(len(rows[0]), self.decoder.feed_size),)
        return repeat_rows(SearchState(rows, held), beams)

    def __call__(self, tokens: Tensor, state: SearchState, need_weights: bool = False) -> StepOutput:
        keys, values, barrier = state.source
        projected = self._inputs(self._embedding()(tokens)) if self.table is None else self.table[tokens]
        rows = self._lstm(projected, state.rows) if self.is_lstm else self._gru(projected, state.rows)
        hidden = rows[0]
        asked = hidden.view(len(keys), -1, self.size)
        scores = torch.baddbmm(barrier, asked, keys, alpha=self.scale)
        weights = scores.softmax(-1)
        readout = self.read_state(hidden).view(len(keys), -1, values.shape[2])
        readout = torch.baddbmm(readout, weights, values).tanh_().flatten(0, 1)
        shown = None
        if need_weights:
            shown = weights.masked_fill(barrier < 0, 0.0).flatten(0, 1)
        if self.feeds:
            rows += (readout,)
        return StepOutput(readout, shown, SearchState(rows, state.source))

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


# ---------------------------------------------------------------- choice


def can_fuse(model: nn.Module) -> bool:
    """Whether `FusedStep` is the model's step."""
    config, decoder = model.config, model.model.decoder
    return (
        isinstance(decoder.attention, DotAttention)
        and config.decoder_layers == 1
        and config.cell_type in ("lstm", "gru")
        and not (config.layer_norm or decoder.layers[0].reset_before or len(decoder.layers[0].transitions))
        and decoder.readout.reads_context
        and config.attention_window == "global"
        and config.attention_order == "after_cell"
        and config.residual_start != 1
        and config.readout == "tanh"
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
    kept, mark = _KEPT.setdefault(model, {}), weights_mark(model)
    if kept.get(weight_type, (None,))[0] != mark:
        own = copy.deepcopy(model).to(torch.bfloat16) if weight_type == "bfloat16" else model
        kept[weight_type] = (mark, (FusedStep if can_fuse(own) else GeneralStep)(own, weight_type == "int8"))
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


# A step holds parts of its model and not the model, so that an entry goes when the model does.
_KEPT: "weakref.WeakKeyDictionary[nn.Module, dict[str, tuple[Any, GeneralStep]]]" = weakref.WeakKeyDictionary()

__all__ = ["FusedStep", "GeneralStep", "SearchState", "StepOutput", "build_step"]
