"""Which source tokens each target token translates: from alignments in Pharaoh format, or found by IBM Model 1.

A token alignment is a flat list of positions, source and target in turn; it contains the pair of the two end tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, List, Value
from transformers import PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.loader import column
from hf_rnn_seq2seq.data.readers import parse_pharaoh
from hf_rnn_seq2seq.errors import DataError
from hf_rnn_seq2seq.files import content_hash, digest

FEATURE = List(Value("int32"))

# Share of target words that translate no source word, and tension of the diagonal (fast_align starts with both).
NULL, TENSION = 0.08, 4.0
# Rounds of expectation-maximization, token pairs to learn from, and p(t|s) of a pair that was never seen.
ROUNDS, CELLS, UNSEEN = 5, 5_000_000, 1e-9


def words_of_tokens(text: str, offsets: Sequence[tuple[int, int]]) -> list[int]:
    """The number of the word (between white space) that each token belongs to; -1 for a token without characters.

    Args:
        offsets: begin and end of each token in `text`; its last character decides.
    """
    numbers, number, inside = [], -1, False
    for character in text:
        number += not inside and not character.isspace()
        inside = not character.isspace()
        numbers.append(number if inside else -1)
    return [numbers[end - 1] if end > start else -1 for start, end in offsets]


def token_alignments(
    batch: Mapping[str, Sequence[Any]], tokenizer: PreTrainedTokenizerBase, unit: str
) -> list[list[int]]:
    """The token alignments of text rows with `source`, `target`, `alignment` and `id`.

    Args:
        unit: `word`: positions count words between white space, and each token of one word is aligned with each token
            of the other; `token`: positions count the tokenizer's tokens.

    Raises:
        DataError: an alignment in another format, or with a position after the last word.
    """
    options = {"return_offsets_mapping": True, "return_attention_mask": False, "verbose": False}
    sides = [tokenizer(batch["source"], **options), tokenizer(text_target=batch["target"], **options)]
    found = []
    for row, line in enumerate(batch["alignment"]):
        where = f"alignment of training row {batch['id'][row]}"
        texts = (batch["source"][row], batch["target"][row])
        offsets = [side["offset_mapping"][row] for side in sides]
        source, target = (_tokens_of_words(*side, unit) for side in zip(texts, offsets, strict=True))
        flat: list[int] = []
        for left, right in parse_pharaoh(line or "", where):
            if left >= len(source) or right >= len(target):
                raise DataError(f"{where}: {left}-{right}, but there are {len(source)} and {len(target)} {unit}s")
            flat += [position for s in source[left] for t in target[right] for position in (s, t)]
        found.append([*flat, len(offsets[0]) - 1, len(offsets[1]) - 1])
    return found


def _tokens_of_words(text: str, offsets: Sequence[tuple[int, int]], unit: str) -> list[list[int]]:
    """For each word the positions of its tokens; each token but the last is a word if the unit is `token`."""
    words = list(range(len(offsets) - 1)) if unit == "token" else words_of_tokens(text, offsets)
    tokens: list[list[int]] = [[] for _ in range(max(words, default=-1) + 1)]
    for position, word in enumerate(words):
        if word >= 0:
            tokens[word].append(position)
    return tokens


class Aligner:
    """IBM Model 1 with a diagonal prior: fast_align (Dyer 2013) in one direction, with a fixed tension.

    Each target token is aligned with one source token or with none. The model is fitted when it is first used, on rows
    spread evenly over the corpus that have `CELLS` pairs of tokens together.

    Args:
        rows: `input_ids`, `labels` and their lengths, from `tokenize_corpus`.
    """

    def __init__(self, rows: Dataset) -> None:
        self.rows = rows

    @cached_property
    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """The token pairs that occurred, as sorted keys, and p(target token | source token) of each."""
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
        probability = np.ones(len(keys))
        for _ in range(ROUNDS):
            share = prior * probability[where]
            share /= np.repeat(np.add.reduceat(share, starts), widths)
            counts = np.bincount(where, share, len(keys))
            probability = counts / np.bincount(source_of, counts)[source_of]
        return keys, probability

    def align(self, source: Sequence[int], target: Sequence[int]) -> list[int]:
        """The token alignment of one row of ids, end tokens included."""
        flat: list[int] = []
        keys, probability = self.table
        if len(source) > 1 and len(target) > 1 and len(keys):
            wanted = _keys(np.asarray(source[:-1]), np.asarray(target[:-1]))
            place = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
            likelihood = np.where(keys[place] == wanted, probability[place], UNSEEN)
            best = (likelihood * _prior(len(source) - 1, len(target) - 1)).argmax(1)
            flat = [number for t, s in enumerate(best.tolist()) if s for number in (s - 1, t)]
        return [*flat, len(source) - 1, len(target) - 1]

    def __call__(self, batch: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, list[list[int]]]:
        """The column `alignment` of a batch of rows."""
        return {"alignment": list(map(self.align, batch["input_ids"], batch["labels"]))}


def with_alignments(rows: Dataset) -> Dataset:
    """Tokenized rows with a column `alignment`: their own, or that of an `Aligner`, cached by content."""
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
    """One number for each pair, (target, source + 1); the first column means no source token."""
    with_none = np.concatenate([[0], source.astype(np.int64) + 1])
    return (target.astype(np.int64)[:, None] << 32) + with_none


def _prior(source: int, target: int) -> np.ndarray:
    """p(a_j = i) ~ exp(-tension |i / n - j / m|), and a fixed share for no source token (Dyer 2013, section 2)."""
    rows, columns = np.arange(1, target + 1)[:, None] / target, np.arange(1, source + 1) / source
    near = np.exp(-TENSION * np.abs(rows - columns))
    near *= (1 - NULL) / near.sum(1, keepdims=True)
    return np.concatenate([np.full((target, 1), NULL), near], 1)
