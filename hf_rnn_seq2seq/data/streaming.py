"""Training on a corpus that is read while training: nothing is written first, and memory holds two windows of it.

The stream is cut into windows of `buffer` rows. Every process reads the text of all rows and plans the same batches of
a window, by numbers of characters, but tokenizes only the rows of its own micro-batches. So the number of processes
changes neither the order of the rows nor the end of an epoch. A position consists of the state of the stream before the
window, the number of the window, and the number of the batch in it.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from datasets import IterableDataset
from transformers import PreTrainedTokenizerBase

from hf_rnn_seq2seq.data.batching import BatchPlan, plan_batches
from hf_rnn_seq2seq.data.bpe_dropout import BpeDropout
from hf_rnn_seq2seq.data.loader import BatchLoader, Collate, MicroBatch, Update
from hf_rnn_seq2seq.data.token_columns import encode

State = dict[str, Any]  # of an IterableDataset


class TextStream:
    """A streamed training split and the tokenizer of its rows.

    Args:
        rows: text columns `source`, `target`, and `id`.
        max_source_length, max_target_length: in tokens; longer rows are left out and counted.
        buffer: rows of a window; its rows are shuffled and grouped by length.
        redraw: splits the rows that are short enough anew each time; None keeps their usual pieces.
    """

    def __init__(
        self,
        rows: IterableDataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_source_length: int,
        max_target_length: int,
        buffer: int,
        redraw: BpeDropout | None = None,
    ) -> None:
        self.rows, self.buffer, self.redraw = rows, buffer, redraw
        # A copy, because a tokenizer of two vocabularies belongs to one thread, and the validation split is translated
        # in another.
        self.tokenizer = copy.deepcopy(tokenizer)
        self.max_source_length, self.max_target_length = max_source_length, max_target_length

    def tokenize(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
        """The token columns of the rows that are short enough; empty if none is."""
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
    """An update of a stream. Its rows are positions in `texts`; its tokens are counted when they are read."""

    texts: tuple[Mapping[str, Any], ...] = field(default=(), repr=False)


class StreamPlan:
    """The updates of a run over a stream, epoch after epoch.

    Args:
        rows: the stream; checkpoints contain its `state_dict`.
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
        """Endless updates from the first of an epoch on, or from the `after` of the previous update.

        Raises:
            ValueError: the stream is empty.
        """
        while True:
            place = position or {"state": None, "window": 0, "batch": 0}
            number, start = place["window"], place["batch"]
            for before, window, following in self._windows(place["state"]):
                batches = self._batches(window, epoch, number)
                for batch in range(start, len(batches)):
                    after: dict[str, Any] | None = {"state": before, "window": number, "batch": batch + 1}
                    if batch + 1 == len(batches):
                        after = (
                            {"state": following, "window": number + 1, "batch": 0} if following is not None else None
                        )
                    texts = tuple(window[row] for row in batches[batch])
                    yield StreamUpdate(
                        epoch=epoch,
                        index=index,
                        # The length of an epoch is not known before its end.
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

    def _windows(self, state: State | None) -> Iterator[tuple[State | None, list[Mapping[str, Any]], State | None]]:
        """(state before, rows, state after) of each window; the last state is None."""
        self.rows.load_state_dict(state)
        stream = iter(self.rows)
        window = list(itertools.islice(stream, self.buffer))
        if not window:
            raise ValueError("the training split has no usable row")
        while window:
            after = self.rows.state_dict()
            following = list(itertools.islice(stream, self.buffer))
            yield state, window, after if following else None
            state, window = after, following

    def _batches(self, window: Sequence[Mapping[str, Any]], epoch: int, number: int) -> BatchPlan:
        lengths = ([len(row[name]) for row in window] for name in ("source", "target"))
        return plan_batches(*lengths, batch_size=self.batch_size, seed=self.seed, epoch=(epoch << 32) + number)

    def positions(self, update: Update) -> int:
        """Padded positions of an update, in characters."""
        assert isinstance(update, StreamUpdate)
        return len(update.rows) * sum(max(len(text[name]) for text in update.texts) for name in ("source", "target"))


class StreamLoader(BatchLoader):
    """Tokenizes and pads a rank's micro-batches of a stream, ahead of the model."""

    def __init__(self, stream: TextStream, collate: Collate, **placement: Any) -> None:
        super().__init__(stream.rows, collate, **placement)
        self.text = stream

    def columns(self, update: Update, rows: Sequence[int]) -> dict[str, list[Any]]:
        """The columns of those of an update's rows that are short enough."""
        assert isinstance(update, StreamUpdate)
        return self.text.tokenize([update.texts[row] for row in rows])

    def load(self, update: Update) -> list[MicroBatch]:
        """This rank's micro-batches of an update; a filler where it has no row that is short enough."""
        micro_batches = []
        for part in update.parts(self.rank, self.processes, self.accumulation):
            columns = self.columns(update, part)
            kept = len(columns.get("labels", []))
            end = [[self.text.tokenizer.eos_token_id]]
            inputs = self.collate(columns if kept else {"input_ids": end, "labels": end})
            counts = (sum(columns["source_length"]), sum(columns["target_length"])) if kept else (0, 0)
            micro_batches.append(MicroBatch(self.to_device(inputs), counts[1], counts[0], len(part) - kept))
        return micro_batches
