"""Training on whole sequences: minimum risk (Shen 2016, section 3), or REINFORCE with cross entropy (GNMT, section 5).

Each update draws translations from the model, scores their texts against the reference, and moves probability to the
better ones. `SequenceObjective` replaces the loss of any sequence-to-sequence model of transformers.

The model is in evaluation mode throughout, as in GNMT's refinement (section 8.3). Sampling and update therefore use the
same distribution: no dropout, no label smoothing, no scheduled sampling.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.evaluation.sentence_scores import sentence_metric
from hf_rnn_seq2seq.model.dropout import without_noise
from hf_rnn_seq2seq.model.loss import IGNORED_LABEL
from hf_rnn_seq2seq.model.search_options import longest_output
from hf_rnn_seq2seq.training.arguments import TrainingOptions
from hf_rnn_seq2seq.training.launch import exact_dtype

ROWS_AT_ONCE = 128  # rows of similar length, so that few positions are padding
ML_WEIGHTS = {"mrt": 0.0, "reinforce": 0.017}  # GNMT's alpha, section 5

Decode = Callable[[list[list[int]]], list[str]]
"""Lists of target ids -> their texts."""
Metric = Callable[[str, str], float]
"""(candidate, reference) -> 0 to 1, higher is better."""


@dataclass(frozen=True)
class Candidates:
    """The distinct target sequences of a batch, the reference first in each sentence; n of them in all sentences.

    Args:
        labels: (n, target), with the end token if there is one, then -100.
        sentence: (n,), the row of the batch that each translates.
        drawn: (n,), how often each was drawn, which is 0 for many references.
        is_reference: bool (n,).
    """

    labels: Tensor
    sentence: Tensor
    drawn: Tensor
    is_reference: Tensor

    @classmethod
    def of(cls, labels: Tensor, draws: Tensor) -> Candidates:
        """References (batch, target) and draws (batch, samples, target), both padded with -100, without repetitions."""
        rows: list[tuple[int, ...]] = []
        sentence, drawn, is_reference = [], [], []
        for number, (reference, samples) in enumerate(zip(labels.tolist(), draws.tolist(), strict=True)):
            counts = {_real(reference): 0}
            for sample in map(_real, samples):
                counts[sample] = counts.get(sample, 0) + 1
            rows += counts
            sentence += [number] * len(counts)
            drawn += counts.values()
            is_reference += [True] + [False] * (len(counts) - 1)
        width = max(map(len, rows))
        table = [[*row, *[IGNORED_LABEL] * (width - len(row))] for row in rows]
        tensors = (torch.tensor(column, device=labels.device) for column in (table, sentence, drawn, is_reference))
        return cls(*tensors)

    def rewards(self, decode: Decode, metric: Metric) -> Tensor:
        """The metric of each candidate's text against the text of its reference, (n,) in float64."""
        texts = decode([list(_real(row)) for row in self.labels.tolist()])
        scores, reference = [], ""
        for text, starts in zip(texts, self.is_reference.tolist(), strict=True):
            reference = text if starts else reference
            scores.append(metric(text, reference))
        device = self.labels.device
        return torch.tensor(scores, dtype=exact_dtype(device), device=device)


def _real(row: Sequence[int]) -> tuple[int, ...]:
    return tuple(word for word in row if word != IGNORED_LABEL)


@dataclass(frozen=True)
class Source:
    """The encoder's output for a batch, (batch, source, ...) in every tensor, and its mask (batch, source)."""

    outputs: Any
    mask: Tensor | None

    @classmethod
    def read(cls, model: PreTrainedModel, input_ids: Tensor, attention_mask: Tensor | None) -> Source:
        """Runs the encoder."""
        encoder = model.get_encoder()
        return cls(encoder(input_ids=input_ids, attention_mask=attention_mask, return_dict=True), attention_mask)

    def rows(self, index: Tensor) -> Source:
        """Row i becomes row `index[i]`."""
        selected = {name: _take(value, index) for name, value in self.outputs.items()}
        return Source(type(self.outputs)(**selected), _take(self.mask, index))

    def inputs(self) -> dict[str, Any]:
        """The arguments of the model's forward."""
        return {"encoder_outputs": self.outputs, "attention_mask": self.mask, "return_dict": True}


def _take(value: Any, index: Tensor) -> Any:
    if value is None:
        return None
    return value.index_select(0, index) if isinstance(value, Tensor) else tuple(_take(part, index) for part in value)


