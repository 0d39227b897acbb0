"""Beam search over hypotheses that must contain given phrases (grid beam search, Hokamp and Liu 2017).

A hypothesis is open, or inside a phrase that it has begun. An open hypothesis may produce any word, or begin a phrase that
it does not contain yet; inside a phrase it can only continue the phrase. Hypotheses compete within their bank, the number
of phrase tokens produced, and `num_beams` of each bank survive a step, so that hypotheses with an unlikely phrase survive.
Only a hypothesis that contains every phrase may end, and one that cannot complete its phrases in time is dropped.

Sentences are searched one after the other; rows are the hypotheses that run.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .beam_search import SearchResult
from .search_options import SearchOptions
from .search_step import GeneralStep, SearchState, refuse_nan

Phrases = Sequence[Sequence[int]]


class _Hypothesis(NamedTuple):
    """One row; `open_phrases` are the numbers of the phrases not begun."""

    tokens: tuple[int, ...]
    total: float
    open_phrases: frozenset[int]
    inside: tuple[int, ...]  # the rest of the phrase that was begun
    row: int  # the row of its state
    weights: tuple[Tensor, ...]

    def missing(self, phrases: Phrases) -> int:
        """Number of phrase tokens that it must still produce."""
        return len(self.inside) + sum(len(phrases[number]) for number in self.open_phrases)


def constrained_search(
    step: GeneralStep, state: SearchState, tokens: Tensor, options: SearchOptions, phrases: Phrases
) -> SearchResult:
    """The best hypotheses of ONE sentence that contain every phrase.

    Args:
        step: reads one token per row.
        state: before `tokens`, one row and one source.
        tokens: (1,), the last token of the prompt.
        options: of the search; needs an end of sentence.
        phrases: token ids; a phrase that must occur twice is listed twice.
    """
    running = [_Hypothesis((), 0.0, frozenset(range(len(phrases))), (), 0, ())]
    finished: list[_Hypothesis] = []
    for length in range(1, options.max_new_tokens + 1):
        readout, weights, state = step(tokens, state, options.needs_weights)
        scores = step.scores(readout)
        largest, log_sum = step.normalizers(scores)
        scores = (scores - largest).sub_(log_sum).cpu()  # its numbers are read one by one
        grown: list[_Hypothesis] = []
        for row, hypothesis in enumerate(running):
            grown += _grow(hypothesis._replace(row=row), scores[row], phrases, options)
        if options.needs_weights:
            grown = [h._replace(weights=(*h.weights, weights[h.row])) for h in grown]
        ended = [h for h in grown if h.tokens[-1] in options.eos_token_ids]
        finished = sorted(finished + ended, key=lambda h: -_score(h, options))[: options.num_beams]
        # The last place is for the end of sentence.
        alive = [h for h in grown if h.tokens[-1] not in options.eos_token_ids]
        alive = [h for h in alive if length + h.missing(phrases) < options.max_new_tokens]
        running = _survivors(alive, phrases, options.num_beams)
        if not running or _hopeless(running, finished, length, options):
            break
        state = step.select(state, torch.tensor([h.row for h in running], device=tokens.device), None)
        tokens = torch.tensor([h.tokens[-1] for h in running], device=tokens.device)
    refuse_nan(torch.tensor(sum(hypothesis.total for hypothesis in (*finished, *running))))
    # With a low limit there may be too few hypotheses; the missing ones are empty.
    empty = _Hypothesis((), -torch.inf, frozenset(), (), 0, ())
    chosen = finished + [empty] * options.num_return_sequences
    return _collect(chosen[: options.num_return_sequences], options, tokens.device)


def _grow(hypothesis: _Hypothesis, scores: Tensor, phrases: Phrases, options: SearchOptions) -> list[_Hypothesis]:
    """Every continuation worth keeping."""

    def extended(word: int, **changes: object) -> _Hypothesis:
        total = hypothesis.total + float(scores[word])
        return hypothesis._replace(tokens=(*hypothesis.tokens, word), total=total, **changes)

    if hypothesis.inside:
        return [extended(hypothesis.inside[0], inside=hypothesis.inside[1:])]
    grown = []
    for number in hypothesis.open_phrases:
        first, *rest = phrases[number]
        grown.append(extended(first, open_phrases=hypothesis.open_phrases - {number}, inside=tuple(rest)))
    # A phrase of one word is complete whenever the word is produced: the open form of the same hypothesis is left out.
    one_word = {phrases[number][0] for number in hypothesis.open_phrases if len(phrases[number]) == 1}
    best = scores.topk(min(options.candidates + len(one_word), len(scores))).indices.tolist()
    incomplete = bool(hypothesis.open_phrases)
    grown += [
        extended(word) for word in best if word not in one_word and not (incomplete and word in options.eos_token_ids)
    ]
    if not incomplete:  # the end is always possible then, so that the search finishes
        grown += [extended(word) for word in options.eos_token_ids if word not in best]
    return grown


def _survivors(alive: list[_Hypothesis], phrases: Phrases, beams: int) -> list[_Hypothesis]:
    """The `beams` best of each bank, without duplicates."""
    banks: dict[int, list[_Hypothesis]] = {}
    seen = set()
    for hypothesis in sorted(alive, key=lambda h: -h.total):
        key = (hypothesis.tokens, hypothesis.open_phrases, hypothesis.inside)
        bank = banks.setdefault(hypothesis.missing(phrases), [])
        if key not in seen and len(bank) < beams:
            seen.add(key)
            bank.append(hypothesis)
    return [hypothesis for missing in sorted(banks) for hypothesis in banks[missing]]


def _score(hypothesis: _Hypothesis, options: SearchOptions) -> float:
    return hypothesis.total / options.norm(max(1, len(hypothesis.tokens)))


def _hopeless(running: list[_Hypothesis], finished: list[_Hypothesis], length: int, options: SearchOptions) -> bool:
    """Whether enough hypotheses have ended, and by the stopping rule no running one can become better than the last."""
    if len(finished) < options.num_beams:
        return False
    if options.early_stopping is True:
        return True
    hope = max(h.total for h in running) / options.norm(options.hopeful_length(length))
    return hope <= _score(finished[-1], options)


def _collect(chosen: list[_Hypothesis], options: SearchOptions, device: torch.device) -> SearchResult:
    width = max(len(h.tokens) for h in chosen)
    tokens = [[*h.tokens, *[options.fill_token_id] * (width - len(h.tokens))] for h in chosen]
    weights = None
    if options.needs_weights:
        source = next(len(h.weights[0]) for h in chosen if h.weights)
        weights = torch.zeros(len(chosen), width, source, device=device)
        for row, hypothesis in enumerate(chosen):
            for time, attention in enumerate(hypothesis.weights):
                weights[row, time] = attention
    return SearchResult(
        tokens=torch.tensor(tokens, device=device),
        scores=torch.tensor([_score(h, options) for h in chosen], device=device),
        log_probabilities=torch.tensor([h.total for h in chosen], device=device),
        lengths=torch.tensor([len(h.tokens) for h in chosen], device=device),
        weights=weights,
    )
