"""The test set of a run, the scores of systems on it, and what is printed and kept of them."""

import contextlib
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hf_rnn_seq2seq.errors import AttentionError, EvaluationError
from hf_rnn_seq2seq.evaluation.metrics import LOWER_IS_BETTER
from hf_rnn_seq2seq.generation.translate import attention_agreement, encode_sources, score, source_problems, translate
from hf_rnn_seq2seq.run_directory import data_options

logger = logging.getLogger(__name__)

# Languages written without spaces, or whose words are whole phrases: BLEU over words says little, over characters more.
CHARACTER_LANGUAGES = frozenset({"ja", "ko", "zh", "yue", "th", "lo", "km", "my"})
ROW_LIMITS = {"train": "max_train_samples", "validation": "max_eval_samples", "test": "max_predict_samples"}


@dataclass(frozen=True)
class TestSet:
    """Sentence pairs, and whether they are the run's own test split (whose scores its summary keeps)."""

    __test__ = False  # not a test case, whatever its name says to pytest

    sources: list[str]
    references: list[str]
    split: str
    own: bool
    description: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> rows of the file that are in no figure
    alignments: Sequence[str | None] | None = None  # which words stand for each other, where the data says so

    def facts(self) -> dict[str, Any]:
        """How many lines there are, what is left out of the figures, and how many are scored with an empty side."""
        lines = (self.description.get("lines") or {}).get(self.split, len(self.sources))
        return {
            "test_lines": lines,
            "left_out": dict(self.left_out),
            "empty_sources": sum(not text.strip() for text in self.sources),
            "empty_references": sum(not text.strip() for text in self.references),
        }

    def notes(self) -> list[str]:
        """The same in sentences, for the lines that are not plain pairs; none where all are."""
        facts = self.facts()
        found = [
            f"{self.left_out[reason]} of {facts['test_lines']} lines left out: {reason}" for reason in self.left_out
        ]
        for side in ("sources", "references"):
            if count := facts[f"empty_{side}"]:
                found.append(f"{count} of {len(self.sources)} {side} are empty and scored as they are")
        return found


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
    counts: Counter[str] = field(default_factory=Counter)  # of `evaluation.Encoded`
    agreement: tuple[int, int] | None = None  # of `evaluation.attention_agreement`

    def notes(self) -> list[str]:
        """What is said beside the scores: sources that the model could not read whole."""
        return source_problems(self.counts)


def read_test_set(directory: str | os.PathLike[str], chosen: Mapping[str, Any], split: str = "test") -> TestSet:
    """The pairs to translate: those that `chosen` data options name, else those the run was trained beside.

    A data set or file in `chosen` replaces the run's; other options alone override the run's one by one. Raises
    EvaluationError when neither says what to read or the split does not exist; DataError comes from the reading.
    """
    given = {key: value for key, value in chosen.items() if value is not None}
    own = data_options(directory)
    options = given if "dataset_name" in given or "test_file" in given else own | given
    if not any(key in options for key in ("dataset_name", "train_file", "test_file")):
        raise EvaluationError(
            f"{directory}: has no recipe.yaml that says what it was trained on; name the data, "
            "with --dataset_name or --test_file"
        )
    if "data_seed" in options:
        options["seed"] = options.pop("data_seed")
    if "max_predict_samples" in options:
        options[ROW_LIMITS[split]] = options.pop("max_predict_samples")
    corpus = _load_split(options, split, required="alignment_column" in given)
    if split not in corpus.splits:
        raise EvaluationError(
            f"{directory}: the data has no {split} split; it has: {', '.join(corpus.splits) or 'none'}"
        )
    rows = corpus.splits[split]
    if corpus.notes.get(split):
        logger.warning("%s: %s", split, corpus.notes[split])
    if not len(rows):
        raise EvaluationError(f"{directory}: the {split} split has no usable row")
    sources, references = [str(text) for text in rows["source"]], [str(text) for text in rows["target"]]
    own_split = not given.keys() - {"alignment_column"} and split == "test"
    alignments = list(rows["alignment"]) if "alignment" in rows.column_names else None
    return TestSet(sources, references, split, own_split, dict(corpus.description), corpus.skipped[split], alignments)


def _load_split(options: dict[str, Any], split: str, required: bool) -> Any:
    """The corpus with one split, and its alignments where it has them; `required` ones are an error where not."""
    from hf_rnn_seq2seq.data.corpus import DataError, load_corpus

    options = {**options, "splits": (split,), "keep_empty": (split,)}
    if options.get("dataset_name") == "cldr":
        options.setdefault("alignment_column", "alignment")
    try:
        return load_corpus(**options, aligned_splits=(split,))
    except DataError:
        if required or "alignment_column" not in options:
            raise
        return load_corpus(**options, aligned_splits=())


def measure_attention(system: System, model: Any, tokenizer: Any, batch_size: int = 64) -> None:
    """Fill `system.agreement`, where the test set has alignments and the model shows its attention."""
    test_set = system.test_set
    if test_set.alignments is not None:
        with contextlib.suppress(AttentionError):
            columns = (test_set.sources, test_set.references, test_set.alignments)
            system.agreement = attention_agreement(model, tokenizer, *columns, batch_size=batch_size)


