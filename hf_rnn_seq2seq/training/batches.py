"""The plan of a run's updates and the loader of their batches, for each kind of training split."""

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator

from hf_rnn_seq2seq.data.loader import BatchLoader, UpdatePlan, column
from hf_rnn_seq2seq.data.sampled_table import SampledLoader, SampledPlan, SampledTable
from hf_rnn_seq2seq.data.streaming import StreamLoader, StreamPlan, TextStream
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.training.arguments import TrainingOptions


def plan_and_loader(
    dataset: Any,
    arguments: TrainingOptions,
    accelerator: Accelerator,
    collate: Callable[[Any], dict[str, torch.Tensor]],
) -> tuple[UpdatePlan | StreamPlan, BatchLoader]:
    """The order of the updates over a (sampled) table or a TextStream, and what reads this process's share of them.

    Raises:
        ArgumentError: an option that needs to know the corpus beforehand, together with a stream.
    """
    processes, accumulation = accelerator.num_processes, arguments.gradient_accumulation_steps
    placement: dict[str, Any] = {"rank": accelerator.process_index, "processes": processes}
    placement |= {"accumulation": accumulation, "device": accelerator.device}
    batch_size = arguments.per_device_train_batch_size * processes * accumulation
    if not isinstance(dataset, TextStream):
        sampled = isinstance(dataset, SampledTable)
        lengths = (
            dataset.planned_lengths() if sampled else [column(dataset, f"{s}_length") for s in ("source", "target")]
        )
        limits: dict[str, Any] = {"batch_size": batch_size, "max_tokens": arguments.train_batch_tokens}
        plan = (SampledPlan if sampled else UpdatePlan)(*lengths, **limits, seed=arguments.seed)
        return plan, (SampledLoader if sampled else BatchLoader)(dataset, collate, **placement)
    if arguments.train_batch_tokens is not None:
        raise ArgumentError(
            f"train_batch_tokens={arguments.train_batch_tokens}: the lengths of a streamed corpus are not known "
            "beforehand; give per_device_train_batch_size"
        )
    if arguments.max_steps < 0 and not arguments.max_train_seconds:
        raise ArgumentError(
            "max_steps=-1: the length of a streamed corpus is not known beforehand; give max_steps or max_train_seconds"
        )
    stream = StreamPlan(dataset.rows, batch_size=batch_size, buffer=dataset.buffer, seed=arguments.seed)
    return stream, StreamLoader(dataset, collate, **placement)