@torch.no_grad()
def draw(model: PreTrainedModel, source: Source, samples: int, max_new_tokens: int) -> Tensor:
    """Independent draws from the model's distribution, (batch, samples, target), -100 after the end token.

    The first position is computed once per sentence, and finished draws leave the batch. A draw that has no end token
    after `max_new_tokens` is cut there.
    """
    config, device = model.config, source.outputs[0].device
    ends = torch.as_tensor(model.generation_config.eos_token_id, device=device).view(-1)
    words = torch.full((len(source.outputs[0]), 1), config.decoder_start_token_id, device=device)
    drawn = torch.full((len(words) * samples, max_new_tokens), IGNORED_LABEL, device=device)
    cache, active = None, torch.arange(len(drawn), device=device)
    for position in range(max_new_tokens):
        output = model(decoder_input_ids=words, cache=cache, use_cache=True, **source.inputs())
        cache, probabilities = output.cache, _exact(output.logits[:, -1]).softmax(-1)
        if position == 0:
            words = draw_words(probabilities, samples).view(-1, 1)
            rows = active // samples
            cache.reorder_cache(rows)
            source = source.rows(rows)
        else:
            words = draw_words(probabilities, 1)
        drawn[active, position] = words[:, 0]
        going = (~torch.isin(words[:, 0], ends)).nonzero()[:, 0]
        if not len(going):
            break
        if len(going) < len(active):
            active, words = active[going], words[going]
            cache.reorder_cache(going)
            source = source.rows(going)
    # Autocast caches the weights it has cast; older versions of torch also those that were cast without a gradient.
    torch.clear_autocast_cache()
    return drawn.view(-1, samples, max_new_tokens)


def draw_words(probabilities: Tensor, samples: int) -> Tensor:
    """Independent draws from each row of `probabilities` (n, V), (n, samples): where uniform numbers fall in its sums.

    `torch.multinomial` draws a number for each probability, which takes longer than the model's own step.
    """
    sums = probabilities.cumsum(-1)
    whole = sums[:, -1:]
    places = torch.rand(len(sums), samples, dtype=sums.dtype, device=sums.device) * whole
    places = torch.minimum(places, torch.nextafter(whole, torch.zeros_like(whole)))  # a product may be rounded up
    # The first word whose sum is above the place, so none of probability 0. Of sums that are NaN none is above it.
    return torch.searchsorted(sums, places, right=True).clamp_(max=sums.shape[1] - 1)


def log_probabilities(model: PreTrainedModel, source: Source, labels: Tensor, sentence: Tensor) -> Tensor:
    """The natural logarithm of the probability of each sequence, end token included, (n,).

    Args:
        source: of the batch.
        labels: (n, target), -100 after the last token.
        sentence: (n,), the row of the batch that each translates.
    """
    lengths = (labels != IGNORED_LABEL).sum(1)
    order, totals = lengths.argsort(), []
    for rows in order.split(ROWS_AT_ONCE):
        targets = labels[rows, : int(lengths[rows[-1]])]
        start = torch.full_like(targets[:, :1], model.config.decoder_start_token_id)
        inputs = torch.cat([start, targets[:, :-1]], 1)
        inputs = inputs.masked_fill(inputs == IGNORED_LABEL, model.config.pad_token_id)
        logits = model(decoder_input_ids=inputs, use_cache=False, **source.rows(sentence[rows]).inputs()).logits
        flat = _exact(logits).flatten(0, 1)  # with the words in the last dimension, which is faster
        losses = F.cross_entropy(flat, targets.flatten(), ignore_index=IGNORED_LABEL, reduction="none")
        totals.append(-losses.view_as(targets).sum(1))
    return torch.cat(totals)[order.argsort()]


