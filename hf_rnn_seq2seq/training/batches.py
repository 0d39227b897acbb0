"""The plan of a run's updates and the loader of their batches, for each kind of training split."""

from typing import Any

from accelerate import Accelerator
from datasets import Dataset

from hf_rnn_seq2seq.data.contiguous import ContiguousLoader, ContiguousPlan, ContiguousText
from hf_rnn_seq2seq.data.loader import BatchLoader, Collate, UpdatePlan, column
from hf_rnn_seq2seq.data.streaming import StreamLoader, StreamPlan, TextStream
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.training.arguments import TrainingOptions


def plan_and_loader(
    dataset: Dataset | TextStream | ContiguousText,
    options: TrainingOptions,
    accelerator: Accelerator,
    collate: Collate,
) -> tuple[UpdatePlan | StreamPlan | ContiguousPlan, BatchLoader]:
    """The order of the updates over a training split, and the loader of this process's share of them.

    Raises:
        ArgumentError: an option that needs the lengths of the corpus, together with a stream.
    """
    processes, accumulation = accelerator.num_processes, options.gradient_accumulation_steps
    place: dict[str, Any] = {"rank": accelerator.process_index, "processes": processes}
    place |= {"accumulation": accumulation, "device": accelerator.device}
    batch_size = options.per_device_train_batch_size * processes * accumulation
    if isinstance(dataset, ContiguousText):
        contiguous = ContiguousPlan(dataset, streams=batch_size, seed=options.seed)
        return contiguous, ContiguousLoader(contiguous, **place)
    if isinstance(dataset, TextStream):
        _check_stream_options(options)
        stream = StreamPlan(dataset.rows, batch_size=batch_size, buffer=dataset.buffer, seed=options.seed)
        return stream, StreamLoader(dataset, collate, **place)
    limits: dict[str, Any] = {"batch_size": batch_size, "max_tokens": options.train_batch_tokens, "seed": options.seed}
    # A transform tokenizes the rows anew when they are read.
    limits["exact_lengths"] = dataset.format["type"] != "custom"
    lengths = [column(dataset, name) for name in ("source_length", "target_length")]
    return UpdatePlan(*lengths, **limits), BatchLoader(dataset, collate, **place)


def _check_stream_options(options: TrainingOptions) -> None:
    if options.train_batch_tokens is not None:
        raise ArgumentError(
            f"train_batch_tokens={options.train_batch_tokens}: the lengths of a streamed corpus are not known "
            "beforehand; give per_device_train_batch_size"
        )
    if options.max_steps < 0 and not options.max_train_seconds:
        raise ArgumentError(
            "max_steps=-1: the length of a streamed corpus is not known beforehand; give max_steps or max_train_seconds"
        )
