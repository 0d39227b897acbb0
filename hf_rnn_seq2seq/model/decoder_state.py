"""The records of the decoder: what it reads, its state between two positions, what a pass over positions returns, and the
cache of `generate()`.

Axes: batch, source, target, heads, hidden; tensors are batch first unless a comment states another order.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple, NoReturn

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import Cache, LinearAttentionLayer

from .dropout import State
from .recurrence import StepWeights


class Memory(NamedTuple):
    """What the decoder reads of a source, projected once per sentence."""

    keys: Tensor | None  # as `Attention.project_keys` returns them
    values: Tensor | None  # as `Attention.project_values` returns them; with hard attention their part of the readout
    mask: Tensor | None  # bool (batch, source)
    summary: Tensor | None  # (batch, context), the fixed vector of `context="every_step"`
    source_ids: Tensor | None = None  # (batch, source), the words that a copying output layer copies


NO_SOURCE = Memory(None, None, None, None)


class DecoderState(NamedTuple):
    """The decoder between two positions."""

    layers: tuple[State, ...]  # per layer (h, c) or (h,), each (batch, hidden)
    feed: Tensor | None  # (batch, feed), the attentional vector (or the context) of the last step
    position: Tensor  # (batch,), number of target positions read
    attention: Tensor | None  # what the attention carries from step to step (coverage, a monotonic alignment)

    def tensors(self) -> tuple[Tensor, ...]:
        """The flat sequence of all tensors."""
        optional = [tensor for tensor in (self.feed, self.position, self.attention) if tensor is not None]
        return tuple(tensor for layer in self.layers for tensor in layer) + tuple(optional)

    def map(self, function: Callable[[Tensor], Tensor]) -> "DecoderState":
        """The same structure with `function` applied to every tensor."""
        optional = (None if t is None else function(t) for t in (self.feed, self.position, self.attention))
        return DecoderState(tuple(tuple(function(t) for t in layer) for layer in self.layers), *optional)


def hold_at_padding(padding: Tensor, before: DecoderState, after: DecoderState) -> DecoderState:
    """`before` in rows where `padding`, bool (batch, 1), is True; `after` in the others."""
    pairs = iter(zip(before.tensors(), after.tensors(), strict=True))

    def choose(_: Tensor) -> Tensor:
        old, new = next(pairs)
        return torch.where(padding.view(-1, *[1] * (new.dim() - 1)), old, new)

    return after.map(choose)


class LoopConstants(NamedTuple):
    """Weights and masks of one pass over time, made once before the loop; one entry per attended layer."""

    weights: list[StepWeights | None]  # None if the layer is called
    recurrent_masks: list[Tensor | None]  # (batch, hidden), recurrent dropout
    input_masks: list[Tensor | None]  # (target or 1, batch, hidden), dropout of the layer below's output
    zoneout_masks: list[list[State | None]]  # per position, from `RecurrentLayer.zoneout_masks`
    draws: Tensor | None = None  # bool (batch, 1, 1, 1), from `SampledAttention.rows`

    def at(self, time: int) -> "LoopConstants":
        """The constants at one position: input masks (batch, hidden), and the zoneout masks of this position."""
        inputs = [mask if mask is None else mask[time if len(mask) > 1 else 0] for mask in self.input_masks]
        return self._replace(input_masks=inputs, zoneout_masks=[masks[time] for masks in self.zoneout_masks])


class Step(NamedTuple):
    """One position of the attended layers; tensors are (batch, ...)."""

    states: tuple[State, ...]
    outputs: tuple[Tensor, ...]
    context: Tensor
    weights: Tensor
    attention_state: Tensor | None
    read: Tensor | None  # (batch, heads, 1, source), what a sampled attention read in training


class Attended(NamedTuple):
    """All positions of the attended layers (of every layer if there is no attention)."""

    states: tuple[State, ...]  # after the last position
    outputs: tuple[Tensor, ...]  # (batch, target, hidden) per layer
    context: Tensor | None  # (batch, target, context)
    weights: Tensor | None  # (batch, heads, target, source)
    attention_state: Tensor | None
    readout: Tensor | None  # (batch, target, readout), if the loop computes it
    feed: Tensor | None  # (batch, feed)
    read: Tensor | None = None  # (batch, heads, target, source), what a sampled attention read in training


class DecoderTrace(NamedTuple):
    """The result of a pass over target positions."""

    readout: Tensor  # (batch, target, readout), what the output layer reads; with hard attention the target's part
    state: DecoderState  # after the last position
    hidden_states: tuple[Tensor, ...]  # word vectors, then each layer's outputs
    weights: Tensor | None  # (batch, heads, target, source)
    snapshots: list[DecoderState] | None  # the state before each position, if recorded
    gate: Tensor | None  # (batch, target), log-odds of generating a word instead of copying one
    read: Tensor | None = None  # (batch, heads, target, source), what a sampled attention read in training


def _as_layer(state: tuple[Tensor, ...]) -> LinearAttentionLayer:
    layer = LinearAttentionLayer(number_of_states=len(state))
    layer.recurrent_states = dict(enumerate(state))
    layer.is_recurrent_states_initialized = layer.has_previous_state = dict.fromkeys(range(len(state)), True)
    return layer


class RnnSeq2SeqCache(Cache):
    """The decoder's state and the projected source between two steps of `generate()`.

    Unlike a Transformer's cache it does not grow with the target. For assisted decoding it can record the state before each
    token, so that rejected tokens are taken back exactly; memory then grows by one decoder state per token.
    """

    is_compileable = False
    is_croppable = True

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.state: DecoderState | None = None
        self.memory: Memory | None = None
        self.length = 0
        self._recording = False
        self._snapshots: list[DecoderState] = []

    def __repr__(self) -> str:
        return f"{type(self).__name__}(length={self.length}, tensors={len(self.states)})"

    @property
    def layers(self) -> list[LinearAttentionLayer]:
        """Each decoder layer's state (h, and the LSTM's cell) in the class of transformers; read-only."""
        return [] if self.state is None else [_as_layer(layer) for layer in self.state.layers]

    @layers.setter
    def layers(self, layers: list[LinearAttentionLayer]) -> None:
        """`Cache` sets an empty list at the start."""

    @property
    def is_linear(self) -> list[bool]:
        """False: `generate()` may be given the whole text, and passes on what the cache has not read."""
        return [False] * len(self.layers)

    @property
    def is_initialized(self) -> bool:
        """Whether a source has been read."""
        return self.state is not None

    @property
    def states(self) -> tuple[Tensor, ...]:
        """Every tensor of the cache, batch first: decoder state, then the projected source."""
        if self.state is None:
            return ()
        return self.state.tensors() + tuple(tensor for tensor in self.memory if tensor is not None)

    @property
    def is_recording(self) -> bool:
        """Whether `advance` needs the state before each token."""
        return self._recording

    def start(self, state: DecoderState, memory: Memory) -> None:
        """Sets the state before the first token and the source it reads."""
        self.state, self.memory = state, memory
        self.length = 0
        self._snapshots = []

    def advance(self, state: DecoderState, tokens: int, snapshots: list[DecoderState] | None = None) -> None:
        """Advances by `tokens`; `snapshots` are the states before each of them, needed while recording."""
        if self._recording:
            if snapshots is None or len(snapshots) != tokens:
                raise ValueError("a recording cache needs the state before every token")
            self._snapshots.extend(snapshots)
        self.state = state
        self.length += tokens

    def carry(self, after: Tensor) -> None:
        """Sets what the attention carries after each of the last tokens, (batch, tokens, ...)."""
        tokens = after.shape[1]
        for number in range(1, min(tokens, len(self._snapshots))):
            snapshot = self._snapshots[number - tokens]
            self._snapshots[number - tokens] = snapshot._replace(attention=after[:, number - 1])
        self.state = self.state._replace(attention=after[:, -1])

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Number of target tokens read."""
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """No limit."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """(tokens read and to read, 0), as attention masks are sized."""
        return self.length + query_length, 0

    def activate_past_recording(self) -> None:
        """Records the state before each token from now on, so that `crop` can take tokens back."""
        self._recording = True

    def crop(self, tokens_to_remove: int) -> None:
        """Takes the last tokens back: -2 removes two of them.

        Raises:
            ValueError: the number is positive, or the state was not recorded.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): must be 0 or negative; -2 removes the last two tokens")
        drop = -tokens_to_remove
        if drop:
            if drop > len(self._snapshots):
                raise ValueError(
                    f"crop({tokens_to_remove}): {len(self._snapshots)} tokens were recorded of {self.length} read; "
                    "call activate_past_recording() before the tokens that may be taken back"
                )
            self.state = self._snapshots[-drop]
            self._snapshots = self._snapshots[:-drop]
            self.length -= drop

    def _apply(self, function: Callable[[Tensor], Tensor]) -> None:
        if self.state is None:
            return
        self.state = self.state.map(function)
        self.memory = Memory(*(None if tensor is None else function(tensor) for tensor in self.memory))
        self._snapshots = [snapshot.map(function) for snapshot in self._snapshots]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i becomes what row `beam_idx[i]` was, in every tensor."""
        self._apply(lambda tensor: tensor.index_select(0, beam_idx.to(tensor.device)))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps the rows `indices`."""
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeats each row `repeats` times."""
        self._apply(lambda tensor: tensor.repeat_interleave(repeats, dim=0))

    def reset(self) -> None:
        """Forgets the source and everything read."""
        self.state, self.memory, self.length, self._snapshots = None, None, 0, []

    @property
    def batch_size(self) -> int:
        """Rows of the cache."""
        return 0 if self.state is None else len(self.state.position)

    def check_rows(self, name: str, given: Tensor) -> None:
        """Raises ValueError if `given`, an argument `name` of the model, has another number of rows than the cache."""
        if self.batch_size != len(given):
            raise ValueError(
                f"{name} of shape {tuple(given.shape)}: must have a row for each of {self.batch_size} rows of the cache; "
                "cache.batch_repeat_interleave(n) repeats each n times"
            )

    def to(self, device: torch.device | str) -> "RnnSeq2SeqCache":
        """Moves every tensor."""
        self._apply(lambda tensor: tensor.to(device))
        return self


def last_columns(name: str, mask: Tensor, embedded: Tensor) -> Tensor:
    """The columns of a mask (batch, >= time) that belong to `embedded` (batch, time, width), bool (batch, time).

    Raises:
        ValueError: the mask has too few columns or another number of rows.
    """
    batch, time = embedded.shape[:2]
    if mask.dim() != 2 or mask.shape[0] != batch or mask.shape[1] < time:
        raise ValueError(f"{name} of shape {tuple(mask.shape)}: must be (batch, at least time) = ({batch}, {time})")
    return mask[:, -time:].bool()


def usable_cache(cache: RnnSeq2SeqCache | None, others: Mapping[str, object]) -> RnnSeq2SeqCache:
    """The cache that a model is given, or an empty one; `others` are the keywords that the model ignores.

    Raises:
        ValueError: it has another class or another name.
    """
    if "past_key_values" in others:
        raise ValueError("past_key_values: the argument is called cache, as everywhere in transformers 5.24")
    if cache is not None and not hasattr(cache, "advance"):
        raise ValueError(f"cache of type {type(cache).__name__}: must be an RnnSeq2SeqCache or None")
    return RnnSeq2SeqCache() if cache is None else cache


class CachedGenerationMixin(GenerationMixin):
    """`generate()` over an `RnnSeq2SeqCache`; assisted decoding takes tokens back exactly."""

    # A recurrent state cannot be cropped like a Transformer's keys, but the cache can record earlier states.
    _is_stateful = False

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """The default cache is for keys and values of self-attention; ours is created below."""
        return False

    def generate_batch(self, *args: object, **kwargs: object) -> NoReturn:
        """Not supported: continuous batching pages keys and values, and this model's cache is one state.

        Raises:
            NotImplementedError: always.
        """
        use = "search(rows_per_batch=...)" if hasattr(self, "search") else "generate() on batches"
        raise NotImplementedError(f"generate_batch: needs a paged key-value cache; use {use}")

    def _prepare_cache_for_generation(
        self, generation_config: GenerationConfig, model_kwargs: dict[str, object], *args: object, **kwargs: object
    ) -> None:
        """Creates an `RnnSeq2SeqCache` before the first step, unless the caller gave one or disabled it."""
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        if model_kwargs.get("cache") is None and generation_config.use_cache is not False:
            model_kwargs["cache"] = RnnSeq2SeqCache()
            # Wrong proposals of an assistant are taken back. transformers activates recording for the assisted model.
            if generation_config.is_assistant:
                model_kwargs["cache"].activate_past_recording()
