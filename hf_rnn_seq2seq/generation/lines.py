"""Reads source lines and writes output lines: the same number, in order; output files can be resumed."""

import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, TypeVar

from hf_rnn_seq2seq.data.readers import GZIP_ERRORS, kind_of, open_bytes, require_text
from hf_rnn_seq2seq.errors import HALF_CHARACTERS, DataError, InUseError
from hf_rnn_seq2seq.files import FileLock, check_output_file, content_hash, write_atomically

if TYPE_CHECKING:
    from datasets import Dataset

Line = TypeVar("Line")
# Options of a command that do not change the lines that it writes.
NOT_CONTENT = ("resume", "overwrite", "disable_tqdm", "window", "batch_size", "max_tokens", "output_file", "device")
_HASH = re.compile("[0-9a-f]{16,64}")


def _standard_input() -> BinaryIO:
    if sys.stdin is None:
        raise DataError("standard input is closed; name a file, or let something be read")
    return sys.stdin.buffer


def read_standard_input() -> str:
    """The whole of standard input as one text with line feeds; bytes that are not UTF-8 are read as U+FFFD."""
    text = _standard_input().read()
    require_text("standard input", text[:8192])
    return text.decode("utf-8", errors="replace").replace("\r\n", "\n")


class _Damage:
    """Counts the lines that cannot be read whole; `damaged` has the numbers of the first hundred."""

    def __init__(self) -> None:
        self.damaged: list[int] = []
        self.damaged_count = 0

    def warnings(self) -> list[str]:
        """A warning if lines were not read completely."""
        first = ", ".join(map(str, self.damaged[:5]))
        count = self.damaged_count
        return [f"{count} line(s) could not be read whole (first: line {first})"] if count else []

    def _report(self, number: int) -> None:
        self.damaged_count += 1
        if len(self.damaged) < 100:
            self.damaged.append(number)


class LineReader(_Damage):
    """Texts of standard input or of a file: plain, JSON lines (`.jsonl`), and either gzipped (`.gz`).

    The text of a JSON row is its field `column`, or where it has none that of its `translation`.

    A line ends at a line feed only (a carriage return before it is removed), so that no character inside a sentence
    changes the count. Bytes that are not UTF-8 are read as U+FFFD, and so are half characters (lone surrogates) in a
    JSON row; a row without text is read as an empty line. `damaged_count` counts these lines. With
    `pairs` the caller splits lines at tabs: a .tsv file is then read line by line too.
    """

    def __init__(self, path: str | None = None, column: str = "source", *, pairs: bool = False) -> None:
        super().__init__()
        self.path, self.column = path, column
        if path is not None and not Path(path).is_file():
            if not Path(path).exists():
                raise DataError(f"input {path!r}: no such file")
            kind = "a folder" if Path(path).is_dir() else "a pipe or a device"
            raise DataError(f"input {path!r}: is {kind}; give a file, which is read more than once")
        kind = kind_of(Path(path)) if path else ""
        self.is_json = kind == ".jsonl"
        if kind in (".parquet", ".csv", ".json", ".arrow") or (kind == ".tsv" and not pairs):
            raise DataError(f"input {path!r}: tables are not read; allowed: plain text or .jsonl, also .gz")

    def _open(self) -> BinaryIO:
        if self.path is None:
            return _standard_input()
        return open_bytes(Path(self.path))  # type: ignore[return-value]

    def count(self) -> int | None:
        """The number of lines of a file; None for standard input and for a damaged archive."""
        if self.path is None:
            return None
        total, last = 0, b"\n"
        try:
            with self._open() as file:
                while block := file.read(1 << 20):
                    total += block.count(b"\n")
                    last = block[-1:]
        except GZIP_ERRORS:
            return None
        return total + (last != b"\n")

    def fingerprint(self) -> str | None:
        """Hash of the file's content; None for standard input."""
        return None if self.path is None else content_hash([Path(self.path)])

    def __iter__(self) -> Iterator[str]:
        number = 0
        try:
            with self._open() as file:
                for number, line in enumerate(file, start=1):
                    if number == 1:
                        require_text("standard input" if self.path is None else f"input {self.path!r}", line)
                    yield self._text(line.removesuffix(b"\n").removesuffix(b"\r"), number)
        except GZIP_ERRORS as error:
            raise DataError(
                f"input {self.path!r}, line {number + 1}: not a whole gzip file ({error}); unpack or fetch it again"
            ) from None

    def _text(self, line: bytes, number: int) -> str:
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            self._report(number)
            text = line.decode("utf-8", errors="replace")
        if number == 1:
            text = text.removeprefix("\N{BYTE ORDER MARK}")
        return self._field(text, number) if self.is_json and text.strip() else text

    def _field(self, text: str, number: int) -> str:
        try:
            row = json.loads(text)
        except (ValueError, RecursionError):
            row = None
        if isinstance(row, Mapping) and self.column not in row and isinstance(row.get("translation"), Mapping):
            row = row["translation"]
        value = row.get(self.column) if isinstance(row, Mapping) else row
        if isinstance(value, str):
            if HALF_CHARACTERS.search(value):
                self._report(number)
            return HALF_CHARACTERS.sub("\N{REPLACEMENT CHARACTER}", value)
        if number == 1:
            raise DataError(f"input {self.path!r}: line 1 is not a JSON object with a text field {self.column!r}")
        self._report(number)
        return ""