def _exact(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def minimum_risk(log_p: Tensor, rewards: Tensor, candidates: Candidates, alpha: float) -> Tensor:
    """The risk of each sentence, (batch,): the expected 1 - reward under Q over its candidates (Shen 2016, section 3).

    Q(y) = P(y) ** alpha / sum of P(y') ** alpha over the reference and the distinct draws.
    """
    sentence = candidates.sentence
    starts = candidates.is_reference.nonzero()[:, 0]
    place = torch.arange(len(sentence), device=sentence.device) - starts[sentence]
    scores = log_p.new_full((len(starts), int(place.max()) + 1), -torch.inf)
    scores = scores.index_put((sentence, place), alpha * log_p)
    risks = scores.softmax(1)[sentence, place] * (1 - rewards).to(log_p.dtype)
    return risks.new_zeros(len(starts)).index_add(0, sentence, risks)


def policy_gradient(log_p: Tensor, rewards: Tensor, candidates: Candidates, samples: int) -> Tensor:
    """A surrogate loss per sentence, (batch,): its gradient estimates that of minus the expected reward (GNMT eq. 8).

    The baseline of a draw is the mean reward of the other draws of its sentence, so the estimate is unbiased. The mean
    of all, as in GNMT, gives the same direction, shorter by (samples - 1) / samples.
    """
    drawn, sentence = candidates.drawn.to(log_p.dtype), candidates.sentence
    rewards = rewards.to(log_p.dtype)
    totals = rewards.new_zeros(int(sentence.max()) + 1).index_add(0, sentence, drawn * rewards)
    baseline = (totals[sentence] - rewards) / (samples - 1)
    terms = -drawn * (rewards - baseline) * log_p / samples
    return torch.zeros_like(totals).index_add(0, sentence, terms)


class SequenceObjective(nn.Module):
    """A model reduced to a loss over whole sequences. Accelerate wraps it instead of the model.

    loss = (sum of a sentence's risk or surrogate + ml_weight x cross entropy of the reference) / target tokens

    Args:
        model: any sequence-to-sequence `PreTrainedModel` with a cache.
        decode: decodes ids with the tokenizer, without special tokens.
        metric: scores the texts.
        kind: `mrt` or `reinforce`.
        samples: draws per sentence, 2 or more.
        alpha: sharpness of Q, for `mrt`.
        ml_weight: weight of the cross entropy (alpha in GNMT).
    """

    figures = ("reward", "risk", "ml_loss")

    def __init__(
        self,
        model: PreTrainedModel,
        decode: Decode,
        metric: Metric,
        *,
        kind: str,
        samples: int,
        alpha: float,
        ml_weight: float,
    ) -> None:
        super().__init__()
        self.model, self.decode, self.metric = model, decode, metric
        self.kind, self.samples, self.alpha, self.ml_weight = kind, samples, alpha, ml_weight

    def forward(self, input_ids: Tensor, labels: Tensor, attention_mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The loss of a batch, (), and its figures, (figures, 2): the sum and the number of each.

        `reward` is the mean metric of the draws and `risk` the expected 1 - metric, both per sentence; `ml_loss` is the
        cross entropy of the reference per target token, in nats.
        """
        with without_noise(self.model):
            source = Source.read(self.model, input_ids, attention_mask)
            draws = draw(self.model, source, self.samples, self._longest(labels))
            candidates = Candidates.of(labels, draws)
            log_p = log_probabilities(self.model, source, candidates.labels, candidates.sentence)
        rewards = candidates.rewards(self.decode, self.metric)
        mean_reward = (candidates.drawn * rewards).sum() / self.samples
        if self.kind == "mrt":
            objective = minimum_risk(log_p, rewards, candidates, self.alpha).sum()
            risk = objective.detach()
        else:
            objective = policy_gradient(log_p, rewards, candidates, self.samples).sum()
            risk = len(labels) - mean_reward
        ml_loss = -log_p[candidates.is_reference].sum()
        sentences, tokens = mean_reward.new_tensor(len(labels)), (labels != IGNORED_LABEL).sum()
        loss = (objective + self.ml_weight * ml_loss) / tokens.clamp(min=1)
        sums = torch.stack([mean_reward, risk.to(mean_reward), ml_loss.detach().to(mean_reward)])
        return loss, torch.stack([sums, torch.stack([sentences, sentences, tokens.to(sentences)])], 1)

    def _longest(self, labels: Tensor) -> int:
        """Draws are cut at twice the length of the longest reference plus 5; longer ones would score close to 0."""
        longest = 2 * int((labels != IGNORED_LABEL).sum(1).max()) + 5
        return min(longest, longest_output(self.model.generation_config) or longest)


def build_objective(arguments: TrainingOptions, model: PreTrainedModel, decode: Decode) -> SequenceObjective | None:
    """The objective that the options ask for; None for cross entropy.

    Raises:
        ArgumentError: the model's attention is sampled.
    """
    if arguments.objective == "ml":
        return None
    if getattr(model.config, "samples_attention", False):
        raise ArgumentError(
            f"attention_alignment='sampled': not with objective={arguments.objective!r}, which trains without draws: "
            "the weights would have no gradient; use objective='ml'"
        )
    weight = ML_WEIGHTS[arguments.objective] if arguments.ml_weight is None else arguments.ml_weight
    return SequenceObjective(
        model,
        decode,
        sentence_metric(arguments.objective_metric),
        kind=arguments.objective,
        samples=arguments.objective_samples,
        alpha=arguments.mrt_alpha,
        ml_weight=weight,
    )
