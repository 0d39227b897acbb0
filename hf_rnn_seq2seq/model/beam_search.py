"""Greedy, beam and diverse beam search over a step: finished sentences leave the batch, and beams share their source.

The hypotheses are those of transformers' own loops, in the same order and with the same scores: `beam_search` follows
`GenerationMixin._beam_search`, sentence by sentence. In addition to transformers' length penalty it has that of GNMT (Wu
2016, equation 14) with the coverage penalty. `group_search` is diverse beam search (Vijayakumar 2018).

Axes: sentences, groups, live (sentences that are still searched), beams, source, vocab; `candidates` are the continuations that
survive a step's first selection. Rows are live sentences times beams.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from .search_options import NO_LIMITS, Limits, SearchOptions
from .search_step import GeneralStep, SearchState, refuse_nan

NEVER = -1.0e9  # transformers' score of what must not be chosen; added, not assigned, as there
NO_HYPOTHESIS = NEVER / 2  # rows in place of hypotheses that do not exist score less
BLOCK = 64  # words per block of the two-stage selection


class SearchResult(NamedTuple):
    """Hypotheses, best first within a sentence; the first axis is sentences times `num_return_sequences`."""

    tokens: Tensor  # (hypotheses, target), padded; without the prompt
    scores: Tensor  # (hypotheses,), log-probabilities divided by `SearchOptions.norm`, with penalties
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

    On a CPU in two stages: the `count` largest words are in the `count` blocks with the largest maxima.
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


# ---------------------------------------------------------------- greedy search


def greedy_search(
    step: GeneralStep, state: SearchState, tokens: Tensor, options: SearchOptions, limits: Limits = NO_LIMITS
) -> SearchResult:
    """The likeliest word at each position.

    Args:
        step: reads one token per row.
        state: before `tokens`; one row per sentence.
        tokens: (sentences,), the last token of the prompt.
        options: `num_beams` is 1.
        limits: words that may not, or must, be produced.
    """
    count, device = len(tokens), tokens.device
    produced = torch.full((count, options.max_new_tokens), options.pad_token_id, dtype=torch.long, device=device)
    total, score_sum = torch.zeros(count, device=device), torch.zeros((), device=device)
    lengths = torch.full((count,), options.max_new_tokens, dtype=torch.long, device=device)
    live, history = torch.arange(count, device=device), []
    for time in range(options.max_new_tokens):
        readout, weights, state = step(tokens, state, options.needs_weights)
        logits = step.scores(readout, limits.words, limits.allowed_to(live))
        best, places = limits.force(logits, live, time).max(-1)
        highest = best if limits.prefix is None else logits.amax(-1)  # a forced word may have the score -inf
        score_sum = score_sum + (highest - highest).sum()  # nan if a score is inf, too
        if options.returns_details:
            largest, log_sum = step.normalizers(logits, scratch=logits)
            total[live] += best - largest.squeeze(1) - log_sum.squeeze(1)
        tokens = limits.tokens(places)
        produced[live, time] = tokens
        if options.needs_weights:
            history.append(_spread(weights.float(), live, count))
        ended = is_end(tokens, options.eos_token_ids)
        if ended.any():
            lengths[live[ended]] = time + 1
            stay = (~ended).nonzero().squeeze(1)
            if not len(stay):
                break
            live, tokens = live[stay], tokens[stay]
            state = step.select(state, stay, stay)
    refuse_nan(score_sum)
    longest = int(lengths.max())
    norms = total.new_tensor([options.norm(length) for length in lengths.tolist()])
    weights = torch.stack(history, 1) if history else None
    return SearchResult(produced[:, :longest], total / norms, total, lengths, weights)


def _spread(values: Tensor, live: Tensor, count: int) -> Tensor:
    """(live, ...) written into (count, ...) of zeros."""
    return values.new_zeros(count, *values.shape[1:]).index_copy(0, live, values)


# ---------------------------------------------------------------- beam search


class Finished:
    """The best finished hypotheses of every sentence, in the order of transformers."""

    def __init__(self, sentences: int, options: SearchOptions, device: torch.device) -> None:
        shape = (sentences, options.num_beams)
        self.options = options
        self.scores = torch.full(shape, NEVER, device=device)
        self.sums = torch.full(shape, NEVER, device=device)
        self.filled = torch.zeros(shape, dtype=torch.bool, device=device)
        self.lengths = torch.zeros(shape, dtype=torch.long, device=device)
        longest = (*shape, options.max_new_tokens)
        self.tokens = torch.full(longest, options.fill_token_id, dtype=torch.long, device=device)
        self.beams = torch.zeros(longest, dtype=torch.long, device=device)

    def add(self, live: Tensor, scores: Tensor, sums: Tensor, ended: Tensor, tokens: Tensor, beams: Tensor) -> None:
        """Merges candidates (live, candidates) that have `ended`; tokens and beams are (live, candidates, length)."""
        length, limit = tokens.shape[2], self.options.max_new_tokens
        scores = scores + (~ended) * NEVER
        merged = torch.cat([self.scores[live], scores], 1)
        order = merged.topk(self.options.num_beams, 1).indices
        pad = (0, limit - length)
        new_lengths = torch.full_like(ended, length, dtype=torch.long)
        for name, new in (
            ("sums", sums),
            ("filled", ended),
            ("lengths", new_lengths),
            ("tokens", F.pad(tokens, pad, value=self.options.fill_token_id)),
            ("beams", F.pad(beams, pad)),
        ):
            joined = torch.cat([getattr(self, name)[live], new], 1)
            index = order if joined.dim() == 2 else order.unsqueeze(-1).expand(-1, -1, limit)
            getattr(self, name)[live] = joined.gather(1, index)
        self.scores[live] = merged.gather(1, order)


class Beams:
    """The hypotheses of a beam search: those that run, of the live sentences, and the finished ones of all sentences."""

    def __init__(self, sentences: int, options: SearchOptions, device: torch.device) -> None:
        self.options = options
        self.finished = Finished(sentences, options, device)
        self.live = torch.arange(sentences, device=device)
        self.running = torch.full((sentences, options.num_beams), NEVER, device=device)  # sums of log-probabilities
        self.running[:, 0] = 0.0
        self.tokens = torch.empty(sentences, options.num_beams, 0, dtype=torch.long, device=device)
        self.parents = torch.empty_like(self.tokens)  # the beam that each token continued
        self.first = torch.arange(options.candidates, device=device) < options.num_beams
        self.coverage: Tensor | None = None  # (live, beams, source), attention received so far
        self.history: list[tuple[Tensor, Tensor]] = []  # per position the live sentences and their attention weights
        self.score_sum = torch.zeros((), device=device)

    def merge(self) -> None:
        """One beam per sentence: at first all beams are equal."""
        self.running, self.tokens, self.parents = self.running[:, :1], self.tokens[:, :1], self.parents[:, :1]

    def look(self, weights: Tensor) -> None:
        """Adds the attention weights (rows, source) of a position."""
        weights = weights.float().unflatten(0, (len(self.live), -1))
        self.history.append((self.live, weights))
        self.coverage = weights if self.coverage is None else self.coverage + weights

    def keep(
        self, sums: Tensor, log_probabilities: Tensor, beam: Tensor, word: Tensor, source_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One position: stores the candidates that end, and keeps the best others.

        Args:
            sums: (live, candidates), what ranks the candidates, best first.
            log_probabilities: (live, candidates), without penalties.
            beam: (live, candidates), the beam that each candidate continues.
            word: (live, candidates), its word.
            source_mask: bool (sentences, source), for the coverage penalty.

        Returns:
            for the new beams their candidates, (live, beams); and which sentences are done, bool (live,).
        """
        options, length = self.options, self.tokens.shape[2] + 1
        self.score_sum = self.score_sum + sums.sum()
        at_limit = length == options.max_new_tokens
        end = is_end(word, options.eos_token_ids)
        ended = (end | at_limit) & self.first & (sums > -torch.inf)
        if ended.any():
            self._finish(sums, log_probabilities, ended, beam, word, source_mask)
        self.running, order = (sums + end * NEVER).topk(options.num_beams, 1)
        self.tokens, self.parents = self._continued(beam.gather(1, order), word.gather(1, order))
        done = done_sentences(self.finished, self.live, self.running, length, options) | at_limit
        if options.stop_at_top:
            done |= ended[:, 0] & self.finished.filled[self.live, options.num_return_sequences - 1]
        return order, done

    def advance(
        self, sums: Tensor, beam: Tensor, word: Tensor, source_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """One position, as `keep`; the sentences that are done are dropped.

        Returns:
            for the new beams the rows that they continue and their words, both (rows,); and the sentences that stay,
            counted in the old live ones, or None if all stay.
        """
        old_beams = self.running.shape[1]
        order, done = self.keep(sums, sums, beam, word, source_mask)
        beam, word = beam.gather(1, order), word.gather(1, order)
        rows = torch.arange(len(self.live), device=beam.device).unsqueeze(1) * old_beams + beam
        stay = None
        if done.any():
            stay = (~done).nonzero().squeeze(1)
            self._retain(stay)
            rows, word, beam = rows[stay], word[stay], beam[stay]
        self.coverage = None if self.coverage is None else pick(self.coverage, beam)
        return rows.flatten(), word.flatten(), stay

    def _continued(self, beam: Tensor, word: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens and parents (live, chosen, length + 1) of the hypotheses that continue `beam` with `word`."""
        tokens = torch.cat([pick(self.tokens, beam), word.unsqueeze(-1)], 2)
        return tokens, torch.cat([pick(self.parents, beam), beam.unsqueeze(-1)], 2)

    def _finish(
        self,
        sums: Tensor,
        log_probabilities: Tensor,
        ended: Tensor,
        beam: Tensor,
        word: Tensor,
        source_mask: Tensor | None,
    ) -> None:
        tokens, parents = self._continued(beam, word)
        scores = sums / self.options.norm(tokens.shape[2])
        if self.options.coverage_penalty:
            covered = _covered(self.coverage, source_mask[self.live], beam)
            scores = scores + self.options.coverage_penalty * covered
        self.finished.add(self.live, scores, log_probabilities, ended, tokens, parents)

    def _retain(self, stay: Tensor) -> None:
        """Keeps the live sentences `stay`."""
        self.live, self.running = self.live[stay], self.running[stay]
        self.tokens, self.parents = self.tokens[stay], self.parents[stay]
        self.coverage = None if self.coverage is None else self.coverage[stay]

    def result(self) -> SearchResult:
        """The first `num_return_sequences` finished hypotheses of each sentence."""
        count, finished = self.options.num_return_sequences, self.finished
        lengths = finished.lengths[:, :count]
        longest = int(lengths.max())
        weights = follow(finished, self.history, count, longest) if self.options.needs_weights else None
        return SearchResult(
            tokens=finished.tokens[:, :count, :longest].flatten(0, 1),
            scores=finished.scores[:, :count].flatten(),
            log_probabilities=finished.sums[:, :count].flatten(),
            lengths=lengths.flatten(),
            weights=weights,
        )


def beam_search(
    step: GeneralStep,
    state: SearchState,
    tokens: Tensor,
    options: SearchOptions,
    limits: Limits = NO_LIMITS,
    source_mask: Tensor | None = None,
) -> SearchResult:
    """The best hypotheses of each sentence.

    Args:
        step: reads one token per row.
        state: before `tokens`; `num_beams` rows per sentence, one source per sentence.
        tokens: (rows,), the last token of the prompt.
        options: of the search.
        limits: words that may not, or must, be produced.
        source_mask: bool (sentences, source), True at real words; the coverage penalty reads it.
    """
    beams = Beams(len(tokens) // options.num_beams, options, tokens.device)
    if limits.prefix is None and step.vocab_size >= options.candidates:
        first_rows = torch.arange(0, len(tokens), options.num_beams, device=tokens.device)
        state, tokens = step.select(state, first_rows, None), tokens[first_rows]
        beams.merge()
    for time in range(options.max_new_tokens):
        readout, weights, state = step(tokens, state, options.needs_weights)
        if options.needs_weights:
            beams.look(weights)
        logits = step.scores(readout, limits.words, limits.allowed_to(beams.live))
        best = top_words(limits.force(logits, beams.live, time), min(options.candidates, logits.shape[1]))
        normalizers = step.normalizers(logits, scratch=logits)
        sums, beam, places = _candidates(*best, normalizers, beams.running, options)
        rows, tokens, stay = beams.advance(sums, beam, limits.tokens(places), source_mask)
        if not len(beams.live):
            break
        state = step.select(state, rows, stay)
    refuse_nan(beams.score_sum)
    return beams.result()


def pick(values: Tensor, index: Tensor) -> Tensor:
    """values (live, beams, ...) at index (live, chosen) -> (live, chosen, ...)."""
    index = index.view(*index.shape, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def _candidates(
    values: Tensor, words: Tensor, normalizers: tuple[Tensor, Tensor], running: Tensor, options: SearchOptions
) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each sentence: sums of log-probabilities, beams and words, (live, candidates).

    Only `candidates` words of a beam can be among them, so the rest of the vocabulary is never normalized.

    Args:
        values, words: (rows, candidates), scores and words of the best of each row.
        normalizers: those of the step over all allowed words.
        running: (live, beams), sums of log-probabilities so far.
    """
    live, beams = running.shape
    largest, log_sum = normalizers
    values = (values - largest - log_sum).view(live, beams, -1) + running.unsqueeze(-1)
    per_beam = values.shape[2]
    sums, places = values.flatten(1).topk(min(options.candidates, beams * per_beam), 1)
    return sums, places // per_beam, words.view(live, -1).gather(1, places)


def _covered(coverage: Tensor, source_mask: Tensor, beam: Tensor) -> Tensor:
    """The sum over real source words of log(min(attention received, 1)) (Wu 2016, equation 14), (live, candidates)."""
    received = coverage.clamp(min=1e-10, max=1.0).log().masked_fill(~source_mask.unsqueeze(1), 0.0)
    return received.sum(-1).gather(1, beam)


def done_sentences(finished: Finished, live: Tensor, running: Tensor, length: int, options: SearchOptions) -> Tensor:
    """bool (live,): by transformers' rule no running hypothesis can enter the finished ones."""
    filled = finished.filled[live]
    hope = running[:, :1] / options.norm(options.hopeful_length(length))
    worst = finished.scores[live].amin(1, keepdim=True)
    hopeless = ~(hope > torch.where(filled, worst, NEVER)).any(1)
    return hopeless | filled.all(1) if options.early_stopping is True else hopeless


def follow(finished: Finished, history: list[tuple[Tensor, Tensor]], count: int, longest: int) -> Tensor:
    """Attention (hypotheses, longest, source) along each hypothesis, from the beam it was in at each position."""
    beams, lengths = finished.beams[:, :count], finished.lengths[:, :count]
    sentences, source = len(beams), history[0][1].shape[2]
    weights = history[0][1].new_zeros(sentences, count, longest, source)
    for time, (live, position_weights) in enumerate(history[:longest]):
        chosen = pick(position_weights, beams[live, :, time])
        weights[live, :, time] = chosen * (lengths[live] > time).unsqueeze(-1)
    return weights.flatten(0, 1)


# ---------------------------------------------------------------- diverse beam search


class _Group(Beams):
    """The beams of one group, for all sentences; one that is done has no candidates any more."""

    def __init__(self, sentences: int, options: SearchOptions, device: torch.device) -> None:
        super().__init__(sentences, options, device)
        self.penalties = torch.zeros_like(self.running)  # sums of the penalties so far
        self.done = torch.zeros(sentences, dtype=torch.bool, device=device)

    def choose(self, scores: Tensor, penalty: Tensor, limits: Limits) -> tuple[Tensor, Tensor]:
        """One position.

        Args:
            scores: (sentences, beams, words), log-probabilities.
            penalty: (sentences, words), the cost of each word.
            limits: of the words.

        Returns:
            for each of the next beams the beam that it continues and the index of its word, both (sentences, beams).
        """
        words = scores.shape[2]
        total = scores - penalty.unsqueeze(1) + self.running.unsqueeze(-1)
        sums, chosen = total.flatten(1).topk(self.options.candidates, 1)
        sums = sums.masked_fill(self.done.unsqueeze(1), -torch.inf)
        beam, place = chosen // words, chosen % words
        penalties = self.penalties.gather(1, beam) + penalty.gather(1, place)
        order, done = self.keep(sums, sums + penalties, beam, limits.tokens(place))
        self.penalties, self.done = penalties.gather(1, order), self.done | done
        return beam.gather(1, order), place.gather(1, order)


def group_search(
    step: GeneralStep, state: SearchState, tokens: Tensor, options: SearchOptions, limits: Limits = NO_LIMITS
) -> SearchResult:
    """The best hypotheses of all groups.

    At every position the groups choose one after the other, and a word loses `diversity_penalty` for each beam of an earlier
    group that has just chosen it (the paper's Hamming diversity). As in transformers, the scores of hypotheses include the
    penalties; their log-probabilities are those of the model.

    Args:
        step: reads one token per row.
        state: before `tokens`; `num_beams` rows per sentence, one source per sentence.
        tokens: (rows,), the last token of the prompt.
        options: `num_beams` is a multiple of `num_beam_groups`.
        limits: as for `beam_search`.
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
        logits = step.scores(readout, limits.words, limits.allowed_to(live))
        largest, log_sum = step.normalizers(logits)
        scores = (limits.force(logits, live, time) - largest).sub_(log_sum).unflatten(0, (sentences, count, beams))
        penalty = scores.new_zeros(sentences, scores.shape[-1])
        rows, words = [], []
        for number, group in enumerate(groups):
            if options.needs_weights:
                group.history.append((live, weights.float().unflatten(0, (sentences, count, beams))[:, number]))
            cost = (options.diversity_penalty * ~group.done).unsqueeze(1).expand(-1, beams)
            beam, place = group.choose(scores[:, number], penalty, limits)
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
