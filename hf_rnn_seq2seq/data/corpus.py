"""Corpora (embedded, local files, saved data sets, the Hub) -> splits of two text columns.

Rows are written once into the cache of `datasets` (`HF_HOME`, `HF_DATASETS_CACHE`) and memory-mapped from there; the
cache key holds the content of the files, so a changed file is never served from an old cache.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value
from datasets.exceptions import DatasetGenerationError

from hf_rnn_seq2seq.data.batching import Collator, plan_batches
from hf_rnn_seq2seq.data.readers import SPANS, Columns, checked, listed, read_aligned, read_rows, split_paths
from hf_rnn_seq2seq.data.token_columns import AnyDataset, tokenize_corpus
from hf_rnn_seq2seq.errors import DataError, is_out_of_memory, listed_names, reading, reason
from hf_rnn_seq2seq.files import content_hash, digest

__all__ = ["Collator", "Corpus", "DataError", "load_corpus", "plan_batches", "tokenize_corpus"]

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
EMPTY = ("empty_source", "empty_target")
CLDR_ROWS = {"train": 20_000, "validation": 1_000, "test": 1_000}
CLDR_SHARD = 50_000

_CLOSE = "where that is not meant, a quote was opened and not closed"
logger = logging.getLogger(__name__)

_TEXT = {"source": Value("string"), "target": Value("string"), "id": Value("int64")}
_ALIGNED = _TEXT | {"alignment": Value("string")}


@dataclass(frozen=True)
class Corpus:
    """Parallel text, ready to be tokenised.

    Attributes:
        splits: those of train, validation and test that exist; text columns `source` and `target`, int64 column `id`
            (row number within its split).
        skipped: split -> reason -> number of rows that could not be used and were left out (empty_source, empty_target,
            wrong_field_count, not_text). Not known beforehand, hence empty, when streaming.
        description: name, config, source_lang, target_lang, licence, lines (of each split, as they were found), rows
            (of each split, as they are used), fingerprint (content hash), streaming.
        notes: split -> which of its rows span lines, empty where none does. When streaming, both are warnings instead.
    """

    splits: DatasetDict | IterableDatasetDict
    skipped: dict[str, dict[str, int]]
    description: dict[str, Any]
    notes: dict[str, str] = field(default_factory=dict)

    def left_out(self, split: str, more: Mapping[str, int] = {}) -> str:  # noqa: B006  never changed
        """What was left out of a split, `more` being what happened later, and its note: for a line that reports it."""
        counts = listed({**self.skipped.get(split, {}), **more}) or "none"
        return "; ".join(filter(None, (f"left out: {counts}", self.notes.get(split))))


def load_corpus(
    dataset_name: str | None = None,
    dataset_config_name: str | None = None,
    *,
    train_file: str | Path | Sequence[str | Path] | None = None,
    validation_file: str | Path | Sequence[str | Path] | None = None,
    test_file: str | Path | Sequence[str | Path] | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
    source_column: str | None = None,
    target_column: str | None = None,
    alignment_file: str | Path | None = None,
    alignment_column: str | None = None,
    max_train_samples: int | None = None,
    max_eval_samples: int | None = None,
    max_predict_samples: int | None = None,
    seed: int = 0,
    streaming: bool = False,
    splits: Sequence[str] = SPLITS,
    keep_empty: Sequence[str] = ("validation", "test"),
    aligned_splits: Sequence[str] = ("train",),
) -> Corpus:
    """Loads a corpus by name or from files.

    Args:
        dataset_name: `cldr`, the folder of a data set saved by `save_to_disk`, or a name on the Hub.
        dataset_config_name: for `cldr` two locales, as `en-fr` or `en-pt_BR`; on the Hub the configuration.
        train_file, validation_file, test_file: a table (.tsv, .csv, .jsonl, .json, .parquet) or two parallel text
            files, as a sequence or joined by a comma; each may be gzipped. Instead of dataset_name.
        source_lang, target_lang: locales of `cldr`; keys of a `translation` column; names of the columns when
            source_column and target_column are not given.
        source_column, target_column: columns of a table (numbers: positions in a table without header).
        alignment_file, alignment_column: word alignments in Pharaoh's format (`0-0 1-2`): a text file with a line for
            each row of train_file, or a column (of `cldr`: `alignment`). They become the text column `alignment`.
        max_train_samples, max_eval_samples, max_predict_samples: rows of train, validation, test. `cldr` generates that
            many (default 20,000, 1,000, 1,000); elsewhere the first that many usable rows.
        seed: draws the train rows of `cldr`; its validation and test rows are the same for every seed.
        streaming: read rows as they are needed instead of writing the cache first.
        splits: which splits to load.
        keep_empty: splits whose rows may have an empty side. What is scored counts every row; nothing is learnt from an
            empty one.
        aligned_splits: splits that get the column `alignment`, if alignments are given. Training asks for them.

    Raises:
        DataError: an unknown name, file, column or locale; a file that is empty, damaged, not UTF-8 or not parallel; a
            split of which no row has text on one side.
    """
    limits = {"train": max_train_samples, "validation": max_eval_samples, "test": max_predict_samples}
    for option, limit in zip(("max_train_samples", "max_eval_samples", "max_predict_samples"), limits.values()):  # noqa: B905
        if limit is not None and limit < 1:
            raise DataError(f"{option}={limit}: must be at least 1")
    if unknown := [split for split in splits if split not in SPLITS]:
        raise DataError(f"splits: {unknown[0]!r} is not a split; allowed are {', '.join(SPLITS)}")
    named = {"train": train_file, "validation": validation_file, "test": test_file}
    files = {split: split_paths(value) for split, value in named.items() if value and split in splits}
    if (dataset_name is None) == (not any(named.values())):
        raise DataError("give either dataset_name ('cldr', a saved folder, a Hub name) or train_file and its kind")

    aligned = (str(alignment_file) if alignment_file else None, alignment_column)
    if any(aligned) and (all(aligned) or (aligned[0] and (dataset_name or not train_file))):
        raise DataError(
            f"alignment_file={aligned[0]!r}, alignment_column={aligned[1]!r}: give one of them, a file beside "
            "train_file, or a column of train_file or of a data set"
        )
    description: dict[str, Any] = {"name": dataset_name, "config": dataset_config_name, "licence": None}
    description |= {"source_lang": source_lang, "target_lang": target_lang}
    if dataset_name == "cldr":
        if alignment_column not in (None, "alignment"):
            raise DataError(f"alignment_column={alignment_column!r}: the column of cldr is 'alignment'")
        found, facts = _load_cldr(dataset_config_name, source_lang, target_lang, limits, seed, streaming, splits)
        unasked = [split for split in found if alignment_column is None or split not in aligned_splits]
        found |= {split: found[split].remove_columns("alignment") for split in unasked}
    elif dataset_name is None:
        columns = (source_column, target_column, source_lang, target_lang)
        found, facts = _load_files(files, columns, aligned, streaming, aligned_splits)
    else:
        columns = (source_column, target_column, source_lang, target_lang)
        named = {split: alignment_column for split in aligned_splits}
        found, facts = _load_named(dataset_name, dataset_config_name, columns, named, streaming, splits)
    kept, skipped, notes = {}, {}, {}
    for split, rows in found.items():
        allowed = EMPTY if split in keep_empty else ()
        kept[split], skipped[split], notes[split] = _usable(rows, split, limits[split], allowed)
    description |= facts
    description["lines"] = None if streaming else {split: len(rows) for split, rows in found.items()}
    description["rows"] = None if streaming else {split: len(rows) for split, rows in kept.items()}
    description["streaming"] = streaming
    return Corpus((IterableDatasetDict if streaming else DatasetDict)(kept), skipped, description, notes)


Loaded = tuple[dict[str, AnyDataset], dict[str, Any]]


def _load_cldr(
    config: str | None,
    source: str | None,
    target: str | None,
    limits: dict[str, int | None],
    seed: int,
    streaming: bool,
    splits: Sequence[str],
) -> Loaded:
    try:
        from hf_rnn_seq2seq.data import cldr
    except ModuleNotFoundError as error:
        raise DataError("dataset_name 'cldr' needs Babel: pip install 'hf_rnn_seq2seq[train]'") from error

    if config is not None:
        pair = cldr.parse_pair(config)
        for name, given, parsed in (("source_lang", source, pair[0]), ("target_lang", target, pair[1])):
            if given is not None and cldr.parse_locale(given) != cldr.parse_locale(parsed):
                raise DataError(f"{name}={given!r} contradicts dataset_config_name={config!r}")
        source, target = pair
    if source is None or target is None:
        raise DataError("cldr needs dataset_config_name, as 'en-fr', or source_lang and target_lang")
    book = cldr.phrase_book(source, target)
    source, target = map(str, book.locales)
    version = cldr.generator_version()
    found: dict[str, AnyDataset] = {}
    for split in (split for split in SPLITS if split in splits):
        rows = limits[split] or CLDR_ROWS[split]
        step = CLDR_SHARD if split == "train" else rows  # only train rows can be drawn independently of each other
        arguments: dict[str, Any] = {
            "source": source,
            "target": target,
            "split": split,
            "seed": seed if split == "train" else 0,
            "ranges": [(start, min(start + step, rows)) for start in range(0, rows, step)],
            "version": version,
        }
        found[split] = _generated(cldr.generate, arguments, _ALIGNED, split, streaming, len(arguments["ranges"]))
    facts = {"config": f"{source}-{target}", "source_lang": source, "target_lang": target, "licence": cldr.LICENCE}
    facts["fingerprint"] = digest([source, target, seed, version, {split: limits[split] for split in found}])
    return found, facts


def _load_files(
    files: dict[str, list[Path]],
    columns: tuple[str | None, ...],
    aligned: tuple[str | None, str | None],
    streaming: bool,
    aligned_splits: Sequence[str],
) -> Loaded:
    if not files:
        raise DataError("none of the files given belongs to the splits asked for")
    found: dict[str, AnyDataset] = {}
    hashes = {}
    for split, paths in files.items():
        beside = (aligned[0] if split == "train" else None, aligned[1]) if split in aligned_splits else (None, None)
        if beside[0] is not None and not Path(beside[0]).is_file():
            raise DataError(f"alignment_file {beside[0]} does not exist")
        hashes[split] = content_hash([*paths, *map(Path, filter(None, beside[:1]))])
        # Wrapped in tuples because `datasets` takes every list for shards.
        arguments = {
            "paths": tuple(map(os.path.abspath, paths)),
            "columns": columns,
            "aligned": (beside[0] and os.path.abspath(beside[0]), beside[1]),
            "content": hashes[split],
            "version": content_hash([Path(__file__).with_name("readers.py")]),
        }
        features = (_ALIGNED if any(beside) else _TEXT) | {"problem": Value("string")}
        found[split] = _generated(_file_rows, arguments, features, split, streaming)
    names = {split: [path.name for path in paths] for split, paths in files.items()}
    return found, {"files": names, "fingerprint": digest([hashes, columns, *filter(None, aligned[1:])])}


def _file_rows(
    paths: tuple[str, ...],
    columns: tuple[str | None, ...],
    aligned: tuple[str | None, str | None],
    content: str,
    version: str,
) -> Iterator[dict[str, Any]]:
    """Rows for `datasets`' generators; `content` and `version` only mark the cache."""
    names = ("source_column", "target_column", "source_lang", "target_lang")
    given, files = dict(zip(names, columns, strict=True)), list(map(Path, paths))
    if any(aligned):
        for number, (source, target, problem, alignment) in enumerate(read_aligned(files, *aligned, **given)):
            yield {"source": source, "target": target, "problem": problem, "id": number, "alignment": alignment}
        return
    for number, (source, target, problem) in enumerate(read_rows(files, **given)):
        yield {"source": source, "target": target, "problem": problem, "id": number}


