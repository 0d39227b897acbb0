"""One position of decoding for all beams of all sentences, with one copy of each source.

`rows` are sentences times beams; the beams of a sentence are neighbors. `GeneralStep` runs the decoder itself for any
configuration, and gives its attention the beams on the target axis. `EnsembleStep` runs several models: at each position
their log-probabilities are averaged.

Axes: rows, beams, source, hidden, vocab. Masks are True where attention is allowed.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from .attention import AdditiveAttention, Attention, MultiHeadAdditiveAttention
from .copying import Copying, mixture
from .decoder import RnnDecoder
from .departures import departure
from .encoder import RnnEncoderOutput
from .hard_attention import marginal
from .matmul import LINEAR, PackedProduct, packs
from .search_options import SearchError


# Tensors and None in (named) tuples.
Nested = Tensor | tuple | None
# What `scores` reads: (rows, readout); with what is copied, or of each member of an ensemble.
Readout = Tensor | tuple[Tensor, Copying] | list

IN_ONE_PIECE = 2**20  # elements that an additive score computes for all beams at once


class NotFiniteError(ArithmeticError):
    """The weights or the scores of a search are not finite."""


def refuse_nan(score_sum: Tensor) -> None:
    """Raises NotFiniteError if `score_sum` (), the sum of all scores that a search read, is nan.

    It is read once, after the loop. A forbidden word has the score -inf; only +inf and nan turn the sum into nan.
    """
    if bool(score_sum.isnan()):
        raise NotFiniteError


def map_tensors(structure: Nested, function: Callable[[Tensor], object]) -> Nested:
    """`function` applied to every tensor of nested tuples; other values are kept."""
    if isinstance(structure, Tensor):
        return function(structure)
    if not isinstance(structure, (tuple, list)):
        return structure
    mapped = [map_tensors(part, function) for part in structure]
    return type(structure)(*mapped) if hasattr(structure, "_fields") else tuple(mapped)


class SearchState(NamedTuple):
    """The decoder between two positions: (possibly nested) tuples of tensors."""

    rows: Nested  # first axis rows
    source: Nested  # first axis sentences: one copy for all beams


class StepOutput(NamedTuple):
    """The result of one position."""

    readout: Readout  # (rows, readout), what `scores` reads; with hard attention the scores themselves
    weights: Tensor | None  # (rows, source), attention averaged over heads, with `need_weights`
    state: SearchState


def select(state: SearchState, rows: Tensor | None, sentences: Tensor | None) -> SearchState:
    """Row i becomes row `rows[i]`, sentence i becomes sentence `sentences[i]`; None changes nothing."""
    return SearchState(
        state.rows if rows is None else map_tensors(state.rows, lambda tensor: tensor.index_select(0, rows)),
        state.source
        if sentences is None
        else map_tensors(state.source, lambda tensor: tensor.index_select(0, sentences)),
    )


def repeat_rows(state: SearchState, beams: int) -> SearchState:
    """Each sentence's row `beams` times; the sources are not repeated."""
    if beams == 1:
        return state
    return state._replace(rows=map_tensors(state.rows, lambda tensor: tensor.repeat_interleave(beams, 0)))


@lru_cache
def sums_saturate() -> bool:
    """Whether 8-bit products may overflow on this processor.

    Without VNNI the sum of two products has 16 bits, which two products of 8 bits overflow; activations then get 7 bits.
    """
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return not any(capabilities.get(name) for name in ("avx512_vnni", "avx_vnni", "neon"))


