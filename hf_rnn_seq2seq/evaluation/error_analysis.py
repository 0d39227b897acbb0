"""Where a system fails: measures of each translated sentence, the worst of them, and a table of systems.

Words are separated by white space; a script without spaces counts characters (`split_words`). Attention is (target,
source), rows sum to one.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from hf_rnn_seq2seq.data.pieces import SPECIAL, is_unspaced_script, source_pieces, word_groups
from hf_rnn_seq2seq.errors import AttentionError, EvaluationError
from hf_rnn_seq2seq.evaluation.test_set import TestSet, read_test_set
from hf_rnn_seq2seq.generation.encoding import Encoded, encode_sources, source_problems
from hf_rnn_seq2seq.generation.translate import Hypothesis, translate_n_best
from hf_rnn_seq2seq.run_directory import load_checkpoint

LONGEST_REPEAT = 4  # words; longer stretches that come twice in a row hold shorter ones in practice
LENGTH_RATIO = (0.5, 2.0)  # a translation outside these times the reference's length counts as too short or too long
UNREAD = 0.2  # a source word that receives less attention than this over the whole translation was hardly read
ERRORS = ("empty", "untranslated", "repeated", "too_short", "too_long")


@dataclass(frozen=True)
class SentenceReport:
    """One translation, measured."""

    bleu: float  # sentence BLEU and chrF, 0 to 100
    chrf: float
    source_words: int
    target_words: int
    log_probability: float | None  # per token, natural logarithm
    untranslated: tuple[str, ...] = ()  # words of the source that stand in the translation and not in the reference
    repeated: tuple[str, ...] = ()  # words that repeat what stands right before them
    errors: tuple[str, ...] = ()  # names from ERRORS
    entropy: float | None = None  # nats, mean over the produced tokens; 0 looks at one token, log(source) at all alike
    coverage: float | None = None  # 0 to 1, mean over source tokens of min(1, attention received)
    unread: tuple[str, ...] = field(default=())  # source words that hardly received attention


_PUNCTUATION = ".,;:!?¡¿\"'()[]«»“”„…"


def split_words(text: str) -> list[str]:
    """Words of a text, without punctuation at their ends; single characters in scripts without spaces."""
    words = []
    for part in text.split():
        if any(map(is_unspaced_script, part)):
            words.extend(character for character in part if character.isalnum())
        else:
            words.append(part.strip(_PUNCTUATION))
    return [word for word in words if word]


def untranslated_words(source: str, translation: str, reference: str) -> list[str]:
    """Words of the source with a letter in them that were copied where the reference has other ones."""
    produced = {word.casefold() for word in split_words(translation)}
    expected = {word.casefold() for word in split_words(reference)}
    copied = [word for word in split_words(source) if any(map(str.isalpha, word))]
    return [word for word in dict.fromkeys(copied) if word.casefold() in produced and word.casefold() not in expected]


def repeated_words(translation: str, reference: str = "") -> list[str]:
    """The stretches of 1 to 4 words that repeat the words right before them, unless the reference does so too."""
    allowed = set(_repeats(split_words(reference)))
    return [" ".join(stretch) for stretch in _repeats(split_words(translation)) if stretch not in allowed]


def _repeats(words: Sequence[str]) -> list[tuple[str, ...]]:
    words = [word.casefold() for word in words]
    found, position = [], 1
    while position < len(words):
        for size in range(1, min(LONGEST_REPEAT, position, len(words) - position) + 1):
            if words[position - size : position] == words[position : position + size]:
                found.append(tuple(words[position : position + size]))
                position += size - 1
                break
        position += 1
    return found


def attention_entropy(weights: Any) -> float:
    """Mean over target tokens of the entropy of attention (target, source), in nats."""
    weights = weights.double()
    return float(-(weights * weights.clamp(min=1e-30).log()).sum(-1).mean())


def attention_received(weights: Any) -> Any:
    """(source,): what each source token received over the whole translation; 1 is one target token's attention."""
    return weights.double().sum(0)


