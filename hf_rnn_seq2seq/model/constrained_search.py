"""Beam search over hypotheses that must contain given phrases (grid beam search, Hokamp and Liu 2017).

A hypothesis is open, or inside a phrase that it has begun. An open one may say any word, or begin a phrase that it has
not said; one inside a phrase may only go on with it. Hypotheses compete within their bank, the number of phrase tokens
said, and `num_beams` of each bank survive a step, so that those that pay for a phrase are not crowded out. Only a
hypothesis that has said everything may end, and none is kept that could no longer say the rest in time.

Sentences are searched one after the other; rows are the hypotheses that run.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .finite import refuse_nan
from .search_plan import Found, SearchPlan
from .search_step import GeneralStep, SearchState

Phrases = Sequence[Sequence[int]]


class _Hypothesis(NamedTuple):
    """One row; `open_phrases` are the numbers of the phrases not begun."""

    tokens: tuple[int, ...]
    total: float
    open_phrases: frozenset[int]
    inside: tuple[int, ...]  # what is left of the phrase that was begun
    row: int  # where its state stands
    weights: tuple[Tensor, ...]

    def owed(self, phrases: Phrases) -> int:
        """Phrase tokens still to say."""
        return len(self.inside) + sum(len(phrases[number]) for number in self.open_phrases)


def constrained_search(
    step: GeneralStep, state: SearchState, tokens: Tensor, plan: SearchPlan, phrases: Phrases
) -> Found:
    """The best hypotheses of ONE sentence that contain every phrase.

    Args:
        step: reads a token a row.
        state: before `tokens`, one row and one source.
        tokens: (1,), the last token of the prompt.
        plan: what is asked for; needs an end of sentence.
        phrases: token ids, each phrase as often as it must stand.
    """
    running = [_Hypothesis((), 0.0, frozenset(range(len(phrases))), (), 0, ())]
    finished: list[_Hypothesis] = []
    for length in range(1, plan.max_new_tokens + 1):
        readout, shown, state = step(tokens, state, plan.need_weights)
        scores = step.scores(readout)
        largest, rest = step.normalizers(scores)
        scores = (scores - largest).sub_(rest)
        grown: list[_Hypothesis] = []
        for row, hypothesis in enumerate(running):
            grown += _grow(hypothesis._replace(row=row), scores[row], phrases, plan)
        if plan.need_weights:
            grown = [h._replace(weights=(*h.weights, shown[h.row])) for h in grown]
        ended = [h for h in grown if h.tokens[-1] in plan.eos_token_ids]
        finished = sorted(finished + ended, key=lambda h: -_score(h, plan))[: plan.num_beams]
        # The last place is for the end of sentence.
        alive = [h for h in grown if h.tokens[-1] not in plan.eos_token_ids]
        alive = [h for h in alive if length + h.owed(phrases) < plan.max_new_tokens]
        running = _survivors(alive, phrases, plan.num_beams)
        if not running or _hopeless(running, finished, length, plan):
            break
        state = step.select(state, torch.tensor([h.row for h in running], device=tokens.device), None)
        tokens = torch.tensor([h.tokens[-1] for h in running], device=tokens.device)
    refuse_nan(torch.tensor(sum(hypothesis.total for hypothesis in (*finished, *running))))
    # A limit of few tokens leaves few ways to say everything; what is missing is returned empty.
    missing = _Hypothesis((), -torch.inf, frozenset(), (), 0, ())
    chosen = finished + [missing] * plan.num_return_sequences
    return _collect(chosen[: plan.num_return_sequences], plan, tokens.device)


def _grow(hypothesis: _Hypothesis, scores: Tensor, phrases: Phrases, plan: SearchPlan) -> list[_Hypothesis]:
    """Every continuation worth keeping."""

    def say(word: int, **changes: object) -> _Hypothesis:
        total = hypothesis.total + float(scores[word])
        return hypothesis._replace(tokens=(*hypothesis.tokens, word), total=total, **changes)

    if hypothesis.inside:
        return [say(hypothesis.inside[0], inside=hypothesis.inside[1:])]
    grown = []
    for number in hypothesis.open_phrases:
        first, *rest = phrases[number]
        grown.append(say(first, open_phrases=hypothesis.open_phrases - {number}, inside=tuple(rest)))
    # A phrase of one word is said whenever the word is; the free form of the same hypothesis would owe it for ever.
    said = {phrases[number][0] for number in hypothesis.open_phrases if len(phrases[number]) == 1}
    best = scores.topk(min(plan.candidates + len(said), len(scores))).indices.tolist()
    owes = bool(hypothesis.open_phrases)
    grown += [say(word) for word in best if word not in said and not (owes and word in plan.eos_token_ids)]
    if not owes:  # the end is always open to what may end, so that the search finishes
        grown += [say(word) for word in plan.eos_token_ids if word not in best]
    return grown


def _survivors(alive: list[_Hypothesis], phrases: Phrases, beams: int) -> list[_Hypothesis]:
    """The `beams` best of each bank; of the same words in the same state one is kept."""
    banks: dict[int, list[_Hypothesis]] = {}
    seen = set()
    for hypothesis in sorted(alive, key=lambda h: -h.total):
        key = (hypothesis.tokens, hypothesis.open_phrases, hypothesis.inside)
        bank = banks.setdefault(hypothesis.owed(phrases), [])
        if key not in seen and len(bank) < beams:
            seen.add(key)
            bank.append(hypothesis)
    return [hypothesis for owed in sorted(banks) for hypothesis in banks[owed]]


def _score(hypothesis: _Hypothesis, plan: SearchPlan) -> float:
    return hypothesis.total / plan.norm(max(1, len(hypothesis.tokens)))


def _hopeless(running: list[_Hypothesis], finished: list[_Hypothesis], length: int, plan: SearchPlan) -> bool:
    """Whether enough hypotheses have ended, and by the plan's rule nothing that runs can pass the last of them."""
    if len(finished) < plan.num_beams:
        return False
    if plan.early_stopping is True:
        return True
    hope = max(h.total for h in running) / plan.norm(plan.hopeful_length(length))
    return hope <= _score(finished[-1], plan)


def _collect(chosen: list[_Hypothesis], plan: SearchPlan, device: torch.device) -> Found:
    width = max(len(h.tokens) for h in chosen)
    tokens = [[*h.tokens, *[plan.fill_token_id] * (width - len(h.tokens))] for h in chosen]
    weights = None
    if plan.need_weights:
        source = next(len(h.weights[0]) for h in chosen if h.weights)
        weights = torch.zeros(len(chosen), width, source, device=device)
        for row, hypothesis in enumerate(chosen):
            for time, shown in enumerate(hypothesis.weights):
                weights[row, time] = shown
    return Found(
        torch.tensor(tokens, device=device),
        torch.tensor([_score(h, plan) for h in chosen], device=device),
        torch.tensor([h.total for h in chosen], device=device),
        torch.tensor([len(h.tokens) for h in chosen], device=device),
        weights,
    )


__all__ = ["constrained_search"]
