"""Greedy and beam search over a step: finished sentences leave the batch, and beams share their source.

The hypotheses are those of transformers' own loops, in the same order and with the same scores: `beam_search` restates
`GenerationMixin._beam_search` sentence by sentence. Beside its length penalty stands the one of GNMT (Wu 2016,
equation 14) with the coverage penalty.

Axes: sentences (still searched), beams, source, vocab; `candidates` are the continuations that survive a step's first
selection. Rows are sentences times beams.
"""

import torch
from torch import Tensor

from .finite import refuse_nan
from .search_plan import NO_LIMITS, Found, Limits, SearchPlan, is_end, top_words
from .search_step import GeneralStep, SearchState

NEVER = -1.0e9  # transformers' score of what must not be chosen; added, not assigned, as there


def greedy_search(
    step: GeneralStep, state: SearchState, tokens: Tensor, plan: SearchPlan, limits: Limits = NO_LIMITS
) -> Found:
    """The likeliest word at each position.

    Args:
        step: reads a token a row.
        state: before `tokens`; one row a sentence.
        tokens: (sentences,), the last token of the prompt.
        plan: `num_beams` is 1.
        limits: words that may not, or must, be produced.
    """
    count, device = len(tokens), tokens.device
    produced = torch.full((count, plan.max_new_tokens), plan.pad_token_id, dtype=torch.long, device=device)
    total = torch.zeros(count, device=device)
    lengths = torch.full((count,), plan.max_new_tokens, dtype=torch.long, device=device)
    live, weights, doubt = torch.arange(count, device=device), [], torch.zeros((), device=device)
    for time in range(plan.max_new_tokens):
        readout, shown, state = step(tokens, state, plan.need_weights)
        logits = limits.scores(step.scores(readout, limits.words), live)
        best, places = limits.force(logits, live, time).max(-1)
        doubt = doubt + (best - best).sum()  # nan of inf, too: the best of all words has a score
        if plan.need_scores:
            largest, rest = step.normalizers(logits, scratch=logits)
            total[live] += best - largest.squeeze(1) - rest.squeeze(1)
        tokens = limits.tokens(places)
        produced[live, time] = tokens
        if plan.need_weights:
            weights.append(_spread(shown.float(), live, count))
        ended = is_end(tokens, plan.eos_token_ids)
        if ended.any():
            lengths[live[ended]] = time + 1
            stay = (~ended).nonzero().squeeze(1)
            if not len(stay):
                break
            live, tokens = live[stay], tokens[stay]
            state = step.select(state, stay, stay)
    refuse_nan(doubt)
    longest = int(lengths.max())
    stacked = torch.stack(weights, 1) if weights else None
    norms = total.new_tensor([plan.norm(length) for length in lengths.tolist()])
    return Found(produced[:, :longest], total / norms, total, lengths, stacked)


def _spread(values: Tensor, live: Tensor, count: int) -> Tensor:
    """(live, ...) written into (count, ...) of zeros."""
    return values.new_zeros(count, *values.shape[1:]).index_copy(0, live, values)


class Finished:
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
    limits: Limits = NO_LIMITS,
    source_mask: Tensor | None = None,
) -> Found:
    """The best hypotheses of each sentence.

    Args:
        step: reads a token a row.
        state: before `tokens`; `num_beams` rows a sentence, one source a sentence.
        tokens: (rows,), the last token of the prompt.
        plan: what is asked for.
        limits: words that may not, or must, be produced.
        source_mask: bool (sentences, source), True at real words; the coverage penalty reads it.
    """
    beams, device = plan.num_beams, tokens.device
    sentences = len(tokens) // beams
    finished = Finished(sentences, plan, device)
    live = torch.arange(sentences, device=device)
    running = torch.full((sentences, beams), NEVER, device=device)
    running[:, 0] = 0.0
    produced = torch.empty(sentences, beams, 0, dtype=torch.long, device=device)
    parents = torch.empty_like(produced)
    coverage: Tensor | None = None
    doubt = torch.zeros((), device=device)
    history: list[tuple[Tensor, Tensor]] = []
    first = torch.arange(plan.candidates, device=device) < beams
    if limits.prefix is None and step.vocab_size >= plan.candidates:
        # At first the beams of a sentence are the same, and one of them has all the candidates.
        state, tokens = step.select(state, torch.arange(0, len(tokens), beams, device=device), None), tokens[::beams]
        running, produced, parents = running[:, :1], produced[:, :1], parents[:, :1]
    for time in range(plan.max_new_tokens):
        readout, shown, state = step(tokens, state, plan.need_weights)
        logits = limits.scores(step.scores(readout, limits.words), live)
        likely = top_words(limits.force(logits, live, time), min(plan.candidates, logits.shape[1]))
        sums, beam, places = _candidates(*likely, step.normalizers(logits, scratch=logits), running, plan)
        doubt = doubt + sums.sum()
        word = limits.tokens(places)
        if plan.need_weights:
            shown = shown.float().unflatten(0, (len(live), -1))
            history.append((live, shown))
            coverage = shown if coverage is None else coverage + shown
        length = time + 1
        hit = is_end(word, plan.eos_token_ids) if length < plan.max_new_tokens else torch.ones_like(word).bool()
        ended = hit & first & (sums > -torch.inf)
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
                torch.cat([pick(produced, beam), word.unsqueeze(-1)], 2),
                torch.cat([pick(parents, beam), chosen], 2),
            )
        held = running.shape[1]
        running, order = (sums + hit * NEVER).topk(beams, 1)
        beam, word = beam.gather(1, order), word.gather(1, order)
        produced = torch.cat([pick(produced, beam), word.unsqueeze(-1)], 2)
        parents = torch.cat([pick(parents, beam), beam.unsqueeze(-1)], 2)
        done = done_sentences(finished, live, running, length, plan)
        if plan.stop_at_top:
            done |= ended[:, 0] & finished.filled[live, plan.num_return_sequences - 1]
        rows = torch.arange(len(live), device=device).unsqueeze(1) * held + beam
        stay = None
        if done.any():
            stay = (~done).nonzero().squeeze(1)
            if not len(stay):
                break
            live, running, produced, parents = live[stay], running[stay], produced[stay], parents[stay]
            rows, word, beam = rows[stay], word[stay], beam[stay]
            coverage = None if coverage is None else coverage[stay]
        coverage = None if coverage is None else pick(coverage, beam)
        state, tokens = step.select(state, rows.flatten(), stay), word.flatten()
    refuse_nan(doubt)
    return _best(finished, plan, history)


