"""Rows of parallel text out of local files, one at a time, so that memory stays flat whatever the size.

Every reader yields `(source, target, problem)`: two strings and None, or a row that cannot be used and the name of the
reason, which is counted and reported and never silently dropped. Own readers rather than `load_dataset("csv")` (pandas)
or `load_dataset("json")` (Arrow), because those turn the sentences "null" and "NA" into missing values, shift the
columns of a row with one field too many, read a sentence like "2026-03-12" as a time stamp, and cannot name the line.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from .errors import InputError, one_line, reading

TABLE_KINDS = (".tsv", ".csv", ".jsonl", ".json", ".parquet")
Row = tuple[str, str, str | None]

csv.field_size_limit(2**31 - 1)


class DataError(InputError):
    """A corpus, or an option that picks one, cannot be used; the message is one line that names the place."""


def split_paths(value: str | Path | Sequence[str | Path]) -> list[Path]:
    """`"train.de,train.en"`, a single path or a sequence of two -> existing files.

    Raises:
        DataError: a file is missing, is a folder, or there are more than two.
    """
    if isinstance(value, str) and not Path(value).exists():
        value = [part.strip() for part in value.split(",") if part.strip()]
    paths = [Path(value)] if isinstance(value, (str, Path)) else [Path(part) for part in value]
    if len(paths) not in (1, 2):
        raise DataError(f"expected one table or two parallel text files separated by a comma, got {len(paths)} files")
    for path in paths:
        if not path.exists():
            raise DataError(f"file {path} does not exist")
        if not path.is_file():
            raise DataError(f"{path} is a folder; a file is expected (a saved data set is given as dataset_name)")
    if len(paths) == 1 and kind_of(paths[0]) not in TABLE_KINDS:
        raise DataError(
            f"file {paths[0]}: kind {kind_of(paths[0]) or 'without suffix'!r} is not known; allowed: "
            f"{', '.join(TABLE_KINDS)} (also .gz), or two parallel text files separated by a comma"
        )
    return paths


def kind_of(path: Path) -> str:
    """The suffix that tells a file's kind, lower case, `.gz` left aside: `train.tsv.gz` -> `.tsv`."""
    name = path.name.lower()
    return Path(name[: -len(".gz")] if name.endswith(".gz") else name).suffix


