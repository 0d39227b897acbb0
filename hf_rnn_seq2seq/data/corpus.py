"""Corpora (embedded, local files, saved data sets, the Hub) -> splits of two text columns.

The source of a caption is the name of its picture.

Rows are written once to the cache of `datasets` (`HF_HOME`, `HF_DATASETS_CACHE`) and memory-mapped from there. The
cache key contains the content of the files, so a changed file is never served from an old cache.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, DatasetDict, Features, IterableDataset, IterableDatasetDict, Value

from hf_rnn_seq2seq.data.arguments import SPLITS, DataArguments
from hf_rnn_seq2seq.data.caption_files import caption_rows
from hf_rnn_seq2seq.data.embedded import ALIGNED, EMBEDDED, TEXT, Loaded, generated
from hf_rnn_seq2seq.data.readers import FIRST_ROWS, SPANS, Columns, Row, checked, listed, read_rows, split_paths
from hf_rnn_seq2seq.data.token_columns import AnyDataset
from hf_rnn_seq2seq.errors import DataError, InputError, is_out_of_memory, reading
from hf_rnn_seq2seq.files import content_hash, digest

SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
COLUMN_OPTIONS = ("source_lang", "target_lang", "source_column", "target_column")
EMPTY = ("empty_source", "empty_target")
_UNCLOSED = "where that is not meant, a quote was opened and not closed"
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Corpus:
    """Parallel text, ready to be tokenized.

    Attributes:
        splits: those of train, validation and test that exist; text columns `source` and `target`, int64 column `id`
            (number of the row in its split), and perhaps `alignment`.
        skipped: split -> reason -> number of rows that were left out because they cannot be used (empty_source,
            empty_target, wrong_field_count, not_text). Empty when streaming, where rows are not counted.
        description: name, config, source_lang, target_lang, license, lines (of each split as found), rows (of each
            split as used), fingerprint (content hash), streaming.
        notes: split -> which of its rows span lines; empty if none does. When streaming, these and the skipped rows are
            warnings instead.
    """

    splits: DatasetDict | IterableDatasetDict
    skipped: dict[str, dict[str, int]]
    description: dict[str, Any]
    notes: dict[str, str] = field(default_factory=dict)

    def left_out(self, split: str, more: Mapping[str, int] | None = None) -> str:
        """One line on what was left out of a split, here or later (`more`), and the note on the split."""
        counts = listed({**self.skipped.get(split, {}), **(more or {})})
        if self.description.get("streaming"):
            counts = f"{counts}, others are" if counts else ""
            counts = f"{counts} not counted while streaming".strip()
        counts = counts or "none"
        return "; ".join(filter(None, (f"left out: {counts}", self.notes.get(split))))


def load_corpus(
    data: DataArguments,
    *,
    splits: Sequence[str] = SPLITS,
    keep_empty: Sequence[str] = ("validation", "test"),
    aligned_splits: Sequence[str] = ("train",),
) -> Corpus:
    """Loads the corpus that the options describe.

    Args:
        splits: which splits to load.
        keep_empty: splits whose rows may have an empty side: scores count every row, but an empty one teaches nothing.
        aligned_splits: splits that get the text column `alignment` (Pharaoh format), if the options name alignments.

    Raises:
        DataError: an unknown name, file, column or locale; a file that is empty, damaged, not UTF-8 or not parallel; a
            split in which no row has text on one side.
    """
    if unknown := [split for split in splits if split not in SPLITS]:
        raise DataError(f"splits={unknown[0]!r}: must be among {', '.join(SPLITS)}")
    if (data.dataset_name is None) == (not any(data.files.values())):
        raise DataError("dataset_name=None: name a data set (cldr, a saved folder, a Hub name) or train_file")
    if data.alignment_file and (data.alignment_column or data.dataset_name or not data.train_file):
        raise DataError(
            f"alignment_file={data.alignment_file!r}, alignment_column={data.alignment_column!r}: give one of them, a "
            "file with train_file, or a column of train_file or of a data set"
        )
    limits = data.row_limits
    if data.dataset_name in EMBEDDED:
        found, facts = EMBEDDED[data.dataset_name](data, limits, splits, aligned_splits)
    elif data.dataset_name is None:
        chosen = {split: value for split, value in data.files.items() if value and split in splits}
        files = {split: _paths(data, value) for split, value in chosen.items()}
        found, facts = _load_files(data, files, splits, aligned_splits)
    else:
        found, facts = _load_named(data, data.dataset_name, splits, aligned_splits)
    kept, skipped, notes = {}, {}, {}
    for split, rows in found.items():
        allowed = EMPTY if split in keep_empty else ()
        if data.task == "classification":
            allowed = allowed[:1]  # an empty target would be a class
        kept[split], skipped[split], notes[split] = _usable(rows, split, limits[split], allowed)
    description: dict[str, Any] = {"name": data.dataset_name, "config": data.dataset_config_name, "license": None}
    description |= {"source_lang": data.source_lang, "target_lang": data.target_lang, **facts}
    for name, each in (("lines", found), ("rows", kept)):
        description[name] = None if data.streaming else {split: len(rows) for split, rows in each.items()}
    description["streaming"] = data.streaming
    return Corpus((IterableDatasetDict if data.streaming else DatasetDict)(kept), skipped, description, notes)


def check_files(data: DataArguments, splits: Sequence[str] = SPLITS) -> None:
    """Reads the first rows of the files of some splits, so that what is wrong with one is found before any training.

    Raises:
        DataError: a file is missing, empty or of another kind, or lacks a column; or its first rows are damaged.
    """
    for split, value in data.files.items():
        if value is None or split not in splits or data.dataset_name is not None:
            continue
        paths = _paths(data, value)
        if data.captions_file is None:
            for _ in islice(read_rows(paths, _columns(data, None), None, data.file_format), FIRST_ROWS):
                pass


def require_splits(data: DataArguments, splits: Sequence[str]) -> None:
    """Raises DataError unless a saved data set, or one of the Hub, can be read and has all of some splits."""
    if data.dataset_name is None or data.dataset_name in EMBEDDED:
        return
    loaded = open_named(data, data.dataset_name)
    for split in splits:
        if name_of(split, loaded) is None:
            raise DataError(f"dataset_name={data.dataset_name!r}: has no {split} split; it has {', '.join(loaded)}")


def columns_of_run(options: Mapping[str, Any], recorded: Mapping[str, Any], split: str) -> dict[str, Any]:
    """The names of languages and columns of a run, for another file of one split; none if that has other columns.

    Args:
        options: name the file; if they name a language or a column, all that they leave out has its default.
        recorded: the data options of the run.
    """
    found = {name: recorded[name] for name in COLUMN_OPTIONS if name in recorded}
    if any(options.get(name) is not None for name in COLUMN_OPTIONS):
        return {}
    try:
        check_files(DataArguments(**{**options, **found}), (split,))
    except InputError:  # also names of a run with header are no places in a table without
        return {}
    return found


def _paths(data: DataArguments, value: str) -> list[Path]:
    return [_picture_list(value)] if data.captions_file else split_paths(value, data.file_format, data.header)


def _column_options(data: DataArguments) -> list[str | None]:
    names = [data.source_column, data.target_column, data.source_lang, data.target_lang]
    names += [data.task] if data.task != "translation" else []
    return names + [one for one in (data.feature_column, data.file_format, None if data.header else "0") if one]


def _columns(data: DataArguments, alignment: str | None) -> Columns:
    if not data.header:
        numbers = (data.source_column or "0", data.target_column or "1")
        return Columns(*numbers, alignment, data.feature_column, header=False)
    names = {"captioning": ("image", "caption"), "classification": ("text", "label")}.get(
        data.task, ("source", "target")
    )
    source, target = (
        data.source_column or data.source_lang or names[0],
        data.target_column or data.target_lang or names[1],
    )
    return Columns(source, target, alignment, data.feature_column, classes=data.task == "classification")


def _load_files(
    data: DataArguments, files: dict[str, list[Path]], splits: Sequence[str], aligned_splits: Sequence[str]
) -> Loaded:
    if not files:
        raise DataError(f"splits={', '.join(splits)}: no file is given for them")
    if data.alignment_file and not Path(data.alignment_file).is_file():
        raise DataError(f"alignment_file={data.alignment_file!r}: does not exist")
    found: dict[str, AnyDataset] = {}
    hashes = {}
    for split, paths in files.items():
        if data.feature_column is not None and (len(paths) > 1 or data.file_format):
            kind = "a lexicon has" if data.file_format else "text files have"
            raise DataError(f"feature_column={data.feature_column!r}: {kind} no columns; give a table")
        if data.captions_file is not None:
            hashes[split] = content_hash([*paths, Path(data.captions_file)])
            found[split] = _captions(data.captions_file, paths[0], hashes[split], split)
            continue
        column = data.alignment_column if split in aligned_splits else None
        file = data.alignment_file if split == "train" and split in aligned_splits else None
        hashes[split] = content_hash([*paths, *([Path(file)] if file else [])])
        arguments = {
            # A tuple, because `datasets` takes a list for shards.
            "paths": tuple(map(os.path.abspath, paths)),
            "columns": _columns(data, column),
            "alignment_file": os.path.abspath(file) if file else None,
            "file_format": data.file_format,
            "content": hashes[split],
            "version": content_hash([Path(__file__).with_name(name) for name in ("readers.py", "lexicon.py")]),
        }
        features = (ALIGNED if column or file else TEXT) | {"problem": Value("string")}
        found[split] = generated(_file_rows, arguments, features, split, data.streaming)
    names = {split: [path.name for path in paths] for split, paths in files.items()}
    identity = [hashes, _column_options(data), *filter(None, [data.alignment_column])]
    return found, {"files": names, "fingerprint": digest(identity)}


def _file_rows(
    paths: tuple[str, ...],
    columns: Columns,
    alignment_file: str | None,
    file_format: str | None,
    content: str,
    version: str,
) -> Iterator[dict[str, Any]]:
    """Rows for `datasets`; `content` and `version` are part of the cache key only."""
    file = Path(alignment_file) if alignment_file else None
    for number, row in enumerate(read_rows(list(map(Path, paths)), columns, file, file_format)):
        yield _record(row, number, file is not None or columns.alignment is not None)


def _record(row: Row, number: int, aligned: bool) -> dict[str, Any]:
    record = {**row._asdict(), "id": number}
    return record if aligned else {name: value for name, value in record.items() if name != "alignment"}


def _picture_list(value: str) -> Path:
    if not Path(value).is_file():
        raise DataError(f"file {value} does not exist; with captions_file each split is a list of pictures")
    return Path(value)


def _captions(captions_file: str, pictures: Path, content: str, split: str) -> AnyDataset:
    """The captions of a list of pictures."""
    arguments = {"captions_file": os.path.abspath(captions_file), "pictures": os.path.abspath(pictures)}
    arguments |= {"content": content, "version": content_hash([Path(__file__).with_name("caption_files.py")])}
    return generated(caption_rows, arguments, TEXT | {"problem": Value("string")}, split, streaming=False)


def _load_named(data: DataArguments, name: str, splits: Sequence[str], aligned_splits: Sequence[str]) -> Loaded:
    loaded = open_named(data, name)
    found: dict[str, AnyDataset] = {}
    fingerprints = {}
    for split in (split for split in SPLITS if split in splits):
        alias = name_of(split, loaded)
        if alias is not None:
            columns = _columns(data, data.alignment_column if split in aligned_splits else None)
            where = f"dataset {name!r}, split {alias!r}"
            if data.task == "captioning" and not data.image_folder:
                found[split] = _pictured(loaded[alias], columns, alias, where)
            else:
                found[split] = _two_columns(loaded[alias], columns, where)
            fingerprints[split] = getattr(loaded[alias], "_fingerprint", None)
    if not found:
        raise DataError(f"dataset {name!r} has none of the splits {', '.join(splits)}; it has {', '.join(loaded)}")
    facts: dict[str, Any] = {"name": Path(name).name if Path(name).is_dir() else name}
    facts["license"] = next(iter(loaded.values())).info.license or None
    if not data.streaming:
        facts["fingerprint"] = digest([fingerprints, _column_options(data)])
    return found, facts


def name_of(split: str, loaded: Mapping[str, AnyDataset]) -> str | None:
    """What a data set calls a split, such as `dev`; None if it has none."""
    return next((name for name in (split, *SPLIT_NAMES.get(split, ())) if name in loaded), None)


def open_named(data: DataArguments, name: str) -> dict[str, AnyDataset]:
    """The splits of a folder that `save_to_disk` wrote, or of a data set on the Hub.

    Raises:
        DataError: there is none of this name, or it cannot be read.
    """
    path = Path(name)
    if path.is_file():
        raise DataError(f"dataset_name={name!r}: is a file; give it as train_file, validation_file or test_file")
    if path.is_dir() and not any((path / marker).is_file() for marker in ("dataset_dict.json", "state.json")):
        raise DataError(
            f"dataset_name={name!r}: is a folder, but not one that datasets' save_to_disk wrote; "
            "files are given as train_file, validation_file, test_file"
        )
    try:
        if not path.exists():
            loaded = datasets.load_dataset(name, data.dataset_config_name, streaming=data.streaming)
        else:
            loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # of datasets, its file systems, Arrow and the Hub's client
        if is_out_of_memory(error):
            raise
        raise DataError(f"dataset_name={name!r}: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    splits = {"train": loaded} if isinstance(loaded, (Dataset, IterableDataset)) else dict(loaded)
    if data.streaming:
        return {
            split: rows.to_iterable_dataset() if isinstance(rows, Dataset) else rows for split, rows in splits.items()
        }
    return splits


def _two_columns(rows: AnyDataset, columns: Columns, where: str) -> AnyDataset:
    """The rows of a data set as those of a file: source, target, problem, id and perhaps alignment."""
    with reading(where, DataError):
        first = next(iter(rows), {}) if rows.column_names is None else {}
    nested = (rows.features or {}).get("translation", first.get("translation"))
    languages = getattr(nested, "languages", nested)
    languages = list(languages) if isinstance(languages, (dict, list, tuple)) else None
    rows = rows.select_columns(columns.of_table(rows.column_names or list(first), languages, where))
    if isinstance(rows, Dataset) and not len(rows):
        raise DataError(f"{where} holds no rows")
    features = (ALIGNED if columns.alignment else TEXT) | {"problem": Value("string")}
    with reading(where, DataError):
        named = getattr((rows.features or {}).get(columns.target), "names", None) if columns.classes else None
        return rows.map(
            _pair,
            with_indices=True,
            remove_columns=rows.column_names,
            features=Features(features),
            fn_kwargs={"columns": columns, "names": named},
        )


def _pictured(rows: Dataset, columns: Columns, split: str, where: str) -> Dataset:
    """A row for each caption of the pictures in a column: source (`split`/number of the row), target, problem, id.

    The column of captions holds one for each picture, or a list of them.

    Raises:
        DataError: a column is missing, or holds something else.
    """
    columns.require(rows.column_names, where)
    if not holds_pictures(rows, columns.source):
        raise DataError(
            f"{where}: column {columns.source!r} holds no pictures; choose with source_column, or give as "
            "image_folder the folder of the pictures that it names"
        )
    captions = rows.select_columns([columns.target])
    if not len(captions):
        raise DataError(f"{where} holds no rows")
    features = Features(TEXT | {"problem": Value("string")})
    with reading(where, DataError):
        expanded = captions.map(
            _captions_of,
            with_indices=True,
            batched=True,
            remove_columns=captions.column_names,
            features=features,
            fn_kwargs={"column": columns.target, "split": split},
        )
        return expanded.map(_numbered, with_indices=True)


def holds_pictures(rows: Dataset, column: str) -> bool:
    """Whether a column is one of pictures, also where only its form says so: bytes and path."""
    feature = rows.features[column]
    return isinstance(feature, datasets.Image) or (isinstance(feature, dict) and {*feature} == {"bytes", "path"})


def _captions_of(
    batch: dict[str, list[Any]], numbers: list[int], column: str, split: str
) -> dict[str, list[str | int | None]]:
    found: dict[str, list[str | int | None]] = {"source": [], "target": [], "problem": [], "id": []}
    for number, captions in zip(numbers, batch[column], strict=True):
        for text in captions if isinstance(captions, list) and captions else [captions or ""]:
            row = checked(f"{split}/{number}", text)
            for name, value in (("source", row.source), ("target", row.target), ("problem", row.problem), ("id", 0)):
                found[name].append(value)
    return found


def _pair(row: dict[str, Any], number: int, columns: Columns, names: list[str] | None = None) -> dict[str, Any]:
    if names is not None and (label := row[columns.target]) is not None:
        # A hidden label is -1 in many data sets.
        row = {**row, columns.target: names[label] if 0 <= label < len(names) else None}
    return _record(columns.pick(row), number, columns.alignment is not None)


def _usable(
    rows: AnyDataset, split: str, limit: int | None, allowed: Sequence[str]
) -> tuple[AnyDataset, dict[str, int], str]:
    """Leaves out the rows whose problem is not allowed and numbers the others anew.

    Returns:
        the first `limit` rows left; the number of rows left out for each reason; which of the rows left span lines.
    """
    if isinstance(rows, IterableDataset):
        if "problem" in (rows.features or {}):
            rows = rows.filter(_SoundRows(split, allowed), input_columns=["problem", "id"]).remove_columns("problem")
        return rows.take(limit) if limit is not None else rows, {}, ""
    skipped: dict[str, int] = {}
    spanning = ""
    if "problem" in rows.column_names:
        batches = rows.select_columns("problem").iter(10_000)
        counts = Counter(problem for batch in batches for problem in batch["problem"] if problem is not None)
        skipped = {problem: count for problem, count in sorted(counts.items()) if not _is_sound(problem, allowed)}
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
    """Raises DataError if one side of all rows is empty: nothing could be translated or scored."""
    for side in ("source", "target"):
        batches = rows.select_columns(side).iter(10_000)
        if not any(text and text.strip() for batch in batches for text in batch[side]):
            raise DataError(
                f"{split}: the {side} of all {len(rows)} rows is empty; there is nothing to score. Name the right "
                f"columns or files"
            )


def _is_sound(problem: str | None, allowed: Sequence[str]) -> bool:
    return problem is None or problem in allowed or problem.startswith(SPANS)


class _SoundRows:
    """Selects the rows of a stream that are used, and warns of the first row with each problem."""

    def __init__(self, split: str, allowed: Sequence[str]) -> None:
        self.split, self.allowed, self.seen = split, tuple(allowed), set[str]()

    def __call__(self, problem: str | None, number: int) -> bool:
        sound = _is_sound(problem, self.allowed)
        kind = SPANS if sound else problem
        if problem is not None and problem not in self.allowed and kind not in self.seen:
            self.seen.add(str(kind))
            event = f"spans {problem}; {_UNCLOSED}" if sound else f"is left out: {problem}"
            logger.warning("%s: row %d %s (later rows of this kind are not reported)", self.split, number + 1, event)
        return sound


def _spanning(problems: Counter[str]) -> str:
    """How many rows span lines, and which lines the first one spans; empty if none does."""
    spans = [problem for problem in problems if problem.startswith(SPANS)]
    if not spans:
        return ""
    first = min(spans, key=lambda span: int(span.split()[1]))
    count = sum(problems[span] for span in spans)
    return f"{count} {'row spans' if count == 1 else 'rows span'} lines, the first {first}; {_UNCLOSED}"


def _numbered(_: dict[str, Any], number: int) -> dict[str, int]:
    return {"id": number}
