"""Handwriting: strokes of a pen with the text that they write, split by writer, and the rows that a network trains on.

A file has one JSON object a line, and may be gzipped:

    {"text": "sea", "writer": "anna", "contributor": "office", "strokes": [[[0, 12], [3, 15], ...], [[40, 2], ...]]}

`strokes` holds the places (x, y) of the pen from each touch of the paper to the next lift, x to the right and y up, in
any unit. `text` is what they write. `writer` and `contributor` may be missing.

Offsets are counted in heights of a word: rows of one writer are divided by the median of their heights, a row without a
writer by its own. So writers and tablets are alike, and the words of one hand keep their sizes.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from datasets import Dataset, List, Value
from torch import Tensor

from hf_rnn_seq2seq.data.arguments import SPLITS, DataArguments
from hf_rnn_seq2seq.data.embedded import generated
from hf_rnn_seq2seq.data.readers import read_lines
from hf_rnn_seq2seq.errors import ArgumentError, DataError, reading
from hf_rnn_seq2seq.files import content_hash, digest
from hf_rnn_seq2seq.model.loss import IGNORED_LABEL
from hf_rnn_seq2seq.model.pen_points import height, to_points

FEATURES = {
    "id": Value("int64"),
    "text": Value("string"),
    "writer": Value("string"),
    "points": List(Value("float32")),  # x, y and end of each point but the first, one after the other
    "source_length": Value("int32"),  # characters, and the place behind them
    "target_length": Value("int32"),  # points to predict
}
VERSION = 1  # of what rows are made of a file


@dataclass(frozen=True)
class Writing:
    """One row of a file."""

    text: str
    strokes: list[list[tuple[float, float]]]
    writer: str = ""
    contributor: str = ""

    def is_by(self, names: Sequence[str]) -> bool:
        """Whether its writer or its contributor is one of the names."""
        return not {self.writer, self.contributor}.isdisjoint({*names} - {""})


@dataclass(frozen=True)
class PenCorpus:
    """The splits that exist, with the columns of `FEATURES`; what was left out of each, and a description."""

    splits: dict[str, Dataset]
    skipped: dict[str, dict[str, int]]
    description: dict[str, Any]

    def alphabet(self) -> str:
        """The characters of the training split, in the order of Unicode."""
        return "".join(sorted(set().union(*map(set, self.splits["train"]["text"]))))

    def deviation(self) -> list[float]:
        """Standard deviation of the offsets of the training split across and up, in heights of a word.

        Raises:
            DataError: no offset differs from another.
        """
        numbers = np.concatenate(self.splits["train"].with_format("numpy")["points"][:]).reshape(-1, 3)
        deviation = numbers[:, :2].std(0, dtype=np.float64)
        if not deviation.min() > 0:
            raise DataError("train: all offsets across or up are equal; there is nothing to learn")
        return [float(f"{value:.6g}") for value in deviation]

    def written_with(self, alphabet: str) -> PenCorpus:
        """The rows whose characters all are in the alphabet; the others are counted as left out."""
        known, splits, skipped = set(alphabet), {}, {name: dict(counts) for name, counts in self.skipped.items()}
        for name, rows in self.splits.items():
            kept = [number for number, text in enumerate(rows["text"]) if known >= set(text)]
            splits[name] = rows if len(kept) == len(rows) else rows.select(kept)
            if len(kept) < len(rows):
                skipped[name]["unknown_character"] = len(rows) - len(kept)
        return PenCorpus(splits, skipped, self.description)


def load_pen_corpus(data: DataArguments, tolerance: float, *, splits: Sequence[str] = SPLITS) -> PenCorpus:
    """The handwriting that the options describe.

    Args:
        data: `dataset_name` is `hershey`, or the files are of the format above; `validation_writers` and `test_writers`
            are taken out of train_file.
        tolerance: of `pen_points.to_points`.
        splits: which to load.

    Raises:
        ArgumentError: options that contradict one another.
        DataError: a file that is missing or damaged, or a split without a row.
    """
    limits = data.row_limits
    found, facts = _sources(data, limits)
    kept, skipped = {}, {}
    for split in (name for name in SPLITS if name in splits and name in found):
        arguments = found[split] | {"tolerance": float(tolerance), "longest": data.max_target_length}
        rows = generated(points_of, arguments, FEATURES, split, streaming=False)
        usable = [number for number, count in enumerate(rows["target_length"]) if count > 0]
        skipped[split] = dict(Counter(_REASONS[count] for count in rows["target_length"] if count <= 0))
        if not usable:
            raise DataError(f"{split}: has no usable row; {_where(arguments)}")
        kept[split] = rows.select(usable[: limits[split]] if limits[split] else usable)
    content = {split: {name: value for name, value in each.items() if name != "path"} for split, each in found.items()}
    facts["fingerprint"] = digest([content, tolerance, data.max_target_length, VERSION, limits])
    return PenCorpus(kept, skipped, {"lines": None, "rows": {name: len(rows) for name, rows in kept.items()}, **facts})


_REASONS = {0: "too_few_points", -1: "empty_text", -2: "too_many_points"}


def _sources(data: DataArguments, limits: Mapping[str, int | None]) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """For each split the arguments of `points_of`, and the first facts of the description."""
    held = {"validation": data.validation_writers, "test": data.test_writers}
    if data.dataset_name is not None:
        if data.dataset_name != "hershey":
            raise ArgumentError(
                f"dataset_name={data.dataset_name!r}: task='handwriting' has `hershey`; or give train_file, JSON lines "
                "of strokes"
            )
        for split, names in held.items():
            if names:
                raise ArgumentError(f"{split}_writers={','.join(names)}: dataset_name='hershey' has splits of its own")
        from hf_rnn_seq2seq.data import hershey

        facts = {"name": "hershey", "license": hershey.LICENSE}
        rows = {split: limits[split] or hershey.ROWS[split] for split in SPLITS}
        drawn = {"seed": data.data_seed, "version": hershey.generator_version()}
        return {split: {"drawn": {"split": split, "rows": rows[split], **drawn}} for split in SPLITS}, facts
    found: dict[str, dict[str, Any]] = {}
    for split, name in data.files.items():
        names = held.get(split) or []
        if name and names:
            raise ArgumentError(
                f"{split}_writers={','.join(names)}: {split}_file={name!r} is that split; give one of them"
            )
        if names and not data.train_file:
            raise ArgumentError(f"{split}_writers={','.join(names)}: are rows of train_file, which is not given")
        source = name or (data.train_file if names else None)
        if source is None:
            continue
        path = Path(source)
        with reading(f"{split}_file={source!r}", DataError):
            content = content_hash([path])
        # Names in one text: `datasets` takes a list for shards.
        found[split] = {"path": str(path), "content": content, "only": ",".join(names), "without": ""}
    if "train" in found:
        found["train"]["without"] = ",".join([*data.validation_writers, *data.test_writers])
    name = ", ".join(dict.fromkeys(Path(each["path"]).name for each in found.values()))
    held_out = {f"{split}_writers": names for split, names in held.items() if names}
    return found, {"name": name, "license": None, **held_out}


def _where(arguments: Mapping[str, Any]) -> str:
    if "path" not in arguments:
        return "raise max_target_length"
    only = f" by {arguments['only']}" if arguments["only"] else ""
    return f"{arguments['path']} has none{only} with a text and 2 to {arguments['longest']} points"


def points_of(
    tolerance: float,
    longest: int,
    path: str = "",
    content: str = "",
    only: str = "",
    without: str = "",
    drawn: Mapping[str, Any] | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of `FEATURES` for `datasets`.

    A row that cannot be used has no points, and the reason as its `target_length`.

    Args:
        tolerance: of `to_points`.
        longest: most points of a row.
        path: of the file; `content` is its hash, part of the cache key only.
        only: writers or contributors to keep, between commas; none: all.
        without: the same to leave out.
        drawn: arguments of `hershey.generate`, in the place of a file.
    """

    def writings() -> Iterator[Writing]:
        if drawn is not None:
            from hf_rnn_seq2seq.data import hershey

            yield from hershey.generate(**drawn)
            return
        for one in read_writings(Path(path)):
            if not one.is_by(without.split(",")) and (not only or one.is_by(only.split(","))):
                yield one

    heights: dict[str, list[float]] = defaultdict(list)
    for one in writings():
        if one.writer:
            heights[one.writer].append(height(one.strokes))
    units, number = {writer: median(numbers) for writer, numbers in heights.items()}, -1
    for number, one in enumerate(writings()):
        points = to_points(one.strokes, units.get(one.writer) or height(one.strokes), tolerance)[1:]
        count = len(points)
        if not one.text:
            count = -1
        elif len(points) > longest:
            count = -2
        yield {
            "id": number,
            "text": one.text,
            "writer": one.writer,
            "points": [value for point in points for value in point] if count > 0 else [],
            "source_length": len(one.text) + 1,
            "target_length": count,
        }
    if number < 0 and without and not only:
        raise DataError(
            f"file {path}: has no row but those by {without}, which are held out; name fewer of them in "
            "validation_writers and test_writers"
        )
    if number < 0:
        raise DataError(f"file {path}: has no row" + (f" by {only}" if only else ""))


