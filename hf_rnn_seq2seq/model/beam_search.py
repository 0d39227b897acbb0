"""Greedy and beam search over a step: finished sentences leave the batch, and beams share their source.

The hypotheses are those of transformers' own loops, in the same order and with the same scores: `beam_search` restates
`GenerationMixin._beam_search` sentence by sentence. Beside its length penalty stands the one of GNMT (Wu 2016,
equation 14) with the coverage penalty.

Axes: sentences (still searched), beams, source, vocab; `candidates` are the continuations that survive a step's first
selection. Rows are sentences times beams.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .fast_step import GeneralStep, SearchState

NEVER = -1.0e9  # transformers' score of what must not be chosen; added, not assigned, as there
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
    need_weights: bool = False

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


class Found(NamedTuple):
    """Hypotheses, best first within a sentence; the first axis is sentences times `num_return_sequences`."""

    tokens: Tensor  # (hypotheses, target), padded; without the prompt
    scores: Tensor  # (hypotheses,), normalised as the plan says
    log_probabilities: Tensor  # (hypotheses,), sums over the tokens
    lengths: Tensor  # (hypotheses,), end of sentence included
    weights: Tensor | None  # (hypotheses, target, source), zero past each length


def greedy_search(
    step: GeneralStep, state: SearchState, tokens: Tensor, plan: SearchPlan, words: Tensor | None = None
) -> Found:
    """The likeliest word at each position.

    Args:
        step: reads a token a row.
        state: before `tokens`; one row a sentence.
        tokens: (sentences,), the last token of the prompt.
        plan: `num_beams` is 1.
        words: ids of the shortlist, or None.
    """
    count, device = len(tokens), tokens.device
    produced = torch.full((count, plan.max_new_tokens), plan.pad_token_id, dtype=torch.long, device=device)
    total = torch.zeros(count, device=device)
    lengths = torch.full((count,), plan.max_new_tokens, dtype=torch.long, device=device)
    live, weights = torch.arange(count, device=device), []
    for time in range(plan.max_new_tokens):
        readout, shown, state = step(tokens, state, plan.need_weights)
        logits = step.scores(readout, words)
        best, tokens = logits.max(-1)
        total[live] += best - logits.logsumexp(-1)
        tokens = tokens if words is None else words[tokens]
        produced[live, time] = tokens
        if plan.need_weights:
            weights.append(_spread(shown, live, count))
        ended = is_end(tokens, plan.eos_token_ids)
        if ended.any():
            lengths[live[ended]] = time + 1
            stay = (~ended).nonzero().squeeze(1)
            if not len(stay):
                break
            live, tokens = live[stay], tokens[stay]
            state = step.select(state, stay, stay)
    longest = int(lengths.max())
    stacked = torch.stack(weights, 1) if weights else None
    norms = total.new_tensor([plan.norm(length) for length in lengths.tolist()])
    return Found(produced[:, :longest], total / norms, total, lengths, stacked)


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


def _spread(values: Tensor, live: Tensor, count: int) -> Tensor:
    """(live, ...) written into (count, ...) of zeros."""
    return values.new_zeros(count, *values.shape[1:]).index_copy(0, live, values)


class _Finished:
    """The best finished hypotheses of every sentence, as transformers keeps them."""

    def __init__(self, sentences: int, plan: SearchPlan, device: torch.device) -> None:
        shape = (sentences, plan.num_beams)
        self.plan = plan
        self.scores = torch.full(shape, NEVER, device=device)
        self.sums = torch.full(shape, NEVER, device=device)
        self.filled = torch.zeros(shape, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(shape, dtype=torch.long, device=device)
        self.tokens = torch.full((*shape, plan.max_new_tokens), plan.fill_token_id, dtype=torch.long, device=device)
        self.beams = torch.zeros((*shape, plan.max_new_tokens), dtype=torch.long, device=device)

    def add(self, live: Tensor, scores: Tensor, sums: Tensor, ended: Tensor, tokens: Tensor, beams: Tensor) -> None:
        """Merges candidates (live, candidates) that have `ended`; tokens and beams are (live, candidates, length)."""
        length, limit = tokens.shape[2], self.plan.max_new_tokens
        scores = scores + (~ended) * NEVER
        merged = torch.cat([self.scores[live], scores], 1)
        order = merged.topk(self.plan.num_beams, 1).indices
        pad = (0, limit - length)
        new_lengths = torch.full_like(ended, length, dtype=torch.long)
        for name, new in (
            ("sums", sums),
            ("filled", ended),
            ("lengths", new_lengths),
            ("tokens", torch.nn.functional.pad(tokens, pad, value=self.plan.fill_token_id)),
            ("beams", torch.nn.functional.pad(beams, pad)),
        ):
            kept = torch.cat([getattr(self, name)[live], new], 1)
            index = order if kept.dim() == 2 else order.unsqueeze(-1).expand(-1, -1, limit)
            getattr(self, name)[live] = kept.gather(1, index)
        self.scores[live] = merged.gather(1, order)


def beam_search(
    step: GeneralStep,
    state: SearchState,
    tokens: Tensor,
    plan: SearchPlan,
    words: Tensor | None = None,
    source_mask: Tensor | None = None,
) -> Found:
    """The best hypotheses of each sentence.

    Args:
        step: reads a token a row.
        state: before `tokens`; `num_beams` rows a sentence, one source a sentence.
        tokens: (rows,), the last token of the prompt.
        plan: what is asked for.
        words: ids of the shortlist, or None.
        source_mask: bool (sentences, source), True at real words; the coverage penalty reads it.
    """
    beams, device = plan.num_beams, tokens.device
    sentences = len(tokens) // beams
    finished = _Finished(sentences, plan, device)
    live = torch.arange(sentences, device=device)
    running = torch.full((sentences, beams), NEVER, device=device)
    running[:, 0] = 0.0
    produced = torch.empty(sentences, beams, 0, dtype=torch.long, device=device)
    parents = torch.empty_like(produced)
    coverage: Tensor | None = None
    history: list[tuple[Tensor, Tensor]] = []
    first = torch.arange(plan.candidates, device=device) < beams
    for time in range(plan.max_new_tokens):
        readout, shown, state = step(tokens, state, plan.need_weights)
        sums, beam, word = _candidates(step.scores(readout, words), running, plan)
        word = word if words is None else words[word]
        if plan.need_weights:
            shown = shown.unflatten(0, (len(live), beams))
            history.append((live, shown))
            coverage = shown if coverage is None else coverage + shown
        length = time + 1
        hit = is_end(word, plan.eos_token_ids) if length < plan.max_new_tokens else torch.ones_like(word).bool()
        ended = hit & first
        if ended.any():
            scores = sums / plan.norm(length)
            if plan.coverage_penalty:
                scores = scores + plan.coverage_penalty * _covered(coverage, source_mask[live], beam)
            chosen = beam.unsqueeze(-1)
            finished.add(
                live,
                scores,
                sums,
                ended,
                torch.cat([_pick(produced, beam), word.unsqueeze(-1)], 2),
                torch.cat([_pick(parents, beam), chosen], 2),
            )
        running, order = (sums + hit * NEVER).topk(beams, 1)
        beam, word = beam.gather(1, order), word.gather(1, order)
        produced = torch.cat([_pick(produced, beam), word.unsqueeze(-1)], 2)
        parents = torch.cat([_pick(parents, beam), beam.unsqueeze(-1)], 2)
        done = _done(finished, live, running, length, plan)
        rows = torch.arange(len(live), device=device).unsqueeze(1) * beams + beam
        stay = None
        if done.any():
            stay = (~done).nonzero().squeeze(1)
            if not len(stay):
                break
            live, running, produced, parents = live[stay], running[stay], produced[stay], parents[stay]
            rows, word, beam = rows[stay], word[stay], beam[stay]
            coverage = None if coverage is None else coverage[stay]
        coverage = None if coverage is None else _pick(coverage, beam)
        state, tokens = step.select(state, rows.flatten(), stay), word.flatten()
    return _best(finished, plan, history)


def _pick(values: Tensor, index: Tensor) -> Tensor:
    """values (live, beams, ...) at index (live, chosen) -> (live, chosen, ...)."""
    index = index.view(*index.shape, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def _candidates(logits: Tensor, running: Tensor, plan: SearchPlan) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each sentence: sums of log-probabilities, beams and words, (live, candidates).

    Only `candidates` words of a beam can be among them, so the rest of the vocabulary is never normalised.
    """
    live, beams = running.shape
    values, words = top_words(logits, min(plan.candidates, logits.shape[1]))
    values = (values - logits.logsumexp(-1, keepdim=True)).view(live, beams, -1) + running.unsqueeze(-1)
    kept = values.shape[2]
    sums, places = values.flatten(1).topk(min(plan.candidates, beams * kept), 1)
    return sums, places // kept, words.view(live, -1).gather(1, places)


