"""Which rows share a batch, and how a batch is padded."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

from hf_rnn_seq2seq.model.loss import IGNORED_LABEL

Lengths = Sequence[int] | np.ndarray

IN_MEMORY = 1 << 16  # rows of a corpus whose numbers are kept in memory


def row_numbers(rows: int) -> np.ndarray:
    """An int32 array (rows,) of unset values.

    For a large corpus it is a mapped file without a name in the cache of `datasets`: the system takes its pages back
    when it needs memory, like those of the corpus.

    Raises:
        OSError: the disk is full.
    """
    if rows <= IN_MEMORY:
        return np.empty(rows, dtype=np.int32)
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        # The space is allocated now: writing to a mapped file on a full disk ends the process without a message.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, 4 * rows)
        return np.asarray(np.memmap(file, dtype=np.int32, mode="w+", shape=(rows,)))


class BatchPlan(Sequence[list[int]]):
    """Batches of rows, kept as arrays.

    Args:
        order: the rows, batch after batch, (rows,).
        edges: where the batches begin in it, and its end, (batches + 1,).
        turns: which batch comes when, (batches,).
    """

    def __init__(self, order: np.ndarray, edges: np.ndarray, turns: np.ndarray) -> None:
        self.order, self.edges, self.turns = order, edges, turns

    def __len__(self) -> int:
        return len(self.turns)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        turn = self.turns[index]
        return self.order[self.edges[turn] : self.edges[turn + 1]].tolist()


def plan_batches(
    source_lengths: Lengths,
    target_lengths: Lengths,
    *,
    batch_size: int | None = None,
    max_tokens: int | None = None,
    seed: int = 0,
    epoch: int = 0,
    shuffle: bool = True,
) -> BatchPlan:
    """Global batches of rows of similar length; every row is in exactly one of them.

    Rows are sorted by target length, then source length; ties are in a random order that depends on `(seed, epoch)`.
    They are cut into batches, and the batches are shuffled. The plan needs no state: a resumed run computes it again.

    Args:
        source_lengths, target_lengths: tokens of each row, (rows,).
        batch_size: most rows in a batch; None for no limit.
        max_tokens: most padded positions in a batch, source and target together:
            rows * (longest source + longest target). A longer row is a batch of its own.
        seed, epoch: decide the order.
        shuffle: False sorts ties by index and orders the batches from short to long.

    Raises:
        ValueError: no limit, a limit that is not positive, or different numbers of lengths.
    """
    for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if batch_size is None and max_tokens is None:
        raise ValueError("batch_size and max_tokens are both None: a batch needs at least one limit")
    source = np.asarray(source_lengths, dtype=np.int32)
    target = np.asarray(target_lengths, dtype=np.int32)
    if source.shape != target.shape:
        raise ValueError(f"source_lengths has {source.size} rows, target_lengths has {target.size}")

    generator = np.random.default_rng([seed, epoch])
    order = row_numbers(len(source))
    order[:] = np.arange(len(order), dtype=np.int32)
    if shuffle:
        generator.shuffle(order)
    # Stable: rows of equal length stay in their random order.
    order[:] = order[np.lexsort([source[order], target[order]])]
    edges = _cut(source[order].tolist(), target[order].tolist(), batch_size or len(source), max_tokens)
    turns = generator.permutation(len(edges) - 1) if shuffle else np.arange(len(edges) - 1)
    return BatchPlan(order, np.asarray(edges), turns)


def _cut(source: list[int], target: list[int], batch_size: int, max_tokens: int | None) -> array[int]:
    """Positions where a new batch starts, and the end: as many rows in each batch as the limits allow."""
    edges = array("q", [0])
    start = longest_source = longest_target = 0
    for position, (source_length, target_length) in enumerate(zip(source, target, strict=True)):
        # Comparisons, because max() takes half the time of this loop.
        wider_source = source_length if source_length > longest_source else longest_source
        wider_target = target_length if target_length > longest_target else longest_target
        rows = position - start + 1
        full = rows > batch_size or (max_tokens is not None and rows * (wider_source + wider_target) > max_tokens)
        if full and rows > 1:
            edges.append(position)
            start, longest_source, longest_target = position, source_length, target_length
        else:
            longest_source, longest_target = wider_source, wider_target
    if source:
        edges.append(len(source))
    return edges


class Collator:
    """Pads rows to the longest of their batch, on the right: `input_ids` with the pad token, `labels` with -100."""

    def __init__(self, pad_token_id: int = 0) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Rows (a list of dicts, or a dict of lists as a `datasets` slice gives) -> int64 tensors.

        Returns:
            `input_ids` (batch, source), `attention_mask` (batch, source; 1 for a token, 0 for padding), and if the
            rows have them `labels` (batch, target) and `alignments` (batch, target, source; bool).
        """
        columns = rows if isinstance(rows, Mapping) else {name: [row[name] for row in rows] for name in rows[0]}
        input_ids, filled = self._pad(columns["input_ids"], self.pad_token_id)
        batch = {"input_ids": input_ids, "attention_mask": filled.long()}
        if "labels" in columns:
            batch["labels"] = self.labels(columns["labels"])
        if "alignment" in columns:
            # Flat lists of pairs, source before target.
            aligned = torch.zeros(*batch["labels"].shape, input_ids.shape[1], dtype=torch.bool)
            for row, flat in zip(aligned, columns["alignment"], strict=True):
                row[flat[1::2], flat[::2]] = True
            batch["alignments"] = aligned
        return batch

    def labels(self, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Label ids of each row, padded: (batch, target)."""
        return self._pad(rows, IGNORED_LABEL)[0]

    def _pad(self, sequences: Sequence[Sequence[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = np.fromiter((len(sequence) for sequence in sequences), dtype=np.int64, count=len(sequences))
        filled = np.arange(lengths.max(initial=0)) < lengths[:, None]
        padded = np.full(filled.shape, value, dtype=np.int64)
        padded[filled] = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
        return torch.from_numpy(padded), torch.from_numpy(filled)
