"""Word error rate computed by jiwer, as an `evaluate.Metric` that needs no network. Lower is better."""

from importlib.metadata import version
from typing import Any

import evaluate
import jiwer

from hf_rnn_seq2seq.evaluation.metrics._common import check_pairs, metric_info

CITATION = """@misc{jiwer,
  title = {JiWER: similarity measures for automatic speech recognition},
  author = {Vaessen, Nik},
  url = {https://github.com/jitsi/jiwer}
}"""


class Wer(evaluate.Metric):
    """Edits of words for every 100 words of the references (one reference a sentence); it can exceed 100."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("Word error rate.", CITATION, "https://github.com/jitsi/jiwer")

    def _compute(self, predictions: list[str], references: list[Any]) -> dict[str, Any]:
        check_pairs(predictions, references)
        lines = [row if isinstance(row, str) else row[0] for row in references]
        if any(not isinstance(row, str) and len(row) > 1 for row in references):
            raise ValueError("references: wer takes exactly one reference a sentence")
        found = jiwer.process_words(lines, predictions)
        return {
            "score": 100.0 * found.wer,
            "signature": f"wer|unit:word|tool:jiwer|version:{version('jiwer')}",
            "hits": found.hits,
            "substitutions": found.substitutions,
            "deletions": found.deletions,
            "insertions": found.insertions,
        }
