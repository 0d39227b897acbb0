"""Initializes a model's embeddings with pretrained word vectors (text format of word2vec, GloVe, fastText's .vec).

A file is read line by line and only the words of the vocabulary are used, so memory does not grow with the file. A line
is a word and its numbers, separated by single spaces; word2vec and fastText write a header `count width` first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.readers import GZIP_ERRORS, open_bytes
from hf_rnn_seq2seq.data.tokenizer import source_tokens, target_tokens
from hf_rnn_seq2seq.errors import DataError, quoted, reading

KINDS = ("exact", "stripped", "lowercased")  # how a token may match a word, best first
_NONE = len(KINDS)
_MARKERS = ("##", "\N{LOWER ONE EIGHTH BLOCK}"), ("@@", "</w>")  # before and after a piece of a word
_BINARY = frozenset(range(32)) - frozenset(b"\t\n\v\f\r\x1c\x1d\x1e\x1f")  # bytes that do not occur in text
_LONGEST_LINE = 1 << 20


@dataclass(frozen=True)
class Coverage:
    """How much of a vocabulary has a vector, without special tokens.

    Attributes:
        file: name of the file.
        entries: number of entries of the vocabulary.
        found: number of entries with a vector, by the kind of match: of the token itself, without the marks of a piece
            of a word, or in lower case.
        running: share of the running tokens of the training split that have one; None if they were not counted.
    """

    file: str
    entries: int
    found: dict[str, int]
    running: float | None

    def __str__(self) -> str:
        total = sum(self.found.values())
        ways = ", ".join(f"{count:,} {kind}" for kind, count in self.found.items())
        running = "" if self.running is None else f"; {self.running:.1%} of the running training tokens"
        share = total / max(self.entries, 1)
        return f"{self.file}: {total:,} of {self.entries:,} entries ({share:.1%}) have a vector ({ways}){running}"


def vocabulary_words(tokenizer: PreTrainedTokenizerBase, size: int, *, target: bool = False) -> list[str | None]:
    """The text of every entry of a vocabulary, None for special tokens; see `wanted_words`."""
    readable = (target_tokens if target else source_tokens)(tokenizer, range(size))
    special = set(tokenizer.all_special_ids)
    return [None if index in special else text for index, text in enumerate(readable)]


def wanted_words(names: Sequence[str], texts: Sequence[str | None]) -> dict[bytes, list[tuple[int, int]]]:
    """Word of a file -> the entries that match it, each with the kind of match as a position in KINDS.

    Args:
        names: the entries as written in the vocabulary (`Ġhouse`, `##ing`).
        texts: their texts (` house`); None for an entry without a vector.
    """
    wanted: dict[bytes, list[tuple[int, int]]] = {}
    for index, (name, text) in enumerate(zip(names, texts, strict=True)):
        if text is None:
            continue
        plain = text.strip()
        for mark in _MARKERS[0]:
            plain = plain.removeprefix(mark)
        for mark in _MARKERS[1]:
            plain = plain.removesuffix(mark)
        forms = {name: 0}
        for form, kind in ((plain, 1), (name.lower(), 2), (plain.lower(), 2)):
            forms.setdefault(form, kind)
        for form, kind in forms.items():
            if form.strip():
                wanted.setdefault(form.encode(), []).append((index, kind))
    return wanted


def read_vectors(path: str | Path, wanted: Collection[bytes], width: int) -> Iterator[tuple[bytes, list[float]]]:
    """The (word, numbers) of a file whose word is wanted, in the order of the file.

    The numbers of other words are counted, not parsed.

    Raises:
        DataError: the file does not exist, is binary, is a damaged archive, or has more or fewer lines than its
            header says; or a line is not a word with `width` finite numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"word vectors {str(path)!r}: no such file")
    where = f"word vectors {str(path)!r}"
    with reading(where, DataError):
        try:
            with open_bytes(path) as file:
                if _BINARY & set(file.read(1 << 16)):
                    raise DataError(
                        f"{where}: the binary format is not supported (it names neither the type of its numbers nor "
                        "their byte order); convert it to text, plain or .gz"
                    )
            with open_bytes(path) as file:
                yield from _rows(file, wanted, width, where)
        except GZIP_ERRORS as error:
            raise DataError(f"{where}: damaged gzip archive ({error}); fetch or pack it again") from None