def pick(values: Tensor, index: Tensor) -> Tensor:
    """values (live, beams, ...) at index (live, chosen) -> (live, chosen, ...)."""
    index = index.view(*index.shape, *[1] * (values.dim() - 2))
    return values.gather(1, index.expand(-1, -1, *values.shape[2:]))


def _candidates(
    values: Tensor, words: Tensor, normalizers: tuple[Tensor, Tensor], running: Tensor, plan: SearchPlan
) -> tuple[Tensor, Tensor, Tensor]:
    """The best continuations of each sentence: sums of log-probabilities, beams and words, (live, candidates).

    Only `candidates` words of a beam can be among them, so the rest of the vocabulary is never normalized: `values` and
    `words` (rows, candidates) are the best of each row, `normalizers` those of the step over the words allowed.
    """
    live, beams = running.shape
    largest, rest = normalizers
    values = (values - largest - rest).view(live, beams, -1) + running.unsqueeze(-1)
    kept = values.shape[2]
    sums, places = values.flatten(1).topk(min(plan.candidates, beams * kept), 1)
    return sums, places // kept, words.view(live, -1).gather(1, places)


def _covered(coverage: Tensor, source_mask: Tensor, beam: Tensor) -> Tensor:
    """The sum over real source words of log(min(attention received, 1)) (Wu 2016, equation 14), (live, candidates)."""
    received = coverage.clamp(min=1e-10, max=1.0).log().masked_fill(~source_mask.unsqueeze(1), 0.0)
    return received.sum(-1).gather(1, beam)


def done_sentences(finished: Finished, live: Tensor, running: Tensor, length: int, plan: SearchPlan) -> Tensor:
    """bool (live,): nothing that still runs can change what is kept, by transformers' rule."""
    filled = finished.filled[live]
    hope = running[:, :1] / plan.norm(plan.hopeful_length(length))
    worst = finished.scores[live].amin(1, keepdim=True)
    hopeless = ~(hope > torch.where(filled, worst, NEVER)).any(1)
    return hopeless | filled.all(1) if plan.early_stopping is True else hopeless


def _best(finished: Finished, plan: SearchPlan, history: list[tuple[Tensor, Tensor]]) -> Found:
    """The first `num_return_sequences` of each sentence."""
    count = plan.num_return_sequences
    lengths = finished.lengths[:, :count]
    longest = int(lengths.max())
    weights = follow(finished, history, count, longest) if plan.need_weights else None
    return Found(
        finished.tokens[:, :count, :longest].flatten(0, 1),
        finished.scores[:, :count].flatten(),
        finished.sums[:, :count].flatten(),
        lengths.flatten(),
        weights,
    )


def follow(finished: Finished, history: list[tuple[Tensor, Tensor]], count: int, longest: int) -> Tensor:
    """Attention (hypotheses, longest, source) along each hypothesis: step by step from the beam it then was in."""
    beams, lengths = finished.beams[:, :count], finished.lengths[:, :count]
    sentences, source = len(beams), history[0][1].shape[2]
    weights = history[0][1].new_zeros(sentences, count, longest, source)
    for time, (live, shown) in enumerate(history[:longest]):
        taken = pick(shown, beams[live, :, time])
        weights[live, :, time] = taken * (lengths[live] > time).unsqueeze(-1)
    return weights.flatten(0, 1)


__all__ = ["NEVER", "Finished", "beam_search", "done_sentences", "follow", "greedy_search", "pick"]
