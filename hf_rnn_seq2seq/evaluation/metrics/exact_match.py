"""The share of translations that are the reference, to the letter, as an `evaluate.Metric` that needs no network."""

from typing import Any

import evaluate

from hf_rnn_seq2seq.evaluation.metrics._common import check_pairs, metric_info


class ExactMatch(evaluate.Metric):
    """Sentences that equal their reference (one of them, where there are several), of every 100."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("Exact match.", "", "https://huggingface.co/spaces/evaluate-metric/exact_match")

    def _compute(self, predictions: list[str], references: list[Any]) -> dict[str, Any]:
        check_pairs(predictions, references)
        rows = [[row] if isinstance(row, str) else row for row in references]
        same = sum(prediction in row for prediction, row in zip(predictions, rows, strict=True))
        return {"score": 100.0 * same / len(predictions), "signature": "exact_match|case:mixed"}
