"""One run in this process: from its options to a loop, and to the finished directory."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from accelerate import Accelerator
from accelerate.utils import set_seed
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.files import only_writer
from hf_rnn_seq2seq.run_directory import SUMMARY, load_any, refuse_ensemble
from hf_rnn_seq2seq.training.adaptation import freeze
from hf_rnn_seq2seq.training.arguments import RunOptions
from hf_rnn_seq2seq.training.components import Start, TaskParts, resumed_checkpoint
from hf_rnn_seq2seq.training.dry_run import dry_run
from hf_rnn_seq2seq.training.launch import build_accelerator, check_before_work, check_output_dir, use_all_cores
from hf_rnn_seq2seq.training.loop import EndReason, TrainingLoop
from hf_rnn_seq2seq.training.state import TrainingState


class Upload(Protocol):
    """What sends a run's checkpoints away while it trains."""

    def finish(self, directory: str, step: int, interrupted: bool) -> None: ...


@dataclass(frozen=True)
class TrainedRun:
    """A run that has ended: where it is, why it ended, and the facts of its summary."""

    directory: Path
    reason: str
    summary: dict[str, Any]

    def load(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """Model and tokenizer, with the best weights of the run."""
        return load_any(self.directory)


def run(
    options: RunOptions,
    command: str,
    after_run: Callable[[Path], str] | None = None,
    begin_upload: Callable[[TrainingLoop], Upload] | None = None,
) -> EndReason | None:
    """The run, from the corpus to the last checkpoint; None after a dry run, which prints the plan.

    Args:
        options: of the run.
        command: how it was started, for its summary.
        after_run: draws what belongs to the directory, and returns a line to print.
        begin_upload: called by the main process before the first update; None uploads nothing.
    """
    training = options.training
    check_before_work(training)
    if training.model_name_or_path:
        refuse_ensemble(training.model_name_or_path)
    else:  # with a checkpoint this is checked when it is read
        options.generation.set(GenerationConfig())
    if not training.dry_run:
        refuse_ensemble(check_output_dir(training))
    # The main process locks the directory for all; if it cannot, the launcher stops the others.
    locks = os.environ.get("RANK", "0") == "0" and not training.dry_run
    with only_writer(str(training.output_dir)) if locks else contextlib.nullcontext():
        use_all_cores(training.cpu_threads)
        accelerator = build_accelerator(training, lambda message: print(message, file=sys.stderr))
        try:
            loop = make_loop(options, accelerator, command=command, after_run=after_run)
            if training.dry_run:
                plan = dry_run(loop)
                if accelerator.is_main_process:
                    print(plan)
                return None
            upload = begin_upload(loop) if begin_upload and accelerator.is_main_process else None
            reason = loop.run()
            if upload is not None:
                step = loop.state.progress.step
                upload.finish(str(training.output_dir), step, interrupted=reason.signal_number > 0)
            return reason
        finally:
            accelerator.end_training()


def make_loop(
    options: RunOptions,
    accelerator: Accelerator,
    *,
    command: str = "",
    after_run: Callable[[Path], str] | None = None,
) -> TrainingLoop:
    """Loads, makes and joins the parts of a run; `command` is for its summary, `after_run` for `TrainingLoop`."""
    set_seed(options.training.seed)
    log = partial(print, file=sys.stderr) if accelerator.is_main_process else lambda _: None
    task = import_module(f"hf_rnn_seq2seq.training.{options.data.task}")  # what it needs may be an extra
    parts: TaskParts = task.parts(Start(options, resumed_checkpoint(options.training), accelerator, log))
    source_entries, target_entries = parts.vocabulary
    frozen = freeze(parts.model, options.training.freeze, log)
    return TrainingLoop(
        TrainingState(parts.model, options.training, accelerator, parts.objective),
        parts.train,
        collate=parts.collate,
        validator=parts.validator,
        save_tokenizer=parts.save_processing,
        after_run=after_run,
        recipe=options.recipe(),
        identity={
            "data": parts.data.get("fingerprint"),
            "vocabulary": [source_entries, target_entries],
            "freeze": options.training.freeze or None,
        },
        facts={
            "command": command,
            "data": parts.data,
            "source_vocab_size": source_entries,
            "target_vocab_size": target_entries,
            "seed": options.training.seed,
            **parts.facts,
            **frozen,
        },
    )


def train_here(recipe: str | None, options: Mapping[str, Any]) -> TrainedRun:
    """See `hf_rnn_seq2seq.training.train`."""
    words = [] if recipe is None else [str(recipe)]
    words += [f"--{name}={_text(value)}" for name, value in options.items()]
    parsed = RunOptions.parse(words)
    if parsed.training.push_to_hub:
        raise ArgumentError("push_to_hub=True: is for the command hf-rnn train; push the directory when it is trained")
    call = ", ".join([repr(recipe)] * (recipe is not None) + [f"{name}={value!r}" for name, value in options.items()])
    reason = run(parsed, f"train({call})")
    directory = Path(parsed.training.output_dir or "")
    if reason is None:
        return TrainedRun(directory, "dry_run", {})
    summary = directory / SUMMARY  # a run that a signal stopped has none
    facts = json.loads(summary.read_text(encoding="utf-8")) if summary.is_file() else {}
    return TrainedRun(directory, reason, facts)


def _text(value: object) -> str:
    """A value as the command line has it."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value)) or "none"
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
