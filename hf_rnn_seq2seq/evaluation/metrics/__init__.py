"""Corpus metrics as `evaluate.Metric` classes that need no network.

BLEU, chrF, chrF++ and TER come from sacrebleu, WER and CER from jiwer; GLEU and exact match are ours. Each file whose
name has no leading underscore is also a metric script: `evaluate.load("hf_rnn_seq2seq/evaluation/metrics/bleu.py")`
works from a path. That loader reads the imports line by line, so each has its own line. The heavy libraries
(`evaluate`, `datasets`, `sacrebleu`, `jiwer`) load with the first metric, not with this package.
"""

import importlib
from collections.abc import Sequence
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
    "exact_match": ("exact_match", "ExactMatch", {}),
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


def why_blind(name: str, references: Sequence[Any]) -> str | None:
    """Why the metric cannot tell translations of these references apart, and which can; None where it can.

    BLEU multiplies the precisions of runs of one to four words, so a text without a run of four scores 0 whatever it
    says.
    """
    if name not in ("bleu", "char_bleu"):
        return None
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a
    from sacrebleu.tokenizers.tokenizer_char import TokenizerChar

    tokenize = TokenizerChar() if name == "char_bleu" else Tokenizer13a()
    texts = [row if isinstance(row, str) else row[0] for row in references]
    short = sum(len(tokenize(text).split()) < 4 for text in texts)
    if 2 * short <= len(texts):
        return None
    return (
        f"{name} counts runs of four {'characters' if name == 'char_bleu' else 'words'}, and {short} of {len(texts)} "
        "references are shorter: it says little about them; choose exact_match or chrf"
    )
