"""chrF++ (Popovic 2017): chrF with word unigrams and bigrams, computed by sacrebleu, as an `evaluate.Metric`."""

from typing import Any

import evaluate
from sacrebleu.metrics import CHRF

from hf_rnn_seq2seq.evaluation.metrics._common import metric_info, sacrebleu_result

CITATION = """@inproceedings{popovic-2017-chrf,
  title = {chr{F}++: words helping character n-grams},
  author = {Popovi{\\'c}, Maja},
  booktitle = {Proceedings of the Second Conference on Machine Translation},
  year = {2017}
}"""


class ChrfPlusPlus(evaluate.Metric):
    """Corpus chrF2++, 0 to 100."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("chrF++ with sacrebleu's signature.", CITATION, "https://github.com/mjpost/sacrebleu")

    def _compute(
        self,
        predictions: list[str],
        references: list[Any],
        lowercase: bool = False,
        whitespace: bool = False,
        n_bootstrap: int = 0,
    ) -> dict[str, Any]:
        metric = CHRF(word_order=2, lowercase=lowercase, whitespace=whitespace)
        return sacrebleu_result(metric, predictions, references, n_bootstrap)
