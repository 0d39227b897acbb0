"""What the metrics share: their input columns, and the call into sacrebleu with signature and bootstrap interval."""

from typing import Any

import datasets
import evaluate
from sacrebleu.significance import _bootstrap_resample

INPUTS_DESCRIPTION = """
Args:
    predictions: list of strings, detokenised translations.
    references: list of strings, or of lists of strings where a prediction has several references.
"""


def metric_info(description: str, citation: str, homepage: str) -> evaluate.MetricInfo:
    """The declaration `evaluate` asks of a metric over text with one or several references."""
    one = datasets.Features(predictions=datasets.Value("string"), references=datasets.Value("string"))
    several = datasets.Features(
        predictions=datasets.Value("string"), references=datasets.Sequence(datasets.Value("string"))
    )
    return evaluate.MetricInfo(
        description=description,
        citation=citation,
        homepage=homepage,
        inputs_description=INPUTS_DESCRIPTION,
        features=[several, one],
        reference_urls=[homepage],
    )


def check_pairs(predictions: list[Any], references: list[Any]) -> None:
    """Refuse what no metric can score: a missing text, or a prediction without any reference."""
    for index, (prediction, reference) in enumerate(zip(predictions, references, strict=True)):
        if prediction is None or reference is None:
            raise ValueError(f"sentence {index}: prediction and reference must be strings, one of them is None")
        if isinstance(reference, list) and not reference:
            raise ValueError(f"sentence {index}: references are an empty list; at least one is needed")


def reference_streams(references: list[Any]) -> list[list[str | None]]:
    """Turn one list per sentence into sacrebleu's one list per reference position, None where a sentence has fewer."""
    rows = [[row] if isinstance(row, str) else list(row) for row in references]
    width = max(len(row) for row in rows)
    return [[row[position] if position < len(row) else None for row in rows] for position in range(width)]


def sacrebleu_result(metric: Any, predictions: list[str], references: list[Any], n_bootstrap: int) -> dict[str, Any]:
    """Score with a sacrebleu metric object.

    Returns `score` (0 to 100), `signature`, and with `n_bootstrap` > 1 also `mean` and `interval` (half the width of
    the 95 % interval), by sacrebleu's own resampling (seed `SACREBLEU_SEED`, default 12345).
    """
    check_pairs(predictions, references)
    if n_bootstrap < 0 or n_bootstrap == 1:
        raise ValueError(f"n_bootstrap is {n_bootstrap}; allowed: 0 (no interval) or at least 2 resamples")
    statistics = metric._extract_corpus_statistics(list(predictions), reference_streams(references))
    score = metric._aggregate_and_compute(statistics)
    if n_bootstrap:
        # corpus_score(n_bootstrap=...) step by step: it fails where some resample scores exactly zero, a plain float
        # among numpy's.
        metric.n_bootstrap = n_bootstrap
        metric.seed, resampled = _bootstrap_resample(statistics, metric, n_bootstrap)
        for one in resampled:
            one.score = float(one.score)
        score.estimate_ci(resampled)
    result = {"score": score.score, "signature": str(metric.get_signature())}
    if n_bootstrap:
        result |= {"mean": float(score._mean), "interval": float(score._ci)}
    for name in ("counts", "totals", "precisions", "bp", "sys_len", "ref_len", "num_edits", "ref_length"):
        if hasattr(score, name):
            result[name] = getattr(score, name)
    return result
