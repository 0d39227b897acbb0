"""BLEU (Papineni et al. 2002) computed by sacrebleu (Post 2018), as an `evaluate.Metric` that needs no network."""

from typing import Any

import evaluate
from sacrebleu.metrics import BLEU

from hf_rnn_seq2seq.evaluation.metrics._common import metric_info, sacrebleu_result

CITATION = """@inproceedings{post-2018-call,
  title = {A Call for Clarity in Reporting {BLEU} Scores},
  author = {Post, Matt},
  booktitle = {Proceedings of the Third Conference on Machine Translation},
  year = {2018}
}"""


class Bleu(evaluate.Metric):
    """Corpus BLEU, 0 to 100. `tokenize="char"` gives character BLEU for text without spaces."""

    def _info(self) -> evaluate.MetricInfo:
        return metric_info("BLEU with sacrebleu's signature.", CITATION, "https://github.com/mjpost/sacrebleu")

    def _compute(
        self,
        predictions: list[str],
        references: list[Any],
        tokenize: str | None = None,
        lowercase: bool = False,
        smooth_method: str = "exp",
        smooth_value: float | None = None,
        use_effective_order: bool = False,
        force: bool = False,
        trg_lang: str = "",
        n_bootstrap: int = 0,
    ) -> dict[str, Any]:
        metric = BLEU(
            lowercase=lowercase,
            force=force,
            tokenize=tokenize,
            smooth_method=smooth_method,
            smooth_value=smooth_value,
            effective_order=use_effective_order,
            trg_lang=trg_lang,
        )
        return sacrebleu_result(metric, predictions, references, n_bootstrap)