def windows(lines: Iterable[Line], size: int) -> Iterator[list[Line]]:
    """Lists of at most `size` lines; the lines before damaged input are yielded before its error is raised."""
    window: list[Line] = []
    try:
        for line in lines:
            window.append(line)
            if len(window) == size:
                yield window
                window = []
    except DataError:
        if window:
            yield window
        raise
    if window:
        yield window


class DatasetReader(_Damage):
    """The source texts of a data set, row by row; memory-mapped, so that memory does not grow.

    A row without text is read as an empty line; `damaged_count` and `damaged` count such rows as in `LineReader`.

    Args:
        name: `cldr`, a folder that `save_to_disk` wrote, or a data set on the Hub.
        config: its configuration; for `cldr` a pair of locales such as en-fr.
        split: its split.
        column: column of the source texts (default: `language`, `source`, or the `translation` column).
        language: a column, or a key of the `translation` column.

    Raises:
        DataError: the data set, split, column or language does not exist.
    """

    def __init__(
        self,
        name: str,
        config: str | None = None,
        split: str = "test",
        column: str | None = None,
        language: str | None = None,
    ) -> None:
        super().__init__()
        self.path = self.name = name
        self.language = language
        self._rows = self._load(name, config, split, language)
        names = self._rows.column_names
        # The sides of cldr have no languages for names; `_load` has compared them.
        likely = ("source" if language is None or name == "cldr" else language, "translation")
        self.column = column or next((known for known in likely if known in names), likely[0])
        if self.column not in names:
            raise DataError(f"data set {name!r} has no column {self.column!r}; it has {', '.join(names)}")
        if self.column == "translation" and column is None and language not in (keys := self._languages()):
            raise DataError(f"source_lang {language!r}: the data set {name!r} has {', '.join(keys)}")

    @staticmethod
    def _load(name: str, config: str | None, split: str, language: str | None) -> "Dataset":
        import datasets

        from hf_rnn_seq2seq.data.arguments import DataArguments
        from hf_rnn_seq2seq.data.corpus import load_corpus, name_of, open_named

        if name == "cldr":
            data = DataArguments(dataset_name=name, dataset_config_name=config, source_lang=language)
            return load_corpus(data, splits=(split,)).splits[split]
        if not Path(name).exists():  # of the Hub; the split may be an expression such as test[:100]
            try:
                return datasets.load_dataset(name, config, split=split)
            except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                raise DataError(f"data set {name!r}: {reason}") from error
        loaded = open_named(DataArguments(dataset_name=name, dataset_config_name=config), name)
        if (Path(name) / "state.json").is_file():  # one table, saved without splits
            return next(iter(loaded.values()))
        if (found := name_of(split, loaded)) is None:
            raise DataError(f"split {split!r}: the data set {name!r} has {', '.join(loaded)}")
        return loaded[found]

    def fingerprint(self) -> str:
        """The fingerprint that `datasets` computes from the rows."""
        return self._rows._fingerprint

    def _languages(self) -> list[str]:
        return sorted(next(iter(self._rows))["translation"]) if len(self._rows) else []

    def count(self) -> int:
        """The number of rows."""
        return len(self._rows)

    def __iter__(self) -> Iterator[str]:
        number = 0
        for batch in self._rows.select_columns([self.column]).iter(1000):
            for value in batch[self.column]:
                number += 1
                text = value.get(self.language) if isinstance(value, Mapping) else value
                if not isinstance(text, str):
                    self._report(number)
                    text = ""
                yield text


