"""Corpus scores of translations by the name of a metric; the metric libraries are imported with the first score."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from hf_rnn_seq2seq.errors import ArgumentError, one_line

if TYPE_CHECKING:
    import evaluate

OF_SYMBOLS = ("sequence_error", "symbol_error")
OF_SACREBLEU = ("bleu", "char_bleu", "chrf", "chrf++", "ter")  # which have intervals and paired tests
METRICS = (*OF_SACREBLEU, "gleu", "wer", "cer", "exact_match", *OF_SYMBOLS)
# What describes models of words, by the score that chose their weights; BLEU says little of them.
OF_WORDS = {**dict.fromkeys(OF_SYMBOLS, OF_SYMBOLS), "exact_match": ("exact_match", "chrf")}
ONE_REFERENCE = ("wer", "cer")  # of each source, not several
LOWER_IS_BETTER = frozenset({"ter", "wer", "cer", *OF_SYMBOLS})
# Of the names that a table prints, those that differ from the name of the metric: the shared tasks' names.
TITLES = {"sequence_error": "WER, whole outputs", "symbol_error": "PER"}


def load_metric(name: str) -> "evaluate.Metric":
    """The metric `name`, one of `METRICS`; another name raises ValueError."""
    if name not in METRICS:
        raise ValueError(f"metric {name!r} is not known; choose from {', '.join(METRICS)}")
    from hf_rnn_seq2seq.evaluation.metrics import TranslationMetric

    return TranslationMetric(name, keep_in_memory=True)


def score(
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    metrics: Sequence[str] = ("bleu", "chrf"),
    *,
    n_bootstrap: int = 0,
    **options: Any,
) -> dict[str, Any]:
    """Corpus scores by name, 0 to 100, each with `<name>_signature`; `signature` is BLEU's.

    With `n_bootstrap` resamples also `<name>_interval`, half of the 95 % interval (of sacrebleu's metrics). `options`
    are passed to BLEU (`lowercase`, `tokenize`, ...).

    Raises:
        ArgumentError: the sides differ in number, or are empty.
    """
    if not hypotheses or len(hypotheses) != len(references):
        raise ArgumentError(
            f"{len(hypotheses)} hypotheses for {len(references)} references; both must have the same length, at least 1"
        )
    result: dict[str, Any] = {}
    for name in metrics:
        chosen = dict(options) if name == "bleu" else {}
        if n_bootstrap and name in OF_SACREBLEU:
            chosen["n_bootstrap"] = n_bootstrap
        output = load_metric(name).compute(predictions=list(hypotheses), references=list(references), **chosen)
        result[name] = output["score"]
        result[f"{name}_signature"] = output["signature"]
        if "interval" in output:
            result[f"{name}_interval"] = output["interval"]
    if "bleu_signature" in result:
        result["signature"] = result["bleu_signature"]
    return result


def merged(sources: Sequence[str], references: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    """Each source once, in the order of its first row, with all its references."""
    found: dict[str, list[str]] = {}
    for source, reference in zip(sources, references, strict=True):
        found.setdefault(source, []).append(reference)
    return list(found), list(found.values())


def nearest(hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]) -> list[str]:
    """Of the references of each hypothesis the one that takes the fewest edits of letters."""

    def edits(text: str, other: str) -> int:
        from rapidfuzz.distance import Levenshtein

        return Levenshtein.distance(text, other)

    return [
        row if isinstance(row, str) else min(row, key=partial(edits, text))
        for text, row in zip(hypotheses, references, strict=True)
    ]


def reference_streams(rows: Sequence[Sequence[str]]) -> list[list[str | None]]:
    """References by sentence -> as sacrebleu takes them, by position; None where a sentence has fewer."""
    width = max(map(len, rows))
    return [[row[position] if position < len(row) else None for row in rows] for position in range(width)]


def why_blind(name: str, references: Sequence[str] | Sequence[Sequence[str]]) -> str | None:
    """Why a metric cannot compare translations of these references, with better metrics; None where it can.

    BLEU multiplies the precisions of n-grams of 1 to 4 words, so a text of fewer than four words scores 0.
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
        "references are shorter: it says little about them; choose exact_match, sequence_error or chrf"
    )


def external_metric(name: str) -> "evaluate.EvaluationModule":
    """The metric that `evaluate.load(name)` returns: a path of a metric script, or a name on the Hub (needs network).

    Raises:
        ArgumentError: it cannot be loaded.
    """
    import evaluate

    try:
        return evaluate.load(name)
    except (ImportError, OSError, ValueError) as error:
        by_name = not name.endswith(".py") and "/" not in name
        hint = "; a name needs network, our own BLEU (the default) does not" if by_name else ""
        raise ArgumentError(
            f"metric {name!r}: evaluate.load could not load it{hint} ({one_line(error, 300)})"
        ) from None


def external_score(
    name: str, hypotheses: Sequence[str], references: Sequence[str] | Sequence[Sequence[str]]
) -> dict[str, float]:
    """All numbers that a metric of `external_metric` returns; references are passed as lists.

    Raises:
        ArgumentError: the metric takes one reference a sentence, and a sentence has several.
    """
    metric = external_metric(name)
    rows = [[row] if isinstance(row, str) else list(row) for row in references]
    try:
        output = metric.compute(predictions=list(hypotheses), references=rows)
    except ValueError as error:  # metrics such as wer take one plain reference a sentence
        if any(len(row) > 1 for row in rows):
            raise ArgumentError(f"metric {name!r}: fails on several references ({one_line(error, 200)})") from None
        metric = external_metric(name)
        output = metric.compute(predictions=list(hypotheses), references=[row[0] for row in rows])
    numbers = output if isinstance(output, Mapping) else {name: output}
    return {key: float(value) for key, value in numbers.items() if isinstance(value, (int, float))}
