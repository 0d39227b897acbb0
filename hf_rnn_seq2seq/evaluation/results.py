"""Translations and scores of systems on a test set: how they are made, printed, and stored in a run's summary."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.errors import ArgumentError, AttentionError
from hf_rnn_seq2seq.evaluation.attention_agreement import attention_agreement
from hf_rnn_seq2seq.evaluation.describe import architecture
from hf_rnn_seq2seq.evaluation.error_analysis import AnalyzedSystem
from hf_rnn_seq2seq.evaluation.scores import LOWER_IS_BETTER, METRICS, ONE_REFERENCE, TITLES, nearest, score
from hf_rnn_seq2seq.evaluation.test_set import TestSet, default_metrics, read_test_set
from hf_rnn_seq2seq.generation.encoding import PictureSources, encode_sources, source_problems
from hf_rnn_seq2seq.generation.translate import number_of_beams, translate, translate_n_best
from hf_rnn_seq2seq.run_directory import (
    LEARNING_CURVE,
    LOG_FILE,
    RECIPE,
    SUMMARY,
    WEIGHTS,
    load_models,
    members,
    read_image_processor,
)

if TYPE_CHECKING:
    from hf_rnn_seq2seq.evaluation.pointing import Pointing

# Facts that an evaluation writes only if it measures them: those of an earlier one must not stay beside another search.
SCORES = frozenset(
    {*METRICS, *(f"{name}_interval" for name in METRICS), "attention_agreement", "aligned_words"}
    | {"pointing", "pointing_by_chance", "pointing_words"}
)
_LABELS = {**TITLES, "bleu": "BLEU", "char_bleu": "character BLEU", "chrf": "chrF", "chrf++": "chrF++"}


@dataclass
class System:
    """A directory's translations of a test set, and their scores."""

    name: str
    directory: str
    test_set: TestSet
    hypotheses: list[str]
    num_beams: int
    seconds: float
    scores: dict[str, Any] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)  # of `Encoded.counts`
    agreement: tuple[int, int] | None = None  # of `attention_agreement`
    pointing: Pointing | None = None

    def notes(self) -> list[str]:
        """Warnings about sources that the model did not read completely."""
        return source_problems(self.counts)


def translate_test_set(
    name: str,
    directory: str,
    test_set: TestSet,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    **options: Any,
) -> System:
    """Translates every source; `options` are those of `translate` (num_beams, batch_size, search, ...)."""
    start = time.perf_counter()
    limit = options.pop("max_source_length", None)
    encoded = picture_sources(directory, test_set, model) or encode_sources(tokenizer, test_set.sources, limit)
    hypotheses = translate(model, tokenizer, encoded, **options)
    seconds = time.perf_counter() - start
    beams = number_of_beams(model, options)
    return System(name, directory, test_set, hypotheses, beams, seconds, counts=encoded.counts())


def picture_sources(directory: str, test_set: TestSet, model: PreTrainedModel) -> PictureSources | None:
    """The pictures of a test set as the model reads them; None where the sources are texts.

    Raises:
        ArgumentError: the model reads the other.
    """
    reads = "pictures" if model.main_input_name == "pixel_values" else "text"
    given = "text" if test_set.pictures is None else "pictures"
    if reads != given:
        raise ArgumentError(f"{directory}: the model reads {reads}, the sources of the test set are {given}")
    if test_set.pictures is None:
        return None
    from hf_rnn_seq2seq.data.images import PixelReader

    read = PixelReader(test_set.pictures, read_image_processor(members(directory)[0]))
    return PictureSources.of(model, test_set.sources, read)


def measure_pointing(
    system: System, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **options: Any
) -> None:
    """Sets `system.pointing` if the test set knows where everything is and the model returns its attention.

    `options` are those of the captions that were scored, which are made again here.
    """
    test_set = system.test_set
    if test_set.pictures is None or not test_set.pictures.drawn:
        return
    from hf_rnn_seq2seq.evaluation.pointing import pointing

    sources = picture_sources(system.directory, test_set, model)
    with contextlib.suppress(AttentionError):
        captions = translate_n_best(model, tokenizer, sources, attention=True, **options)
        system.pointing = pointing(test_set.sources, [best for best, *_ in captions], tokenizer)


def score_system(system: System, metrics: Sequence[str], n_bootstrap: int = 0) -> None:
    """Sets `system.scores`; BLEU and chrF are always among them."""
    names = dict.fromkeys([*metrics, "bleu", "chrf"])
    system.scores = score(system.hypotheses, system.test_set.scored, tuple(names), n_bootstrap=n_bootstrap)


