"""From options to a training loop: the parts that the task makes, the loop."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from hf_rnn_seq2seq.training.adaptation import freeze
from hf_rnn_seq2seq.training.arguments import RunOptions
from hf_rnn_seq2seq.training.components import Start, TaskParts, resumed_checkpoint
from hf_rnn_seq2seq.training.loop import TrainingLoop
from hf_rnn_seq2seq.training.state import TrainingState


@dataclass
class Training:
    """A run that is ready to start, and the sizes of its vocabularies (source, target)."""

    loop: TrainingLoop
    vocabulary: tuple[int, int]


def build_training(
    options: RunOptions,
    accelerator: Accelerator,
    *,
    command: str = "",
    after_run: Callable[[Path], str] | None = None,
) -> Training:
    """Loads, makes and joins the parts of a run; `command` is for its summary, `after_run` for `TrainingLoop`."""
    set_seed(options.training.seed)
    log = partial(print, file=sys.stderr) if accelerator.is_main_process else lambda _: None
    parts = task_parts(Start(options, resumed_checkpoint(options.training), accelerator, log))
    model, vocabulary = parts.model, parts.vocabulary
    frozen = freeze(model, options.training.freeze, log)
    loop = TrainingLoop(
        TrainingState(model, options.training, accelerator, parts.objective),
        parts.train,
        collate=parts.collate,
        validator=parts.validator,
        save_tokenizer=parts.save_processing,
        after_run=after_run,
        recipe=options.recipe(),
        identity={
            "data": parts.data.get("fingerprint"),
            "vocabulary": list(vocabulary),
            "freeze": options.training.freeze or None,
        },
        facts={
            "command": command,
            "data": parts.data,
            "source_vocab_size": vocabulary[0],
            "target_vocab_size": vocabulary[1],
            "seed": options.training.seed,
            **parts.facts,
            **frozen,
        },
    )
    return Training(loop, vocabulary)


def task_parts(start: Start) -> TaskParts:
    """The parts of the run's task, which the module of its name makes; what that needs may be an extra."""
    return import_module(f"hf_rnn_seq2seq.training.{start.options.data.task}").parts(start)
