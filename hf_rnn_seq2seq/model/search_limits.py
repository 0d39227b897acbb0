"""Which words a search may produce, and which it must: shortlists, prefixes and phrases.

Axes: sentences (`live`: those still searched), rows (sentences times beams), vocab.
"""

import reprlib
from typing import NamedTuple

import torch
from torch import Tensor

from .search_options import SearchError, SearchOptions


class Limits(NamedTuple):
    """The words that each sentence may produce; without limits every field is None."""

    words: Tensor | None = None  # (words,), ids of a shortlist in ascending order; the search then scores only these
    allowed: Tensor | None = None  # bool (sentences, words or vocab), the words of each sentence
    prefix: Tensor | None = None  # (sentences, length), forced indices in `words` (or ids); -1 forces none

    def scores(self, logits: Tensor, live: Tensor) -> Tensor:
        """Logits (rows, words) with minus infinity for words that are not allowed."""
        if self.allowed is None:
            return logits
        allowed = self.allowed[live].repeat_interleave(len(logits) // len(live), 0)
        return logits.masked_fill(~allowed, -torch.inf)

    def force(self, logits: Tensor, live: Tensor, time: int) -> Tensor:
        """Logits with minus infinity at every word but the forced one, which keeps the model's score."""
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
        """The ids of words from their indices in the scores."""
        return places if self.words is None else self.words[places]


NO_LIMITS = Limits()


def make_limits(options: SearchOptions, vocab_size: int, sentences: int, device: torch.device) -> Limits:
    """The shortlist and the prefixes of the options.

    Raises:
        SearchError: ids outside the vocabulary, too few of them, or not one sequence per sentence.
    """
    prefix = _prefix(options, vocab_size, sentences)
    if options.shortlist is None:
        return Limits(prefix=None if prefix is None else prefix.to(device))
    lists = options.shortlist.tolist() if isinstance(options.shortlist, Tensor) else list(options.shortlist)
    by_sentence = bool(lists) and isinstance(lists[0], (list, tuple, set, frozenset, Tensor))
    lists = [sorted(map(int, row)) for row in lists] if by_sentence else [sorted(map(int, lists))]
    if by_sentence and len(lists) != sentences:
        raise SearchError(f"shortlist for {len(lists)} sentences: there are {sentences}")
    ends = options.eos_token_ids
    forced = [] if prefix is None else prefix[prefix >= 0].tolist()
    words = torch.tensor(sorted({*ends, *forced, *(word for row in lists for word in row)}))
    shortest = min(len({*ends, *row}) for row in lists)
    if shortest < options.candidates or int(words[0]) < 0 or int(words[-1]) >= vocab_size:
        raise SearchError(
            f"shortlist of {shortest} ids from {int(words[0])} to {int(words[-1])}: needs at least {options.candidates} "
            f"of the target ids 0 to {vocab_size - 1}"
        )
    allowed = None
    if by_sentence:
        allowed = torch.zeros(sentences, len(words), dtype=torch.bool)
        for row, ids in enumerate(lists):
            forced = [] if prefix is None else [word for word in prefix[row].tolist() if word >= 0]
            allowed[row, torch.searchsorted(words, torch.tensor([*ids, *ends, *forced]))] = True
        allowed = allowed.to(device)
    if prefix is not None:
        prefix = torch.where(prefix < 0, prefix, torch.searchsorted(words, prefix.clamp(min=0))).to(device)
    return Limits(words.to(device), allowed, prefix)


def _prefix(options: SearchOptions, vocab_size: int, sentences: int) -> Tensor | None:
    """(sentences, longest) target ids, -1 past each end."""
    if options.prefix is None:
        return None
    rows = [list(map(int, row)) for row in options.prefix]
    if len(rows) != sentences:
        raise SearchError(f"prefix for {len(rows)} sentences: there are {sentences}")
    if any(not 0 <= word < vocab_size for row in rows for word in row):
        raise SearchError(f"prefix: must hold target ids from 0 to {vocab_size - 1}")
    width = max(map(len, rows), default=0)
    return torch.tensor([row + [-1] * (width - len(row)) for row in rows], dtype=torch.long).view(sentences, width)


def check_phrases(options: SearchOptions, vocab_size: int, sentences: int) -> None:
    """Checks `must_contain`.

    Raises:
        SearchError: there is not one sequence of phrases per sentence, or a phrase cannot be produced.
    """
    if options.must_contain is None:
        return
    if not options.eos_token_ids:
        raise SearchError("must_contain: needs an eos_token_id; it is None")
    if len(options.must_contain) != sentences:
        raise SearchError(f"must_contain for {len(options.must_contain)} sentences: there are {sentences}")
    for phrases in options.must_contain:
        words = [word for phrase in phrases for word in phrase]
        if not all(phrases) or any(not 0 <= word < vocab_size or word in options.eos_token_ids for word in words):
            raise SearchError(
                f"must_contain={reprlib.repr(phrases)}: each phrase must be a non-empty list of target ids (0 to "
                f"{vocab_size - 1}) without eos_token_id"
            )
        if len(words) + 1 > options.max_new_tokens:
            raise SearchError(
                f"must_contain: {len(words)} tokens and an end do not fit max_new_tokens={options.max_new_tokens}"
            )
