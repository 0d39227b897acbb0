"""The test set that a run is evaluated on: its own test split, or the data that options name."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hf_rnn_seq2seq.data.arguments import ROW_LIMITS
from hf_rnn_seq2seq.errors import ArgumentError, DataError
from hf_rnn_seq2seq.evaluation.scores import OF_WORDS, merged
from hf_rnn_seq2seq.run_directory import (
    ROW_FORMAT,
    data_options,
    model_kind,
    recipe_options,
    refuse_ensemble,
    require_kind,
)

if TYPE_CHECKING:
    from hf_rnn_seq2seq.data.corpus import Corpus
    from hf_rnn_seq2seq.data.images import Pictures

logger = logging.getLogger(__name__)

# Languages without spaces between words, or whose words are phrases: BLEU over characters is more informative.
CHARACTER_LANGUAGES = frozenset({"ja", "ko", "zh", "yue", "th", "lo", "km", "my"})


@dataclass(frozen=True)
class TestSet:
    """Sentence pairs to translate and score."""

    __test__ = False  # not a test case of pytest

    sources: list[str]
    references: list[str]
    split: str
    own: bool  # the run's own test split, whose scores its summary keeps
    description: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)  # reason -> rows of the file that are not scored
    alignments: Sequence[str | None] | None = None  # word alignments in Pharaoh's format, if the data has them
    pictures: Pictures | None = None  # where the sources are names of pictures
    several: Sequence[Sequence[str]] | None = None  # all references of each source; `references` has the first
    best_metric: str | None = None  # that chose the best checkpoint of the run

    @property
    def scored(self) -> Sequence[str] | Sequence[Sequence[str]]:
        """What outputs are scored against."""
        return self.references if self.several is None else self.several

    @property
    def one_reference_each(self) -> bool:
        """Whether no source has several references, as metrics and tests of one reference require."""
        return self.several is None or all(len(row) == 1 for row in self.several)

    def facts(self) -> dict[str, Any]:
        """Numbers of lines: of the file, left out of the scores, and scored although a side is empty."""
        lines = (self.description.get("lines") or {}).get(self.split, len(self.sources))
        return {
            "test_lines": lines,
            "left_out": dict(self.left_out),
            "empty_sources": sum(not text.strip() for text in self.sources),
            "empty_references": sum(not text.strip() for text in self.references),
        }

    def notes(self) -> list[str]:
        """The same in sentences, for lines that are not ordinary pairs."""
        facts = self.facts()
        notes = [
            f"{self.left_out[reason]} of {facts['test_lines']} lines left out: {reason}" for reason in self.left_out
        ]
        for side in ("sources", "references"):
            if count := facts[f"empty_{side}"]:
                notes.append(f"{count} of {len(self.sources)} {side} are empty and scored as they are")
        return notes


def read_test_set(directory: str | os.PathLike[str], chosen: Mapping[str, Any], split: str = "test") -> TestSet:
    """The pairs to translate: those of the `chosen` data options, else those of the run's own data.

    A data set or file in `chosen` replaces the run's; a file with the columns of the run needs no names of them. Other
    options alone override the run's one by one.

    Raises:
        ArgumentError: no option names the data, the split does not exist, or it has no usable row.
        CheckpointError: the directory holds several models, or one that reads no pairs.
        DataError: the data cannot be read.
    """
    from hf_rnn_seq2seq.data.corpus import columns_of_run

    given = {key: value for key, value in chosen.items() if value is not None}
    refuse_ensemble(directory)
    kind = model_kind(directory)
    if kind in ("Handwriting", "CausalLM"):
        require_kind(directory, "Seq2SeqLM")
    recorded = data_options(directory)
    options = {} if "dataset_name" in given else dict(recorded)
    if "test_file" in given:
        # Without a header columns are places, which another file has too.
        form = ROW_FORMAT if recorded.get("header", True) else (*ROW_FORMAT, "source_column", "target_column")
        options = {name: recorded[name] for name in form if name in recorded}
        options |= columns_of_run(options | given, recorded, "test")
    options |= given
    if kind == "SequenceClassification":
        options["task"] = "classification"
    if not any(key in options for key in ("dataset_name", "train_file", "test_file")):
        raise ArgumentError(
            f"{directory}: has no recipe.yaml that says what it was trained on; name the data, "
            "with --dataset_name or --test_file"
        )
    if "dataset_name" not in options and f"{split}_file" not in options:
        other = "validation" if split == "test" else "test"
        more = f", or --split {other}" if f"{other}_file" in options else ""
        raise ArgumentError(f"{split}_file=None: {directory} names no {split} file; give --test_file{more}")
    if "max_predict_samples" in given:
        options[ROW_LIMITS[split]] = given["max_predict_samples"]
    corpus = _load_split(options, split, required="alignment_column" in given)
    if split not in corpus.splits:
        raise ArgumentError(f"{directory}: the data has no {split} split; it has: {', '.join(corpus.splits) or 'none'}")
    rows = corpus.splits[split]
    if corpus.notes.get(split):
        logger.warning("%s: %s", split, corpus.notes[split])
    if not len(rows):
        raise ArgumentError(f"{directory}: the {split} split has no usable row")
    sources, references = [str(text) for text in rows["source"]], [str(text) for text in rows["target"]]
    several, alignments = None, list(rows["alignment"]) if "alignment" in rows.column_names else None
    captions = options.get("task") == "captioning"
    if options.get("several_references") or captions:
        texts = sources
        sources, several = merged(texts, references)
        if alignments is not None:  # that of the first reference
            first = dict(zip(reversed(texts), reversed(alignments), strict=True))
            alignments = [first[source] for source in sources]
        references = [row[0] for row in several]
    return TestSet(
        sources=sources,
        references=references,
        several=several,
        pictures=_pictures(options, sources) if captions else None,
        best_metric=recipe_options(directory).get("metric_for_best_model"),
        split=split,
        own=not given.keys() - {"alignment_column"} and split == "test",
        description=dict(corpus.description),
        left_out=corpus.skipped[split],
        alignments=alignments,
    )


def _pictures(options: Mapping[str, Any], names: Sequence[str]) -> Pictures:
    """The pictures of a test set; raises DataError if some are missing."""
    from hf_rnn_seq2seq.data.arguments import DataArguments
    from hf_rnn_seq2seq.data.images import Pictures

    wanted = ("task", "dataset_name", "dataset_config_name", "test_file", "image_folder", "source_column")
    shown = Pictures.of(DataArguments(**{name: options[name] for name in wanted if name in options}))
    shown.require(names)
    return shown


def _load_split(options: Mapping[str, Any], split: str, required: bool) -> Corpus:
    """The corpus with one split, and its alignments if it has them; without `required` ones it raises DataError."""
    from hf_rnn_seq2seq.data.arguments import DataArguments
    from hf_rnn_seq2seq.data.corpus import load_corpus

    options = dict(options)
    if options.get("dataset_name") == "cldr":
        options.setdefault("alignment_column", "alignment")
    data, only = DataArguments(**options), {"splits": (split,), "keep_empty": (split,)}
    try:
        return load_corpus(data, **only, aligned_splits=(split,))
    except DataError:
        if required or data.alignment_column is None:
            raise
        return load_corpus(data, **only, aligned_splits=())


def default_metrics(test_set: TestSet) -> list[str]:
    """BLEU and chrF, and BLEU over characters for languages without spaces; of models of words `OF_WORDS`."""
    if test_set.best_metric in OF_WORDS:
        return list(OF_WORDS[test_set.best_metric])
    language = str(test_set.description.get("target_lang") or "").replace("_", "-").split("-")[0].lower()
    return ["bleu", "chrf", *(["char_bleu"] if language in CHARACTER_LANGUAGES else [])]