def first_writing(path: str) -> Writing:
    """The first row of a file of strokes.

    Raises:
        DataError: there is none, or it is damaged.
    """
    if (first := next(read_writings(Path(path)), None)) is None:
        raise DataError(f"file {path}: has no row")
    return first


def read_writings(path: Path) -> Iterator[Writing]:
    """The rows of a file of strokes.

    Raises:
        DataError: it cannot be read, or a line is not such a row; the message names file, line and rule.
    """
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield _writing(line, f"file {path}, line {number}")


def _writing(line: str, where: str) -> Writing:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(
            f"{where}: is not JSON ({error}); each line must be an object with `text` and `strokes`"
        ) from None
    if not isinstance(row, dict) or not isinstance(row.get("strokes"), list):
        raise DataError(f"{where}: must be an object with `strokes`, a list of lists of [x, y]")
    strokes = []
    for stroke in row["strokes"]:
        if not _are_places(stroke):
            raise DataError(f"{where}: a stroke must be a list of [x, y], each two finite numbers, not {stroke!r:.60}")
        if stroke:
            strokes.append([(float(x), float(y)) for x, y in stroke])
    if not strokes:
        raise DataError(f"{where}: strokes=[] has no place of the pen; leave the line out")
    names = {}
    for name in ("text", "writer", "contributor"):
        value = row.get(name)
        if value is not None and not isinstance(value, str):
            raise DataError(f"{where}: {name}={value!r:.60} must be a text")
        names[name] = unicodedata.normalize("NFC", (value or "").strip())
    return Writing(strokes=strokes, **names)


