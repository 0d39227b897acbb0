"""One position of decoding for the most common architecture, in fewer and larger products; and the choice of a step.

The architecture: one LSTM or GRU layer, multiplicative attention after the cell, tanh readout. The input product is a
table over the vocabulary, the recurrent products are one, and the context product of the readout is computed once per
source word.

Axes: rows (sentences times beams), beams, source, hidden, vocab. Masks are True where attention is allowed.
"""

import contextlib
import copy
import functools
import threading
import weakref
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import DotAttention, mask_bias
from .copying import CopyGate, Copying
from .decoder import RnnDecoder
from .departures import departure
from .dropout import zone_out
from .encoder import RnnEncoderOutput
from .matmul import LINEAR
from .recurrence import KERNELS, RecurrentLayer
from .scan import attention_departure, form_author, readout_departure
from .scan_steps import activate_gru, lstm_state
from .search_options import WEIGHT_TYPES
from .search_step import GeneralStep, SearchState, StepOutput, product, repeat_rows, sharing_refusal

# Larger tables of vocabulary x gates do not fit the caches and cost memory.
MAX_TABLE_BYTES = 256 * 2**20

# Options, and the values of each that `FusedStep` computes.
COVERED: dict[str, tuple[str | int | bool, ...]] = {
    "context": ("attention",),
    "cell_type": ("lstm", "gru"),
    "decoder_layers": (1,),
    "decoder_transition_depth": (1,),
    "layer_norm": (False,),
    "attention_order": ("after_cell",),
    "attention_window": ("global",),
    "attention_normalization": ("softmax",),
    "attention_alignment": ("soft",),
    "coverage": ("none",),
    "context_gate": ("none",),
    "readout": ("tanh",),
    "readout_context": (True,),
    "readout_embedding": (False,),
}


