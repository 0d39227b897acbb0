"""A training split whose segmentation is drawn anew in each epoch, read as the tokenised table would be.

Batches are planned without drawing the whole split: by the usual lengths, times what drawing adds to those of a
thousand rows (1.27 at a BPE-dropout of 0.1, 1.88 at 0.3: Multi30k, 8,000 entries). So every row stands in an epoch
once, `train_batch_tokens` holds on average, and the loss is divided by the tokens that were read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch

from hf_rnn_seq2seq.data.arguments import TokenizerArguments
from hf_rnn_seq2seq.data.loader import BatchLoader, Update, UpdatePlan, column
from hf_rnn_seq2seq.data.subword_sampling import SubwordSampler
from hf_rnn_seq2seq.errors import DataError

# The columns that are drawn; what another one says would not fit them.
_DRAWN = {"id", "input_ids", "labels", "source_length", "target_length"}
# Rows from which is learnt how much longer a split becomes.
_MEASURED = 1_000


class SampledTable:
    """A tokenised split, the text it was made of, and what draws other segmentations of it.

    Args:
        rows: from `tokenize_corpus`.
        texts: the split it was given, columns `id`, `source` and `target`.

    Raises:
        DataError: a row whose id no text has, or a column that speaks of the usual segmentation.
    """

    def __init__(self, rows: Any, texts: Any, sampler: SubwordSampler) -> None:
        self.rows, self.texts, self.sampler = rows, texts, sampler
        if others := sorted(set(rows.column_names) - _DRAWN):
            raise DataError(
                f"column {others[0]!r} of the training rows speaks of their usual segmentation: not with bpe_dropout "
                "or subword_sampling_alpha"
            )
        wanted, known = column(rows, "id"), column(texts, "id")
        order = np.argsort(known, kind="stable")
        place = np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)
        self.places = order[place]
        if (missing := np.flatnonzero(known[self.places] != wanted)).size:
            raise DataError(f"id {wanted[missing[0]]}: the tokenised row has no text of this id to draw from")

    def __len__(self) -> int:
        return len(self.rows)

    def planned_lengths(self) -> list[np.ndarray]:
        """Source and target lengths (rows,) to plan by."""
        found, some = [], np.linspace(0, len(self) - 1, min(len(self), _MEASURED)).astype(int)
        drawn = self.columns(some, 0)
        for name in ("source_length", "target_length"):
            usual = column(self.rows, name)
            found.append(np.ceil(usual * (sum(drawn[name]) / usual[some].sum())).astype(np.int32))
        return found

    def columns(self, rows: Sequence[int], epoch: int) -> dict[str, list[Any]]:
        """Token columns of some rows, as drawn in an epoch."""
        return self.sampler.columns(self.texts[self.places[list(rows)].tolist()], epoch)


class SampledPlan(UpdatePlan):
    """`UpdatePlan` by planned lengths: an update's tokens are counted when they are read."""

    def updates(self, epoch: int = 0, index: int = 0, position: Any = None) -> Iterator[Update]:
        for update in super().updates(epoch, index, position):
            yield dataclasses.replace(update, source_tokens=None, target_tokens=None)


class SampledLoader(BatchLoader):
    """Draws, reads and pads a rank's micro-batches, ahead of the model."""

    def __init__(
        self, table: SampledTable, collate: Callable[[Any], dict[str, torch.Tensor]], **placement: Any
    ) -> None:
        super().__init__(table.rows, collate, **placement)
        self.table = table

    def columns(self, update: Update, rows: Sequence[int]) -> dict[str, list[Any]]:
        """The columns of some rows of an update, as drawn in its epoch."""
        return self.table.columns(rows, update.epoch)


def build_sampler(tokenizer: Any, options: TokenizerArguments, **where: Any) -> SubwordSampler | None:
    """What the options ask for, or None; `where` holds the seed and the limits of `SubwordSampler`."""
    if not options.bpe_dropout and options.subword_sampling_alpha is None:
        return None
    return SubwordSampler(tokenizer, bpe_dropout=options.bpe_dropout, alpha=options.subword_sampling_alpha, **where)


__all__ = ["SampledLoader", "SampledPlan", "SampledTable", "build_sampler"]
