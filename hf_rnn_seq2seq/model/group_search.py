"""Diverse beam search (Vijayakumar 2018): groups of beams, each kept from repeating what the groups before it say.

At every position the groups choose one after the other, and a word loses `diversity_penalty` for each beam of an earlier
group that has just chosen it (the paper's Hamming diversity). Hypotheses are ranked by the scores that they were chosen
by, penalties included, as in transformers; their log-probabilities are the model's.

Axes: sentences, groups, beams (of one group), vocab. Rows are sentences times groups times beams.
"""

import torch
from torch import Tensor

from .beam_search import NEVER, Finished, done_sentences, follow, pick
from .finite import refuse_nan
from .search_plan import NO_LIMITS, Found, Limits, SearchPlan, is_end
from .search_step import GeneralStep, SearchState


class _Group:
    """The beams of one group, for all sentences."""

    def __init__(self, sentences: int, plan: SearchPlan, device: torch.device) -> None:
        self.plan, self.finished = plan, Finished(sentences, plan, device)
        self.running = torch.full((sentences, plan.num_beams), NEVER, device=device)
        self.running[:, 0] = 0.0
        self.penalties = torch.zeros(sentences, plan.num_beams, device=device)  # paid so far
        self.produced = torch.empty(sentences, plan.num_beams, 0, dtype=torch.long, device=device)
        self.parents = torch.empty_like(self.produced)
        self.done = torch.zeros(sentences, dtype=torch.bool, device=device)
        self.history: list[tuple[Tensor, Tensor]] = []
        self.doubt = torch.zeros((), device=device)

    def advance(self, scores: Tensor, penalty: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        """One position, as `beam_search` takes it.

        Args:
            scores: (sentences, beams, words), log-probabilities.
            penalty: (sentences, words), what each word costs.
            limits: whose words these are.

        Returns:
            the beam each of the next beams continues and the place of the word it says, both (sentences, beams).
        """
        beams, words = scores.shape[1:]
        total = scores - penalty.unsqueeze(1) + self.running.unsqueeze(-1)
        sums, chosen = total.flatten(1).topk(min(self.plan.candidates, beams * words), 1)
        self.doubt = self.doubt + sums.sum()
        beam, place = chosen // words, chosen % words
        paid = self.penalties.gather(1, beam) + penalty.gather(1, place)
        word, length = limits.tokens(place), self.produced.shape[2] + 1
        end = is_end(word, self.plan.eos_token_ids)
        hit = end | (length == self.plan.max_new_tokens)
        first = torch.arange(sums.shape[1], device=sums.device) < beams
        ended = hit & first & (sums > -torch.inf) & ~self.done.unsqueeze(1)
        sentences = torch.arange(len(sums), device=sums.device)
        tokens = torch.cat([pick(self.produced, beam), word.unsqueeze(-1)], 2)
        parents = torch.cat([pick(self.parents, beam), beam.unsqueeze(-1)], 2)
        if ended.any():
            self.finished.add(sentences, sums / self.plan.norm(length), sums + paid, ended, tokens, parents)
        self.running, order = (sums + end * NEVER).topk(beams, 1)
        self.produced, self.parents = pick(tokens, order), pick(parents, order)
        self.penalties = paid.gather(1, order)
        self.done |= done_sentences(self.finished, sentences, self.running, length, self.plan)
        return beam.gather(1, order), place.gather(1, order)


def group_search(
    step: GeneralStep, state: SearchState, tokens: Tensor, plan: SearchPlan, limits: Limits = NO_LIMITS
) -> Found:
    """The best hypotheses of all groups.

    Args:
        step: reads a token a row.
        state: before `tokens`; `num_beams` rows a sentence, one source a sentence.
        tokens: (rows,), the last token of the prompt.
        plan: `num_beams` is a multiple of `num_beam_groups`.
        limits: words that may not, or must, be produced.
    """
    count, beams, device = plan.num_beam_groups, plan.num_beams // plan.num_beam_groups, tokens.device
    sentences = len(tokens) // plan.num_beams
    own = plan._replace(num_beams=beams, num_return_sequences=beams)
    groups = [_Group(sentences, own, device) for _ in range(count)]
    live = torch.arange(sentences, device=device)
    first_rows = live.unsqueeze(1) * plan.num_beams
    for time in range(plan.max_new_tokens):
        readout, shown, state = step(tokens, state, plan.need_weights)
        logits = limits.scores(step.scores(readout, limits.words), live)
        largest, rest = step.normalizers(logits)
        scores = (limits.force(logits, live, time) - largest).sub_(rest).unflatten(0, (sentences, count, beams))
        penalty = scores.new_zeros(sentences, scores.shape[-1])
        rows, words = [], []
        for number, group in enumerate(groups):
            if plan.need_weights:
                group.history.append((live, shown.float().unflatten(0, (sentences, count, beams))[:, number]))
            said = (plan.diversity_penalty * ~group.done).unsqueeze(1).expand(-1, beams)
            beam, place = group.advance(scores[:, number], penalty, limits)
            penalty = penalty.scatter_add(1, place, said.to(penalty.dtype))
            rows.append(first_rows + number * beams + beam)
            words.append(limits.tokens(place))
        if all(bool(group.done.all()) for group in groups):
            break
        state = step.select(state, torch.cat(rows, 1).flatten(), None)
        tokens = torch.cat(words, 1).flatten()
    refuse_nan(torch.stack([group.doubt for group in groups]).sum())
    return _best(groups, plan)


def _best(groups: list[_Group], plan: SearchPlan) -> Found:
    """The first `num_return_sequences` of each sentence, whatever group they come from."""
    scores, order = torch.cat([group.finished.scores for group in groups], 1).topk(plan.num_return_sequences, 1)
    lengths = torch.cat([group.finished.lengths for group in groups], 1).gather(1, order)
    longest = int(lengths.max())
    weights = None
    if plan.need_weights:
        beams = plan.num_beams // len(groups)
        followed = [follow(group.finished, group.history, beams, longest) for group in groups]
        joined = torch.cat([each.unflatten(0, (-1, beams)) for each in followed], 1)
        weights = pick(joined, order).flatten(0, 1)
    return Found(
        pick(torch.cat([group.finished.tokens for group in groups], 1), order)[..., :longest].flatten(0, 1),
        scores.flatten(),
        torch.cat([group.finished.sums for group in groups], 1).gather(1, order).flatten(),
        lengths.flatten(),
        weights,
    )


__all__ = ["group_search"]
