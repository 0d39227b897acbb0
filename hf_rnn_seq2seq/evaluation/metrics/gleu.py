"""GLEU (Wu et al. 2016, section 5), the mean over sentences, as an `evaluate.Metric` that needs no network."""

from importlib.metadata import version
from typing import Any

import evaluate

from hf_rnn_seq2seq.evaluation.metrics._common import check_pairs, metric_info
from hf_rnn_seq2seq.evaluation.metrics._sentence import sentence_metric

CITATION = """@article{wu2016google,
  title = {Google's Neural Machine Translation System: Bridging the Gap between Human and Machine Translation},
  author = {Wu, Yonghui and Schuster, Mike and Chen, Zhifeng and Le, Quoc V. and Norouzi, Mohammad and others},
  journal = {arXiv:1609.08144},
  year = {2016}
}"""


class Gleu(evaluate.Metric):
    """Mean over sentences of the smaller of n-gram precision and recall, 0 to 100; the best of several references."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("GLEU of the words of BLEU's tokenizer 13a.", CITATION, "https://arxiv.org/abs/1609.08144")

    def _compute(self, predictions: list[str], references: list[Any]) -> dict[str, Any]:
        check_pairs(predictions, references)
        score = sentence_metric("gleu")
        rows = [[row] if isinstance(row, str) else row for row in references]
        best = [
            max(score(prediction, reference) for reference in row)
            for prediction, row in zip(predictions, rows, strict=True)
        ]
        signature = f"gleu|order:1-4|mean of sentences|tok:13a|tool:sacrebleu|version:{version('sacrebleu')}"
        return {"score": 100 * sum(best) / len(best), "signature": signature}