class FusedStep(GeneralStep):
    """One position of one LSTM or GRU layer with attention after the cell, in fewer and larger products.

    With W_c = [W_s W_v], tanh(W_c [s; c]) = tanh(W_s s + sum a_i (W_v v_i)), so W_v is applied once per source word.
    """

    def __init__(self, model: nn.Module, int8: bool = False) -> None:
        super().__init__(model, int8)
        self.carries = False
        config, layer, readout = model.config, self.decoder.layers[0], self.decoder.readout
        size, feed = config.hidden_size, self.decoder.feed_size
        self.is_lstm, self.size, self.feeds = config.cell_type == "lstm", size, bool(feed)
        self.scale, self.zoneout = self.decoder.attention.scale, layer.zoneout
        cut = layer.step_weights(feed)
        order = torch.arange(self._gates(size), device=cut.below.device)
        if self.is_lstm:  # torch's order is input, forget, new, output; here the three sigmoids are one block
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
        self.copied += [*layer.kernel.parameters(), *readout.parameters()]
        self.copied += [] if self.table is None else [self._embedding().weight]
        self.copied += list(self.decoder.copy_gate.parameters()) if self.copies else []
        if self.copies and self.table is None:
            self.copied.append(self._embedding().weight)  # `word_gate` reads it

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

    def start(self, source: RnnEncoderOutput, beams: int) -> SearchState:
        layers, _ = self.base.bridge(source)
        memory = self.decoder.prepare_memory(source.last_hidden_state, source.source_mask, None, source.source_ids)
        values = memory.values.masked_fill(~memory.mask.unsqueeze(-1), 0)
        # If a row has no word at all, its weights are uniform and its values zero.
        bias = mask_bias(memory.mask, memory.keys.dtype).unsqueeze(1)
        keys = memory.keys.transpose(1, 2).contiguous()
        fused_source = keys, F.linear(values, self.read_context), bias, memory.source_ids
        rows = layers[0]
        if self.feeds:
            rows += (rows[0].new_zeros(len(rows[0]), self.decoder.feed_size),)
        return repeat_rows(SearchState(rows, fused_source), beams)

    def __call__(self, tokens: Tensor, state: SearchState, need_weights: bool = False) -> StepOutput:
        keys, values, bias, source_ids = state.source
        projected = self._inputs(self._embedding()(tokens)) if self.table is None else self.table[tokens]
        rows = self._lstm(projected, state.rows) if self.is_lstm else self._gru(projected, state.rows)
        if self.zoneout is not None:
            rows = zone_out(self.zoneout, state.rows[: len(rows)], rows)
        hidden = rows[0]
        query = hidden.view(len(keys), -1, self.size)
        scores = torch.baddbmm(bias, query, keys, alpha=self.scale)
        weights = scores.softmax(-1)
        readout = self.read_state(hidden).view(len(keys), -1, values.shape[2])
        readout = torch.baddbmm(readout, weights, values)
        if need_weights or self.copies:
            weights = weights.masked_fill(bias < 0, 0.0)
        attention_weights = weights.flatten(0, 1) if need_weights else None
        if self.copies:
            gate = readout[..., -1] + self.word_gate[tokens].view(len(keys), -1)
            readout, copying = readout[..., :-1], Copying(gate, weights, source_ids)
        readout = readout.tanh_().flatten(0, 1)
        if self.feeds:
            rows += (readout,)
        output = (readout, copying) if self.copies else readout
        return StepOutput(output, attention_weights, SearchState(rows, state.source))

    def _lstm(self, gates: Tensor, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        size = self.size
        read = torch.cat([rows[0], rows[2]], 1) if self.feeds else rows[0]
        gates = gates.add_(self.recurrent(read))
        gates[:, : 3 * size].sigmoid_()
        gates[:, 3 * size :].tanh_()
        update, forget, output, new = gates.chunk(4, 1)
        return lstm_state(update, forget, new, output, rows[1])

    def _gru(self, gates: Tensor, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        recurrent = self.recurrent(rows[0])
        if self.feeds:
            gates = gates.add_(self.fed(rows[1]))
        return (activate_gru(gates, recurrent, rows[0]),)


def fused_refusal(model: nn.Module) -> str | None:
    """Why `FusedStep` does not cover the model; None if it does."""
    config, decoder = model.config, model.model.decoder
    for name, covered in COVERED.items():
        if (value := getattr(config, name)) not in covered:
            return f"{name}={value!r}"
    if config.cell_type == "gru" and config.gru_reset != "after":
        return f"gru_reset={config.gru_reset!r}"
    if config.input_feeding and not decoder.feeds_readout:
        return "input_feeding=True, which feeds the context"
    if not isinstance(decoder.attention, DotAttention):
        return f"attention_type={config.attention_type!r}"
    return fused_departure(model)


def fused_departure(model: nn.Module) -> str | None:
    """A hook on or an override of the parts that `FusedStep` reads, which it would leave out; or None."""
    decoder = model.model.decoder
    if reason := departure(decoder, RnnDecoder, ("prepare_memory",)):
        return f"decoder: {reason}"
    layer, attention, gate = decoder.layers[0], decoder.attention, decoder.copy_gate
    if reason := departure(layer, RecurrentLayer):
        return f"decoder.layers.0: {reason}"
    if form_author(attention) is not DotAttention:
        return f"decoder.attention: scan_form of {type(attention).__name__}"
    reasons = {
        "attention": attention_departure(attention),
        "embed_tokens": departure(decoder.embed_tokens, (nn.Embedding,)),
        "layers.0.kernel": departure(layer.kernel, KERNELS),
        "readout": readout_departure(decoder.readout),
        "copy_gate": gate and (departure(gate, CopyGate) or departure(gate.project, LINEAR)),
    }
    return next((f"decoder.{name}: {reason}" for name, reason in reasons.items() if reason), None)


def build_step(model: nn.Module, weight_type: str = "float32") -> GeneralStep:
    """The fastest step for `model`; it is built again when the weights or modules of the model have changed.

    Args:
        weight_type: `float32` leaves the model's own type; `bfloat16` computes encoder and decoder with bfloat16
            weights and states; `int8` computes the decoder's products with 8-bit weights (CPU only).

    Raises:
        ValueError: the weight type is unknown, or int8 is asked for on another device than the CPU, or bfloat16 for a
            quantized model.
    """
    if weight_type not in WEIGHT_TYPES:
        raise ValueError(f"weight_type={weight_type!r}: must be one of {', '.join(WEIGHT_TYPES)}")
    if weight_type == "bfloat16" and any("quantized" in type(module).__module__ for module in model.modules()):
        raise ValueError("weight_type='bfloat16': the model holds quantized modules; leave weight_type='float32'")
    if weight_type == "int8" and model.device.type != "cpu":
        raise ValueError(f"weight_type='int8': the model is on {model.device.type}; 8-bit products need the CPU")
    known, key = getattr(_CALLS, "steps", {}), (id(model), weight_type)
    with _BUILD_LOCK:
        if key not in known:
            known[key] = _build_step(model, weight_type)
        return known[key]


@contextlib.contextmanager
def weights_stay(steps: "Steps") -> Iterator[None]:
    """The caller promises that no weight changes between the searches of this thread with the same `steps`.

    So only the first of them compares the weights. For one sentence a search, that comparison takes a fifth (float32) to
    a third (int8) of the time.

    Args:
        steps: empty at first; filled here, and of no use after the last call.
    """
    before = getattr(_CALLS, "steps", None)
    _CALLS.steps = steps
    try:
        yield
    finally:
        if before is None:
            del _CALLS.steps
        else:
            _CALLS.steps = before


def _build_step(model: nn.Module, weight_type: str) -> GeneralStep:
    steps, marks = _STEP_CACHE.setdefault(model, {}), model_marks(model)
    if weight_type in steps:
        old_marks, copied, old_fingerprints, step = steps[weight_type]
        if old_marks == marks and old_fingerprints == fingerprints(copied):
            return step
    reduced = weight_type == "bfloat16"
    source = copy.deepcopy(model).to(torch.bfloat16) if reduced else model
    step = (GeneralStep if fused_refusal(source) else FusedStep)(source, weight_type == "int8")
    copied = [*model.parameters(), *model.buffers()] if reduced else step.copied
    steps[weight_type] = (marks, copied, fingerprints(copied), step)
    return step


def model_marks(model: nn.Module) -> list[object]:
    """What a step depends on in addition to the values of the weights; compare two results with `==`."""
    decoder = model.model.decoder
    reasons = fused_refusal(model), departure(model.lm_head, LINEAR), sharing_refusal(decoder)
    # These references keep the modules alive, but not the model itself.
    modules = [module for module in model.modules() if module is not model]
    places = [(tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.device) for tensor in model.parameters()]
    settings = getattr(decoder.attention, "scale", None), model.config.embedding_activation
    rates = [getattr(layer, "zoneout", None) for layer in decoder.layers]
    return [reasons, modules, places, settings, rates]


def fingerprints(tensors: Sequence[Tensor]) -> list[int]:
    """One number per tensor, computed from all its values.

    A tensor's version does not count writes through `.data`, so every value has to be read: one nanosecond each, together
    about the time of two positions of decoding. If one value changes, the number changes for certain.
    """
    numbers = [_content_sum(tensor).cpu() for tensor in tensors if not tensor.is_meta]
    return torch.stack(numbers).tolist() if numbers else []


def _content_sum(tensor: Tensor) -> Tensor:
    """The sum, modulo 2^64, of the bits of all values, 8 bytes at a time, times an odd number for each place."""
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    if flat.storage_offset() % 8 or len(flat) % 8:
        flat = F.pad(flat, (0, -len(flat) % 8))
    words = flat.view(torch.int64)
    odd = _odd_numbers(words.device)
    whole = len(words) // len(odd) * len(odd)
    rest = (words[whole:] * odd[: len(words) - whole]).sum()
    table = words[:whole].view(-1, len(odd))
    if words.device.type == "cpu":
        sums = torch.mv(table, odd)
    else:  # GPUs have no matrix product of integers
        sums = torch.cat([(rows * odd).sum(1) for rows in table.split(256)])
    places = 2 * torch.arange(1, len(sums) + 1, device=words.device) + 1
    return rest + (sums * places * _MIXER).sum()


@functools.cache
def _odd_numbers(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(-(2**62), 2**62, (2**14,), generator=generator) * 2 + 1).to(device)


# An odd number, so that a row of the table has another factor than a place of the rest.
_MIXER = 0x5851F42D4C957F2D

# The steps that `weights_stay` holds for each thread, by the id of their model and their weight type.
Steps = dict[tuple[int, str], GeneralStep]
_CALLS = threading.local()

# Threads that decode with one model share its step.
_BUILD_LOCK = threading.Lock()

# A step refers to parts of its model and not to the model, so that an entry is deleted with its model.
_STEP_CACHE: "weakref.WeakKeyDictionary[nn.Module, dict[str, tuple]]" = weakref.WeakKeyDictionary()
