"""Attention of a decoder state to the source: scores, windows, and the mapping from a name to a class.

Axes: batch, target (decoder positions), source (encoder positions), heads. Masks are True where attention is allowed.
The modules hold parameters only; keys and values, projected once per sentence, are arguments.

Masked softmax: everywhere in the package a score that is not allowed becomes so low that its weight is exactly 0, and a
row that allows no word has only zeros. `masked_softmax` is the readable form; the fused scan and the fused decoding step
add `mask_bias` to the scores in the same product that makes them.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .config_checks import REGISTERED, ConfigError
from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .coverage import build_coverage
from .departures import live_departure, override
from .entmax import SparseWeights
from .matmul import Linear
from .window_attention import Window

# The logarithm of a probability of 0: its exponential is 0, and sums of a few do not overflow.
NEVER = -1e30


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis; exactly zero where `mask` is False, and all zeros if a row allows no word.

    Args:
        scores: (batch, heads, target, source).
        mask: bool, broadcastable to `scores`.
    """
    weights = scores.masked_fill(~mask, torch.finfo(scores.dtype).min).softmax(-1)
    return weights.masked_fill(~mask, 0.0)


def mask_bias(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """0 where `mask` is True, half the lowest number elsewhere, so that a score can be added without overflow."""
    bias = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
    return bias.masked_fill_(~mask, torch.finfo(dtype).min / 2)


def masked_log_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """As `masked_softmax`, the logarithms in float32 at least: about `NEVER` where `mask` is False.

    In a row that allows no word all are equal.
    """
    exact = scores.to(torch.promote_types(scores.dtype, torch.float32))
    return exact.masked_fill(~mask, NEVER).log_softmax(-1)


class ScanForm(NamedTuple):
    """The score in a form that the fused scan can compute.

    One of: scale x keys . h; energy . tanh(keys + query_weight h); several heads of keys . query_weight h, whose contexts
    `read_weight` mixes; the window of query_weight h + bias, which carries its centers.
    """

    scale: float = 1.0
    query_weight: Tensor | None = None
    energy: Tensor | None = None
    bias: Tensor | None = None
    read_weight: Tensor | None = None


class Attention(nn.Module):
    """Base of every score (Luong 2015, section 3): weights = align(score(query, keys)), context = weights x values.

    A subclass defines `score` and, if it has source-side parameters, `project_keys` and `project_values`.

    Args:
        config: sizes are read from it: queries are `hidden_size` wide, encoder states `encoder_output_size`.
    """

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.hard = config.aligns_hard
        self.window = config.attention_window
        self.window_size = config.attention_window_size
        self.sparse = None if config.attention_normalization == "softmax" else SparseWeights(config)
        self.coverage = build_coverage(config)
        if self.window == "local_p":
            self.position_hidden = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            self.position_score = nn.Linear(config.hidden_size, 1, bias=False)

    def project_keys(self, encoder_states: Tensor) -> Tensor:
        """The keys of encoder states (batch, source, states), computed once per sentence."""
        return encoder_states

    def project_values(self, encoder_states: Tensor) -> Tensor:
        """The values of encoder states (batch, source, states), computed once per sentence."""
        return encoder_states

    def score(self, query: Tensor, keys: Tensor, source_positions: Tensor | None) -> Tensor:
        """Scores (batch, heads, target, source) of queries (batch, target, hidden) against projected keys.

        `source_positions` (batch, source) numbers each row's real words from 0, wherever the padding is. A score that
        uses them overrides `reads_positions`.
        """
        raise TypeError(f"{type(self).__name__} must define score(query, keys, source_positions)")

    def context(self, weights: Tensor, values: Tensor) -> Tensor:
        """Context (batch, target, context) from weights (batch, heads, target, source) of one head."""
        if weights.shape[1] != 1:
            raise ValueError(
                f"{type(self).__name__}: weights of shape {tuple(weights.shape)} have {weights.shape[1]} heads; "
                "a class with several must override context(weights, values)"
            )
        return torch.bmm(weights[:, 0], values)

    @property
    def carries(self) -> bool:
        """Whether it carries a state from step to step; then each position depends on the one before it."""
        return self.coverage is not None

    def start(self, keys: Tensor, source_mask: Tensor) -> Tensor | None:
        """The state before the first position, batch first; None if the attention has no state.

        A custom attention with a state overrides `carries`, `start` and `forward`.
        """
        return None if self.coverage is None else self.coverage.start(keys)

    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        source_mask: Tensor,
        positions: Tensor,
        state: Tensor | None = None,
    ) -> tuple[Tensor | None, Tensor, Tensor | None]:
        """Reads the source; one target position at a time if the attention carries a state.

        Args:
            query: (batch, target, hidden).
            keys: what `project_keys` returned.
            values: what `project_values` returned.
            source_mask: bool (batch, source), True at real words.
            positions: (batch, target), number of each target position from 0.
            state: the state of this attention; before the first position that of `start`.

        Returns:
            context (batch, target, context), weights (batch, heads, target, source), the next state. With hard attention
            (hard_attention.py) there is no context, and the weights are logarithms. What a sampled attention
            reads is chosen by the decoder (hard_attention.py).
        """
        source_positions = source_mask.long().cumsum(1) - 1 if self.reads_positions else None
        if self.coverage is not None:
            keys = keys + self.coverage.project(state)
        scores = self.score(query, keys, source_positions)
        self._check_scores(scores, query, source_mask)
        mask = source_mask[:, None, None, :]
        if self.hard:
            return None, masked_log_softmax(scores, mask), state
        if self.window == "global":
            weights = self._align(scores, mask)
        else:
            weights = self._local(scores, mask, query, source_positions, positions)
        if self.coverage is not None:
            state = self.coverage(state, weights[:, 0, 0], query[:, 0], values)
        return self.context(weights, values), weights, state

    def _check_scores(self, scores: Tensor, query: Tensor, source_mask: Tensor) -> None:
        """Scores of another shape may still broadcast, and every sentence would be read with the weights of one."""
        shape, expected = scores.shape, (query.shape[0], query.shape[1], source_mask.shape[1])
        if len(shape) == 4 and (shape[0], shape[2], shape[3]) == expected:
            return
        raise ValueError(
            f"{type(self).__name__}.score returned shape {tuple(shape)}: must be (batch, heads, target, source), here "
            f"({expected[0]}, heads, {expected[1]}, {expected[2]}); one head is an axis of size 1"
        )

    def _align(self, scores: Tensor, mask: Tensor) -> Tensor:
        return masked_softmax(scores, mask) if self.sparse is None else self.sparse(scores, mask)

    def scan_form(self) -> ScanForm | None:
        """The score in the form that the fused scan computes; None: training takes the time loop.

        A subclass that overrides a method that the scan does not call (`score`, `context`, `forward`) takes the loop too,
        unless it also defines `scan_form`.
        """
        return None

    @property
    def reads_positions(self) -> bool:
        """Whether the score reads source positions; otherwise `score` gets None for them."""
        return self.window != "global"

    def _local(
        self, scores: Tensor, mask: Tensor, query: Tensor, source_positions: Tensor, positions: Tensor
    ) -> Tensor:
        """Local attention (Luong 2015, section 3.2): a window of D positions on each side of p_t.

        local-m: p_t = t. local-p: p_t = S sigmoid(v_p tanh(W_p h_t)) (equation 9), and the weights are multiplied by
        a Gaussian around p_t with deviation D/2 after the softmax, not renormalized (equation 10).
        """
        # The 16-bit types round positions above 256 (bfloat16) or 2048 (float16).
        exact = torch.promote_types(scores.dtype, torch.float32)
        if self.window == "local_m":
            center = positions.to(exact)
        else:
            length = mask[:, 0, 0].sum(-1, keepdim=True).to(exact)
            share = torch.sigmoid(self.position_score(torch.tanh(self.position_hidden(query))).to(exact))
            center = length * share.squeeze(-1)
        distance = source_positions[:, None, None, :] - center[:, None, :, None]
        weights = self._align(scores, mask & (distance.abs() <= self.window_size))
        if self.window == "local_p":
            gaussian = torch.exp(-(distance**2) / (2 * (self.window_size / 2) ** 2))
            weights = weights * gaussian.to(weights.dtype)
        return weights