def length_error(translation: str, reference: str) -> str | None:
    """`empty`, `too_short`, `too_long`, or None where the lengths go together."""
    produced, expected = len(split_words(translation)), len(split_words(reference))
    if not translation.strip():
        return "empty" if reference.strip() else None
    # A word more or less is no length error of a sentence of two.
    if produced < LENGTH_RATIO[0] * expected and expected - produced > 1:
        return "too_short"
    return "too_long" if produced > LENGTH_RATIO[1] * expected and produced - expected > 1 else None


def analyze(sources: Sequence[str], references: Sequence[str], hypotheses: Sequence[Hypothesis], tokenizer: Any) -> Any:
    """A `SentenceReport` for each sentence, in order.

    `hypotheses` may hold attention (several heads are averaged) and log-probabilities, as `translate_n_best` gives
    them; what is missing is None in the report.

    Raises:
        EvaluationError: the three lists differ in length.
    """
    if not len(sources) == len(references) == len(hypotheses):
        raise EvaluationError(f"{len(sources)} sources, {len(references)} references, {len(hypotheses)} hypotheses")
    bleu, chrf = _sentence_scorers()
    reports = []
    for source, reference, hypothesis in zip(sources, references, hypotheses, strict=True):
        untranslated = untranslated_words(source, hypothesis.text, reference)
        repeated = repeated_words(hypothesis.text, reference)
        errors = {"untranslated": untranslated, "repeated": repeated}
        names = {length_error(hypothesis.text, reference), *(name for name, words in errors.items() if words)}
        tokens = len(hypothesis.token_ids)
        total = hypothesis.log_probability
        reports.append(
            SentenceReport(
                bleu=bleu(hypothesis.text, reference),
                chrf=chrf(hypothesis.text, reference),
                source_words=len(split_words(source)),
                target_words=len(split_words(hypothesis.text)),
                log_probability=total / tokens if tokens and total is not None else None,
                untranslated=tuple(untranslated),
                repeated=tuple(repeated),
                errors=tuple(name for name in ERRORS if name in names),
                **_attention_facts(source, hypothesis, tokenizer),
            )
        )
    return reports


def _sentence_scorers() -> tuple[Callable[[str, str], float], Callable[[str, str], float]]:
    """sacrebleu's sentence BLEU (over n-grams that exist: a sentence of two words has no 4-gram) and chrF."""
    from sacrebleu.metrics import BLEU, CHRF

    bleu, chrf = BLEU(effective_order=True), CHRF()
    return (
        lambda text, reference: bleu.sentence_score(text, [reference]).score,
        lambda text, reference: chrf.sentence_score(text, [reference]).score,
    )


def _attention_facts(source: str, hypothesis: Hypothesis, tokenizer: Any) -> dict[str, Any]:
    if hypothesis.attention is None or not hypothesis.token_ids:
        return {}
    weights = hypothesis.attention.mean(0)
    pieces = source_pieces(tokenizer, source, len(hypothesis.source_ids))
    kept = [index for index, piece in enumerate(pieces) if piece.strip() and piece not in SPECIAL]
    received = attention_received(weights).tolist()
    shares = [min(1.0, received[index]) for index in kept]
    unread = []
    for group in word_groups(pieces):
        word = "".join(pieces[index] for index in group).strip().strip(_PUNCTUATION)
        # Punctuation is rarely worth a look.
        if sum(received[index] for index in group) < UNREAD and word not in SPECIAL and any(map(str.isalnum, word)):
            unread.append(word)
    coverage = sum(shares) / len(shares) if shares else None
    return {"entropy": attention_entropy(weights), "coverage": coverage, "unread": tuple(unread)}


def translate_with_attention(
    model: Any, tokenizer: Any, sources: Sequence[str] | Encoded, **options: Any
) -> list[Hypothesis]:
    """The best hypothesis of each source, with attention where the model has any; `options` as `translate_n_best`."""
    if getattr(model.config, "context", "attention") == "attention":
        try:
            return [found[0] for found in translate_n_best(model, tokenizer, sources, attention=True, **options)]
        except AttentionError:  # of a model class that keeps its weights to itself
            pass
    return [found[0] for found in translate_n_best(model, tokenizer, sources, **options)]


