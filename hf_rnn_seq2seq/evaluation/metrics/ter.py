"""TER (Snover et al. 2006) computed by sacrebleu, as an `evaluate.Metric` that needs no network. Lower is better."""

from typing import Any

import evaluate
from sacrebleu.metrics import TER

from hf_rnn_seq2seq.evaluation.metrics._common import metric_info, sacrebleu_result

CITATION = """@inproceedings{snover-etal-2006-study,
  title = {A Study of Translation Edit Rate with Targeted Human Annotation},
  author = {Snover, Matthew and Dorr, Bonnie and Schwartz, Rich and Micciulla, Linnea and Makhoul, John},
  booktitle = {Proceedings of the 7th Conference of the Association for Machine Translation in the Americas},
  year = {2006}
}"""


class Ter(evaluate.Metric):
    """Translation edit rate: edits, block shifts included, for every 100 reference words; it can exceed 100."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("TER with sacrebleu's signature.", CITATION, "https://github.com/mjpost/sacrebleu")

    def _compute(
        self,
        predictions: list[str],
        references: list[Any],
        normalized: bool = False,
        no_punct: bool = False,
        asian_support: bool = False,
        case_sensitive: bool = False,
        n_bootstrap: int = 0,
    ) -> dict[str, Any]:
        metric = TER(
            normalized=normalized, no_punct=no_punct, asian_support=asian_support, case_sensitive=case_sensitive
        )
        return sacrebleu_result(metric, predictions, references, n_bootstrap)