class DotAttention(Attention):
    """score = h_t . s (Luong 2015, equation 7, dot)."""

    scale = 1.0

    def score(self, query: Tensor, keys: Tensor, source_positions: Tensor | None) -> Tensor:
        return torch.bmm(query * self.scale, keys.transpose(1, 2)).unsqueeze(1)

    def scan_form(self) -> ScanForm | None:
        return ScanForm(self.scale)


class ScaledDotAttention(DotAttention):
    """score = h_t . s / sqrt(d) (Vaswani 2017, section 3.2.1, without projections)."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__(config)
        self.scale = config.hidden_size**-0.5


class GeneralAttention(DotAttention):
    """score = h_t W_a s (Luong 2015, equation 7, general); W_a s is computed once per sentence."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__(config)
        self.key = Linear(config.encoder_output_size, config.hidden_size, bias=False)

    def project_keys(self, encoder_states: Tensor) -> Tensor:
        return self.key(encoder_states)


class AdditiveAttention(Attention):
    """score = v . tanh(W_q h + W_k s) (Bahdanau 2014, appendix A.1.2; the `concat` of Luong 2015 in another order).

    Memory: (batch, target, source, attention_size) for queries of the whole target at once.
    """

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__(config)
        self.query = Linear(config.hidden_size, config.attention_size, bias=False)
        self.key = Linear(config.encoder_output_size, config.attention_size, bias=True)
        self.energy = nn.Linear(config.attention_size, 1, bias=False)

    def project_keys(self, encoder_states: Tensor) -> Tensor:
        return self.key(encoder_states)

    def energy_weight(self) -> Tensor | None:
        """v as a row (1, attention); None if `energy` has to be called, because of a hook or another module in its place."""
        return None if live_departure(self.energy, (nn.Linear,)) else self.energy.weight

    def score(self, query: Tensor, keys: Tensor, source_positions: Tensor | None) -> Tensor:
        combined = torch.tanh(self.query(query).unsqueeze(2) + keys.unsqueeze(1))
        weight = self.energy_weight()
        scores = self.energy(combined) if weight is None else F.linear(combined, weight)
        return scores.squeeze(-1).unsqueeze(1)

    def scan_form(self) -> ScanForm | None:
        return ScanForm(query_weight=self.query.weight, energy=self.energy_weight()[0])


