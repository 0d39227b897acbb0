"""Evaluation during training: loss and perplexity, and the scores of translations.

Every row counts exactly once, however many processes share the work: sums of losses and tokens are added, and
translations are gathered with their row number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel

from hf_rnn_seq2seq.data.batching import plan_batches
from hf_rnn_seq2seq.data.loader import BatchLoader, column, label_count
from hf_rnn_seq2seq.generation.batches import evaluation_mode
from hf_rnn_seq2seq.model.loss import perplexity
from hf_rnn_seq2seq.training.launch import exact_dtype

Translate = Callable[[PreTrainedModel, Sequence[str]], list[str]]
"""(model, sources) -> translations, in the order of the sources."""
Score = Callable[[Sequence[str], Sequence[str] | Sequence[Sequence[str]]], Mapping[str, Any]]
"""(hypotheses, references, each perhaps several) -> numbers by name, `bleu` among them."""


class Validator:
    """Measures models on the validation split.

    Args:
        loader: reads the tokenized split; its dataset has `source_length` and `target_length`.
        batch_size: sentences per process.
        texts: the split with columns `source` and `target` (text, or several references); None if translations are not
            scored.
        translate, score: functions that make and score translations; both or neither.
        max_translations: only so many rows are translated, spread evenly over the split.
    """

    def __init__(
        self,
        loader: BatchLoader,
        *,
        batch_size: int,
        texts: Dataset | None = None,
        translate: Translate | None = None,
        score: Score | None = None,
        max_translations: int | None = None,
    ) -> None:
        self.loader = loader
        lengths = (column(loader.dataset, "source_length"), column(loader.dataset, "target_length"))
        self.batches = plan_batches(*lengths, batch_size=batch_size, shuffle=False)
        self.texts = texts if translate is not None and score is not None else None
        self.translate, self.score = translate, score
        rows = len(self.texts) if self.texts is not None else 0
        count = min(rows, max_translations or rows)
        self.sample: str | None = None  # what the last measurement wrote, for the log; here nothing, see text.py
        self.translated_rows = [number * rows // count for number in range(count)]

    def measure(self, step_module: nn.Module, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        """`loss` (nats per target token), `perplexity`, and the results of `score`.

        `step_module` maps a batch to its mean loss and figures, `model` translates; both run in evaluation mode.
        """
        with evaluation_mode(step_module):
            loss = self._loss(step_module, accelerator)
            scores = self._scores(model, accelerator) if self.translated_rows else {}
        return {"loss": loss, "perplexity": perplexity(loss), **scores}

    def _loss(self, step_module: nn.Module, accelerator: Accelerator) -> float:
        sums = torch.zeros(2, dtype=exact_dtype(accelerator.device), device=accelerator.device)
        for rows in self.batches[accelerator.process_index :: accelerator.num_processes]:
            inputs = self.loader.to_device(self.loader.read(rows))
            tokens = label_count(inputs)
            with accelerator.autocast():
                loss, _ = step_module(**inputs)
            sums += torch.stack((loss.to(sums.dtype) * tokens, tokens.to(sums.dtype)))
        total = accelerator.reduce(sums, reduction="sum").tolist()
        return total[0] / total[1] if total[1] else math.nan

    def _scores(self, model: nn.Module, accelerator: Accelerator) -> dict[str, float]:
        assert self.translate is not None and self.score is not None
        rows = self.translated_rows[accelerator.process_index :: accelerator.num_processes]
        hypotheses = self.translate(model, self.texts[rows]["source"]) if rows else []
        pairs = list(zip(rows, hypotheses, strict=True))
        if accelerator.num_processes > 1:
            pairs = sorted(gather_object(pairs))
        references = self.texts[[row for row, _ in pairs]]["target"]
        # Every process scores, so that all take the same branches; it takes milliseconds.
        scores = self.score([hypothesis for _, hypothesis in pairs], references)
        return {name: float(value) for name, value in scores.items() if isinstance(value, (int, float))}
