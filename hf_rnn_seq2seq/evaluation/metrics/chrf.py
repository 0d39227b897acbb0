"""chrF (Popovic 2015) computed by sacrebleu, as an `evaluate.Metric` that needs no network."""

from typing import Any

import evaluate
from sacrebleu.metrics import CHRF

from hf_rnn_seq2seq.evaluation.metrics._common import metric_info, sacrebleu_result

CITATION = """@inproceedings{popovic-2015-chrf,
  title = {chr{F}: character n-gram {F}-score for automatic {MT} evaluation},
  author = {Popovi{\\'c}, Maja},
  booktitle = {Proceedings of the Tenth Workshop on Statistical Machine Translation},
  year = {2015}
}"""


class Chrf(evaluate.Metric):
    """Corpus chrF2, 0 to 100; `word_order=2` makes it chrF++."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("chrF with sacrebleu's signature.", CITATION, "https://github.com/mjpost/sacrebleu")

    def _compute(
        self,
        predictions: list[str],
        references: list[Any],
        char_order: int = 6,
        word_order: int = 0,
        beta: int = 2,
        lowercase: bool = False,
        whitespace: bool = False,
        eps_smoothing: bool = False,
        n_bootstrap: int = 0,
    ) -> dict[str, Any]:
        metric = CHRF(
            char_order=char_order,
            word_order=word_order,
            beta=beta,
            lowercase=lowercase,
            whitespace=whitespace,
            eps_smoothing=eps_smoothing,
        )
        return sacrebleu_result(metric, predictions, references, n_bootstrap)
