"""The plan of a run, and the time and memory of some real updates. Nothing is written."""

from __future__ import annotations

import itertools
import math
import time
from typing import Any

import numpy as np

from hf_rnn_seq2seq.training.environment import peak_memory_mb
from hf_rnn_seq2seq.training.launch import check_savable
from hf_rnn_seq2seq.training.loop import TrainingLoop

TIMED_UPDATES = 20
STREAMED_UPDATES = 100


def dry_run(loop: TrainingLoop) -> str:
    """Runs the largest update of the first epoch and then 20 of its updates, and describes the run.

    Args:
        loop: a loop that has not run. Its model is trained a little and must not be used afterwards.
    """
    a, plan, accelerator = loop.options, loop.plan, loop.accelerator
    check_savable(a, loop.state.model, loop.save_tokenizer)
    loop.state.seed()
    known_length = math.isfinite(plan.updates_per_epoch)
    # The length of a stream is unknown, so its first updates represent all.
    updates = list(itertools.islice(plan.updates(), int(plan.updates_per_epoch) if known_length else STREAMED_UPDATES))
    largest: Any = max(updates, key=plan.positions)
    loop.run_update(largest, loop.loader.load(largest))
    progress = loop.state.progress
    before = progress.target_tokens
    # Spread over the epoch, whose order is random, so that short and long sentences have their usual shares.
    chosen = [updates[number] for number in np.linspace(0, len(updates) - 1, TIMED_UPDATES).astype(int)]
    started = time.perf_counter()
    for update in chosen:
        loop.run_update(update, loop.loader.load(update))
    seconds = (time.perf_counter() - started) / len(chosen)
    parameters = sum(parameter.numel() for parameter in loop.state.model.parameters())
    known = [update.target_tokens for update in updates if update.target_tokens is not None]
    target_tokens = float(np.mean(known)) if known else (progress.target_tokens - before) / len(chosen)
    epochs = f" ({loop.total_steps / plan.updates_per_epoch:.2f} epochs)" if known_length else ""
    total = seconds * loop.total_steps
    lines = {
        "parameters": f"{parameters:,}",
        "vocabulary": f"{loop.facts['source_vocab_size']:,} source, {loop.facts['target_vocab_size']:,} target",
        **plan.facts,
        "updates": f"{loop.total_steps:,} at most{epochs}",
        "an update": f"{target_tokens:.0f} target tokens on average, over {accelerator.num_processes} process(es) x "
        f"{a.gradient_accumulation_steps} micro-batch(es)",
        "memory": f"{peak_memory_mb(accelerator.device):.0f} MiB in each process at most, in the largest update",
        "speed": f"{1 / seconds:.2f} updates/s, {target_tokens / seconds:.0f} target tokens/s ({len(chosen)} updates)",
        "time": f"{total / 60:.1f} minutes without evaluation"
        + (f", ended after {a.max_train_seconds / 60:.1f} minutes" if a.max_train_seconds else ""),
    }
    if a.num_seeds > 1:
        lines["seeds"] = f"{a.num_seeds} such models, side by side as far as there are cores"
    width = max(map(len, lines))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in lines.items())
