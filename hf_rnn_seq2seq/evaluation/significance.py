"""Significance of the differences between systems on one test set."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.evaluation.scores import OF_SACREBLEU


@dataclass(frozen=True)
class PairedScore:
    """One system under one metric; `p_value` is None for the baseline (the first system)."""

    system: str
    metric: str
    score: float
    mean: float | None
    interval: float | None  # half the width of the 95 % interval
    p_value: float | None
    signature: str


def paired_test(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    metrics: Sequence[str] = ("bleu", "chrf"),
    *,
    test: str = "bs",
    n_samples: int = 0,
) -> list[PairedScore]:
    """sacrebleu's paired test of each system against the first one (Koehn 2004; Riezler and Maxwell 2005).

    Args:
        systems: name -> hypotheses; the first system is the baseline.
        references: one per hypothesis.
        metrics: names in `OF_SACREBLEU`.
        test: `bs` (paired bootstrap resampling) or `ar` (paired approximate randomization).
        n_samples: resamples; 0 for sacrebleu's default (1,000 and 10,000).

    Raises:
        ArgumentError: an option is unknown, there are fewer than two systems, or the sides differ in number.
    """
    from sacrebleu.significance import PairedTest

    from hf_rnn_seq2seq.evaluation.metrics import SACREBLEU

    if test not in ("bs", "ar"):
        raise ArgumentError(f"test={test!r}: must be bs (paired bootstrap) or ar (approximate randomization)")
    if len(systems) < 2:
        raise ArgumentError(f"a paired test needs at least 2 systems; got {len(systems)}")
    for name, hypotheses in systems.items():
        if len(hypotheses) != len(references) or not references:
            raise ArgumentError(f"{name}: {len(hypotheses)} hypotheses for {len(references)} references")
    named = [(name, list(hypotheses)) for name, hypotheses in systems.items()]
    rows = []
    for metric in metrics:  # one at a time: sacrebleu's results have one key for both kinds of BLEU
        if metric not in OF_SACREBLEU:
            raise ArgumentError(f"metric {metric!r} has no paired test; choose from {', '.join(OF_SACREBLEU)}")
        make, options = SACREBLEU[metric]
        scorer = make(references=[list(references)], **options)
        signatures, scores = PairedTest(named, {metric: scorer}, None, test_type=test, n_samples=n_samples)()
        (key,) = signatures
        signature = str(signatures[key])
        for (name, _), result in zip(named, scores[key], strict=True):
            # sacrebleu counts the samples with a larger difference; of equal scores all differ as much or more.
            alike = result.p_value is not None and result.score == scores[key][0].score
            p_value = 1.0 if alike else result.p_value
            # numpy's single precision, which JSON does not take
            numbers = [None if x is None else float(x) for x in (result.score, result.mean, result.ci, p_value)]
            rows.append(PairedScore(name, metric, *numbers, signature))
    return rows


def paired_table(rows: Sequence[PairedScore]) -> list[list[str]]:
    """Rows of cells, a header first: one line per system and metric; `*` marks p < 0.05."""
    cells = [["system", "metric", "score", "95 % interval", "p"]]
    for row in rows:
        interval = f"{row.mean:.2f} ± {row.interval:.2f}" if row.mean is not None else "-"
        p_value = "baseline" if row.p_value is None else f"{row.p_value:.4f}" + (" *" if row.p_value < 0.05 else "")
        cells.append([row.system, row.metric, f"{row.score:.2f}", interval, p_value])
    return cells