def default_metrics(test_set: TestSet) -> list[str]:
    """BLEU and chrF, and BLEU over characters where the target language asks for it."""
    language = str(test_set.description.get("target_lang") or "").replace("_", "-").split("-")[0].lower()
    return ["bleu", "chrf", *(["char_bleu"] if language in CHARACTER_LANGUAGES else [])]


def translate_test_set(
    name: str, directory: str, test_set: TestSet, model: Any, tokenizer: Any, **options: Any
) -> System:
    """Translate every source; `options` go to `translate` (num_beams, batch_size, search, ...)."""
    start = time.perf_counter()
    encoded = encode_sources(tokenizer, test_set.sources, options.pop("max_source_length", None))
    hypotheses = translate(model, tokenizer, encoded, **options)
    seconds = time.perf_counter() - start
    beams = options.get("num_beams") or model.generation_config.num_beams or 1
    return System(name, directory, test_set, hypotheses, beams, seconds, counts=encoded.counts())


def score_system(system: System, metrics: Sequence[str], n_bootstrap: int = 0) -> None:
    """Fill `system.scores`; BLEU and chrF are always among them."""
    names = dict.fromkeys([*metrics, "bleu", "chrf"])
    system.scores = score(system.hypotheses, system.test_set.references, tuple(names), n_bootstrap=n_bootstrap)


def sample_rows(system: System, count: int = 5) -> list[dict[str, str]]:
    """Translations spread evenly over the test set, the same ones every time."""
    total = len(system.hypotheses)
    chosen = sorted({(2 * position + 1) * total // (2 * count) for position in range(count)}) if total else []
    columns = (system.test_set.sources, system.test_set.references, system.hypotheses)
    return [
        dict(zip(("source", "reference", "translation"), (column[row] for column in columns), strict=True))
        for row in chosen
    ]


def summary_facts(system: System) -> dict[str, Any]:
    """What a run's summary.json keeps of its test: scores, signatures, speed, beam and samples."""
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
    return facts


def score_table(systems: Sequence[System]) -> str:
    """One line a system: scores (with half of the 95 % interval where it was asked for), length, speed."""
    names = [key.removesuffix("_signature") for key in systems[0].scores if key.endswith("_signature")]
    header = ["system", *(name + (" ↓" if name in LOWER_IS_BETTER else "") for name in names)]
    rows = [[*header, "beam", "sentences", "sentences/s"]]
    for system in systems:
        cells = [system.name]
        for name in names:
            interval = system.scores.get(f"{name}_interval")
            cells.append(f"{system.scores[name]:.2f}" + (f" ± {interval:.2f}" if interval is not None else ""))
        speed = len(system.hypotheses) / max(system.seconds, 1e-9)
        rows.append([*cells, str(system.num_beams), str(len(system.hypotheses)), f"{speed:.1f}"])
    return "\n".join([aligned(rows), *notes(systems[0].test_set, systems)])


def notes(test_set: TestSet, systems: Sequence[Any]) -> list[str]:
    """What is said beside the scores of systems on one test set: lines left out or empty, sources not read whole."""
    return [*test_set.notes(), *(f"{system.name}: {note}" for system in systems for note in system.notes())]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows as columns: the first to the left, the others to the right, a rule under the header."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    pad: Callable[[int, str], str] = lambda column, cell: (  # noqa: E731
        cell.ljust(widths[column]) if column == 0 else cell.rjust(widths[column])
    )
    lines = ["  ".join(pad(column, cell) for column, cell in enumerate(row)).rstrip() for row in rows]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def run_summary(directory: str | os.PathLike[str], summary: Mapping[str, Any], config: Mapping[str, Any]) -> str:
    """What was trained, for how long, how it scores, what it says, and where its files are."""
    from hf_rnn_seq2seq.hub.card_text import architecture

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
    for name, label in (("bleu", "BLEU"), ("char_bleu", "character BLEU"), ("chrf", "chrF")):
        if name in summary:
            signature = (summary.get("signatures") or {}).get(name, "")
            lines.append(f"{label} {summary[name]:.2f}   {signature}")
    if "num_beams" in summary:
        search = "greedy" if summary["num_beams"] == 1 else f"beam {summary['num_beams']}"
        lines.append(f"on {summary.get('test_sentences', '?')} sentences of the {summary.get('split')} split, {search}")
    if "attention_agreement" in summary:
        share, words = summary["attention_agreement"], summary["aligned_words"]
        lines.append(f"attention {share:.2f} %   of {words:,} aligned words attend most to the word they come from")
    for sample in summary.get("samples", [])[:5]:
        verdict = "=" if sample["translation"] == sample["reference"] else "≠"
        lines += ["", f"  source       {sample['source']}", f"  translation  {sample['translation']}"]
        lines.append(f"  reference  {verdict} {sample['reference']}")
    files = {
        "checkpoint": "model.safetensors",
        "options": "recipe.yaml",
        "log": "train_log.jsonl",
        "learning curve": "learning_curve.png",
        "facts": "summary.json",
    }
    found = [(label, Path(directory) / name) for label, name in files.items() if (Path(directory) / name).exists()]
    return "\n".join([*lines, "", *(f"  {label:<15}{path}" for label, path in found)])
