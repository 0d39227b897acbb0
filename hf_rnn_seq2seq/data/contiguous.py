"""A text as parallel streams that are read on and on: the batches of truncated backpropagation through time.

The text is a circle. In each epoch it is cut at another place, into as many streams of equal length as a batch has
rows. An update reads the next piece of each stream, and the model's state goes on from one update to the next. The
first input of a stream is the start token. So each token is predicted once in an epoch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from hf_rnn_seq2seq.data.loader import BatchLoader, MicroBatch, Update
from hf_rnn_seq2seq.errors import DataError
from hf_rnn_seq2seq.model.loss import IGNORED_LABEL


@dataclass(frozen=True)
class ContiguousText:
    """The tokens of a training text, int32 (tokens,), and how they are read.

    Args:
        length: tokens that an update reads of each stream.
        start, pad: the tokens before a text and after the end of a stream.
    """

    tokens: np.ndarray
    length: int
    start: int
    pad: int

    def __len__(self) -> int:
        return len(self.tokens)


class ContiguousPlan:
    """The updates of a run over a text, epoch after epoch.

    Args:
        text: what is read.
        streams: rows of an update, over all processes and micro-batches.
        seed: decides with the epoch where the circle is cut.

    Raises:
        DataError: the text has fewer tokens than there are streams.
    """

    def __init__(self, text: ContiguousText, *, streams: int, seed: int) -> None:
        if len(text) < streams:
            raise DataError(
                f"per_device_train_batch_size: {streams} streams of a text of {len(text)} tokens; give it fewer"
            )
        self.text, self.streams, self.seed = text, streams, seed
        self.bounds = np.arange(streams + 1, dtype=np.int64) * len(text) // streams
        self.pieces = int(-(-np.diff(self.bounds).max() // text.length))
        self.identity = {"training tokens": len(text), "streams": streams, "tokens of a piece": text.length}

    @property
    def updates_per_epoch(self) -> float:
        """Pieces of a stream."""
        return self.pieces

    @property
    def facts(self) -> dict[str, str]:
        """What a dry run prints about the plan."""
        return {"training tokens": f"{len(self.text):,}", "updates per epoch": f"{self.pieces:,}"}

    def cut(self, epoch: int) -> int:
        """The token at which the first stream of an epoch begins."""
        return int(np.random.default_rng((self.seed, epoch)).integers(len(self.text)))

    def tokens(self, index: int) -> int:
        """The tokens that update `index` of an epoch predicts, over all streams."""
        lengths = np.diff(self.bounds) - index * self.text.length
        return int(lengths.clip(0, self.text.length).sum())

    def updates(self, epoch: int = 0, index: int = 0, position: Mapping[str, Any] | None = None) -> Iterator[Update]:
        """Endless updates from an index of an epoch on; `position` is for streamed corpora."""
        while True:
            for number in range(index, self.pieces):
                yield Update(
                    epoch=epoch,
                    index=number,
                    updates_in_epoch=self.pieces,
                    rows=tuple(range(self.streams)),
                    source_tokens=0,
                    target_tokens=self.tokens(number),
                )
            epoch, index = epoch + 1, 0

    def positions(self, update: Update) -> int:
        """Padded positions of an update."""
        return self.streams * self.text.length

    def read(self, update: Update, rows: tuple[int, ...]) -> dict[str, torch.Tensor]:
        """Inputs and labels of an update for some streams, `input_ids` and `labels` (rows, length)."""
        text, cut = self.text, self.cut(update.epoch)
        first = self.bounds[list(rows)] + update.index * text.length
        ends = self.bounds[[row + 1 for row in rows]]
        width = int(min(text.length, max(1, (ends - first).max())))
        places = first[:, None] + np.arange(width)
        inside = places < ends[:, None]
        labels = np.where(inside, text.tokens[(cut + places) % len(text)], IGNORED_LABEL)
        inputs = np.where(inside, text.tokens[(cut + places - 1) % len(text)], text.pad)
        if update.index == 0:
            inputs[:, 0] = text.start
        return {"input_ids": torch.from_numpy(inputs).long(), "labels": torch.from_numpy(labels).long()}


class ContiguousLoader(BatchLoader):
    """Reads the pieces of this process's streams, with the streams' numbers and whether they begin."""

    def __init__(self, plan: ContiguousPlan, **place: Any) -> None:
        super().__init__(plan.text, lambda columns: {}, **place)
        self.plan = plan

    def load(self, update: Update) -> list[MicroBatch]:
        """This process's micro-batches.

        A process without a stream in a micro-batch reads stream 0 with a weight of 0 (`target_tokens`), under the
        number `streams`, whose state is not kept.
        """
        micro_batches = []
        for part in update.parts(self.rank, self.processes, self.accumulation):
            inputs = self.plan.read(update, part or (0,))
            tokens = int((inputs["labels"] != IGNORED_LABEL).sum()) if part else 0
            inputs["streams"] = torch.tensor(part or (self.plan.streams,))
            inputs["begins"] = torch.full((len(part) or 1,), update.index == 0)
            micro_batches.append(MicroBatch(self.to_device(inputs), tokens))
        return micro_batches

    def columns(self, update: Update, rows: tuple[int, ...]) -> dict[str, list[Any]]:
        """The tokens of some streams of an update, for the record of an update that failed."""
        return {name: tensor.tolist() for name, tensor in self.plan.read(update, tuple(rows)).items()}