def listed(counts: dict[str, int]) -> str:
    """`{"empty_source": 3}` -> `3 empty_source`."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.items())


def read_rows(
    paths: Sequence[Path],
    *,
    source_column: str | None = None,
    target_column: str | None = None,
    source_lang: str | None = None,
    target_lang: str | None = None,
) -> Iterator[Row]:
    """The rows of one table or of two parallel text files.

    Args:
        paths: one table or two text files.
        source_column, target_column: names of the columns; numbers mean positions (from 0) in a table without header.
        source_lang, target_lang: keys of a `translation` column; also the columns' names when those are not given.

    Raises:
        DataError: nothing in the file, not UTF-8, a missing column, files of different length, a damaged archive.
    """
    if len(paths) == 2:
        rows = _parallel(paths[0], paths[1])
    else:
        columns = Columns(source_column, target_column, source_lang, target_lang)
        reader = {".tsv": _delimited, ".csv": _delimited, ".parquet": _parquet}.get(kind_of(paths[0]), _json)
        rows = reader(paths[0], columns)
    empty = True
    for row in rows:
        empty = False
        yield row
    if empty:
        raise DataError(f"file {paths[0]} holds no rows")


def read_aligned(
    paths: Sequence[Path], file: str | None, column: str | None, **columns: str | None
) -> Iterator[tuple[str, str, str | None, str]]:
    """The rows of `read_rows`, each with its alignment: a line of `file`, or what stands in `column`.

    Raises:
        DataError: as `read_rows`; the file has more or fewer lines than there are rows.
    """
    # A column: the table once more, with the alignment in the place of the source.
    again = {**columns, "source_column": column}
    alignments = read_lines(Path(file)) if file else (row[0] for row in read_rows(paths, **again))
    count = 0
    for count, row in enumerate(read_rows(paths, **columns), start=1):
        alignment = next(alignments, None)
        if alignment is None:
            raise DataError(f"alignment_file {file} ends after {count - 1} lines; there are more training rows")
        yield *row, alignment
    if next(alignments, None) is not None:
        raise DataError(f"alignment_file {file} has more lines than there are training rows ({count})")


def checked(source: Any, target: Any) -> Row:
    """One pair, with the reason why it cannot be used, if any."""
    if source is not None and not isinstance(source, str) or target is not None and not isinstance(target, str):
        return "", "", "not_text"
    if not source or not source.strip():
        return "", target or "", "empty_source"
    if not target or not target.strip():
        return source, "", "empty_target"
    return source, target, None


class Columns:
    """Finds the two sides in a row, for names given as columns, as languages, or left to the default."""

    def __init__(
        self,
        source_column: str | None = None,
        target_column: str | None = None,
        source_lang: str | None = None,
        target_lang: str | None = None,
    ) -> None:
        self.source = source_column or source_lang or "source"
        self.target = target_column or target_lang or "target"
        self.named = source_column is not None or target_column is not None
        self.source_lang = source_lang
        self.target_lang = target_lang
        if self.source == self.target:
            raise DataError(f"source and target column are both {self.source!r}; two different ones are needed")

    @property
    def positions(self) -> tuple[int, int] | None:
        """Positions in a table without header, when both columns are numbers."""
        if self.source.isdecimal() and self.target.isdecimal():
            return int(self.source), int(self.target)
        return None

    def require(self, names: Sequence[str], where: str) -> None:
        """Raises DataError unless both columns are among `names`."""
        missing = [name for name in (self.source, self.target) if name not in names]
        if missing:
            raise DataError(
                f"{where}: no column {missing[0]!r}; it has {', '.join(map(repr, names))} "
                "(choose with source_column and target_column)"
            )

    def pick(self, row: dict[str, Any], where: str) -> tuple[Any, Any]:
        """The two sides of a row; a `translation` column of the Hugging Face kind is opened."""
        nested = row.get("translation")
        if isinstance(nested, dict) and not (self.named and self.source in row and self.target in row):
            where, row = f"{where}, column 'translation'", nested
        self.require(list(row), where)
        return row[self.source], row[self.target]


# First bytes -> what such a file is, and how to make it readable.
_FOREIGN = {
    b"\x1f\x8b": ("a gzip archive", "name it with .gz at the end"),
    b"BZh": ("a bzip2 archive", "unpack it"),
    b"\xfd7zXZ\x00": ("an xz archive", "unpack it"),
    b"PK\x03\x04": ("a zip archive", "unpack it"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard archive", "unpack it"),
    b"PAR1": ("a Parquet file", "name it with .parquet at the end"),
    b"\xff\xfe": ("UTF-16", "convert it with `iconv -f UTF-16 -t UTF-8`"),
    b"\xfe\xff": ("UTF-16", "convert it with `iconv -f UTF-16 -t UTF-8`"),
}


def _foreign(start: bytes) -> tuple[str, str]:
    """What a file is by its first bytes, and the mend; both empty for what may be text."""
    return next((told for magic, told in _FOREIGN.items() if start.startswith(magic)), ("", ""))


def open_bytes(path: Path) -> IO[bytes]:
    """Opens a file, decompressing `.gz`.

    Raises:
        DataError: it is not what its name says: no gzip in `.gz`, an archive or another table under a plain name.
    """
    if not path.name.lower().endswith(".gz"):
        return path.open("rb")
    with path.open("rb") as file:
        start = file.read(6)
    if start and not start.startswith(b"\x1f\x8b"):
        kind = _foreign(start)[0] or "not packed"
        raise DataError(f"file {path}: damaged gzip archive: it is {kind}; pack it with gzip, or rename it")
    return gzip.open(path, "rb")  # type: ignore[return-value]


def read_lines(path: Path) -> Iterator[str]:
    """Lines without their end. Only the line feed ends one: a sentence may hold any other Unicode separator.

    Raises:
        DataError: the file cannot be opened or unpacked, is not UTF-8, or is one line with other ends inside.
    """
    with reading(f"file {path}", DataError) as place, open_bytes(path) as file:
        try:
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
                        "convert the file with `iconv -t UTF-8`, or remove the line"
                    ) from None
                offset += len(raw)
                yield line.rstrip("\n").removesuffix("\r")
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(
                f"file {path}: damaged gzip archive after line {place.line} ({one_line(error)}); fetch or pack it again"
            ) from error


def _require_lines(path: Path, first: bytes) -> None:
    """Raises DataError where the first line shows that the file is no text, or has no line feeds."""
    kind, mend = _foreign(first)
    if kind:
        raise DataError(f"file {path}, line 1, byte 0: not UTF-8: it is {kind}; {mend}")
    if first.rstrip(b"\r\n").count(b"\r") and first.count(b"\r") > 1:
        raise DataError(
            f"file {path}, line 1: its lines end in carriage returns; convert it with `tr '\\r' '\\n'` "
            "(or `dos2unix`, where a line feed follows)"
        )


def _parallel(source: Path, target: Path) -> Iterator[Row]:
    left, right = read_lines(source), read_lines(target)
    count = 0
    while True:
        pair = next(left, None), next(right, None)
        if pair[0] is None or pair[1] is None:
            break
        count += 1
        yield checked(*pair)
    longer = [0 if line is None else 1 for line in pair]
    if any(longer):
        counts = [count + longer[0] + sum(1 for _ in left), count + longer[1] + sum(1 for _ in right)]
        raise DataError(f"parallel files differ in length: {source} has {counts[0]} lines, {target} has {counts[1]}")


def _delimited(path: Path, columns: Columns) -> Iterator[Row]:
    """TSV is read as it stands (quotes are text, as in Tatoeba); CSV by RFC 4180 (a quoted field may span lines)."""
    tabs = kind_of(path) == ".tsv"
    # Blank lines are dropped by the csv module but are rows of a TSV file, so TSV needs no module at all.
    table: Iterator[list[str]] = (
        (line.split("\t") for line in read_lines(path))
        if tabs
        else csv.reader((line + "\n" for line in read_lines(path)), strict=True)
    )
    positions = columns.positions
    width: int | None = None
    try:
        for fields in table:
            if width is None:
                width = len(fields)
                if positions is None:
                    columns.require(fields, f"file {path}")
                    positions = fields.index(columns.source), fields.index(columns.target)
                    continue
                if max(positions) >= width:
                    raise DataError(f"file {path}: no column {max(positions)}; the first row has {width} fields")
            if not tabs and not fields:
                continue  # a blank line between the records of a CSV file is not a record
            if len(fields) != width:
                yield "", "", "wrong_field_count"
            else:
                yield checked(fields[positions[0]], fields[positions[1]])  # type: ignore[index]
    except csv.Error as error:
        raise DataError(f"file {path}: not a CSV table ({error})") from error


def _json(path: Path, columns: Columns) -> Iterator[Row]:
    """One object a line; a `.json` file may also be one array, or an object whose `data` is one (read whole)."""
    if kind_of(path) == ".json" and (records := _json_array(path)) is not None:
        for number, record in enumerate(records, start=1):
            yield _json_row(record, f"file {path}, record {number}", columns)
        return
    for number, line in enumerate(read_lines(path), start=1):
        if line.strip():
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"file {path}, line {number}: not JSON ({error.msg})") from error
            yield _json_row(record, f"file {path}, line {number}", columns)


def _json_row(record: Any, where: str, columns: Columns) -> Row:
    if not isinstance(record, dict):
        raise DataError(f"{where}: an object is expected, got {type(record).__name__}")
    return checked(*columns.pick(record, where))


def _json_array(path: Path) -> list[Any] | None:
    """The records of a file that is one JSON document, or None when it is one object a line."""
    try:
        document = json.loads("\n".join(read_lines(path)))
    except json.JSONDecodeError:
        return None
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document = document["data"]
    return document if isinstance(document, list) else None


def _parquet(path: Path, columns: Columns) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    with open_bytes(path) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
        except pyarrow.ArrowInvalid as error:
            raise DataError(f"file {path}: not a Parquet file ({str(error).splitlines()[0]})") from error
        names = table.schema_arrow.names
        wanted = ["translation"] if "translation" in names and not columns.named else [columns.source, columns.target]
        if wanted[0] != "translation":
            columns.require(names, f"file {path}")
        for batch in table.iter_batches(batch_size=1000, columns=wanted):
            for record in batch.to_pylist():
                yield checked(*columns.pick(record, f"file {path}"))
