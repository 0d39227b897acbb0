"""The rows of each update, which do not depend on the number of processes, and the loader of their batches.

A global batch is planned for all processes together and split into `processes x gradient_accumulation_steps` parts.
The plan depends only on the lengths of the rows, the seed and the epoch. So two numbers are a position in it, and a
resumed run computes it again.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_rnn_seq2seq.data.batching import BatchPlan, plan_batches, row_numbers
from hf_rnn_seq2seq.model.loss import IGNORED_LABEL

Collate = Callable[[Mapping[str, Sequence[Any]]], dict[str, torch.Tensor]]


def column(dataset: Dataset, name: str) -> np.ndarray:
    """A column of integers below 2^31, (rows,)."""
    values = row_numbers(len(dataset))
    start = 0
    for batch in dataset.select_columns(name).with_format("numpy").iter(batch_size=1 << 16):
        values[start : start + len(batch[name])] = batch[name]
        start += len(batch[name])
    return values


def label_count(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The number of labels of a batch, by which its loss is a mean, (): of tokens, or of points (3 numbers each)."""
    labels = inputs["labels"]
    return ((labels if labels.dim() < 3 else labels[..., 2]) != IGNORED_LABEL).sum()


def source_size(columns: Mapping[str, Sequence[Any]]) -> int:
    """The source tokens of some rows; a picture counts as one, a text that is written by hand by its characters."""
    return sum(map(len, columns["input_ids"])) if "input_ids" in columns else sum(columns["source_length"])