class LineWriter:
    """Standard output, or a file that gets its name when it is complete.

    Until then the lines are in FILE.part; with `resume` an interrupted part is continued after its last complete line.
    `identity` is what the lines depend on; a part with a different identity is not continued.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        identity: Mapping[str, Any] = {},
    ) -> None:
        self.path = Path(path) if path else None
        self.done = 0  # lines that an earlier run wrote
        self.written = 0  # lines that this run wrote
        if self.path is None:
            if sys.stdout is None:
                raise DataError("standard output is closed; give --output_file, or let something read the output")
            self._file: BinaryIO = sys.stdout.buffer
            return
        if self.path.suffix.lower() == ".gz":
            raise DataError(f"output_file {str(path)!r}: lines are not packed; leave out .gz")
        if self.path.exists() and not self.path.is_file():
            raise DataError(f"output_file {str(path)!r}: is not a regular file; name one")
        check_output_file(self.path, "output_file", overwrite=overwrite)
        self.part = self.path.with_name(self.path.name + ".part")
        self.identity_file = self.path.with_name(self.path.name + ".part.json")
        begun = self.part.exists()
        try:
            self._lock = FileLock(self.part)
        except InUseError:
            raise DataError(f"{str(self.part)!r}: another process is writing it; wait until it has ended") from None
        try:
            self._open(begun, resume, overwrite, identity or {})
        except BaseException:
            self._lock.release()
            raise

    def _open(self, begun: bool, resume: bool, overwrite: bool, identity: Mapping[str, Any]) -> None:
        if begun and not resume and not overwrite:
            raise DataError(f"{str(self.part)!r} is left from an interrupted run; --resume continues it, or remove it")
        if begun and resume:
            self._check_identity(identity)
            self.done = _cut_to_whole_lines(self.part)
        else:
            self.part.write_bytes(b"")
            write_atomically(self.identity_file, json.dumps(dict(identity), indent=2, ensure_ascii=False) + "\n")
        self._file = self.part.open("ab")

    def _check_identity(self, identity: Mapping[str, Any]) -> None:
        try:
            earlier = json.loads(self.identity_file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            raise DataError(
                f"{str(self.identity_file)!r} is missing or damaged; start again with --overwrite"
            ) from None
        now = json.loads(json.dumps(dict(identity)))
        if not isinstance(earlier, Mapping) or (missing := sorted(now.keys() - earlier.keys())):
            name = missing[0] if isinstance(earlier, Mapping) else "input"
            raise DataError(
                f"{str(self.part)!r}: does not say with which {name} it was made; start again with --overwrite"
            )
        changed = sorted(key for key in {*earlier, *now} if earlier.get(key) != now.get(key))
        if changed:
            value = earlier.get(changed[0])
            hashes = value if isinstance(value, list) else [value]
            shown = "" if any(_HASH.fullmatch(str(each)) for each in hashes) else f" ({value!r:.80})"
            raise DataError(
                f"{str(self.part)!r} was made with another {changed[0]}{shown}; give that again, or start again with "
                "--overwrite"
            )

    def write(self, lines: Sequence[str]) -> None:
        """Appends lines; a line feed inside a line becomes a space, so that the number of lines is kept."""
        cleaned = [line.replace("\r", " ").replace("\n", " ") + "\n" for line in lines]
        try:
            self._file.write("".join(cleaned).encode("utf-8", errors="replace"))
            self._file.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            name = "standard output" if self.path is None else f"output_file {str(self.path)!r}"
            raise DataError(f"{name}: cannot be written ({error.strerror or error})") from None
        self.written += len(cleaned)

    def __enter__(self) -> "LineWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.path is None:
            return
        os.fsync(self._file.fileno())
        self._file.close()
        if os.name == "nt":  # Windows cannot move an open file
            self._lock.release()
        try:
            if kind is None:
                os.replace(self.part, self.path)
                self.identity_file.unlink(missing_ok=True)
            elif not self.done + self.written:  # there is nothing to continue
                self.part.unlink(missing_ok=True)
                self.identity_file.unlink(missing_ok=True)
        finally:
            self._lock.release()


def _cut_to_whole_lines(path: Path) -> int:
    """Cuts a file after its last line feed; returns the number of lines left."""
    lines, end, position = 0, 0, 0
    with path.open("r+b") as file:
        while block := file.read(1 << 20):
            lines += block.count(b"\n")
            if (last := block.rfind(b"\n")) >= 0:
                end = position + last + 1
            position += len(block)
        file.truncate(end)
    return lines