class NormedAdditiveAttention(AdditiveAttention):
    """score = g v/|v| . tanh(W_q h + W_k s + b) (weight-normalized, Salimans and Kingma 2016, as in tensorflow/nmt)."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__(config)
        self.gain = nn.Parameter(torch.tensor([config.attention_size**-0.5]))

    def energy_weight(self) -> Tensor:
        if reason := live_departure(self.energy, (nn.Linear,), everywhere=False):
            raise ConfigError(
                f"attention_type='normed_additive': normalizes the weight of attention.energy, and would leave out {reason}"
            )
        return self.gain * self.energy.weight / self.energy.weight.norm()


class LocationAttention(Attention):
    """weights = softmax(W_a h_t), one score for each source position (Luong 2015, equation 8)."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__(config)
        self.max_source_positions = config.max_source_positions
        self.location = nn.Linear(config.hidden_size, config.max_source_positions, bias=False)

    @property
    def reads_positions(self) -> bool:
        return True

    def project_keys(self, encoder_states: Tensor) -> Tensor:
        if encoder_states.shape[1] > self.max_source_positions:
            raise ValueError(
                f"source of {encoder_states.shape[1]} positions: attention_type='location' was built for "
                f"max_source_positions={self.max_source_positions}"
            )
        return encoder_states

    def score(self, query: Tensor, keys: Tensor, source_positions: Tensor | None) -> Tensor:
        scores = self.location(query)
        index = source_positions.clamp(min=0)[:, None, :].expand(-1, query.shape[1], -1)
        return scores.gather(2, index).unsqueeze(1)


