"""How likely a model finds given translations: log-probability per sentence, in batches of similar length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.errors import EvaluationError
from hf_rnn_seq2seq.generation.translate import MAX_TOKENS, Encoded, encoded_sources, length_batches
from hf_rnn_seq2seq.model.precision import why_not_finite


@dataclass(frozen=True)
class Score:
    """One pair, scored; natural logarithms."""

    log_probability: float  # summed over the tokens
    tokens: int  # of the target, end of sentence included
    per_token: tuple[float, ...]

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability per token."""
        return math.exp(min(-self.log_probability / self.tokens, 700.0))


@torch.no_grad()
def score_ids(
    model: PreTrainedModel,
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    batch_size: int = 64,
    max_tokens: int = MAX_TOKENS,
) -> list[Score]:
    """Scores targets (end of sentence included) given sources; results in the order of the pairs.

    The sum over all pairs, divided by the tokens, is the model's loss on them without label smoothing.

    Raises:
        EvaluationError: as many sources as targets are needed, and no side may be empty; the scores are not finite.
    """
    if len(sources) != len(targets):
        raise EvaluationError(f"{len(sources)} sources for {len(targets)} targets; need as many")
    for number, pair in enumerate(zip(sources, targets, strict=True), start=1):
        if not all(pair):
            raise EvaluationError(f"pair {number}: source and target must both hold text")
    results: list[Score | None] = [None] * len(sources)
    lengths = [max(len(source), len(target)) for source, target in zip(sources, targets, strict=True)]
    was_training = model.training
    model.eval()
    try:
        for batch in length_batches(lengths, batch_size, max_tokens):
            inputs = _pad([sources[index] for index in batch], model.config.pad_token_id or 0, model.device)
            labels = _pad([targets[index] for index in batch], -100, model.device)
            mask = _pad([[1] * len(sources[index]) for index in batch], 0, model.device)
            logits = model(input_ids=inputs, attention_mask=mask, labels=labels).logits
            chosen = logits.float().log_softmax(-1).gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
            if bool(chosen.isnan().any()):
                raise EvaluationError(why_not_finite([model]))
            for row, index in enumerate(batch):
                own = chosen[row, : len(targets[index])].double()
                results[index] = Score(float(own.sum()), len(targets[index]), tuple(own.tolist()))
    finally:
        model.train(was_training)
    return results  # type: ignore[return-value]


def score_texts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: Sequence[str] | Encoded,
    targets: Sequence[str],
    **options: Any,
) -> list[Score]:
    """As `score_ids`, of texts. Sources that are too long are cut, and counted in a warning, as by `translate`.

    Raises:
        EvaluationError: as many sources as targets are needed, and each must hold text.
    """
    ids = encoded_sources(tokenizer, sources).ids
    for number, (row, target) in enumerate(zip(ids, targets, strict=False), start=1):
        if not row or not target.strip():
            raise EvaluationError(f"pair {number}: source and target must both hold text")
    encoded = tokenizer(text_target=list(targets), verbose=False) if targets else {"input_ids": []}
    rows = encoded["labels"] if "labels" in encoded else encoded["input_ids"]
    return score_ids(model, ids, rows, **options)


def summarise(scores: Sequence[Score]) -> dict[str, float]:
    """`loss` (nats per target token), `perplexity`, `tokens` and `sentences` of all pairs together."""
    tokens = sum(score.tokens for score in scores)
    loss = -sum(score.log_probability for score in scores) / max(tokens, 1)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": tokens, "sentences": len(scores)}


def _pad(rows: Sequence[Sequence[int]], value: int, device: torch.device) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows], device=device)


__all__ = ["Score", "score_ids", "score_texts", "summarise"]