@dataclass(frozen=True)
class Update:
    """The rows of one optimizer step, over all processes; the numbers of tokens are None if not known beforehand."""

    epoch: int
    index: int  # within the epoch
    updates_in_epoch: int
    rows: tuple[int, ...]
    source_tokens: int | None
    target_tokens: int | None
    after: dict[str, Any] | None = None  # the position of a stream after this update

    def parts(self, rank: int, processes: int, accumulation: int) -> list[tuple[int, ...]]:
        """This rank's micro-batches; () where it has no rows left, so that every rank has the same number.

        The rows of a global batch are ordered from short to long, and so are its parts: those that run at the same
        time on different ranks have rows of similar length.
        """
        count = min(processes * accumulation, len(self.rows))
        cuts = [number * len(self.rows) // count for number in range(count + 1)]
        parts = [self.rows[start:stop] for start, stop in zip(cuts[:-1], cuts[1:], strict=True)]
        micro_batches = -(-len(parts) // processes)
        parts += [()] * (micro_batches * processes - len(parts))
        return parts[rank::processes]


class UpdatePlan:
    """The updates of a run, epoch after epoch.

    Args:
        source_lengths, target_lengths: tokens of each row, end token included, (rows,).
        batch_size: sentences of an update over all processes; ignored where `max_tokens` is given.
        max_tokens: padded tokens (source and target) of an update over all processes.
        seed: decides the order together with the epoch.
        exact_lengths: whether rows have these lengths when they are read; if not, an update's tokens are not known
            beforehand.

    Raises:
        ValueError: no row to train on.
    """

    def __init__(
        self,
        source_lengths: Sequence[int] | np.ndarray,
        target_lengths: Sequence[int] | np.ndarray,
        *,
        batch_size: int,
        max_tokens: int | None,
        seed: int,
        exact_lengths: bool = True,
    ) -> None:
        self.exact_lengths = exact_lengths
        self.source_lengths = np.asarray(source_lengths, dtype=np.int32)
        self.target_lengths = np.asarray(target_lengths, dtype=np.int32)
        if not len(self.source_lengths):
            raise ValueError("the training split has no usable row")
        self.batch_size = None if max_tokens else batch_size
        self.max_tokens = max_tokens
        self.seed = seed
        self._planned: tuple[int, BatchPlan] | None = None
        self.identity = {
            "training rows": len(self.source_lengths),
            "sentences per update": self.batch_size,
            "train_batch_tokens": self.max_tokens,
        }

    @property
    def updates_per_epoch(self) -> float:
        """The number in the first epoch; with a token budget it differs a little from epoch to epoch."""
        return len(self.epoch(0))

    @property
    def facts(self) -> dict[str, str]:
        """What a dry run prints about the plan."""
        return {"training rows": f"{len(self.source_lengths):,}", "updates per epoch": f"{self.updates_per_epoch:,}"}

    def epoch(self, epoch: int) -> BatchPlan:
        """The global batches of an epoch, which have every row exactly once."""
        if self._planned is None or self._planned[0] != epoch:
            batches = plan_batches(
                self.source_lengths,
                self.target_lengths,
                batch_size=self.batch_size,
                max_tokens=self.max_tokens,
                seed=self.seed,
                epoch=epoch,
            )
            self._planned = (epoch, batches)
        return self._planned[1]

    def updates(self, epoch: int = 0, index: int = 0, position: Mapping[str, Any] | None = None) -> Iterator[Update]:
        """Endless updates from an index of an epoch on; `position` is for streams."""
        while True:
            batches = self.epoch(epoch)
            for number in range(index, len(batches)):
                rows = batches[number]
                yield Update(
                    epoch=epoch,
                    index=number,
                    updates_in_epoch=len(batches),
                    rows=tuple(rows),
                    source_tokens=int(self.source_lengths[rows].sum()) if self.exact_lengths else None,
                    target_tokens=int(self.target_lengths[rows].sum()) if self.exact_lengths else None,
                )
            epoch, index = epoch + 1, 0

    def positions(self, update: Update) -> int:
        """Padded positions of an update."""
        rows = list(update.rows)
        return int(len(rows) * (self.source_lengths[rows].max() + self.target_lengths[rows].max()))


@dataclass(frozen=True)
class MicroBatch:
    """Padded tensors of one forward pass; a filler has 0 `target_tokens`, and its loss has no weight."""

    inputs: dict[str, torch.Tensor]
    target_tokens: int
    source_tokens: int = 0
    left_out: int = 0  # rows that were found too long when they were read


Item = tuple[Update, list[MicroBatch]] | BaseException | None  # from the loading thread; None: there is no more


class BatchLoader:
    """Reads and pads a rank's micro-batches in a thread, a few updates ahead of the model.

    Args:
        dataset: rows with `input_ids` or `source_length`; `dataset[list_of_rows]` gives a dict of lists.
        collate: makes the model's inputs of such a dict, `labels` among them.
        rank, processes, accumulation: how an update is split.
        device: of the tensors.
    """

    def __init__(
        self,
        dataset: Dataset,
        collate: Collate,
        *,
        rank: int = 0,
        processes: int = 1,
        accumulation: int = 1,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dataset = dataset
        self.collate = collate
        self.rank, self.processes, self.accumulation = rank, processes, accumulation
        self.device = torch.device(device)

    def load(self, update: Update) -> list[MicroBatch]:
        """This rank's micro-batches of an update, a filler where it has no rows."""
        micro_batches = []
        for part in update.parts(self.rank, self.processes, self.accumulation):
            # Every rank runs every pass, because gradients are exchanged in it. The filler is a real row of weight 0.
            columns = self.columns(update, part or update.rows[:1])
            inputs = self.collate(columns)
            tokens = int(label_count(inputs)) if part else 0
            source_tokens = source_size(columns) if part else 0
            micro_batches.append(MicroBatch(self.to_device(inputs), tokens, source_tokens))
        return micro_batches

    def columns(self, update: Update, rows: Sequence[int]) -> dict[str, list[Any]]:
        """The columns of some rows of an update."""
        return self.dataset[list(rows)]

    def read(self, rows: Sequence[int]) -> dict[str, torch.Tensor]:
        """The padded tensors of some rows, on the CPU."""
        return self.collate(self.dataset[list(rows)])

    def to_device(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors on the model's device; the program does not wait for the copy to a GPU."""
        if self.device.type == "cuda":
            inputs = {name: tensor.pin_memory() for name, tensor in inputs.items()}
        return {name: tensor.to(self.device, non_blocking=True) for name, tensor in inputs.items()}

    def stream(self, updates: Iterator[Update], depth: int = 2) -> Generator[tuple[Update, list[MicroBatch]]]:
        """Updates with their micro-batches, loaded `depth` updates ahead; an error in the thread is raised here."""
        ready: queue.Queue[Item] = queue.Queue(maxsize=depth)
        stopped = threading.Event()

        def put(item: Item) -> bool:
            while not stopped.is_set():
                try:
                    ready.put(item, timeout=0.1)
                    return True
                except queue.Full:
                    continue
            return False

        def produce() -> None:
            try:
                for update in updates:
                    if not put((update, self.load(update))):
                        return
                put(None)
            except BaseException as error:  # raised again by the reader
                put(error)

        thread = threading.Thread(target=produce, name="batch-loader", daemon=True)
        thread.start()
        try:
            while (item := ready.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            stopped.set()
            thread.join()
