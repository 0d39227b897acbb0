"""Training on a corpus that is read as it comes: nothing is written first, and memory holds two windows of it.

The stream is cut into windows of as many rows as the buffer holds. Every process reads the text of all rows and plans
the same batches of a window, by numbers of characters; it tokenises the rows of its own micro-batches only. So the
number of processes changes neither the order of the rows nor the end of an epoch, and a position is three things: the
state of the stream before the window, the number of the window, and the number of the batch in it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import IterableDataset

from hf_rnn_seq2seq.data.batching import BatchPlan, plan_batches
from hf_rnn_seq2seq.data.bpe_dropout import BpeDropout
from hf_rnn_seq2seq.data.loader import BatchLoader, MicroBatch, Update
from hf_rnn_seq2seq.data.token_columns import encode


class TextStream:
    """A streamed training split with what turns its text into ids.

    Args:
        rows: text columns `source`, `target`, and `id`.
        max_source_length, max_target_length: in tokens; longer rows are left out and counted.
        buffer: rows of a window, within which sentences of similar length find together and the order is random.
        redraw: splits the rows that are short enough anew each time; None keeps their usual pieces.
    """

    def __init__(
        self,
        rows: IterableDataset,
        tokenizer: Any,
        *,
        max_source_length: int,
        max_target_length: int,
        buffer: int,
        redraw: BpeDropout | None = None,
    ) -> None:
        self.rows, self.buffer, self.redraw = rows, buffer, redraw
        # Rows are tokenized in a thread while the validation split is translated in another, and a tokenizer of two
        # vocabularies belongs to one thread.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.max_source_length, self.max_target_length = max_source_length, max_target_length

    def tokenize(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """The columns `id`, `input_ids`, `labels` and their lengths of the rows that are short enough."""
        texts = {name: [row[name] for row in rows] for name in ("id", "source", "target")}
        columns = encode(texts, self.tokenizer) if rows else {}
        lengths = zip(columns.get("source_length", []), columns.get("target_length", []), strict=True)
        kept = [n for n, (s, t) in enumerate(lengths) if s <= self.max_source_length and t <= self.max_target_length]
        columns = {name: [values[n] for n in kept] for name, values in {**texts, **columns}.items()}
        if self.redraw is not None and kept:
            return self.redraw(columns)
        return {name: values for name, values in columns.items() if name not in ("source", "target")} if kept else {}


@dataclass(frozen=True)
class StreamUpdate(Update):
    """An update of a stream; its rows are positions in `texts`, and its tokens are counted when they are read."""

    texts: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)


class StreamPlan:
    """The updates of a run over a stream, epoch after epoch.

    Args:
        rows: the stream; its `state_dict` is what a checkpoint keeps.
        batch_size: sentences of an update over all processes.
        buffer: rows of a window.
        seed: decides the order in a window, together with the epoch and the number of the window.
    """

    updates_per_epoch = math.inf

    def __init__(self, rows: IterableDataset, *, batch_size: int, buffer: int, seed: int) -> None:
        self.rows, self.batch_size, self.buffer, self.seed = rows, batch_size, buffer, seed
        self.identity = {"sentences per update": batch_size, "streaming_buffer": buffer}
        self.facts = {"training rows": f"streamed, {buffer:,} at a time"}

    def updates(
        self, epoch: int = 0, index: int = 0, position: Mapping[str, Any] | None = None
    ) -> Iterator[StreamUpdate]:
        """Updates without end, from the first of an epoch on, or from the `after` of the update before.

        Raises:
            ValueError: the stream has no row.
        """
        while True:
            place = position or {"state": None, "window": 0, "batch": 0}
            number, start = place["window"], place["batch"]
            for before, window, behind in self._windows(place["state"]):
                batches = self._batches(window, epoch, number)
                for batch in range(start, len(batches)):
                    after: dict[str, Any] | None = {"state": before, "window": number, "batch": batch + 1}
                    if batch + 1 == len(batches):
                        after = {"state": behind, "window": number + 1, "batch": 0} if behind is not None else None
                    texts = tuple(window[row] for row in batches[batch])
                    yield StreamUpdate(
                        epoch=epoch,
                        index=index,
                        # The length of an epoch is known at its end only.
                        updates_in_epoch=index + 1 if after is None else 0,
                        rows=tuple(range(len(texts))),
                        source_tokens=None,
                        target_tokens=None,
                        after=after,
                        texts=texts,
                    )
                    index += 1
                number, start = number + 1, 0
            epoch, index, position = epoch + 1, 0, None

    def _windows(self, state: Any) -> Iterator[tuple[Any, list[Mapping[str, Any]], Any]]:
        """(state before, rows, state behind) of each window; None stands behind the last one."""
        self.rows.load_state_dict(state)
        stream = iter(self.rows)
        window = list(itertools.islice(stream, self.buffer))
        if not window:
            raise ValueError("the training split has no usable row")
        while window:
            behind = self.rows.state_dict()
            following = list(itertools.islice(stream, self.buffer))
            yield state, window, behind if following else None
            state, window = behind, following

    def _batches(self, window: Sequence[Mapping[str, Any]], epoch: int, number: int) -> BatchPlan:
        lengths = ([len(row[name]) for row in window] for name in ("source", "target"))
        return plan_batches(*lengths, batch_size=self.batch_size, seed=self.seed, epoch=(epoch << 32) + number)

    def positions(self, update: Update) -> int:
        """Padded positions of an update, in characters."""
        assert isinstance(update, StreamUpdate)
        return len(update.rows) * sum(max(len(text[name]) for text in update.texts) for name in ("source", "target"))


class StreamLoader(BatchLoader):
    """Tokenises and pads a rank's micro-batches of a stream, ahead of the model."""

    def __init__(self, stream: TextStream, collate: Callable[[Any], dict[str, torch.Tensor]], **placement: Any) -> None:
        super().__init__(None, collate, **placement)
        self.text = stream

    def columns(self, update: Update, rows: Sequence[int]) -> dict[str, list[Any]]:
        """The columns of those of an update's rows that are short enough."""
        assert isinstance(update, StreamUpdate)
        return self.text.tokenize([update.texts[row] for row in rows])

    def load(self, update: Update) -> list[MicroBatch]:
        """This rank's micro-batches of an update, a filler where it has no rows or only too long ones."""
        micro_batches = []
        for part in update.parts(self.rank, self.processes, self.accumulation):
            columns = self.columns(update, part)
            kept = len(columns.get("labels", []))
            end = [[self.text.tokenizer.eos_token_id]]
            inputs = self.collate(columns if kept else {"input_ids": end, "labels": end})
            counts = (sum(columns["source_length"]), sum(columns["target_length"])) if kept else (0, 0)
            micro_batches.append(MicroBatch(self.to_device(inputs), counts[1], counts[0], len(part) - kept))
        return micro_batches
