"""Rows of parallel text from local files, one at a time, so that memory stays flat.

A row that cannot be used has a `problem`, which is counted and reported. `load_dataset` does not read text files here:
its CSV and JSON readers turn the sentences "null" and "NA" into missing values, shift the columns of a row with one
field too many, read the sentence "2026-03-12" as a time stamp, and cannot name the line of an error.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import os
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from operator import itemgetter
from pathlib import Path
from typing import IO, Any, NamedTuple

from hf_rnn_seq2seq.data.arguments import LABELED
from hf_rnn_seq2seq.data.lexicon import parse_entry
from hf_rnn_seq2seq.errors import DataError, is_undecodable, listed_names, one_line, quoted, reading

TABLE_KINDS = (".tsv", ".csv", ".jsonl", ".json", ".parquet")
GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)
# Beginning of the `problem` of a row that is used although it spans several lines; the numbers of the lines follow.
SPANS = "lines "
# JSON objects within which each column must occur, so that a wrong name is found before the end of a large file.
FIRST_ROWS = 10_000

csv.field_size_limit(2**31 - 1)


class Row(NamedTuple):
    """A sentence pair, the reason why it cannot be used (or None), and its word alignment in Pharaoh format."""

    source: str
    target: str
    problem: str | None = None
    alignment: str = ""


def checked(source: object, target: object, alignment: object = None) -> Row:
    """The row of two values, with its problem if it has one."""
    links = str(alignment) if alignment else ""
    if not isinstance(source, _TEXT) or not isinstance(target, _TEXT):
        return Row("", "", "not_text", links)
    if not source or not source.strip():
        return Row("", target or "", "empty_source", links)
    if not target or not target.strip():
        return Row(source, "", "empty_target", links)
    return Row(source, target, None, links)


def with_features(source: str, features: object) -> str:
    """`walk`, `V;PST` -> `V;PST<tab>walk`, as the tokenizer of letters reads it; without features the source alone."""
    text = str(features or "").strip()
    return f"{text}\t{source}" if text else source


_TEXT = (str, type(None))


@dataclass(frozen=True)
class Columns:
    """Names of the columns of source, target and word alignment (None: no alignment is read).

    `feature` is a column of features, which are put before the source. A row without the first two may hold them in a
    column `translation`, by language. Without `header` the columns of TSV and CSV are called by their positions,
    from 0. With `classes` the target is the name of a class, which may be a number.
    """

    source: str = "source"
    target: str = "target"
    alignment: str | None = None
    feature: str | None = None
    classes: bool = False
    header: bool = True

    def __post_init__(self) -> None:
        if self.source == self.target:
            raise DataError(f"source_column={self.source!r}: is the target column too; name two different ones")
        if self.feature in (self.source, self.target):
            raise DataError(f"feature_column={self.feature!r}: is the source or target column too; name another one")

    @property
    def names(self) -> list[str]:
        return [self.source, self.target, *filter(None, [self.alignment, self.feature])]

    def require(self, names: Sequence[str], where: str, wanted: Sequence[str] | None = None) -> None:
        """Raises DataError unless each of `wanted` (default: all columns) is among the distinct `names`."""
        if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise DataError(
                f"{where}: {listed_names(repeated)} names {names.count(repeated[0])} columns; rename all but one"
            )
        for name in self.names if wanted is None else wanted:
            if name not in names:
                options = {self.alignment: "alignment_column", self.feature: "feature_column"}.get(
                    name, "source_column and target_column"
                )
                options += ", or header=false for a table without header" if self.header and name.isdecimal() else ""
                has = listed_names(names) or "none"
                raise DataError(f"{where}: no column {quoted(name)}; it has {has} (choose with {options})")

    def of_table(self, names: Sequence[str], languages: Sequence[str] | None, where: str) -> list[str]:
        """The columns to read of a table; `languages` are the keys of its column `translation`, if it has one.

        Raises:
            DataError: as `require`.
        """
        if languages is None or {self.source, self.target} <= {*names}:
            self.require(names, where)
            return self.names
        self.require(languages, f"{where}, column 'translation'", [self.source, self.target])
        self.require(names, where, self.names[2:])
        return ["translation", *self.names[2:]]

    def sides(self, row: Mapping[str, Any]) -> Mapping[str, Any] | None:
        """What holds the two sides: the row itself or its `translation`; None if that is neither a table nor null."""
        if "translation" not in row or (self.source in row and self.target in row):
            return row
        nested = row["translation"]
        return {} if nested is None else nested if isinstance(nested, Mapping) else None

    def pick(self, row: Mapping[str, Any]) -> Row:
        """The row as text; a side that it lacks is empty."""
        sides, others = self.sides(row), [row.get(name) for name in self.names[2:]]
        if sides is None:
            return Row("", "", "not_text", str(others[0] or "") if self.alignment else "")
        return self.of_values(sides.get(self.source), sides.get(self.target), *others)

    def of_values(self, source: object, target: object, *others: object) -> Row:
        """The row of the values of the columns, in the order of `names`."""
        if self.feature and isinstance(source, str) and source.strip():
            source = with_features(source, others[-1])
        if self.classes and isinstance(target, float) and target.is_integer():
            target = int(target)  # what tables write if a number is missing in another row
        if self.classes and isinstance(target, int):
            target = str(target)
        return checked(source, target, others[0] if self.alignment else None)


def split_paths(value: str, file_format: str | None = None, header: bool = True) -> list[Path]:
    """`"train.tsv"` or `"train.de,train.en"` -> the path of one table, or those of two text files.

    Raises:
        DataError: a file is missing or unreadable, its kind is not known, or there are more than two. A table without
            header may have any name.
    """
    parts = [value] if os.path.exists(value) else [part.strip() for part in value.split(",") if part.strip()]
    paths = list(map(Path, parts))
    if len(paths) not in (1, 2):
        raise DataError(f"expected one table or two parallel text files separated by a comma, got {len(paths)} files")
    for path in paths:
        if not path.exists():
            raise DataError(f"file {path} does not exist")
        if path.is_dir():
            raise DataError(f"{path} is a folder; a file is expected (a saved data set is given as dataset_name)")
        if not path.is_file():
            raise DataError(f"{path} is a pipe or a device; a file is expected, since it is read more than once")
        with reading(f"file {path}", DataError):
            path.open("rb").close()
    if file_format is not None and len(paths) > 1:
        raise DataError(f"file_format={file_format!r}: a lexicon is one file, got {value!r}")
    if header and file_format is None and len(paths) == 1 and kind_of(paths[0]) not in TABLE_KINDS:
        raise DataError(
            f"file {paths[0]}: kind {kind_of(paths[0]) or 'without suffix'!r} is not known; allowed: "
            f"{', '.join(TABLE_KINDS)} (also .gz), two parallel text files separated by a comma, a lexicon, whose "
            "file_format the recipe names, or with header=false columns separated by tabs"
        )
    return paths


def kind_of(path: Path) -> str:
    """The suffix in lower case, without `.gz`: `train.tsv.gz` -> `.tsv`."""
    return Path(path.name.lower().removesuffix(".gz")).suffix


def listed(counts: Mapping[str, int]) -> str:
    """`{"empty_source": 3}` -> `3 empty_source`."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def read_rows(
    paths: Sequence[Path], columns: Columns, alignment_file: Path | None = None, file_format: str | None = None
) -> Iterator[Row]:
    """The rows of one table, of two parallel text files, or of a lexicon. A file of no known kind is read as TSV.

    Args:
        file_format: one of LEXICONS, for a lexicon.
        alignment_file: a text file with the word alignment of each row.

    Raises:
        DataError: nothing in the file, not UTF-8, a missing column, files of different length, a damaged archive or
            alignment.
    """
    if file_format == LABELED:
        reader = _labeled
    elif file_format is not None:
        reader = partial(_lexicon, kind=file_format)
    else:
        reader = {".json": _json, ".jsonl": _json, ".parquet": _parquet}.get(kind_of(paths[0]), _delimited)
    lines = read_lines(alignment_file) if alignment_file else None
    where = f"alignment_file {alignment_file}, line" if lines else f"file {paths[0]}, column {columns.alignment!r}, row"
    count = 0
    for count, row in enumerate(_parallel(*paths) if len(paths) == 2 else reader(paths[0], columns), start=1):
        if lines is not None:
            links = next(lines, None)
            if links is None:
                raise DataError(
                    f"alignment_file {alignment_file} ends after {count - 1} lines; there are more training rows"
                )
            row = row._replace(alignment=links)
        if row.alignment:
            parse_pharaoh(row.alignment, f"{where} {count}")  # here, where the place in the file is known
        yield row
    if not count:
        raise DataError(f"file {paths[0]} holds no rows")
    if lines is not None and next(lines, None) is not None:
        raise DataError(f"alignment_file {alignment_file} has more lines than there are training rows ({count})")