@dataclass
class AnalyzedSystem:
    """A directory's translations of a test set, measured."""

    name: str
    directory: str
    hypotheses: list[Hypothesis]
    reports: list[SentenceReport]
    tokenizer: Any
    num_beams: int
    encoded: Encoded = field(default_factory=lambda: Encoded([], [], []))  # the sources as the model read them

    def notes(self) -> list[str]:
        """Sources that the model could not read whole."""
        return source_problems(self.encoded.counts())


def short_names(directories: Sequence[str]) -> list[str]:
    """The last part of each path where that tells them apart, else the paths as given."""
    full = [str(directory).rstrip("/") for directory in directories]
    short = [name.rpartition("/")[2] for name in full]
    return short if len(set(short)) == len(set(full)) else full


def analyze_systems(
    directories: Sequence[str],
    chosen: Mapping[str, Any],
    *,
    split: str = "test",
    device: str | None = None,
    dtype: str | None = None,
    **options: Any,
) -> tuple[TestSet, list[AnalyzedSystem]]:
    """The test set (see `reporting.read_test_set`), and each directory's translations of it, measured.

    Raises:
        EvaluationError: two directories have test sets of their own that differ; name one for both.
    """
    test_set: TestSet | None = None
    systems: list[AnalyzedSystem] = []
    for directory, name in zip(directories, short_names(directories), strict=True):
        own = read_test_set(directory, chosen, split)
        if test_set is not None and (own.sources, own.references) != (test_set.sources, test_set.references):
            raise EvaluationError(f"{directory}: its test set is not that of {directories[0]}; name one for both")
        test_set = own
        model, tokenizer = load_checkpoint(directory, device=device, dtype=dtype, attention=True)
        encoded = encode_sources(tokenizer, own.sources)
        hypotheses = translate_with_attention(model, tokenizer, encoded, **options)
        name += " (again)" * [system.directory for system in systems].count(directory)
        reports = analyze(own.sources, own.references, hypotheses, tokenizer)
        beams = options.get("num_beams") or model.generation_config.num_beams or 1
        systems.append(AnalyzedSystem(name, directory, hypotheses, reports, tokenizer, beams, encoded))
    if test_set is None:
        raise EvaluationError("no model was named")
    return test_set, systems


def worst(reports: Sequence[SentenceReport], count: int, *, by: str = "chrf") -> list[int]:
    """Numbers of the `count` sentences with the lowest score, the lowest first; `by` is chrf or bleu."""
    return sorted(range(len(reports)), key=lambda index: (getattr(reports[index], by), index))[:count]


def summarize(reports: Sequence[SentenceReport]) -> dict[str, Any]:
    """Means and counts over a test set: `sentences`, `bleu` and `chrf` (means over sentences), errors by name, ..."""
    counts = Counter(name for report in reports for name in report.errors)
    facts: dict[str, Any] = {"sentences": len(reports), "exact": sum(report.chrf >= 100 - 1e-9 for report in reports)}
    for name in ("bleu", "chrf", "log_probability", "entropy", "coverage"):
        values = [value for report in reports if (value := getattr(report, name)) is not None]
        facts[name] = math.fsum(values) / len(values) if values else None
    return facts | {name: counts[name] for name in ERRORS}


def summary_table(systems: dict[str, Sequence[SentenceReport]]) -> list[list[str]]:
    """Rows of cells, a header first: one system a row."""
    rows = [["system", "sentences", "mean chrF", "exact", *ERRORS, "entropy", "coverage"]]
    for name, reports in systems.items():
        facts = summarize(reports)
        total = max(len(reports), 1)
        shares = [f"{facts[error]} ({100 * facts[error] / total:.1f} %)" for error in ("exact", *ERRORS)]
        numbers = ["-" if facts[key] is None else f"{facts[key]:.3f}" for key in ("entropy", "coverage")]
        rows.append([name, str(len(reports)), f"{facts['chrf']:.1f}", *shares, *numbers])
    return rows


def as_dict(report: SentenceReport) -> dict[str, Any]:
    """The report as JSON values."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(report).items()}
