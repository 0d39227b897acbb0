"""Which source tokens stand for each target token: from alignments in Pharaoh's format, or found by a small aligner.

A token alignment is a flat list of whole numbers, source and target position in turn; the two end tokens stand for each
other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, List, Value

from hf_rnn_seq2seq.data.loader import column
from hf_rnn_seq2seq.errors import DataError, quoted
from hf_rnn_seq2seq.files import content_hash, digest

UNITS = ("word", "token")
FEATURE = List(Value("int32"))

# The aligner's: share of target words that stand for nothing, tension of the diagonal (both as fast_align starts with),
# rounds of expectation and maximisation, pairs of words that it learns from, and p(t|s) of a pair that was never seen.
NULL, TENSION, ROUNDS, CELLS, UNSEEN = 0.08, 4.0, 5, 5_000_000, 1e-9


def parse_pharaoh(line: str, where: str) -> list[tuple[int, int]]:
    """`0-0 1-2` -> [(0, 0), (1, 2)], source before target.

    Raises:
        DataError: anything else stands there; `where` names the place.
    """
    pairs = []
    for part in line.split():
        numbers = re.fullmatch(r"(\d{1,9})-(\d{1,9})", part)
        if numbers is None:
            raise DataError(f"{where}: {quoted(part)} is no pair of an alignment, as 0-2 (source word, target word)")
        pairs.append((int(numbers[1]), int(numbers[2])))
    return pairs


def words_of_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """For each token the number of its word (between white space), -1 where it has no characters of its own.

    Args:
        offsets: where each token begins and ends in `text`; its last character tells its word.
    """
    numbers, number, inside = [], -1, False
    for character in text:
        number += not inside and not character.isspace()
        inside = not character.isspace()
        numbers.append(number if inside else -1)
    return [numbers[end - 1] if end > start else -1 for start, end in offsets]


def token_alignments(batch: Mapping[str, list[Any]], tokenizer: Any, unit: str) -> list[list[int]]:
    """The alignments of text rows with `source`, `target`, `alignment` and `id`, between tokens.

    Args:
        unit: `word`: positions count words between white space, and all tokens of the one stand for all of the other;
            `token`: they count the tokenizer's tokens.

    Raises:
        DataError: an alignment that cannot be read, or that names a word beyond the end.
    """
    found = []
    options = {"return_offsets_mapping": True, "return_attention_mask": False, "verbose": False}
    sides = [tokenizer(batch["source"], **options), tokenizer(text_target=batch["target"], **options)]
    for row, line in enumerate(batch["alignment"]):
        where = f"alignment of training row {batch['id'][row]}"
        places: list[list[list[int]]] = []
        for name, side in zip(("source", "target"), sides, strict=True):
            offsets = side["offset_mapping"][row]
            words = list(range(len(offsets) - 1)) if unit == "token" else words_of_tokens(batch[name][row], offsets)
            places.append([[] for _ in range(max(words, default=-1) + 1)])
            for position, word in enumerate(words):
                if word >= 0:
                    places[-1][word].append(position)
        flat: list[int] = []
        for source, target in parse_pharaoh(line or "", where):
            if source >= len(places[0]) or target >= len(places[1]):
                raise DataError(
                    f"{where}: {source}-{target}, but there are {len(places[0])} and {len(places[1])} {unit}s"
                )
            flat += [number for s in places[0][source] for t in places[1][target] for number in (s, t)]
        found.append([*flat, len(sides[0]["offset_mapping"][row]) - 1, len(sides[1]["offset_mapping"][row]) - 1])
    return found


class Aligner:
    """IBM model 1 with a prior for the diagonal: fast_align (Dyer 2013) without fitting its tension, in one direction.

    Each target token stands for one source token or for none. Learns when it is first asked, from as many rows, spread
    evenly, as have `CELLS` pairs of tokens.

    Args:
        rows: `input_ids` and `labels` of each row, ending in the end token, which the model is not asked about.
    """

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    @cached_property
    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of tokens that were seen together, ordered, and p(target token | source token)."""
        lengths = [column(self.rows, name).astype(np.int64) for name in ("source_length", "target_length")]
        cells = int((lengths[0] * lengths[1]).sum())
        chosen = self.rows.select(range(0, len(self.rows), max(1, -(-cells // CELLS))))
        parts = [(_keys(*pair), _prior(len(pair[0]), len(pair[1]))) for pair in _pairs(chosen) if all(map(len, pair))]
        if not parts:
            return np.empty(0, np.int64), np.empty(0)
        keys, where = np.unique(np.concatenate([key.ravel() for key, _ in parts]), return_inverse=True)
        prior = np.concatenate([prior.ravel() for _, prior in parts])
        widths = np.concatenate([np.full(len(key), key.shape[1]) for key, _ in parts])
        starts = np.concatenate([[0], widths.cumsum()[:-1]])
        _, source_of = np.unique(keys & 0xFFFFFFFF, return_inverse=True)
        chance = np.ones(len(keys))
        for _ in range(ROUNDS):
            share = prior * chance[where]
            share /= np.repeat(np.add.reduceat(share, starts), widths)
            counts = np.bincount(where, share, len(keys))
            chance = counts / np.bincount(source_of, counts)[source_of]
        return keys, chance

    def align(self, source: Sequence[int], target: Sequence[int]) -> list[int]:
        """The token alignment of one row of ids, end tokens included."""
        flat: list[int] = []
        if len(source) > 1 and len(target) > 1 and len(self.table[0]):
            keys, chance = self.table
            asked = _keys(np.asarray(source[:-1]), np.asarray(target[:-1]))
            place = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
            share = np.where(keys[place] == asked, chance[place], UNSEEN) * _prior(len(source) - 1, len(target) - 1)
            best = share.argmax(1)
            flat = [number for t, s in enumerate(best.tolist()) if s for number in (s - 1, t)]
        return [*flat, len(source) - 1, len(target) - 1]

    def __call__(self, batch: Mapping[str, list[Any]]) -> dict[str, list[list[int]]]:
        """The column `alignment` of a batch of rows."""
        pairs = zip(batch["input_ids"], batch["labels"], strict=True)
        return {"alignment": [self.align(source, target) for source, target in pairs]}


def with_alignments(rows: Dataset) -> Dataset:
    """Tokenised rows with a column `alignment`: their own, or one that an `Aligner` finds; cached by content."""
    if "alignment" in rows.column_names:
        return rows
    fingerprint = digest([rows._fingerprint, content_hash([Path(__file__)])])[:32]
    features = rows.features.copy()
    features["alignment"] = FEATURE
    return rows.map(Aligner(rows), batched=True, new_fingerprint=fingerprint, features=features, desc="Aligning")


def _pairs(rows: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Source and target ids of each row, without the end tokens."""
    for batch in rows.select_columns(["input_ids", "labels"]).iter(1000):
        for source, target in zip(batch["input_ids"], batch["labels"], strict=True):
            yield np.asarray(source[:-1], np.int64), np.asarray(target[:-1], np.int64)


def _keys(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """One number for each pair, (target, source + 1); the first column stands for no source token."""
    with_none = np.concatenate([[0], source.astype(np.int64) + 1])
    return (target.astype(np.int64)[:, None] << 32) + with_none


def _prior(source: int, target: int) -> np.ndarray:
    """p(a_j = i) ~ exp(-tension |i / n - j / m|), and a fixed share for nothing (Dyer 2013, section 2)."""
    rows, columns = np.arange(1, target + 1)[:, None] / target, np.arange(1, source + 1) / source
    near = np.exp(-TENSION * np.abs(rows - columns))
    near *= (1 - NULL) / near.sum(1, keepdims=True)
    return np.concatenate([np.full((target, 1), NULL), near], 1)