class MultiHeadAttention(Attention):
    """Scaled dot-product attention with several heads (Vaswani 2017, section 3.2.2), read by a recurrent decoder."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__(config)
        self.heads = config.num_attention_heads
        self.head_size = config.attention_size // self.heads
        self.query = Linear(config.hidden_size, config.attention_size, bias=False)
        self.key = Linear(config.encoder_output_size, config.attention_size, bias=False)
        self.value = Linear(config.encoder_output_size, config.attention_size, bias=False)
        self.output = nn.Linear(config.attention_size, config.attention_size, bias=False)

    def _split(self, states: Tensor) -> Tensor:
        return states.unflatten(-1, (self.heads, self.head_size)).transpose(1, 2)

    def project_keys(self, encoder_states: Tensor) -> Tensor:
        return self._split(self.key(encoder_states))

    def project_values(self, encoder_states: Tensor) -> Tensor:
        return self._split(self.value(encoder_states))

    def score(self, query: Tensor, keys: Tensor, source_positions: Tensor | None) -> Tensor:
        return (self._split(self.query(query)) * self.head_size**-0.5) @ keys.transpose(-1, -2)

    def context(self, weights: Tensor, values: Tensor) -> Tensor:
        return self.output((weights @ values).transpose(1, 2).flatten(2))

    def scan_form(self) -> ScanForm | None:
        return ScanForm(query_weight=self.query.weight * self.head_size**-0.5, read_weight=self.output.weight)


class MultiHeadAdditiveAttention(MultiHeadAttention):
    """Additive scores in several heads (Chen 2018, RNMT+, section 4.1): each head has its own v, W_q, W_k and values."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__(config)
        self.energy = nn.Linear(self.head_size, self.heads, bias=False)

    def score(self, query: Tensor, keys: Tensor, source_positions: Tensor | None) -> Tensor:
        combined = torch.tanh(self._split(self.query(query)).unsqueeze(3) + keys.unsqueeze(2))
        if live_departure(self.energy, (nn.Linear,)):
            return self.energy(combined).diagonal(0, 1, -1).movedim(-1, 1)
        return torch.einsum("nhtsd,hd->nhts", combined, self.energy.weight)


class WindowAttention(Attention):
    """A window that only moves forward over the source (Graves 2013, equations 46 to 51); its state is the centers."""

    carries = True

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__(config)
        self.window_over_source = Window(config)

    def start(self, keys: Tensor, source_mask: Tensor) -> Tensor:
        return self.window_over_source.start(keys)

    def forward(
        self,
        query: Tensor,
        keys: Tensor,
        values: Tensor,
        source_mask: Tensor,
        positions: Tensor,
        state: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        weights, state = self.window_over_source(query[:, 0], source_mask, state)
        weights = weights[:, None, None]
        return self.context(weights, values), weights, state

    def scan_form(self) -> ScanForm | None:
        window = self.window_over_source
        return ScanForm(query_weight=window.project.weight, bias=window.bias)


_CLASSES: dict[str, type[Attention]] = {
    "additive": AdditiveAttention,
    "dot": DotAttention,
    "general": GeneralAttention,
    "location": LocationAttention,
    "multi_head": MultiHeadAttention,
    "multi_head_additive": MultiHeadAdditiveAttention,
    "normed_additive": NormedAdditiveAttention,
    "scaled_dot": ScaledDotAttention,
    "window": WindowAttention,
}


def register_attention(name: str, cls: type[Attention]) -> None:
    """Makes `RnnSeq2SeqConfig(attention_type=name)` build `cls`.

    A checkpoint carries the file of `cls` and loads with `trust_remote_code=True`. Without that, call this before loading.

    Raises:
        ConfigError: the name is taken by another class, or `cls` does not extend `Attention`.
    """
    if not (isinstance(cls, type) and issubclass(cls, Attention)):
        raise ConfigError(f"register_attention({name!r}): {cls!r} must be a subclass of Attention")
    if {**_CLASSES, **REGISTERED}.get(name, cls) is not cls or name == "concat":
        raise ConfigError(f"register_attention({name!r}): the name is taken by another score")
    REGISTERED[name] = cls


def build_attention(config: RnnSeq2SeqConfig) -> Attention:
    """The attention that `config` names.

    Raises:
        ConfigError: the name is not registered, or its class reads the source in a way of its own, and hard or sampled
            attention would leave that out.
    """
    config.validate_attention()
    attention = {**_CLASSES, **REGISTERED}[config.attention_type](config)
    if config.aligns_hard and (own := override(attention, Attention, ("forward", "context", "_align"))):
        raise ConfigError(
            f"attention_type={config.attention_type!r}: attention_alignment={config.attention_alignment!r} reads the score "
            f"only, and would leave out {own}() of {type(attention).__name__}"
        )
    if config.samples_attention and (own := override(attention, Attention, ("forward",))):
        raise ConfigError(
            f"attention_type={config.attention_type!r}: attention_alignment='sampled' reads context() of one position, and "
            f"would leave out {own}() of {type(attention).__name__}"
        )
    return attention
