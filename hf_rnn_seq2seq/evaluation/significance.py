"""Compare systems on one test set: significance of a difference, score by source length, metrics of the user's own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hf_rnn_seq2seq.errors import EvaluationError
from hf_rnn_seq2seq.generation.attention import stands_alone

PAIRED_METRICS = ("bleu", "char_bleu", "chrf", "chrf++", "ter")


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


@dataclass(frozen=True)
class LengthBin:
    """Sentences whose source has `low` to `high` words, both included."""

    low: int
    high: int
    sentences: int
    bleu: float
    length_ratio: float  # words of the hypotheses / words of the references


def paired_test(
    systems: Mapping[str, Sequence[str]],
    references: Sequence[str],
    metrics: Sequence[str] = ("bleu", "chrf"),
    *,
    test: str = "bs",
    n_samples: int = 0,
) -> list[PairedScore]:
    """sacrebleu's paired test of every system against the first one (Koehn 2004; Riezler and Maxwell 2005).

    `test` is "bs" (paired bootstrap resampling) or "ar" (paired approximate randomisation); `n_samples` 0 means
    sacrebleu's default (1,000 and 10,000). Raises EvaluationError when there is nothing to compare.
    """
    from sacrebleu.metrics import BLEU, CHRF, TER
    from sacrebleu.significance import PairedTest

    if test not in ("bs", "ar"):
        raise EvaluationError(f"test is {test!r}; allowed: bs (paired bootstrap), ar (approximate randomisation)")
    if len(systems) < 2:
        raise EvaluationError(f"a paired test compares at least 2 systems, got {len(systems)}")
    for name, hypotheses in systems.items():
        if len(hypotheses) != len(references) or not references:
            raise EvaluationError(f"{name}: {len(hypotheses)} hypotheses for {len(references)} references")
    makers = {
        "bleu": BLEU,
        "char_bleu": lambda references: BLEU(tokenize="char", references=references),
        "chrf": CHRF,
        "chrf++": lambda references: CHRF(word_order=2, references=references),
        "ter": TER,
    }
    rows = []
    # sacrebleu files results under its own names, where two kinds of BLEU would fall together: one metric at a time.
    for metric in metrics:
        if metric not in makers:
            raise EvaluationError(f"metric {metric!r} has no paired test; choose from {', '.join(PAIRED_METRICS)}")
        scorer = makers[metric](references=[list(references)])
        run = PairedTest(
            [(name, list(hypotheses)) for name, hypotheses in systems.items()],
            {metric: scorer},
            None,
            test_type=test,
            n_samples=n_samples,
        )
        signatures, scores = run()
        (key,) = signatures
        for name, found in zip(scores["System"], scores[key], strict=True):
            rows.append(
                PairedScore(name, metric, found.score, found.mean, found.ci, found.p_value, str(signatures[key]))
            )
    return rows


def score_by_length(
    sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str], *, width: int = 5, last: int = 50
) -> list[LengthBin]:
    """BLEU and length ratio of sentences grouped by source length in words (Cho et al. 2014; Bahdanau et al. 2014).

    Bins are 1 to `width`, and so on; sources of more than `last` words share one bin. Empty bins are left out. Text of
    a script without spaces counts characters.
    """
    from sacrebleu.metrics import BLEU

    if not len(sources) == len(hypotheses) == len(references) or not sources:
        raise EvaluationError(f"{len(sources)} sources, {len(hypotheses)} hypotheses, {len(references)} references")
    if width < 1 or last < width:
        raise EvaluationError(f"width is {width}, last is {last}; need 1 <= width <= last")
    groups: dict[int, list[int]] = {}
    for index, source in enumerate(sources):
        length = max(_units(source), 1)
        groups.setdefault(min((length - 1) // width, last // width), []).append(index)
    bins = []
    for group, members in sorted(groups.items()):
        texts = [hypotheses[index] for index in members]
        expected = [references[index] for index in members]
        # Forced: that a text looks tokenised is said once, of the whole.
        found = BLEU(effective_order=True, force=True).corpus_score(texts, [expected])
        ratio = sum(map(_units, texts)) / max(sum(map(_units, expected)), 1)
        longest = max(_units(sources[index]) for index in members)
        high = (group + 1) * width if group < last // width else max(longest, (group + 1) * width)
        bins.append(LengthBin(group * width + 1, high, len(members), found.score, ratio))
    return bins


def _units(text: str) -> int:
    words = text.split()
    return sum(map(len, words)) if any(map(stands_alone, text)) else len(words)


def external_metric(name: str) -> Any:
    """The metric `evaluate.load(name)` gives: a path of a metric script, or a name on the Hub (needs network).

    Raises EvaluationError in one line when it cannot be loaded.
    """
    import evaluate

    try:
        return evaluate.load(name)
    except (ImportError, OSError, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        by_name = not name.endswith(".py") and "/" not in name
        hint = "; a name needs network, our own BLEU (the default) does not" if by_name else ""
        raise EvaluationError(f"metric {name!r}: evaluate.load could not load it{hint} ({reason[:300]})") from None


def external_score(name: str, hypotheses: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """Every number that a metric loaded by `external_metric` reports; references are given as lists of one."""
    metric = external_metric(name)
    try:
        found = metric.compute(predictions=list(hypotheses), references=[[reference] for reference in references])
    except ValueError:  # metrics such as wer declare one plain reference a sentence
        metric = external_metric(name)
        found = metric.compute(predictions=list(hypotheses), references=list(references))
    numbers = found if isinstance(found, Mapping) else {name: found}
    return {key: float(value) for key, value in numbers.items() if isinstance(value, (int, float))}