def _generated(
    generator: Callable[..., Iterator[dict[str, Any]]],
    arguments: dict[str, Any],
    features: dict[str, Any],
    split: str,
    streaming: bool,
    shards: int = 1,
) -> AnyDataset:
    options: dict[str, Any] = {"features": Features(features), "gen_kwargs": arguments, "split": datasets.Split(split)}
    if streaming:
        return IterableDataset.from_generator(generator, **options)
    workers = min(shards, os.cpu_count() or 1)
    try:
        return Dataset.from_generator(generator, num_proc=workers if workers > 1 else None, **options)
    except DatasetGenerationError as error:
        cause: BaseException = error
        while cause.__cause__ is not None and not isinstance(cause, DataError):
            cause = cause.__cause__
        if isinstance(cause, DataError) or is_out_of_memory(cause):
            raise cause from None
        cache = datasets.config.HF_DATASETS_CACHE
        raise DataError(f"{split}: its rows cannot be written to the cache in {cache} ({reason(cause)})") from error


def _load_named(
    name: str,
    config: str | None,
    columns: tuple[str | None, ...],
    alignments: dict[str, str | None],
    streaming: bool,
    splits: Sequence[str],
) -> Loaded:
    path = Path(name)
    try:
        if path.is_dir():
            if not any((path / marker).is_file() for marker in ("dataset_dict.json", "state.json")):
                raise DataError(
                    f"dataset_name {name!r} is a folder, but not one that datasets' save_to_disk wrote; "
                    "files are given as train_file, validation_file, test_file"
                )
            loaded: Any = datasets.load_from_disk(str(path))
        elif path.exists():
            raise DataError(f"dataset_name {name!r} is a file; give it as train_file, validation_file or test_file")
        else:
            loaded = datasets.load_dataset(name, config, streaming=streaming)
    except DataError:
        raise
    except Exception as error:  # of datasets, its file systems, Arrow and the Hub's client
        if is_out_of_memory(error):
            raise
        raise DataError(f"dataset_name {name!r}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    if isinstance(loaded, (Dataset, IterableDataset)):
        loaded = {"train": loaded}
    found: dict[str, AnyDataset] = {}
    for split in (split for split in SPLITS if split in splits):
        for alias in SPLIT_NAMES[split]:
            if alias in loaded:
                rows = loaded[alias].to_iterable_dataset() if streaming and path.is_dir() else loaded[alias]
                where = f"dataset {name!r}, split {alias!r}"
                found[split] = _two_columns(rows, Columns(*columns), alignments.get(split), where)
                break
    if not found:
        raise DataError(f"dataset {name!r} has none of the splits {', '.join(splits)}; it has {', '.join(loaded)}")
    facts: dict[str, Any] = {"name": path.name if path.is_dir() else name}
    facts["licence"] = next(iter(loaded.values())).info.license or None
    if not streaming:
        facts["fingerprint"] = digest({split: rows._fingerprint for split, rows in found.items()})
    return found, facts


def _two_columns(rows: AnyDataset, columns: Columns, alignment: str | None, where: str) -> AnyDataset:
    with reading(where, DataError):
        first = next(iter(rows), {}) if rows.column_names is None else {}
        names = rows.column_names or list(first)
        nested = (rows.features or {}).get("translation", first.get("translation"))
    kept = columns.wanted(names, where)
    languages = getattr(nested, "languages", nested)
    if kept == ["translation"] and isinstance(languages, (dict, list)):
        columns.require(list(languages), f"{where}, column 'translation'")
    if alignment is not None and alignment not in names:
        raise DataError(f"{where}: no column {alignment!r} (alignment_column); it has {listed_names(names)}")
    rows = rows.select_columns([*kept, *filter(None, [alignment])])
    if isinstance(rows, Dataset) and not len(rows):
        raise DataError(f"{where} holds no rows")
    features = (_ALIGNED if alignment else _TEXT) | {"problem": Value("string")}
    with reading(where, DataError):
        return rows.map(
            _pair,
            with_indices=True,
            remove_columns=rows.column_names,
            features=Features(features),
            fn_kwargs={"columns": columns, "alignment": alignment, "where": where},
        )


def _pair(row: dict[str, Any], number: int, columns: Columns, alignment: str | None, where: str) -> dict[str, Any]:
    source, target, problem = checked(*columns.pick(row, where))
    more = {"alignment": row[alignment]} if alignment else {}
    if more and not isinstance(row[alignment], (str, type(None))):
        raise DataError(f"{where}, row {number}, column {alignment!r}: a text such as '0-0 1-2' is expected")
    return {"source": source, "target": target, "problem": problem, "id": number, **more}


def _usable(
    rows: AnyDataset, split: str, limit: int | None, allowed: Sequence[str]
) -> tuple[AnyDataset, dict[str, int], str]:
    """Leaves out the rows whose problem is not allowed and counts them; ids then number what is left.

    The last value says which of the rows left span lines.
    """
    skipped: dict[str, int] = {}
    spanning = ""
    if isinstance(rows, IterableDataset):
        if "problem" in (rows.features or {}):
            rows = rows.filter(_Sound(split, allowed), input_columns=["problem", "id"]).remove_columns("problem")
        return rows.take(limit) if limit is not None else rows, skipped, spanning
    if "problem" in rows.column_names:
        problems = rows.with_format("arrow")["problem"]
        counts = Counter(p for chunk in _arrow_batches(problems) for p in chunk if p is not None)
        skipped = {p: count for p, count in sorted(counts.items()) if not _is_sound(p, allowed)}
        spanning = _spanning(counts)
        if sum(skipped.values()) == len(rows):
            raise DataError(f"{split}: no usable row among {len(rows)} ({listed(skipped)})")
        if skipped:
            rows = rows.filter(_is_sound, input_columns="problem", fn_kwargs={"allowed": list(allowed)})
            rows = rows.map(_numbered, with_indices=True)
        rows = rows.remove_columns("problem")
        if allowed and counts:
            _require_text(rows, split)
    return rows.select(range(min(limit, len(rows)))) if limit is not None else rows, skipped, spanning


def _require_text(rows: Dataset, split: str) -> None:
    """Raises DataError where no row has text on one of its sides: nothing could be translated, or scored."""
    for side in ("source", "target"):
        column = rows.with_format("arrow")[side]
        if not any(text and text.strip() for chunk in _arrow_batches(column) for text in chunk):
            raise DataError(
                f"{split}: the {side} of all {len(rows)} rows is empty; there is nothing to score. Name the right "
                f"columns or files"
            )


def _arrow_batches(column: Any, size: int = 10_000) -> Iterator[list[str | None]]:
    for start in range(0, len(column), size):
        yield column[start : start + size].to_pylist()


def _is_sound(problem: str | None, allowed: Sequence[str]) -> bool:
    return problem is None or problem in allowed or problem.startswith(SPANS)


class _Sound:
    """Tells which rows of a stream are used; of each problem the first row is reported, since nobody counts them."""

    def __init__(self, split: str, allowed: Sequence[str]) -> None:
        self.split, self.allowed, self.seen = split, tuple(allowed), set[str]()

    def __call__(self, problem: str | None, number: int) -> bool:
        sound = _is_sound(problem, self.allowed)
        kind = SPANS if sound else problem
        if problem is not None and problem not in self.allowed and kind not in self.seen:
            self.seen.add(str(kind))
            told = f"spans {problem}; {_CLOSE}" if sound else f"is left out: {problem}"
            logger.warning("%s: row %d %s (later rows of this kind are not reported)", self.split, number + 1, told)
        return sound


def _spanning(problems: Counter[str]) -> str:
    """What is said of rows that span lines: how many there are, and where the first one is."""
    spans = [problem for problem in problems if problem.startswith(SPANS)]
    if not spans:
        return ""
    first = min(spans, key=lambda span: int(span.split()[1]))
    count = sum(problems[span] for span in spans)
    return f"{count} {'row spans' if count == 1 else 'rows span'} lines, the first {first}; {_CLOSE}"


def _numbered(_: dict[str, Any], number: int) -> dict[str, int]:
    return {"id": number}
