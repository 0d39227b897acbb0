"""Given translations under a model: log-probability of each token and attention, in batches of similar length."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.generation.attention import stack_layer
from hf_rnn_seq2seq.generation.batches import MAX_TOKENS, evaluation_mode, length_batches, model_inputs, pad
from hf_rnn_seq2seq.generation.encoding import Encoded, encode_targets, encoded_sources
from hf_rnn_seq2seq.generation.translate import Hypothesis
from hf_rnn_seq2seq.model.loss import IGNORED_LABEL, perplexity
from hf_rnn_seq2seq.model.pretrained import why_not_finite


@dataclass(frozen=True)
class Score:
    """The score of one pair; natural logarithms."""

    log_probability: float  # summed over the tokens
    tokens: int  # of the target, end of sentence included
    per_token: tuple[float, ...]

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability per token."""
        return perplexity(-self.log_probability / self.tokens)


def score_ids(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    batch_size: int = 64,
    max_tokens: int = MAX_TOKENS,
) -> list[Score]:
    """Scores of targets (end of sentence included) given sources, in the order of the pairs.

    The sum over all pairs, divided by the number of tokens, is the model's loss on them without label smoothing.

    Raises:
        ArgumentError: the sides differ in number, a side is empty, or the scores are not finite.
    """
    if len(sources) != len(targets):
        raise ArgumentError(f"{len(sources)} sources for {len(targets)} targets; both must have the same length")
    for number, pair in enumerate(zip(sources, targets, strict=True), start=1):
        if not all(pair):
            raise ArgumentError(f"pair {number}: source and target must both hold text")
    scores: dict[int, Score] = {}
    for index, log_probabilities, _ in _forced_rows(model, sources, targets, batch_size, max_tokens):
        scores[index] = Score(float(log_probabilities.sum()), len(log_probabilities), tuple(log_probabilities.tolist()))
    return [scores[index] for index in range(len(targets))]


def score_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str] | Encoded,
    targets: Sequence[str],
    **options: Any,
) -> list[Score]:
    """Same as `score_ids`, for texts. Sources that are too long are cut and counted in a warning, as by `translate`.

    Raises:
        ArgumentError: the sides differ in number, or a side has no text.
    """
    ids = encoded_sources(tokenizer, sources).ids
    for number, (row, target) in enumerate(zip(ids, targets, strict=False), start=1):
        if not row or not target.strip():
            raise ArgumentError(f"pair {number}: source and target must both hold text")
    return score_ids(model, ids, encode_targets(tokenizer, targets), **options)


def summarize(scores: Sequence[Score]) -> dict[str, float]:
    """`loss` (nats per target token), `perplexity`, `tokens` and `sentences` of all pairs together."""
    tokens = sum(score.tokens for score in scores)
    loss = -sum(score.log_probability for score in scores) / max(tokens, 1)
    return {"loss": loss, "perplexity": perplexity(loss), "tokens": tokens, "sentences": len(scores)}


def forced_hypothesis(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, translation: str, *, layer: int = -1
) -> Hypothesis:
    """A given translation as a `Hypothesis`: its tokens, log-probability and attention, by one forward pass.

    Raises:
        ArgumentError: a side has no text.
    """
    return forced_hypotheses(model, tokenizer, [source], [translation], layer=layer)[0]


def forced_hypotheses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str] | Encoded,
    translations: Sequence[str],
    *,
    layer: int = -1,
    batch_size: int = 64,
) -> list[Hypothesis]:
    """Same as `forced_hypothesis`, for many pairs."""
    source_ids = encoded_sources(tokenizer, sources).ids
    if not all(source_ids) or not all(text.strip() for text in translations):
        raise ArgumentError("source and translation must both hold text")
    target_ids = encode_targets(tokenizer, translations)
    hypotheses: dict[int, Hypothesis] = {}
    for index, log_probabilities, attention in _forced_rows(
        model, source_ids, target_ids, batch_size, MAX_TOKENS, layer
    ):
        ids = tuple(target_ids[index]), tuple(source_ids[index])
        hypotheses[index] = Hypothesis(translations[index], *ids, float(log_probabilities.sum()), attention)
    return [hypotheses[index] for index in range(len(translations))]


def _forced_rows(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    batch_size: int,
    max_tokens: int,
    layer: int | None = None,
) -> Iterator[tuple[int, Tensor, Tensor | None]]:
    """(index, log-probability of each target token, attention of `layer` as (heads, target, source)) of each pair."""
    lengths = [max(len(source), len(target)) for source, target in zip(sources, targets, strict=True)]
    with evaluation_mode(model):
        for batch in length_batches(lengths, batch_size, max_tokens):
            labels = pad([targets[index] for index in batch], IGNORED_LABEL, model.device)
            inputs = model_inputs(model, [sources[index] for index in batch])
            output = model(**inputs, labels=labels, output_attentions=layer is not None)
            chosen = output.logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            if bool(chosen.isnan().any()):
                raise ArgumentError(why_not_finite([model]))
            chosen = chosen.cpu().double()
            attention = None if layer is None else stack_layer(output.cross_attentions, layer).float().cpu()
            for row, index in enumerate(batch):
                target, source = len(targets[index]), len(sources[index])
                weights = None if attention is None else attention[row, :, :target, :source]
                yield index, chosen[row, :target], weights
