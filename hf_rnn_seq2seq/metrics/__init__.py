"""Corpus metrics as `evaluate.Metric` classes that need no network.

BLEU, chrF, chrF++ and TER come from sacrebleu, WER and CER from jiwer; GLEU is ours. Each file whose name has no
leading underscore is also a metric script: `evaluate.load("hf_rnn_seq2seq/metrics/bleu.py")` works from a path. That
loader reads the imports line by line, so each stands on its own line. The heavy libraries (`evaluate`, `datasets`,
`sacrebleu`, `jiwer`) load with the first metric, not with this package.
"""

import importlib
from typing import Any

# name -> (module, class, options of compute())
METRICS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bleu": ("bleu", "Bleu", {}),
    "char_bleu": ("bleu", "Bleu", {"tokenize": "char"}),
    "chrf": ("chrf", "Chrf", {}),
    "chrf++": ("chrf_plus_plus", "ChrfPlusPlus", {}),
    "gleu": ("gleu", "Gleu", {}),
    "ter": ("ter", "Ter", {}),
    "wer": ("wer", "Wer", {}),
    "cer": ("cer", "Cer", {}),
}
LOWER_IS_BETTER = frozenset({"ter", "wer", "cer"})


def load_metric(name: str) -> tuple[Any, dict[str, Any]]:
    """Return the metric called `name` and the options its `compute()` takes to be that metric.

    Raises ValueError for a name that `METRICS` does not hold.
    """
    if name not in METRICS:
        raise ValueError(f"metric {name!r} is not known; choose from {', '.join(METRICS)}")
    module, class_name, options = METRICS[name]
    metric_class = getattr(importlib.import_module(f"{__name__}.{module}"), class_name)
    return metric_class(keep_in_memory=True), dict(options)
