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
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from hf_rnn_seq2seq.errors import DataError, is_undecodable, listed_names, one_line, quoted, reading

TABLE_KINDS = (".tsv", ".csv", ".jsonl", ".json", ".parquet")
Row = tuple[str, str, str | None]

GZIP_ERRORS = (EOFError, gzip.BadGzipFile, zlib.error)
# The problem of a row that can be used, but that may be several: it begins so, and its lines follow.
SPANS = "lines "

csv.field_size_limit(2**31 - 1)


def split_paths(value: str | Path | Sequence[str | Path]) -> list[Path]:
    """`"train.de,train.en"`, a single path or a sequence of two -> existing files.

    Raises:
        DataError: a file is missing, is a folder, or there are more than two.
    """
    if isinstance(value, str) and not os.path.exists(value):
        value = [part.strip() for part in value.split(",") if part.strip()]
    paths = [Path(value)] if isinstance(value, (str, Path)) else [Path(part) for part in value]
    if len(paths) not in (1, 2):
        raise DataError(f"expected one table or two parallel text files separated by a comma, got {len(paths)} files")
    for path in paths:
        if not os.path.exists(path):
            raise DataError(f"file {path} does not exist")
        if path.is_dir():
            raise DataError(f"{path} is a folder; a file is expected (a saved data set is given as dataset_name)")
        if not path.is_file():
            raise DataError(f"{path} is a pipe or a device; a file is expected, since it is read more than once")
        with reading(f"file {path}", DataError):
            path.open("rb").close()
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
    from hf_rnn_seq2seq.data.word_alignment import parse_pharaoh

    # A column: the table once more, with the alignment in the place of the source.
    again = {**columns, "source_column": column}
    alignments = read_lines(Path(file)) if file else (row[0] for row in read_rows(paths, **again))
    where = f"alignment_file {file}, line" if file else f"file {paths[0]}, column {column!r}, row"
    count = 0
    for count, row in enumerate(read_rows(paths, **columns), start=1):
        alignment = next(alignments, None)
        if alignment is None:
            raise DataError(f"alignment_file {file} ends after {count - 1} lines; there are more training rows")
        parse_pharaoh(alignment, f"{where} {count}")  # here the place in the file is known
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


# Rows within which a column must turn up: nobody waits for the end of a large file to learn of a wrong name.
_PATIENCE = 10_000