def measure_attention(
    system: System, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int = 64
) -> None:
    """Sets `system.agreement` if the test set has alignments and the model returns its attention."""
    test_set = system.test_set
    if test_set.alignments is not None:
        with contextlib.suppress(AttentionError):
            columns = (test_set.sources, test_set.references, test_set.alignments)
            system.agreement = attention_agreement(model, tokenizer, *columns, batch_size=batch_size)


def evaluate_systems(
    directories: Sequence[str],
    chosen: Mapping[str, Any],
    *,
    split: str = "test",
    metrics: Sequence[str] = (),
    n_bootstrap: int = 0,
    paired: bool = False,
    device: str | None = None,
    dtype: str | None = None,
    find_search: Callable[[PreTrainedModel], Callable[..., Any] | None] = lambda model: None,
    **options: Any,
) -> list[System]:
    """The translations and scores of each directory, or ensemble, on one test set (see `read_test_set` for `chosen`).

    `metrics` default to `default_metrics`, `paired` says that a paired test follows, `find_search` returns the search
    of a model, and `options` are those of `translate`.

    Raises:
        ArgumentError: the directories have different test sets; a metric or the paired test takes one reference of each
            source, and the test set has several.
    """
    systems: list[System] = []
    for directory in directories:
        model, tokenizer, others = load_models([directory], device=device, dtype=dtype, reads="anything")
        test_set = read_test_set(members(directory)[0], chosen, split)
        if systems and test_set.scored != systems[0].test_set.scored:
            raise ArgumentError(f"{directory}: its test set is not that of {directories[0]}; name one for both")
        single = [one for one in metrics if one in ONE_REFERENCE]
        if single and not test_set.one_reference_each:
            raise ArgumentError(
                f"scores={single[0]!r}: takes one reference of each source, and here are several; choose symbol_error"
            )
        if paired and not test_set.one_reference_each:
            raise ArgumentError("paired: a source with several references has no paired test; leave it out")
        name = directory.rstrip("/")
        name += " (again)" if name in [system.name for system in systems] else ""
        search = {"search": find_search(model)}
        if others:
            if search["search"] is not None:
                raise ArgumentError(f"{directory}: an ensemble decodes with the models' own search; leave --search out")
            search = {"ensemble": others}
        system = translate_test_set(name, directory, test_set, model, tokenizer, **search, **options)
        score_system(system, metrics or default_metrics(test_set), n_bootstrap)
        if not others:
            measure_attention(system, model, tokenizer, options.get("batch_size", 64))
            measure_pointing(system, model, tokenizer, **{k: v for k, v in options.items() if k != "max_source_length"})
        systems.append(system)
    return systems