class Int8Product:
    """x W^T + b with 8-bit weights (one scale per output) and 8- or 7-bit activations (one scale per call)."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        weight = weight.detach().float().cpu()
        scale = (weight.abs().amax(1) / 127).clamp(min=1e-12)
        if not bool(scale.isfinite().all()):
            raise NotFiniteError
        zero = torch.zeros(len(weight), dtype=torch.long)
        with warnings.catch_warnings():
            # torch 2.13 announces the end of its quantized tensors and has no other product of this speed on a CPU.
            warnings.filterwarnings("ignore", message=".*quantize_per_channel.*")
            quantized = torch.quantize_per_channel(weight, scale.double(), zero, 0, torch.qint8)
        self.packed = torch.ops.quantized.linear_prepack(quantized, None if bias is None else bias.detach().float())

    def __call__(self, states: Tensor) -> Tensor:
        return torch.ops.quantized.linear_dynamic(states, self.packed, sums_saturate())


def product(weight: Tensor, bias: Tensor | None, int8: bool) -> Callable[[Tensor], Tensor]:
    """x -> x W^T + b."""
    if int8:
        return Int8Product(weight, bias)
    weight, bias = weight.detach().contiguous(), None if bias is None else bias.detach()
    return PackedProduct(weight, bias) if packs(weight) else partial(F.linear, weight=weight, bias=bias)


class BeamsAsTargets(nn.Module):
    """An attention for several queries per sentence: they become its target axis and share the keys."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention
        self.adds = isinstance(attention, (AdditiveAttention, MultiHeadAdditiveAttention))

    @property
    def carries(self) -> bool:
        """As the attention itself."""
        return self.attention.carries

    def forward(
        self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, positions: Tensor, state: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As `Attention.forward` of one target position, for (rows, 1, hidden) queries and (sentences, ...) keys."""
        beams = len(query) // len(mask)
        if beams == 1:
            return self.attention(query, keys, values, mask, positions, state)
        query, positions = query.view(-1, beams, query.shape[-1]), positions.view(-1, beams)
        # An additive score computes a vector per query and source word; with many words it takes one beam at a time.
        parts = beams if self.adds and beams * keys.numel() > IN_ONE_PIECE else 1
        pieces = zip(query.chunk(parts, 1), positions.chunk(parts, 1), strict=True)
        outputs = [self.attention(part, keys, values, mask, places, state) for part, places in pieces]
        state = outputs[0][2]
        context, weights = torch.cat([part[0] for part in outputs], 1), torch.cat([part[1] for part in outputs], 2)
        return context.flatten(0, 1).unsqueeze(1), weights.transpose(1, 2).flatten(0, 1).unsqueeze(2), state

    def context(self, weights: Tensor, values: Tensor) -> Tensor:
        """As `Attention.context`, from (rows, heads, 1, source) weights and (sentences, ...) values."""
        beams = len(weights) // len(values)
        weights = weights.squeeze(2).unflatten(0, (-1, beams)).transpose(1, 2)
        return self.attention.context(weights, values).flatten(0, 1).unsqueeze(1)


def sharing_refusal(decoder: RnnDecoder) -> str | None:
    """Why the beams of a sentence cannot share one source; None if they can."""
    if reason := departure(decoder, RnnDecoder):
        return f"decoder: {reason}"
    attention = decoder.attention
    if not isinstance(attention, Attention):
        return f"decoder.attention: {type(attention).__name__} in its place"
    # Classes of this package read for all target positions at once; a user's class may not.
    ours = next(cls for cls in type(attention).__mro__ if cls.__module__ == Attention.__module__)
    reason = departure(attention, ours, ("project_keys", "project_values"))
    return reason and f"decoder.attention: {reason}"


class GeneralStep:
    """One position of any model: `RnnDecoder.forward`, with the source shared by the beams.

    Args:
        model: an `RnnSeq2SeqForConditionalGeneration`.
        int8: compute the output product with 8-bit weights.

    `copied` are the parameters of which the step has a copy.
    """

    def __init__(self, model: nn.Module, int8: bool = False) -> None:
        self.base, self.head, self.config = model.model, model.lm_head, model.config
        # A module in the place of the output layer (an adapter, for example) is called; its weight is not all that it does.
        self.plain_head = departure(self.head, LINEAR) is None
        self.output = product(self.head.weight, self.head.bias, int8) if self.plain_head else self.head
        self.copied = list(self.head.parameters()) if isinstance(self.output, (Int8Product, PackedProduct)) else []
        self.decoder = self.base.decoder
        attention = self.decoder.attention
        # The state of an attention differs between beams, so each beam needs its own source. Hooks and overrides of the
        # user may read the source of each beam too.
        self.aligns_hard = self.decoder.aligns_hard
        self.carries = attention is not None and (
            attention.carries or self.aligns_hard or sharing_refusal(self.decoder) is not None
        )
        self.sharing = self.decoder
        if attention is not None and not self.carries:
            # The decoder's own parameters and layers with another attention; the model's decoder is not changed.
            self.sharing = copy.copy(self.decoder)
            self.sharing._modules = self.decoder._modules | {"attention": BeamsAsTargets(attention)}
        self.copies = self.config.copy_mechanism

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
        encoder_outputs: ModelOutput | tuple | None = None,
        pixel_values: Tensor | None = None,
    ) -> RnnEncoderOutput:
        """The encoder's output for a batch of sources, or `encoder_outputs` with a mask."""
        if encoder_outputs is None:
            encoder_outputs = self.base.encoder(input_ids, attention_mask, inputs_embeds, pixel_values=pixel_values)
        return self.base.encoder_output(encoder_outputs, attention_mask, input_ids)

    def source_mask(self, source: RnnEncoderOutput) -> Tensor:
        """bool (sentences, source) of an encoder's output."""
        return source.source_mask

    def start(self, source: RnnEncoderOutput, beams: int) -> SearchState:
        """The state before the first position from an encoder's output, for `beams` rows per sentence."""
        layers, summary = self.base.bridge(source)
        memory = self.decoder.prepare_memory(source.last_hidden_state, source.source_mask, summary, source.source_ids)
        first = self.decoder.start_state(layers, memory)
        state = repeat_rows(SearchState((first, summary), memory._replace(summary=None)), beams)
        if self.carries:
            state = state._replace(source=map_tensors(state.source, lambda t: t.repeat_interleave(beams, 0)))
        return state

    def select(self, state: SearchState, rows: Tensor | None, sentences: Tensor | None) -> SearchState:
        """As the function `select`; sources that belong to one beam move with it."""
        return select(state, rows, rows if self.carries else sentences)

    def scores(self, readout: Readout, words: Tensor | None = None, allowed: Tensor | None = None) -> Tensor:
        """Logits (rows, vocab) in float32, or (rows, words) of `words` only.

        They are minus infinity where `allowed`, bool (sentences, vocab or words), is False.
        """
        logits = self._logits(readout, words)
        if allowed is None:
            return logits
        return logits.masked_fill(~allowed.repeat_interleave(len(logits) // len(allowed), 0), -torch.inf)

    def _logits(self, readout: Readout, words: Tensor | None) -> Tensor:
        if self.aligns_hard:  # the step has summed over the source positions
            return (readout if words is None else readout[:, words]).float()
        if self.copies:
            readout, copying = readout
            scores = mixture(self.output(readout).float().view(*copying.gate.shape, -1), copying).flatten(0, 1)
            return scores if words is None else scores[:, words]
        if words is None or not self.plain_head:
            scores = self.output(readout).float()
            return scores if words is None else scores[:, words]
        bias = None if self.head.bias is None else self.head.bias[words]
        return F.linear(readout, self.head.weight[words], bias).float()

    def normalizers(self, scores: Tensor, scratch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The two numbers per row, (rows, 1) each, to subtract from `scores` (rows, words) for log-probabilities.

        They are the largest score, and the logarithm of the sum of the exponentials of the differences to it, as in torch's
        log-softmax. Subtracting their sum would lose digits that decide between two hypotheses. `scratch` is memory of the
        scores' shape to write to: the scores themselves if they are not read again.
        """
        largest = scores.amax(-1, keepdim=True)
        # The sum is 1 / the largest probability; this takes a third of the time of torch's logsumexp.
        return largest, torch.softmax(scores, -1, out=scratch).amax(-1, keepdim=True).log_().neg_()

    def __call__(self, tokens: Tensor, state: SearchState, need_weights: bool = False) -> StepOutput:
        """Reads one token per row: (rows,)."""
        (before, summary), memory = state
        embedded = self.decoder.embed(tokens.unsqueeze(1))
        trace = self.sharing(embedded, before, memory._replace(summary=summary))
        if self.aligns_hard:
            alignment = self.base.alignment(trace, before, memory, tokens.unsqueeze(1))
            budget = self.config.logits_memory_mb * 2**20
            found = marginal(alignment, self.decoder.readout, self.head, budget, product=self.output)
            after = trace.state if found.after is None else trace.state._replace(attention=found.after[:, -1])
            weights = found.weights[:, 0, -1] if need_weights else None
            return StepOutput(found.scores[:, -1], weights, SearchState((after, summary), memory))
        weights = trace.weights[:, :, -1].mean(1) if need_weights else None
        readout = trace.readout[:, -1]
        if self.copies:
            # The beams of a sentence share its words: they are the target axis.
            ids = memory.source_ids
            attended = trace.weights[:, :, -1].mean(1).view(len(ids), -1, ids.shape[1])
            readout = readout, Copying(trace.gate.view(len(ids), -1), attended, ids)
        return StepOutput(readout, weights, SearchState((trace.state, summary), memory))


class EnsembleStep(GeneralStep):
    """One position of several models, which may differ in architecture, size and seed and share both vocabularies.

    States and readouts are tuples with one entry per member.

    Args:
        steps: one per member.

    Raises:
        SearchError: the members differ in vocabularies or special tokens, or the inputs are neither token ids nor
            pictures.
    """

    def __init__(self, steps: Sequence[GeneralStep]) -> None:
        self.steps = list(steps)
        self.config = steps[0].config
        names = ("vocab_size", "source_vocab_size", "eos_token_id", "decoder_start_token_id", "pad_token_id")
        for number, step in enumerate(self.steps[1:], start=1):
            for name in names:
                if (value := getattr(step.config, name)) != (first := getattr(self.config, name)):
                    raise SearchError(f"ensemble: member {number} has {name}={value!r}, the first model {first!r}")

    @property
    def has_weights(self) -> bool:
        """Whether every member has attention; their average is returned."""
        return all(step.has_weights for step in self.steps)

    def read(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        **others: object,
    ) -> list[RnnEncoderOutput]:
        """The output of each member's encoder for the same sources."""
        if any(value is not None for value in others.values()):
            raise SearchError("ensemble: each member reads the source itself; give input_ids or pixel_values alone")
        return [step.read(input_ids, attention_mask, pixel_values=pixel_values) for step in self.steps]

    def source_mask(self, source: list[RnnEncoderOutput]) -> Tensor:
        return self.steps[0].source_mask(source[0])

    def start(self, source: list[RnnEncoderOutput], beams: int) -> SearchState:
        states = [step.start(part, beams) for step, part in zip(self.steps, source, strict=True)]
        return SearchState(tuple(state.rows for state in states), tuple(state.source for state in states))

    def select(self, state: SearchState, rows: Tensor | None, sentences: Tensor | None) -> SearchState:
        pairs = zip(self.steps, *state, strict=True)
        states = [step.select(SearchState(*parts), rows, sentences) for step, *parts in pairs]
        return SearchState(tuple(part.rows for part in states), tuple(part.source for part in states))

    def scores(self, readout: list[Readout], words: Tensor | None = None, allowed: Tensor | None = None) -> Tensor:
        """The average of the members' log-probabilities (rows, vocab); their exponentials may sum to less than 1."""
        pairs = zip(self.steps, readout, strict=True)
        return sum(step.scores(part, words, allowed).log_softmax(-1) for step, part in pairs) / len(self.steps)

    def normalizers(self, scores: Tensor, scratch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # Averaged log-probabilities are not normalized again, as in OpenNMT-py and Marian.
        zeros = scores.new_zeros(len(scores), 1)
        return zeros, zeros

    def __call__(self, tokens: Tensor, state: SearchState, need_weights: bool = False) -> StepOutput:
        outputs = [
            step(tokens, SearchState(rows, source), need_weights)
            for step, rows, source in zip(self.steps, *state, strict=True)
        ]
        after = SearchState(tuple(one.state.rows for one in outputs), tuple(one.state.source for one in outputs))
        weights = torch.stack([one.weights for one in outputs]).mean(0) if need_weights else None
        return StepOutput([one.readout for one in outputs], weights, after)
