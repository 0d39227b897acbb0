"""Errors for bad input, whose messages are one line, and a record of the input that was read last."""

from __future__ import annotations

import re
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType

LONGEST = 1000  # characters of a message, whatever it quotes
_LIBRARIES = tuple(sysconfig.get_paths()[name] for name in ("stdlib", "purelib", "platlib"))
_PACKAGES = (__name__.partition(".")[0], "transformers_modules")  # the second: model code in a checkpoint


class InputError(ValueError):
    """Input of the user cannot be used. The message is one line of at most `LONGEST` characters."""

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(value: object, limit: int = LONGEST) -> str:
    """A text or the message of an exception, without line breaks.

    A longer one is shortened in the middle: its beginning names the place, and its end says how to mend it.
    """
    text = str(value) or (type(value).__name__ if isinstance(value, BaseException) else "")
    if len(text) > 10 * limit:
        text = f"{text[: 5 * limit]} {text[-5 * limit :]}"
    words = " ".join(text.split())
    return words if len(words) <= limit else f"{words[: limit * 2 // 3]} ... {words[-(limit // 3 - 5) :]}"


def quoted(value: object) -> str:
    """A value as Python writes it, shortened."""
    return one_line(repr(value[:160] if isinstance(value, (str, bytes)) else value), 80)


def listed_names(names: Iterable[object]) -> str:
    """The first twelve names, quoted, and the number of the others."""
    names = list(names)
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(map(quoted, names[:12])) + more


def reason(error: BaseException) -> str:
    """An exception's message in one line; with its class if the message alone is not clear, as `KeyError: 'en'`."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    text = one_line(error)
    return text if isinstance(error, (ValueError, OSError)) else f"{type(error).__name__}: {text}"


HALF_CHARACTERS = re.compile("[\ud800-\udfff]")


def is_undecodable(text: str) -> bool:
    """Whether a text contains lone surrogates, which no encoding can write.

    They come from escapes in JSON, or from bytes of a command line that Python could not decode.
    """
    return not text.isascii() and HALF_CHARACTERS.search(text) is not None


def undecodable(name: str, word: str) -> str:
    """The message for such a text."""
    return f"{name}={word[:80]!a}: holds bytes that are not UTF-8; write it in UTF-8"


@dataclass
class Place:
    """An input, such as `file a.tsv` or `model_name_or_path='a'`, and the line that is being read if it has lines."""

    name: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.name}, line {self.line}" if self.line else self.name


_last: Place | None = None


@contextmanager
def reading(name: str, kind: type[InputError] = InputError) -> Iterator[Place]:
    """Turns every error of a library into an error of `kind` that names the input.

    The caller may keep the place's `line` up to date. The message of a later unexpected error has the last place too.
    """
    global _last
    place = _last = Place(name)
    try:
        yield place
    except InputError:
        raise  # its message names the place
    except Exception as error:
        if is_out_of_memory(error):
            raise
        cause = error.strerror if isinstance(error, OSError) and error.strerror else reason(error)
        raise kind(f"{place}: cannot be read ({cause})") from error


def last_input() -> str | None:
    """The input that was opened last, and the line that was reached."""
    return str(_last) if _last else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: Python's, or that of a device (a class of torch, which is not imported for this)."""
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"


def is_ours(error: BaseException) -> bool:
    """Whether the message is from this package: one of its classes, or a ValueError that its code raised."""
    if type(error).__module__.partition(".")[0] in _PACKAGES:
        return True
    return type(error) is ValueError and error.__traceback__ is not None and _raised_here(error.__traceback__)


def _raised_here(trace: TracebackType) -> bool:
    import dis

    while trace.tb_next is not None:
        trace = trace.tb_next
    code, module = trace.tb_frame.f_code, trace.tb_frame.f_globals.get("__name__", "")
    if code.co_code[trace.tb_lasti] != dis.opmap["RAISE_VARARGS"]:
        return False  # a C function that was called there raised it
    return module.partition(".")[0] in _PACKAGES or not code.co_filename.startswith(_LIBRARIES)


class ArgumentError(InputError):
    """An option or argument cannot be used: the message has its name, its value and what is allowed."""


class DataError(InputError):
    """A corpus, a file or a stream cannot be read or written; the message names it."""


class CheckpointError(InputError):
    """A directory contains no usable checkpoint; the message names it and what is missing."""


class AttentionError(InputError):
    """The model returns no attention weights."""


class InUseError(InputError):
    """Another process is writing the file or directory; the message names it."""


class TrainingError(RuntimeError):
    """Training cannot continue; the message says what happened and what to try."""
