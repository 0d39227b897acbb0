"""What a search is asked for, what it may not say, what it returns, and how words are chosen.

Axes: sentences (`live`: those still searched), rows (sentences times beams), vocab.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 64  # words a block of the two-stage selection


class SearchPlan(NamedTuple):
    """What a search is asked for."""

    max_new_tokens: int
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    num_beams: int = 1
    num_return_sequences: int = 1
    early_stopping: bool | str = False
    length_penalty: float = 1.0  # transformers': the sum of log-probabilities is divided by length ** this
    gnmt_alpha: float | None = None  # GNMT's: divided by ((5 + length) / 6) ** alpha instead
    coverage_penalty: float = 0.0  # GNMT's beta
    stop_at_top: bool = False
    num_beam_groups: int = 1
    diversity_penalty: float = 0.0  # what a word costs for each beam of an earlier group that says it here
    need_weights: bool = False
    need_scores: bool = True  # greedy search chooses without them

    @property
    def candidates(self) -> int:
        """Continuations kept per sentence before the finished ones are set aside."""
        return max(2, 1 + len(self.eos_token_ids)) * self.num_beams

    @property
    def fill_token_id(self) -> int:
        """What stands behind the end of a shorter hypothesis.

        After beam search transformers fills with the end of sentence where the pad token's id is 0, and with -1 where
        nothing ends a sentence.
        """
        if self.num_beams == 1:
            return self.pad_token_id
        return (self.pad_token_id or self.eos_token_ids[0]) if self.eos_token_ids else -1

    def norm(self, length: int) -> float:
        """What a sum of log-probabilities over `length` tokens is divided by."""
        if self.gnmt_alpha is not None:
            return ((5 + length) / 6) ** self.gnmt_alpha
        return length**self.length_penalty

    def hopeful_length(self, length: int) -> int:
        """The length at which a running hypothesis of `length` tokens is judged when stopping is considered."""
        grows = self.length_penalty if self.gnmt_alpha is None else self.gnmt_alpha
        return self.max_new_tokens if self.early_stopping == "never" and grows > 0 else length


class Limits(NamedTuple):
    """Which words a search may produce, where not all of them everywhere."""

    words: Tensor | None = None  # (words,), ids of a shortlist in ascending order; the search then scores these alone
    allowed: Tensor | None = None  # bool (sentences, words or vocab), what each sentence may say
    prefix: Tensor | None = None  # (sentences, length), the places in `words` (or ids) forced at first; -1 forces none

    def scores(self, logits: Tensor, live: Tensor) -> Tensor:
        """Logits (rows, words) with minus infinity where a sentence may not say a word."""
        if self.allowed is None:
            return logits
        allowed = self.allowed[live].repeat_interleave(len(logits) // len(live), 0)
        return logits.masked_fill(~allowed, -torch.inf)

    def force(self, logits: Tensor, live: Tensor, time: int) -> Tensor:
        """Logits with minus infinity at every word but the forced one; the sums still count the model's share."""
        if self.prefix is None or time >= self.prefix.shape[1]:
            return logits
        forced = self.prefix[live, time].repeat_interleave(len(logits) // len(live), 0).unsqueeze(1)
        places = forced.clamp(min=0)
        only = torch.full_like(logits, -torch.inf).scatter(1, places, logits.gather(1, places))
        return torch.where(forced >= 0, only, logits)

    def of(self, rows: Tensor | slice) -> "Limits":
        """The limits of the sentences `rows`."""
        return self._replace(
            allowed=None if self.allowed is None else self.allowed[rows],
            prefix=None if self.prefix is None else self.prefix[rows],
        )

    def tokens(self, places: Tensor) -> Tensor:
        """The ids of words chosen by their places."""
        return places if self.words is None else self.words[places]


NO_LIMITS = Limits()


class Found(NamedTuple):
    """Hypotheses, best first within a sentence; the first axis is sentences times `num_return_sequences`."""

    tokens: Tensor  # (hypotheses, target), padded; without the prompt
    scores: Tensor  # (hypotheses,), normalized as the plan says
    log_probabilities: Tensor  # (hypotheses,), sums over the tokens
    lengths: Tensor  # (hypotheses,), end of sentence included
    weights: Tensor | None  # (hypotheses, target, source), zero past each length


def is_end(tokens: Tensor, eos_token_ids: Sequence[int]) -> Tensor:
    """Where a token ends its sentence."""
    ended = torch.zeros_like(tokens, dtype=torch.bool)
    for token in eos_token_ids:
        ended |= tokens == token
    return ended


def top_words(logits: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Exact top-k over the last axis of (rows, vocab).

    On a CPU in two stages: the `count` largest words lie in the `count` blocks with the largest maxima.
    """
    rows, vocab = logits.shape
    blocks = vocab // BLOCK
    if logits.device.type != "cpu" or blocks <= 2 * count:
        return logits.topk(count, -1)
    body = logits[:, : blocks * BLOCK].unflatten(1, (blocks, BLOCK))
    chosen = body.amax(-1).topk(count, -1, sorted=False).indices
    values = body.gather(1, chosen.unsqueeze(-1).expand(-1, -1, BLOCK)).flatten(1)
    words = (chosen.unsqueeze(-1) * BLOCK + torch.arange(BLOCK)).flatten(1)
    if vocab > blocks * BLOCK:
        rest = torch.arange(blocks * BLOCK, vocab).expand(rows, -1)
        values, words = torch.cat([values, logits[:, blocks * BLOCK :]], 1), torch.cat([words, rest], 1)
    values, places = values.topk(count, -1)
    return values, words.gather(1, places)


__all__ = ["NO_LIMITS", "Found", "Limits", "SearchPlan", "is_end", "top_words"]
