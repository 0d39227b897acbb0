"""Which rows share a batch, and how a batch is padded."""

from __future__ import annotations

import os
import tempfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch

Lengths = Sequence[int] | np.ndarray

AT_ONCE = 1 << 16  # rows that are worked on together, so that memory does not grow with a corpus
LONGEST = 1 << 24  # tokens of a row; each pass of the sort counts rows by length


def row_numbers(rows: int) -> np.ndarray:
    """An int32 array (rows,) of unset values.

    That of a large corpus is a mapped file without a name in the cache of `datasets`: the system takes its pages back
    when it needs memory, as it does those of the corpus itself.

    Raises:
        OSError: there is no room for it on the disk.
    """
    if rows <= AT_ONCE:
        return np.empty(rows, dtype=np.int32)
    folder = Path(datasets.config.HF_DATASETS_CACHE)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        # Its room is taken now: where a disk is full, writing to a mapped file ends the process without a word.
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

    def __getitem__(self, index: Any) -> Any:
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
    bucket_width: int = 1,
) -> BatchPlan:
    """Global batches of rows of similar length; every index stands in exactly one of them.

    Rows are sorted by target length, then source length, ties (and lengths of the same bucket) in a random order
    that `(seed, epoch)` decides, cut into batches, and the batches are shuffled. The plan needs no state: a resumed
    run computes it again.

    Args:
        source_lengths, target_lengths: tokens of each row, (rows,).
        batch_size: most rows in a batch; None for no limit.
        max_tokens: most padded positions in a batch, source and target together:
            rows * (longest source + longest target). A row that is longer alone makes a batch alone.
        seed, epoch: what the order depends on.
        shuffle: False sorts ties by index and keeps the batches from short to long.
        bucket_width: target lengths count as equal when they round up to the same multiple of this; larger mixes
            rows more between epochs and pads more.

    Raises:
        ValueError: no limit given, a limit that is not positive, lengths of different number or above 2^24.
    """
    for name, value in (("batch_size", batch_size), ("max_tokens", max_tokens)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: must be at least 1")
    if batch_size is None and max_tokens is None:
        raise ValueError("batch_size and max_tokens are both None: a batch needs at least one limit")
    if bucket_width < 1:
        raise ValueError(f"bucket_width={bucket_width}: must be at least 1")
    source = np.asarray(source_lengths, dtype=np.int32)
    target = np.asarray(target_lengths, dtype=np.int32)
    if source.shape != target.shape:
        raise ValueError(f"source_lengths has {source.size} rows, target_lengths has {target.size}")

    for name, lengths in (("source_lengths", source), ("target_lengths", target)):
        if lengths.max(initial=0) > LONGEST:
            raise ValueError(f"{name}: a row of {lengths.max()} tokens; at most {LONGEST}")

    generator = np.random.default_rng([seed, epoch])
    order = row_numbers(len(source))
    for rows in _pieces(len(order)):
        order[rows] = np.arange(rows.start, rows.stop)
    if shuffle:
        generator.shuffle(order)
    for lengths in (source, target):
        order = _sorted_by(lengths, order, bucket_width)
    edges = np.asarray(_cut(source, target, order, batch_size or len(source), max_tokens))
    turns = generator.permutation(len(edges) - 1) if shuffle else np.arange(len(edges) - 1)
    return BatchPlan(order, edges, turns)


def _pieces(rows: int) -> Iterator[slice]:
    for start in range(0, rows, AT_ONCE):
        yield slice(start, min(start + AT_ONCE, rows))


def _sorted_by(lengths: np.ndarray, order: np.ndarray, width: int) -> np.ndarray:
    """`order` by the bucket of each row's length; rows of a bucket stay as they stood (a counting sort)."""

    def buckets(rows: np.ndarray | slice) -> np.ndarray:
        return (lengths[rows] + (width - 1)) // width

    rows_in = np.zeros((int(lengths.max(initial=0)) + width - 1) // width + 1, dtype=np.int64)
    for rows in _pieces(len(order)):
        rows_in += np.bincount(buckets(rows), minlength=len(rows_in))
    place = np.cumsum(rows_in) - rows_in  # where the next row of each bucket goes
    result = row_numbers(len(order))
    for rows in _pieces(len(order)):
        piece = order[rows]
        found = buckets(piece)
        by_bucket = np.argsort(found, kind="stable")
        here = np.bincount(found, minlength=len(place))
        first = np.repeat(np.cumsum(here) - here, here)
        result[place[found[by_bucket]] + np.arange(len(piece)) - first] = piece[by_bucket]
        place += here
    return result


def _cut(source: np.ndarray, target: np.ndarray, order: np.ndarray, batch_size: int, max_tokens: int | None) -> array:
    """Positions where a new batch starts, and the end: as many rows in each batch as the limits allow."""
    edges = array("q", [0])
    start = longest_source = longest_target = 0
    for position, (source_length, target_length) in enumerate(_pairs(source, target, order)):
        wider_source = source_length if source_length > longest_source else longest_source
        wider_target = target_length if target_length > longest_target else longest_target
        rows = position - start + 1
        full = rows > batch_size or (max_tokens is not None and rows * (wider_source + wider_target) > max_tokens)
        if full and rows > 1:
            edges.append(position)
            start, longest_source, longest_target = position, source_length, target_length
        else:
            longest_source, longest_target = wider_source, wider_target
    if len(order):
        edges.append(len(order))
    return edges


def _pairs(source: np.ndarray, target: np.ndarray, order: np.ndarray) -> Iterator[tuple[int, int]]:
    """Lengths of the rows in their order, as numbers of Python a few at a time."""
    for piece in _pieces(len(order)):
        rows = order[piece]
        yield from zip(source[rows].tolist(), target[rows].tolist(), strict=True)


class Collator:
    """Pads rows to the longest of their batch, on the right.

    Args:
        pad_token_id: fills `input_ids`.
        label_pad_token_id: fills `labels`; the loss ignores it.
        pad_to_multiple_of: widths are rounded up to a multiple of this.
    """

    def __init__(
        self, pad_token_id: int = 0, *, label_pad_token_id: int = -100, pad_to_multiple_of: int | None = None
    ) -> None:
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise ValueError(f"pad_to_multiple_of={pad_to_multiple_of}: must be at least 1")
        self.pad_token_id = pad_token_id
        self.label_pad_token_id = label_pad_token_id
        self.pad_to_multiple_of = pad_to_multiple_of

    def __call__(self, rows: Sequence[Mapping[str, Any]] | Mapping[str, Sequence[Any]]) -> dict[str, torch.Tensor]:
        """Rows (a list of dicts, or a dict of lists as a `datasets` slice gives) -> int64 tensors.

        Returns:
            `input_ids` (batch, source), `attention_mask` (batch, source; 1 where a token stands), and where the rows
            have them `labels` (batch, target) and `alignments` (batch, target, source; bool).
        """
        columns = rows if isinstance(rows, Mapping) else {name: [row[name] for row in rows] for name in rows[0]}
        input_ids, filled = self._pad(columns["input_ids"], self.pad_token_id)
        batch = {"input_ids": input_ids, "attention_mask": filled.long()}
        if "labels" in columns:
            batch["labels"], _ = self._pad(columns["labels"], self.label_pad_token_id)
        if "alignment" in columns:
            # Flat lists of pairs, source before target.
            aligned = torch.zeros(*batch["labels"].shape, input_ids.shape[1], dtype=torch.bool)
            for row, flat in zip(aligned, columns["alignment"], strict=True):
                row[flat[1::2], flat[::2]] = True
            batch["alignments"] = aligned
        return batch

    def _pad(self, sequences: Sequence[Sequence[int]], value: int) -> tuple[torch.Tensor, torch.Tensor]:
        lengths = np.fromiter((len(sequence) for sequence in sequences), dtype=np.int64, count=len(sequences))
        multiple = self.pad_to_multiple_of or 1
        width = -(-int(lengths.max(initial=0)) // multiple) * multiple
        filled = np.arange(width) < lengths[:, None]
        padded = np.full((len(sequences), width), value, dtype=np.int64)
        padded[filled] = np.concatenate([np.asarray(sequence, dtype=np.int64) for sequence in sequences])
        return torch.from_numpy(padded), torch.from_numpy(filled)