def parse_pharaoh(line: str, where: str) -> list[tuple[int, int]]:
    """`0-0 1-2` -> [(0, 0), (1, 2)], source before target.

    Raises:
        DataError: another format; the message begins with `where`.
    """
    pairs = []
    for part in line.split():
        numbers = re.fullmatch(r"(\d{1,9})-(\d{1,9})", part)
        if numbers is None:
            raise DataError(f"{where}: {quoted(part)}: must be source-target, such as 0-2 (numbers of words)")
        pairs.append((int(numbers[1]), int(numbers[2])))
    return pairs


# The first bytes of a file that is not text: what it is, and how to make it readable.
FOREIGN = {
    b"\x1f\x8b": ("a gzip archive", "name it with .gz at the end"),
    b"BZh": ("a bzip2 archive", "unpack it"),
    b"\xfd7zXZ\x00": ("an xz archive", "unpack it"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard archive", "unpack it"),
    b"PAR1": ("a Parquet file", "name it with .parquet at the end"),
    b"\xff\xfe": ("UTF-16", "convert it with `iconv -f UTF-16 -t UTF-8`"),
    b"\xfe\xff": ("UTF-16", "convert it with `iconv -f UTF-16 -t UTF-8`"),
}


def _foreign(start: bytes) -> tuple[str, str] | None:
    return next((kind for magic, kind in FOREIGN.items() if start.startswith(magic)), None)


def open_bytes(path: Path) -> IO[bytes]:
    """Opens a file, decompressing `.gz`.

    Raises:
        BadGzipFile: the content of a `.gz` file is not gzip.
    """
    if not path.name.lower().endswith(".gz"):
        return path.open("rb")
    with path.open("rb") as file:
        start = file.read(6)
    if start and not start.startswith(b"\x1f\x8b"):
        kind, _ = _foreign(start) or ("not packed", "")
        raise gzip.BadGzipFile(f"it is {kind}; pack it with gzip, or rename it")
    return gzip.open(path, "rb")  # type: ignore[return-value]


def read_lines(path: Path) -> Iterator[str]:
    """Lines without their end. Only the line feed ends a line: a sentence may contain any other Unicode separator.

    Raises:
        DataError: the file cannot be opened or unpacked, is not UTF-8, or its lines have other ends.
    """
    offset = 0
    with reading(f"file {path}", DataError) as place:
        try:
            with open_bytes(path) as file:
                for place.line, raw in enumerate(file, start=1):
                    if place.line == 1:
                        _require_lines(path, raw)
                        offset = len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0
                        raw = raw[offset:]
                    try:
                        line = raw.decode("utf-8")
                    except UnicodeDecodeError as error:
                        raise DataError(
                            f"file {path}, line {place.line}, byte {offset + error.start}: not UTF-8 ({error.reason}); "
                            "convert the file, or drop such bytes with `iconv -c -f UTF-8 -t UTF-8`"
                        ) from None
                    offset += len(raw)
                    yield line.rstrip("\n").removesuffix("\r")
        except GZIP_ERRORS as error:
            after, mend = (f" after line {place.line}", "; fetch or pack it again") if place.line else ("", "")
            raise DataError(f"file {path}: damaged gzip archive{after} ({one_line(error)}){mend}") from error


def require_text(where: str, first: bytes) -> None:
    """Raises DataError, which names `where`, if the first line shows that this is not text."""
    if foreign := _foreign(first):
        raise DataError(f"{where}, line 1, byte 0: not UTF-8: it is {foreign[0]}; {foreign[1]}")


def _require_lines(path: Path, first: bytes) -> None:
    """Raises DataError if the first line shows that the file is not text or has no line feeds."""
    require_text(f"file {path}", first)
    inside = first.rstrip(b"\r\n").count(b"\r")
    if inside > 1 or (inside and not first.endswith(b"\n")):
        raise DataError(
            f"file {path}, line 1: its lines end in carriage returns; convert it with `tr '\\r' '\\n'`, or with "
            "`dos2unix` where line feeds follow"
        )


def _lexicon(path: Path, columns: Columns, kind: str) -> Iterator[Row]:
    for line in read_lines(path):
        entry = parse_entry(line, kind)
        if entry is not None:
            yield checked(entry.word, entry.phones)


def _labeled(path: Path, columns: Columns) -> Iterator[Row]:
    """Lines of a class, a space or tab, and a text, as in the collection of Kim 2014."""
    for line in read_lines(path):
        label, *text = re.split("[ \t]+", line.strip(), maxsplit=1)
        yield checked("".join(text), label)


def _parallel(source: Path, target: Path) -> Iterator[Row]:
    counts = [0, 0]
    for pair in zip_longest(read_lines(source), read_lines(target)):
        counts = [count + (line is not None) for count, line in zip(counts, pair, strict=True)]
        if None not in pair:
            yield checked(*pair)
    if counts[0] != counts[1]:
        raise DataError(f"parallel files differ in length: {source} has {counts[0]} lines, {target} has {counts[1]}")


def _delimited(path: Path, columns: Columns) -> Iterator[Row]:
    """TSV has no quotes (as in Tatoeba); a quoted field of CSV may span lines (RFC 4180)."""
    tsv, lines = kind_of(path) != ".csv", read_lines(path)
    # Blank lines are rows of a TSV file, but not of a CSV file.
    table: Any = csv.reader((line + "\n" for line in lines), strict=True)
    table = (line.split("\t") for line in lines) if tsv else table
    names: list[str] = []
    pick = itemgetter(0)
    start = end = 0  # the number of lines before the record, and its last line
    try:
        for fields in table:
            start, end = end, end + 1 if tsv else table.line_num
            if not names:
                names = _header(path, fields, columns)
                pick = itemgetter(*map(names.index, columns.names))
                if names is fields:
                    continue
            if not fields:
                continue
            if len(fields) != len(names):
                yield Row("", "", "wrong_field_count")
                continue
            row = columns.of_values(*pick(fields))
            spans = row.problem is None and end > start + 1
            yield row._replace(problem=f"{SPANS}{start + 1} to {end}") if spans else row
    except csv.Error as error:
        raise DataError(
            f"file {path}: not a CSV table ({error}, in the record that begins in line {end + 1}); a quote inside a "
            "quoted field is written twice"
        ) from error


def _header(path: Path, first: list[str], columns: Columns) -> list[str]:
    """The names of the columns: the first row, or numbers in a table without header."""
    if columns.header:
        columns.require(first, f"file {path}")
        return first
    names = list(map(str, range(len(first))))
    if missing := [name for name in columns.names if name not in names]:
        raise DataError(f"file {path}: no column {missing[0]}; the first row has {len(first)} fields")
    return names


def _json(path: Path, columns: Columns) -> Iterator[Row]:
    """An object may lack a side (which is then empty), but each column must occur in one of the first objects."""
    seen: dict[str, None] = {}
    where, count = f"file {path}", 0
    for count, (place, record) in enumerate(_records(path), start=1):
        if not isinstance(record, dict):
            raise DataError(f"{place}: an object is expected, got {type(record).__name__}")
        sides = columns.sides(record)
        if count <= FIRST_ROWS:
            seen |= dict.fromkeys(
                [*(record if sides is None else sides), *({columns.alignment, columns.feature} & record.keys())]
            )
            where = where if sides is None or sides is record else f"file {path}, column 'translation'"
        if count == FIRST_ROWS:
            columns.require(list(seen), where)
        row = columns.pick(record)
        # A lone surrogate, which an escape of JSON can write, is not a character.
        yield row._replace(source="", target="", problem="not_text") if any(map(is_undecodable, row[:2])) else row
    if count:
        columns.require(list(seen), where)


def _records(path: Path) -> Iterator[tuple[str, Any]]:
    """Place and value of each line of JSON. A `.json` file may also be one array, or an object whose `data` is one."""
    if kind_of(path) == ".json":
        try:
            document = _parsed("\n".join(read_lines(path)), f"file {path}")
        except DataError as error:
            if not isinstance(error.__cause__, json.JSONDecodeError):
                raise
            document = None  # one object a line
        document = document.get("data") if isinstance(document, dict) else document
        if isinstance(document, list):
            yield from ((f"file {path}, record {number}", record) for number, record in enumerate(document, start=1))
            return
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            yield f"file {path}, line {number}", _parsed(line, f"file {path}, line {number}")


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        message = getattr(error, "msg", None) or one_line(error, 200)
        raise DataError(f"{where}: not JSON ({message}); mend or remove the line") from error


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {quoted(next(name for name in names if names.count(name) > 1))} occurs twice")
    return found


def _parquet(path: Path, columns: Columns) -> Iterator[Row]:
    """Batch by batch; `load_dataset` would copy the file to its cache first."""
    import pyarrow
    import pyarrow.parquet

    with reading(f"file {path}", DataError), open_bytes(path) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
        except (pyarrow.ArrowException, *GZIP_ERRORS) as error:
            raise DataError(f"file {path}: not a Parquet file ({one_line(str(error).splitlines()[0], 200)})") from error
        schema = table.schema_arrow
        kinds = [field.type for field in schema if field.name == "translation"]
        languages = [field.name for field in kinds[0]] if kinds and pyarrow.types.is_struct(kinds[0]) else None
        for batch in table.iter_batches(1000, columns=columns.of_table(schema.names, languages, f"file {path}")):
            yield from map(columns.pick, batch.to_pylist())
