"""What a run would do: the plan, and the time and memory of some real updates. Nothing is written."""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING

import numpy as np

from .run_log import peak_memory_mb
from .updates import Update

if TYPE_CHECKING:
    from .training import TrainingLoop

TIMED_UPDATES = 20


def dry_run(loop: TrainingLoop, vocabulary: tuple[int, int]) -> str:
    """Runs the largest update of the first epoch and then 20 of its updates, and describes the run.

    Args:
        loop: a loop that has not run; its model is trained a little and is of no further use.
        vocabulary: entries of the source and of the target vocabulary.
    """
    a, plan, accelerator = loop.arguments, loop.plan, loop.accelerator
    batches = plan.epoch(0)
    loop.prepare_state(None)
    updates = list(itertools.islice(plan.updates(), len(batches)))
    largest = max(updates, key=lambda update: _positions(loop, update))
    loop.run_update(largest, loop.loader.load(largest))
    # Evenly over the epoch, whose order is random: as many short and long sentences as the whole has.
    chosen = [updates[number] for number in np.linspace(0, len(updates) - 1, TIMED_UPDATES).astype(int)]
    started = time.perf_counter()
    for update in chosen:
        loop.run_update(update, loop.loader.load(update))
    loop.guard.inspect()  # waits for the last update of a GPU
    seconds = (time.perf_counter() - started) / len(chosen)
    parameters = sum(parameter.numel() for parameter in loop.model.parameters())
    target_tokens = float(np.mean([update.target_tokens for update in updates]))
    total = seconds * loop.total_steps
    lines = {
        "parameters": f"{parameters:,}",
        "vocabulary": f"{vocabulary[0]:,} source, {vocabulary[1]:,} target",
        "training rows": f"{len(plan.source_lengths):,}",
        "updates per epoch": f"{len(batches):,}",
        "updates": f"{loop.total_steps:,} at most ({loop.total_steps / len(batches):.2f} epochs)",
        "an update": f"{target_tokens:.0f} target tokens on average, over {accelerator.num_processes} process(es) x "
        f"{a.gradient_accumulation_steps} micro-batch(es)",
        "memory": f"{peak_memory_mb(accelerator.device):.0f} MiB in each process at most, in the largest update",
        "speed": f"{1 / seconds:.2f} updates/s, {target_tokens / seconds:.0f} target tokens/s ({len(chosen)} updates)",
        "time": f"{total / 60:.1f} minutes without evaluation"
        + (f", ended after {a.max_train_seconds / 60:.1f} minutes" if a.max_train_seconds else ""),
    }
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())


def _positions(loop: TrainingLoop, update: Update) -> int:
    """Padded positions of an update."""
    rows = list(update.rows)
    longest = loop.plan.source_lengths[rows].max() + loop.plan.target_lengths[rows].max()
    return int(len(rows) * longest)
