"""Several models decode as one: at each position their log-probabilities are averaged.

The models may differ in architecture, size and seed. They share both vocabularies.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .search_options import SearchError
from .search_step import GeneralStep, SearchState, StepOutput


class EnsembleStep(GeneralStep):
    """One position of all members; states and readouts are tuples with one entry per member.

    Args:
        steps: one per member.

    Raises:
        SearchError: the members differ in vocabularies or special tokens, or the inputs are not token ids.
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

    def read(self, input_ids: Tensor | None = None, attention_mask: Tensor | None = None, **others: Any) -> list[Any]:
        """The output of each member's encoder for the same sources."""
        if any(value is not None for value in others.values()):
            raise SearchError("ensemble: each member reads the source itself; give input_ids alone")
        return [step.read(input_ids, attention_mask) for step in self.steps]

    def source_mask(self, source: list[Any]) -> Tensor:
        return self.steps[0].source_mask(source[0])

    def start(self, source: list[Any], beams: int) -> SearchState:
        states = [step.start(part, beams) for step, part in zip(self.steps, source, strict=True)]
        return SearchState(tuple(state.rows for state in states), tuple(state.source for state in states))

    def select(self, state: SearchState, rows: Tensor | None, sentences: Tensor | None) -> SearchState:
        pairs = zip(self.steps, *state, strict=True)
        states = [step.select(SearchState(*parts), rows, sentences) for step, *parts in pairs]
        return SearchState(tuple(part.rows for part in states), tuple(part.source for part in states))

    def scores(self, readout: list[Any], words: Tensor | None = None) -> Tensor:
        """The average of the members' log-probabilities (rows, vocab); their exponentials may sum to less than 1."""
        return sum(self._log_probabilities(readout, words)) / len(self.steps)

    def normalizers(self, scores: Tensor, scratch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        # Averaged log-probabilities are not normalized again, as in OpenNMT-py and Marian.
        zeros = scores.new_zeros(len(scores), 1)
        return zeros, zeros

    def _log_probabilities(self, readout: list[Any], words: Tensor | None) -> list[Tensor]:
        pairs = zip(self.steps, readout, strict=True)
        return [step.scores(part, words).log_softmax(-1) for step, part in pairs]

    def __call__(self, tokens: Tensor, state: SearchState, need_weights: bool = False) -> StepOutput:
        outputs = [
            step(tokens, SearchState(rows, source), need_weights)
            for step, rows, source in zip(self.steps, *state, strict=True)
        ]
        after = SearchState(tuple(one.state.rows for one in outputs), tuple(one.state.source for one in outputs))
        weights = torch.stack([one.weights for one in outputs]).mean(0) if need_weights else None
        return StepOutput([one.readout for one in outputs], weights, after)


__all__ = ["EnsembleStep"]