def sample_rows(system: System, count: int = 5) -> list[dict[str, str]]:
    """Translations at evenly spaced positions of the test set."""
    total = len(system.hypotheses)
    chosen = sorted({(2 * position + 1) * total // (2 * count) for position in range(count)}) if total else []
    sources, references, texts = (
        [column[row] for row in chosen]
        for column in (system.test_set.sources, system.test_set.scored, system.hypotheses)
    )
    columns = zip(sources, nearest(texts, references), texts, strict=True)
    return [{"source": source, "reference": one, "translation": text} for source, one, text in columns]


def translation_rows(systems: Sequence[System]) -> Iterator[dict[str, Any]]:
    """Each sentence of the test set: `source`, `reference` (or all `references`), and `translations` by system."""
    test_set, names = systems[0].test_set, [system.name for system in systems]
    columns = zip(test_set.sources, test_set.scored, *(system.hypotheses for system in systems), strict=True)
    key = "reference" if test_set.several is None else "references"
    for source, expected, *texts in columns:
        yield {"source": source, key: expected, "translations": dict(zip(names, texts, strict=True))}


def summary_facts(system: System) -> dict[str, Any]:
    """The facts that a run's summary.json stores: scores, signatures, speed, beam and samples."""
    names = [key.removesuffix("_signature") for key in system.scores if key.endswith("_signature")]
    facts: dict[str, Any] = {name: system.scores[name] for name in names}
    facts |= {key: value for key, value in system.scores.items() if key.endswith("_interval")}
    facts |= {
        "signature": system.scores["bleu_signature"],
        "signatures": {name: system.scores[f"{name}_signature"] for name in names},
        "split": system.test_set.split,
        "num_beams": system.num_beams,
        "test_sentences": len(system.hypotheses),
        **system.test_set.facts(),
        "truncated_sources": system.counts["truncated"],
        "unknown_sources": system.counts["unknown"],
        "test_seconds": round(system.seconds, 3),
        "test_sentences_per_second": round(len(system.hypotheses) / max(system.seconds, 1e-9), 1),
        "samples": sample_rows(system),
    }
    if system.agreement is not None and system.agreement[1]:
        agreed, aligned_words = system.agreement
        facts |= {"attention_agreement": 100 * agreed / aligned_words, "aligned_words": aligned_words}
    if system.pointing is not None and system.pointing.words:
        found = system.pointing
        facts |= {"pointing": found.share, "pointing_by_chance": found.share_by_chance, "pointing_words": found.words}
    return facts


def score_table(systems: Sequence[System]) -> str:
    """One line per system: scores (with half of the 95 % interval if it was computed), beam, sentences, speed."""
    names = [key.removesuffix("_signature") for key in systems[0].scores if key.endswith("_signature")]
    header = ["system", *(TITLES.get(name, name) + (" ↓" if name in LOWER_IS_BETTER else "") for name in names)]
    rows = [[*header, "beam", "sentences", "sentences/s"]]
    for system in systems:
        cells = [system.name]
        for name in names:
            interval = system.scores.get(f"{name}_interval")
            cells.append(f"{system.scores[name]:.2f}" + (f" ± {interval:.2f}" if interval is not None else ""))
        speed = len(system.hypotheses) / max(system.seconds, 1e-9)
        rows.append([*cells, str(system.num_beams), str(len(system.hypotheses)), f"{speed:.1f}"])
    return "\n".join([format_table(rows), *notes(systems[0].test_set, systems)])


def notes(test_set: TestSet, systems: Sequence[System | AnalyzedSystem]) -> list[str]:
    """Warnings about the lines of a test set, and about the sources that a system did not read completely."""
    return [*test_set.notes(), *(f"{system.name}: {note}" for system in systems for note in system.notes())]


def format_table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns: the first aligned left, the others right, and a line under the header."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def run_summary(directory: str | os.PathLike[str], summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """The architecture, training, scores, sample translations and files of a run."""

    lines = [f"{directory}: {architecture(config)}"]
    facts = []
    if summary.get("parameters"):
        facts.append(f"{summary['parameters']:,} parameters")
    if summary.get("train_seconds"):
        minutes, seconds = divmod(round(summary["train_seconds"]), 60)
        facts.append(f"trained for {minutes} min {seconds:02d} s")
    if summary.get("target_tokens_per_second"):
        facts.append(f"{summary['target_tokens_per_second']:,.0f} target tokens/s")
    if facts:
        lines.append(", ".join(facts))
    for name in dict.fromkeys([*TITLES, *METRICS]):
        if name in summary:
            signature = (summary.get("signatures") or {}).get(name, "")
            lines.append(f"{_LABELS.get(name, name)} {summary[name]:.2f}   {signature}")
    if "num_beams" in summary:
        search = "greedy" if summary["num_beams"] == 1 else f"beam {summary['num_beams']}"
        lines.append(f"on {summary.get('test_sentences', '?')} sentences of the {summary.get('split')} split, {search}")
    if "attention_agreement" in summary:
        share, words = summary["attention_agreement"], summary["aligned_words"]
        lines.append(f"attention {share:.2f} %   of {words:,} aligned words attend most to the word they come from")
    if "pointing" in summary:
        share, words, chance = (summary[name] for name in ("pointing", "pointing_words", "pointing_by_chance"))
        lines.append(
            f"pointing {share:.2f} %   of {words:,} words look inside the box of their object "
            f"({chance:.2f} % by chance)"
        )
    for sample in summary.get("samples", [])[:5]:
        verdict = "=" if sample["translation"] == sample["reference"] else "≠"
        lines += ["", f"  source       {sample['source']}", f"  translation  {sample['translation']}"]
        lines.append(f"  reference  {verdict} {sample['reference']}")
    files = {
        "checkpoint": WEIGHTS,
        "options": RECIPE,
        "log": LOG_FILE,
        "learning curve": LEARNING_CURVE,
        "facts": SUMMARY,
    }
    paths = {label: Path(directory) / name for label, name in files.items()}
    return "\n".join([*lines, "", *(f"  {label:<15}{path}" for label, path in paths.items() if path.exists())])