class Columns:
    """Finds the two sides in a row, for names given as columns, as languages, or left to the default.

    Of rows that each have names of their own (JSON) one may lack a side, which is then empty, but not all may.
    """

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
        self._unseen, self._rows, self._complaint = {self.source, self.target}, 0, ""
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
        if repeated := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
            raise DataError(
                f"{where}: {listed_names(repeated)} names {names.count(repeated[0])} columns; rename all but one"
            )
        missing = [name for name in (self.source, self.target) if name not in names]
        if missing:
            raise DataError(self._lacking(missing[0], names, where))

    def wanted(self, names: Sequence[str], where: str) -> list[str]:
        """The columns to read of a table that has these names: both sides, or `translation`, which holds them."""
        nested = not self.named and "translation" in names and not {self.source, self.target} <= {*names}
        self.require([*names, *({self.source, self.target} - {*names} if nested else ())], where)
        return ["translation"] if nested else [self.source, self.target]

    def _lacking(self, name: str, names: Sequence[str], where: str) -> str:
        has = listed_names(names) or "none"
        return f"{where}: no column {quoted(name)}; it has {has} (choose with source_column and target_column)"

    def pick(self, row: dict[str, Any], where: str) -> tuple[Any, Any]:
        """The two sides of a row, None for one that is not there; a `translation` column is opened.

        Raises:
            DataError: a side has not been in any of the first rows.
        """
        flat, nested = self.source in row and self.target in row, row.get("translation")
        if "translation" in row and not (flat and (self.named or not isinstance(nested, dict))):
            if not isinstance(nested, dict):
                return (None, None) if nested is None else ([nested], [nested])
            where, row = f"{where}, column 'translation'", nested
        self._rows += 1
        if self._unseen:
            self._unseen -= row.keys()
            for name in self._unseen:
                self._complaint = self._complaint or self._lacking(name, list(row), where)
            if self._rows >= _PATIENCE:
                self.finish()
        return row.get(self.source), row.get(self.target)

    def finish(self) -> None:
        """Raises DataError where a side was in none of the rows; called behind the last one."""
        if self._unseen and self._complaint:
            raise DataError(self._complaint)


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
        BadGzipFile: there is no gzip in a `.gz`.
    """
    if not path.name.lower().endswith(".gz"):
        return path.open("rb")
    with path.open("rb") as file:
        start = file.read(6)
    if start and not start.startswith(b"\x1f\x8b"):
        kind = _foreign(start)[0] or "not packed"
        raise gzip.BadGzipFile(f"it is {kind}; pack it with gzip, or rename it")
    return gzip.open(path, "rb")  # type: ignore[return-value]


def read_lines(path: Path) -> Iterator[str]:
    """Lines without their end. Only the line feed ends one: a sentence may hold any other Unicode separator.

    Raises:
        DataError: the file cannot be opened or unpacked, is not UTF-8, or is one line with other ends inside.
    """
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
            raise DataError(f"file {path}: {damage(error, place.line)}") from error


def damage(error: Exception, line: int) -> str:
    """What is said of one of the GZIP_ERRORS that came behind a line."""
    behind = f" after line {line}" if line else ""
    return f"damaged gzip archive{behind} ({one_line(error)})" + ("; fetch or pack it again" if line else "")


def _require_lines(path: Path, first: bytes) -> None:
    """Raises DataError where the first line shows that the file is no text, or has no line feeds."""
    kind, mend = _foreign(first)
    if kind:
        raise DataError(f"file {path}, line 1, byte 0: not UTF-8: it is {kind}; {mend}")
    inside = first.rstrip(b"\r\n").count(b"\r")
    if inside > 1 or (inside and not first.endswith(b"\n")):
        raise DataError(
            f"file {path}, line 1: its lines end in carriage returns; convert it with `tr '\\r' '\\n'`, or with "
            "`dos2unix` where line feeds follow"
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
    start = end = 0  # the lines before the record, and the last one of it
    try:
        for fields in table:
            start, end = end, end + 1 if tabs else table.line_num  # type: ignore[attr-defined]
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
                source, target, problem = checked(fields[positions[0]], fields[positions[1]])  # type: ignore[index]
                spans = f"{SPANS}{start + 1} to {end}" if end > start + 1 else None
                yield source, target, problem or spans
    except csv.Error as error:
        raise DataError(
            f"file {path}: not a CSV table ({error}, in the record that begins in line {end + 1}); a quote inside a "
            "quoted field is written twice"
        ) from error


def _json(path: Path, columns: Columns) -> Iterator[Row]:
    """One object a line; a `.json` file may also be one array, or an object whose `data` is one (read whole)."""
    if kind_of(path) == ".json" and (records := _json_array(path)) is not None:
        for number, record in enumerate(records, start=1):
            yield _json_row(record, f"file {path}, record {number}", columns)
    else:
        for number, line in enumerate(read_lines(path), start=1):
            where = f"file {path}, line {number}"
            if line.strip():
                try:
                    record = json.loads(line, object_pairs_hook=_object)
                except (ValueError, RecursionError) as error:
                    told = getattr(error, "msg", None) or one_line(error, 200)
                    raise DataError(f"{where}: not JSON ({told}); mend or remove the line") from error
                yield _json_row(record, where, columns)
    columns.finish()


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the name {next(quoted(name) for name in names if names.count(name) > 1)} stands twice")
    return found


def _json_row(record: Any, where: str, columns: Columns) -> Row:
    if not isinstance(record, dict):
        raise DataError(f"{where}: an object is expected, got {type(record).__name__}")
    sides = columns.pick(record, where)
    # Half a character (a lone surrogate, which only an escape of JSON can write) is no text.
    if any(isinstance(side, str) and is_undecodable(side) for side in sides):
        return "", "", "not_text"
    return checked(*sides)


def _json_array(path: Path) -> list[Any] | None:
    """The records of a file that is one JSON document, or None when it is one object a line."""
    try:
        document = json.loads("\n".join(read_lines(path)), object_pairs_hook=_object)
    except json.JSONDecodeError:
        return None
    except (ValueError, RecursionError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"file {path}: not JSON ({one_line(error, 200)})") from error
    if isinstance(document, dict) and isinstance(document.get("data"), list):
        document = document["data"]
    return document if isinstance(document, list) else None


def _parquet(path: Path, columns: Columns) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet

    with reading(f"file {path}", DataError), open_bytes(path) as file:
        try:
            table = pyarrow.parquet.ParquetFile(file)
        except (pyarrow.ArrowException, *GZIP_ERRORS) as error:
            raise DataError(f"file {path}: not a Parquet file ({one_line(str(error).splitlines()[0], 200)})") from error
        wanted = columns.wanted(table.schema_arrow.names, f"file {path}")
        for batch in table.iter_batches(batch_size=1000, columns=wanted):
            for record in batch.to_pylist():
                yield checked(*columns.pick(record, f"file {path}"))
    columns.finish()
