"""Diverse beam search (Vijayakumar 2018): groups of beams, with a penalty for words that an earlier group has chosen.

At every position the groups choose one after the other, and a word loses `diversity_penalty` for each beam of an earlier
group that has just chosen it (the paper's Hamming diversity). As in transformers, the scores of hypotheses include the
penalties; their log-probabilities are those of the model.

Axes: sentences, groups, beams (of one group), vocab. Rows are sentences times groups times beams.
"""

import dataclasses

import torch
from torch import Tensor

from .beam_search import NEVER, Finished, SearchResult, done_sentences, follow, is_end, pick
from .search_limits import NO_LIMITS, Limits
from .search_options import SearchOptions
from .search_step import GeneralStep, SearchState, refuse_nan


class _Group:
    """The beams of one group, for all sentences."""

    def __init__(self, sentences: int, options: SearchOptions, device: torch.device) -> None:
        self.options, self.finished = options, Finished(sentences, options, device)
        self.running = torch.full((sentences, options.num_beams), NEVER, device=device)
        self.running[:, 0] = 0.0
        self.penalties = torch.zeros(sentences, options.num_beams, device=device)  # sums of the penalties so far
        self.produced = torch.empty(sentences, options.num_beams, 0, dtype=torch.long, device=device)
        self.parents = torch.empty_like(self.produced)
        self.done = torch.zeros(sentences, dtype=torch.bool, device=device)
        self.history: list[tuple[Tensor, Tensor]] = []
        self.score_sum = torch.zeros((), device=device)

    def advance(self, scores: Tensor, penalty: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        """One position.

        Args:
            scores: (sentences, beams, words), log-probabilities.
            penalty: (sentences, words), the cost of each word.
            limits: of the words.

        Returns:
            for each of the next beams the beam that it continues and the index of its word, both (sentences, beams).
        """
        beams, words = scores.shape[1:]
        total = scores - penalty.unsqueeze(1) + self.running.unsqueeze(-1)
        sums, chosen = total.flatten(1).topk(min(self.options.candidates, beams * words), 1)
        self.score_sum = self.score_sum + sums.sum()
        beam, place = chosen // words, chosen % words
        penalties = self.penalties.gather(1, beam) + penalty.gather(1, place)
        word, length = limits.tokens(place), self.produced.shape[2] + 1
        end = is_end(word, self.options.eos_token_ids)
        hit = end | (length == self.options.max_new_tokens)
        first = torch.arange(sums.shape[1], device=sums.device) < beams
        ended = hit & first & (sums > -torch.inf) & ~self.done.unsqueeze(1)
        sentences = torch.arange(len(sums), device=sums.device)
        tokens = torch.cat([pick(self.produced, beam), word.unsqueeze(-1)], 2)
        parents = torch.cat([pick(self.parents, beam), beam.unsqueeze(-1)], 2)
        if ended.any():
            self.finished.add(sentences, sums / self.options.norm(length), sums + penalties, ended, tokens, parents)
        self.running, order = (sums + end * NEVER).topk(beams, 1)
        self.produced, self.parents = pick(tokens, order), pick(parents, order)
        self.penalties = penalties.gather(1, order)
        self.done |= done_sentences(self.finished, sentences, self.running, length, self.options)
        return beam.gather(1, order), place.gather(1, order)


def group_search(
    step: GeneralStep, state: SearchState, tokens: Tensor, options: SearchOptions, limits: Limits = NO_LIMITS
) -> SearchResult:
    """The best hypotheses of all groups.

    Args:
        step: reads one token per row.
        state: before `tokens`; `num_beams` rows per sentence, one source per sentence.
        tokens: (rows,), the last token of the prompt.
        options: `num_beams` is a multiple of `num_beam_groups`.
        limits: words that may not, or must, be produced.
    """
    count, device = options.num_beam_groups, tokens.device
    beams = options.num_beams // count
    sentences = len(tokens) // options.num_beams
    of_a_group = dataclasses.replace(options, num_beams=beams, num_return_sequences=beams)
    groups = [_Group(sentences, of_a_group, device) for _ in range(count)]
    live = torch.arange(sentences, device=device)
    first_rows = live.unsqueeze(1) * options.num_beams
    for time in range(options.max_new_tokens):
        readout, weights, state = step(tokens, state, options.needs_weights)
        logits = limits.scores(step.scores(readout, limits.words), live)
        largest, log_sum = step.normalizers(logits)
        scores = (limits.force(logits, live, time) - largest).sub_(log_sum).unflatten(0, (sentences, count, beams))
        penalty = scores.new_zeros(sentences, scores.shape[-1])
        rows, words = [], []
        for number, group in enumerate(groups):
            if options.needs_weights:
                group.history.append((live, weights.float().unflatten(0, (sentences, count, beams))[:, number]))
            cost = (options.diversity_penalty * ~group.done).unsqueeze(1).expand(-1, beams)
            beam, place = group.advance(scores[:, number], penalty, limits)
            penalty = penalty.scatter_add(1, place, cost.to(penalty.dtype))
            rows.append(first_rows + number * beams + beam)
            words.append(limits.tokens(place))
        if all(bool(group.done.all()) for group in groups):
            break
        state = step.select(state, torch.cat(rows, 1).flatten(), None)
        tokens = torch.cat(words, 1).flatten()
    refuse_nan(torch.stack([group.score_sum for group in groups]).sum())
    return _best(groups, options)


def _best(groups: list[_Group], options: SearchOptions) -> SearchResult:
    """The best `num_return_sequences` hypotheses of each sentence, over all groups."""
    scores, order = torch.cat([group.finished.scores for group in groups], 1).topk(options.num_return_sequences, 1)
    lengths = torch.cat([group.finished.lengths for group in groups], 1).gather(1, order)
    longest = int(lengths.max())
    weights = None
    if options.needs_weights:
        beams = options.num_beams // len(groups)
        followed = [follow(group.finished, group.history, beams, longest) for group in groups]
        joined = torch.cat([each.unflatten(0, (-1, beams)) for each in followed], 1)
        weights = pick(joined, order).flatten(0, 1)
    return SearchResult(
        tokens=pick(torch.cat([group.finished.tokens for group in groups], 1), order)[..., :longest].flatten(0, 1),
        scores=scores.flatten(),
        log_probabilities=torch.cat([group.finished.sums for group in groups], 1).gather(1, order).flatten(),
        lengths=lengths.flatten(),
        weights=weights,
    )
