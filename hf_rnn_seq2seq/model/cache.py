"""The cache of `generate()`: the decoder's state and the projected source."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers.cache_utils import Cache, LinearAttentionLayer

from .decoder_state import DecoderState, Memory


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

    def to(self, device: torch.device | str) -> "RnnSeq2SeqCache":
        """Moves every tensor."""
        self._apply(lambda tensor: tensor.to(device))
        return self
