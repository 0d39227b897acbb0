"""Errors of a system: measures of each translated sentence, the worst sentences, and a table of systems.

Words are separated by white space; in a script without spaces each character is a word (`split_words`). Attention is
(target, source), rows sum to one.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.pieces import is_unspaced_script, source_pieces, word_groups
from hf_rnn_seq2seq.errors import ArgumentError, AttentionError
from hf_rnn_seq2seq.evaluation.scores import nearest
from hf_rnn_seq2seq.evaluation.sentence_scores import sentence_metric
from hf_rnn_seq2seq.evaluation.test_set import TestSet, read_test_set
from hf_rnn_seq2seq.generation.encoding import Encoded, encode_sources, source_problems
from hf_rnn_seq2seq.generation.translate import Hypothesis, number_of_beams, translate_n_best
from hf_rnn_seq2seq.run_directory import load_models, members

LONGEST_REPEAT = 4  # words; longer repeated phrases usually contain a shorter repeat
LENGTH_RATIO = (0.5, 2.0)  # of translation to reference; outside it a translation is too short or too long
UNREAD = 0.2  # a source word that receives less attention over the whole translation is reported
ERRORS = ("empty", "untranslated", "repeated", "too_short", "too_long")


@dataclass(frozen=True)
class SentenceReport:
    """The measures of one translation."""

    bleu: float  # sentence BLEU and chrF, 0 to 100
    chrf: float
    source_words: int
    target_words: int
    log_probability: float | None  # per token, natural logarithm
    untranslated: tuple[str, ...] = ()  # source words in the translation that are not in the reference
    repeated: tuple[str, ...] = ()  # phrases that repeat the words directly before them
    errors: tuple[str, ...] = ()  # names from ERRORS
    entropy: float | None = None  # nats, mean over target tokens; 0: one source token, log(source): all equally
    coverage: float | None = None  # 0 to 1, mean over source tokens of min(1, attention received)
    unread: tuple[str, ...] = field(default=())  # source words with less attention than UNREAD


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
    """Source words (with a letter) that were copied into the translation and are not in the reference."""
    produced = {word.casefold() for word in split_words(translation)}
    expected = {word.casefold() for word in split_words(reference)}
    copied = [word for word in split_words(source) if any(map(str.isalpha, word))]
    return [word for word in dict.fromkeys(copied) if word.casefold() in produced and word.casefold() not in expected]


def repeated_words(translation: str, reference: str = "") -> list[str]:
    """Phrases of 1 to 4 words that repeat the words directly before them, unless the reference repeats them too."""
    allowed = set(_repeats(split_words(reference)))
    return [" ".join(phrase) for phrase in _repeats(split_words(translation)) if phrase not in allowed]


def _repeats(words: Sequence[str]) -> list[tuple[str, ...]]:
    words = [word.casefold() for word in words]
    repeats, position = [], 1
    while position < len(words):
        for size in range(1, min(LONGEST_REPEAT, position, len(words) - position) + 1):
            if words[position - size : position] == words[position : position + size]:
                repeats.append(tuple(words[position : position + size]))
                position += size - 1
                break
        position += 1
    return repeats


def attention_entropy(weights: Tensor) -> float:
    """Mean over target tokens of the entropy of attention (target, source), in nats."""
    weights = weights.double()
    return float(-(weights * weights.clamp(min=1e-30).log()).sum(-1).mean())


def attention_received(weights: Tensor) -> Tensor:
    """(source,): attention that each source token receives over the whole translation; a target token gives 1."""
    return weights.double().sum(0)


def length_error(translation: str, reference: str) -> str | None:
    """`empty`, `too_short`, `too_long`, or None if the length is plausible."""
    produced, expected = len(split_words(translation)), len(split_words(reference))
    if not translation.strip():
        return "empty" if reference.strip() else None
    # A difference of one word is no length error, however short the sentence.
    if produced < LENGTH_RATIO[0] * expected and expected - produced > 1:
        return "too_short"
    return "too_long" if produced > LENGTH_RATIO[1] * expected and produced - expected > 1 else None


def analyze(
    sources: Sequence[str],
    references: Sequence[str],
    hypotheses: Sequence[Hypothesis],
    tokenizer: PreTrainedTokenizerBase,
) -> list[SentenceReport]:
    """A report for each sentence, in order.

    `hypotheses` may have attention (heads are averaged) and log-probabilities; measures without them are None.

    Raises:
        ArgumentError: the three lists differ in length.
    """
    if not len(sources) == len(references) == len(hypotheses):
        raise ArgumentError(
            f"{len(sources)} sources, {len(references)} references, {len(hypotheses)} hypotheses: must be equal"
        )
    bleu, chrf = sentence_metric("bleu"), sentence_metric("chrf")
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
                bleu=100 * bleu(hypothesis.text, reference),
                chrf=100 * chrf(hypothesis.text, reference),
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


def _attention_facts(source: str, hypothesis: Hypothesis, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    if hypothesis.attention is None or not hypothesis.token_ids:
        return {}
    weights = hypothesis.attention.mean(0)
    pieces = source_pieces(tokenizer, source, len(hypothesis.source_ids))
    received = attention_received(weights).tolist()
    special = {*tokenizer.all_special_tokens}
    words = [index for index, piece in enumerate(pieces) if piece.strip() and piece not in special]
    shares = [min(1.0, received[index]) for index in words]
    unread = []
    for group in word_groups(pieces, special):
        word = "".join(pieces[index] for index in group).strip()
        # Punctuation is left out.
        if sum(received[index] for index in group) < UNREAD and word not in special and any(map(str.isalnum, word)):
            unread.append(word.strip(_PUNCTUATION))
    coverage = sum(shares) / len(shares) if shares else None
    return {"entropy": attention_entropy(weights), "coverage": coverage, "unread": tuple(unread)}


def translate_with_attention(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, sources: Sequence[str] | Encoded, **options: Any
) -> list[Hypothesis]:
    """The best hypothesis of each source, with attention if all models return it; `options` of `translate_n_best`."""
    models = [model, *options.get("ensemble", ())]
    if all(getattr(one.config, "context", "attention") == "attention" for one in models):
        try:
            return [
                hypotheses[0] for hypotheses in translate_n_best(model, tokenizer, sources, attention=True, **options)
            ]
        except AttentionError:  # the model does not return cross_attentions
            pass
    return [hypotheses[0] for hypotheses in translate_n_best(model, tokenizer, sources, **options)]


@dataclass
class AnalyzedSystem:
    """A directory's translations of a test set, and their measures."""

    name: str
    directory: str
    hypotheses: list[Hypothesis]
    reports: list[SentenceReport]
    tokenizer: PreTrainedTokenizerBase
    num_beams: int
    references: list[str]  # of each source the one nearest to the hypothesis, if it has several
    encoded: Encoded = field(default_factory=lambda: Encoded([], [], []))  # sources

    def notes(self) -> list[str]:
        """Warnings about sources that the model did not read completely."""
        return source_problems(self.encoded.counts())