def _covered(coverage: Tensor, source_mask: Tensor, beam: Tensor) -> Tensor:
    """The sum over real source words of log(min(attention received, 1)) (Wu 2016, equation 14), (live, candidates)."""
    received = coverage.clamp(min=1e-10, max=1.0).log().masked_fill(~source_mask.unsqueeze(1), 0.0)
    return received.sum(-1).gather(1, beam)


def _done(finished: _Finished, live: Tensor, running: Tensor, length: int, plan: SearchPlan) -> Tensor:
    """bool (live,): nothing that still runs can change what is kept, by transformers' rule."""
    filled = finished.filled[live]
    hope = running[:, :1] / plan.norm(plan.hopeful_length(length))
    worst = finished.scores[live].amin(1, keepdim=True)
    hopeless = ~(hope > torch.where(filled, worst, NEVER)).any(1)
    return hopeless | filled.all(1) if plan.early_stopping is True else hopeless


def _best(finished: _Finished, plan: SearchPlan, history: list[tuple[Tensor, Tensor]]) -> Found:
    """The first `num_return_sequences` of each sentence."""
    count = plan.num_return_sequences
    lengths = finished.lengths[:, :count]
    longest = int(lengths.max())
    weights = _follow(finished, history, count, longest) if plan.need_weights else None
    return Found(
        finished.tokens[:, :count, :longest].flatten(0, 1),
        finished.scores[:, :count].flatten(),
        finished.sums[:, :count].flatten(),
        lengths.flatten(),
        weights,
    )


def _follow(finished: _Finished, history: list[tuple[Tensor, Tensor]], count: int, longest: int) -> Tensor:
    """Attention (hypotheses, longest, source) along each hypothesis: step by step from the beam it then was in."""
    beams, lengths = finished.beams[:, :count], finished.lengths[:, :count]
    sentences, source = len(beams), history[0][1].shape[2]
    weights = history[0][1].new_zeros(sentences, count, longest, source)
    for time, (live, shown) in enumerate(history[:longest]):
        taken = _pick(shown, beams[live, :, time])
        weights[live, :, time] = taken * (lengths[live] > time).unsqueeze(-1)
    return weights.flatten(0, 1)


__all__ = ["Found", "SearchPlan", "beam_search", "greedy_search"]