def _rows(file: BinaryIO, wanted: Collection[bytes], width: int, where: str) -> Iterator[tuple[bytes, list[float]]]:
    announced: int | None = None
    count = 0
    for number, raw in enumerate(iter(lambda: file.readline(_LONGEST_LINE), b""), start=1):
        if len(raw) == _LONGEST_LINE:
            raise DataError(f"{where}: line {number} is longer than {_LONGEST_LINE >> 20} MiB: no word and vector")
        line = raw.rstrip(b" \r\n")
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
            fields = line.split(b" ")
            is_header = len(fields) == 2 and all(field.isdigit() for field in fields)
            found = int(fields[1]) if is_header else len(fields) - 1
            if found != width:
                raise DataError(f"{where}: vectors of {found} numbers; embedding_size is {width}, they must agree")
            if is_header:
                announced = int(fields[0])
                continue
        if not line:
            continue
        count += 1
        word, _, _ = line.partition(b" ")
        spaces = line.count(b" ")
        if spaces < width:
            raise DataError(f"{where}: line {number} has {spaces} numbers instead of {width}")
        if spaces > width:
            # A word may contain spaces (". . ." in GloVe), but its last part never looks like one more number.
            word = line.rsplit(b" ", width)[0]
            if _is_number(word.rsplit(b" ", 1)[1]):
                raise DataError(f"{where}: line {number} has {spaces} numbers instead of {width}")
        if word in wanted:
            yield word, _numbers(line.rsplit(b" ", width)[1:], f"{where}: line {number}")
    if not count:
        raise DataError(f"{where}: holds no vectors")
    if announced not in (None, count):
        raise DataError(f"{where}: its header says {announced} vectors, there are {count}")


def _is_number(field: bytes) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True


def _numbers(fields: Sequence[bytes], where: str) -> list[float]:
    for field in fields:
        if not _is_number(field) or not math.isfinite(float(field)):
            raise DataError(f"{where}: {quoted(field.decode(errors='replace'))} is not a finite number")
    return [float(field) for field in fields]


@torch.no_grad()
def fill_table(
    table: nn.Embedding, wanted: Mapping[bytes, Sequence[tuple[int, int]]], path: str | Path, kinds: np.ndarray
) -> None:
    """Copies the vectors of a file to the rows of a table; a row without a matching word does not change.

    If several words match a row, the better kind of match wins, and of one kind the first.

    Args:
        wanted: see `wanted_words`.
        kinds: (rows,), the kind of match of every row so far, `len(KINDS)` for none; updated in place.

    Raises:
        DataError: see `read_vectors`; the table is then half filled.
    """
    before = kinds.copy()
    for word, numbers in read_vectors(path, wanted, table.embedding_dim):
        row = torch.tensor(numbers, dtype=table.weight.dtype, device=table.weight.device)
        for index, kind in wanted[word]:
            # A row that an earlier file filled does not change.
            if before[index] == _NONE and kind < kinds[index]:
                table.weight[index] = row
                kinds[index] = kind


def load_word_vectors(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    files: Mapping[str, str | None],
    *,
    sizes: tuple[int, int],
    first_rows: tuple[int, int] = (0, 0),
    count: Callable[[str, int], np.ndarray | None] = lambda side, size: None,
) -> dict[str, Coverage]:
    """Copies pretrained vectors to the embeddings of a model.

    If both sides share one table, the file of the source comes first and that of the target fills the remaining rows.

    Args:
        files: the file of `source` and of `target`, None for none.
        sizes: entries of the source and the target vocabulary.
        first_rows: rows before these do not change (those of a checkpoint whose vocabulary was extended).
        count: (side, entries) -> how often each entry occurs in the training split.

    Returns:
        the coverage of each side that has a file.

    Raises:
        DataError: see `read_vectors`; the model has no such table.
    """
    reports: dict[str, Coverage] = {}
    kinds_of: dict[int, np.ndarray] = {}
    for side, size, first in zip(("source", "target"), sizes, first_rows, strict=True):
        path = files.get(side)
        if not path:
            continue
        table = embedding_table(model, side)
        texts = vocabulary_words(tokenizer, size, target=side == "target")
        texts[:first] = [None] * first
        kinds = kinds_of.setdefault(table.weight.data_ptr(), np.full(table.num_embeddings, _NONE))
        fill_table(table, wanted_words(_names(tokenizer, size, side), texts), path, kinds)
        eligible = np.array([text is not None for text in texts])
        reports[side] = _coverage(Path(path).name, kinds[:size], eligible, count(side, size))
    return reports


def embedding_table(model: PreTrainedModel, side: str) -> nn.Embedding:
    """The embeddings of the `source` or the `target`.

    Raises:
        DataError: the model has none under the usual name.
    """
    stack = model.get_encoder() if side == "source" else model.get_decoder()
    table = getattr(stack, "embed_tokens", None)
    if not isinstance(table, nn.Embedding):
        raise DataError(f"{side}_vectors: the {type(stack).__name__} of this model has no table embed_tokens")
    return table


def _names(tokenizer: PreTrainedTokenizerBase, size: int, side: str) -> list[str]:
    convert = getattr(tokenizer, "convert_target_ids_to_tokens", None) if side == "target" else None
    return list((convert or tokenizer.convert_ids_to_tokens)(list(range(size))))


def _coverage(file: str, kinds: np.ndarray, eligible: np.ndarray, running: np.ndarray | None) -> Coverage:
    kinds = np.where(eligible, kinds, _NONE)
    share = None
    if running is not None:
        share = float(running[kinds < _NONE].sum() / max(running[eligible].sum(), 1))
    found = {kind: int((kinds == number).sum()) for number, kind in enumerate(KINDS)}
    return Coverage(file, int(eligible.sum()), found, share)