def _are_places(stroke: object) -> bool:
    """Whether a stroke is a list of [x, y], two finite numbers each; there are millions, so not one by one."""
    if not isinstance(stroke, list) or not {*map(type, stroke)} <= {list}:
        return False
    numbers = [number for place in stroke for number in place]
    pairs = {*map(len, stroke)} <= {2}
    return pairs and {*map(type, numbers)} <= {int, float} and all(map(math.isfinite, numbers))


class PenCollator:
    """Pads rows to tensors that a network reads.

    Args:
        alphabet: its characters; empty where it reads no text.
        deviation: offsets are divided by it, across and up.
    """

    def __init__(self, alphabet: str, deviation: Sequence[float]) -> None:
        self.numbers = {letter: number for number, letter in enumerate(alphabet, start=1)}
        self.deviation = np.asarray([*deviation, 1.0], dtype=np.float32)

    def __call__(self, columns: Mapping[str, Sequence[Any]]) -> dict[str, Tensor]:
        """A dict of lists, as a slice of a split gives it -> tensors.

        Returns:
            `labels` (batch, points, 3), -100 behind the end of a row; with an alphabet `input_ids` (batch, characters),
            0 behind the end.
        """
        rows = [np.asarray(points, dtype=np.float32).reshape(-1, 3) / self.deviation for points in columns["points"]]
        labels = np.full((len(rows), max(map(len, rows)), 3), IGNORED_LABEL, dtype=np.float32)
        for place, row in zip(labels, rows, strict=True):
            place[: len(row)] = row
        batch = {"labels": torch.from_numpy(labels)}
        if self.numbers:
            ids = np.zeros((len(rows), max(map(len, columns["text"]))), dtype=np.int64)
            for place, text in zip(ids, columns["text"], strict=True):
                place[: len(text)] = [self.numbers[letter] for letter in text]
            batch["input_ids"] = torch.from_numpy(ids)
        return batch
