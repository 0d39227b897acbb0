"""One position of decoding as a CUDA graph, for a few shapes that serve all batches.

Axes: rows (sentences times beams), sentences, source.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .recorded import WIDTH, Recorded, map_tensors, tensors_of
from .search_step import GeneralStep, SearchState, StepOutput


class _Read(NamedTuple):
    """What a step read, and how wide it was before padding."""

    held: Any
    width: int


class _Source(NamedTuple):
    """The same in a state, and the number of real sentences."""

    held: Any
    width: int
    sentences: int


class CapturedStep:
    """A step whose call is captured for each shape it meets twice.

    Sentences leave a search one by one, and each would leave another shape behind: a state holds a power of two of
    sentences, those beyond the real ones repeating the first, and the source is padded to a multiple of 8. Whoever searches
    sees the real ones alone. Everything but the call is the step's own and runs as it is.

    Args:
        step: what is captured.
        device: of its model; off CUDA the step is run again instead, see `Recorded`.
    """

    def __init__(self, step: GeneralStep, device: torch.device) -> None:
        self.step = step
        self.recorded = Recorded(self._call, device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.step, name)

    def read(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **others: Any) -> _Read:
        """As the step's own, with ids that come with a mask padded; other inputs keep their width."""
        width, limit = None, self.config.max_source_positions
        if input_ids is not None and attention_mask is not None:
            width = input_ids.shape[1]
            gap = -width % WIDTH if limit is None else min(-width % WIDTH, max(0, limit - width))
            input_ids, attention_mask = (F.pad(side, (0, gap)) for side in (input_ids, attention_mask))
        source = self.step.read(input_ids, attention_mask, **others)
        return _Read(source, self.step.source_mask(source).shape[1] if width is None else width)

    def source_mask(self, source: _Read) -> Tensor:
        """bool (sentences, source) of what `read` returned."""
        return self.step.source_mask(source.held)[:, : source.width]

    def start(self, source: _Read, beams: int) -> SearchState:
        """As the step's own, of a power of two of sentences."""
        state = self.step.start(source.held, beams)
        like = tensors_of(state.rows)[0]
        rows = torch.arange(len(like), device=like.device)
        real = _Source(state.source, source.width, len(rows) // beams)
        return self.select(SearchState(state.rows, real), rows, rows[: real.sentences])

    def select(self, state: SearchState, rows: Tensor, sentences: Tensor | None) -> SearchState:
        """As the step's own, padded to a power of two of sentences; `rows` are as many for each of them."""
        source = state.source
        real = source.sentences if sentences is None else len(sentences)
        held = 1 << (real - 1).bit_length()
        sentences = None if sentences is None else _repeat_first(sentences, held)
        state = SearchState(state.rows, source.held)
        state = self.step.select(state, _repeat_first(rows, len(rows) // real * held), sentences)
        return SearchState(state.rows, _Source(state.source, source.width, real))

    def __call__(self, tokens: Tensor, state: SearchState, need_weights: bool = False) -> StepOutput:
        """Reads one token a row: (rows,)."""
        count, held = len(tokens), len(tensors_of(state.rows)[0])
        padded = tokens if count == held else F.pad(tokens, (0, held - count))
        readout, weights, rows = self.recorded(need_weights, padded, state.rows, state.source.held)
        # The first axis is of rows or of sentences: the same share of either is real.
        readout = map_tensors(readout, lambda tensor: tensor[: len(tensor) * count // held])
        weights = None if weights is None else weights[:count, : state.source.width]
        return StepOutput(readout, weights, SearchState(rows, state.source))

    def _call(self, need_weights: bool, tokens: Tensor, rows: Any, source: Any) -> tuple[Any, Tensor | None, Any]:
        told = self.step(tokens, SearchState(rows, source), need_weights)
        return told.readout, told.weights, told.state.rows


def _repeat_first(index: Tensor, count: int) -> Tensor:
    """An index (n,) as one of `count` places, the others taking row 0."""
    return F.pad(index, (0, count - len(index)))


__all__ = ["CapturedStep"]