def short_names(directories: Sequence[str]) -> list[str]:
    """The last part of each path if these differ, else the full paths."""
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
    """The test set (see `read_test_set`), and the translations of each directory, or ensemble, with their measures.

    The attention of an ensemble is the average over its models.

    Raises:
        ArgumentError: the directories have different test sets.
    """
    test_set: TestSet | None = None
    systems: list[AnalyzedSystem] = []
    for directory, name in zip(directories, short_names(directories), strict=True):
        first, test_set = test_set, read_test_set(members(directory)[0], chosen, split)
        if first is not None and (first.sources, first.scored) != (test_set.sources, test_set.scored):
            raise ArgumentError(f"{directory}: its test set is not that of {directories[0]}; name one for both")
        model, tokenizer, others = load_models([directory], device=device, dtype=dtype, attention=True)
        ensemble = {"ensemble": others} if others else {}
        encoded = encode_sources(tokenizer, test_set.sources)
        hypotheses = translate_with_attention(model, tokenizer, encoded, **ensemble, **options)
        name += " (again)" * [system.directory for system in systems].count(directory)
        references = nearest([one.text for one in hypotheses], test_set.scored)
        reports = analyze(test_set.sources, references, hypotheses, tokenizer)
        beams = number_of_beams(model, options)
        systems.append(AnalyzedSystem(name, directory, hypotheses, reports, tokenizer, beams, references, encoded))
    if test_set is None:
        raise ArgumentError("directories=[]: name at least one model")
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
    """Rows of cells, a header first: one row per system."""
    rows = [["system", "sentences", "mean chrF", "exact", *ERRORS, "entropy", "coverage"]]
    for name, reports in systems.items():
        facts = summarize(reports)
        total = max(len(reports), 1)
        shares = [f"{facts[error]} ({100 * facts[error] / total:.1f} %)" for error in ("exact", *ERRORS)]
        numbers = ["-" if facts[key] is None else f"{facts[key]:.3f}" for key in ("entropy", "coverage")]
        rows.append([name, str(len(reports)), f"{facts['chrf']:.1f}", *shares, *numbers])
    return rows


def sentence_rows(test_set: TestSet, systems: Sequence[AnalyzedSystem]) -> Iterator[dict[str, Any]]:
    """JSON values of each sentence of each system: its texts, measures, and whether the source was read completely."""
    for system in systems:
        truncated, unknown = {*system.encoded.truncated}, {*system.encoded.unknown}
        texts = zip(test_set.sources, system.references, system.hypotheses, system.reports, strict=True)
        for number, (source, reference, hypothesis, report) in enumerate(texts):
            row = {"system": system.name, "sentence": number, "source": source, "reference": reference}
            row |= {"truncated": number in truncated, "unknown": number in unknown, "translation": hypothesis.text}
            measures = asdict(report).items()
            yield row | {key: list(value) if isinstance(value, tuple) else value for key, value in measures}
