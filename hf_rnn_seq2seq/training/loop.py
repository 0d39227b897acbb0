"""The training loop, over Accelerate, for every task.

`TrainingLoop.run` updates, logs, evaluates, saves and stops. The loss of an update is the sum over the target tokens
(texts of a classifier, points of a pen) of the whole global batch divided by their number, however that batch is split
over processes and micro-batches.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from enum import StrEnum
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset

from hf_rnn_seq2seq.data.contiguous import ContiguousLoader, ContiguousPlan, ContiguousText
from hf_rnn_seq2seq.data.loader import BatchLoader, Collate, MicroBatch, Update, UpdatePlan, column
from hf_rnn_seq2seq.data.streaming import StreamLoader, StreamPlan, TextStream
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.files import only_writer, write_atomically
from hf_rnn_seq2seq.run_directory import LOG_FILE, RECIPE, SUMMARY, read_summary, update_summary
from hf_rnn_seq2seq.training.arguments import TrainingOptions
from hf_rnn_seq2seq.training.environment import describe, peak_memory_mb, versions
from hf_rnn_seq2seq.training.launch import (
    StopSignals,
    check_output_dir,
    check_savable,
    exact_dtype,
    largest,
    report_lost_processes,
    summed,
)
from hf_rnn_seq2seq.training.log import FORGET, Console, RunLog
from hf_rnn_seq2seq.training.nonfinite import NonfiniteUpdates
from hf_rnn_seq2seq.training.resume import CheckpointManager
from hf_rnn_seq2seq.training.state import TrainingState
from hf_rnn_seq2seq.training.validation import Validator


class EndReason(StrEnum):
    """Why a run ended. After a signal it can be resumed."""

    MAX_STEPS = "max_steps"
    EPOCHS = "num_train_epochs"
    SECONDS = "max_train_seconds"
    EARLY_STOPPING = "early_stopping"
    ALREADY_FINISHED = "already finished"
    SIGTERM = "SIGTERM"
    SIGINT = "SIGINT"

    @property
    def signal_number(self) -> int:
        """The number of the signal that stopped the run, or 0."""
        return int(signal.Signals[self]) if self in signal.Signals.__members__ else 0


class TrainingLoop:
    """One run of training in one directory.

    Args:
        state: the model, whose forward takes what `collate` makes, `labels` (-100 is ignored) among it, and returns the
            mean loss over the label tokens; its optimizer and counters; the options and the processes.
        train_dataset: rows with `labels`, `source_length`, `target_length`, what `collate` reads, and optionally `id`;
            `dataset[list_of_rows]` gives a dict of lists. A transform of it may give the ids anew
            each time. Or a TextStream, or a ContiguousText.
        collate: makes tensors of a dict of lists.
        validator: measures the model; None trains without evaluation.
        save_tokenizer: writes what a checkpoint holds in addition to the model into a folder.
        after_save: receives the folder of every complete checkpoint but the last, on the main process. It may return a
            task that reads the folder, which then stays until the task is done.
        after_run: receives the run directory at the end, on the main process; returns a line to print.
        recipe: text of the resolved options, written to the run directory.
        identity: what must be the same for a resumed run (fingerprint of the data, ...), in addition to seed and
            batches.
        facts: further entries of the log and the summary.
    """

    def __init__(
        self,
        state: TrainingState,
        train_dataset: Dataset | TextStream | ContiguousText,
        *,
        collate: Collate,
        validator: Validator | None = None,
        save_tokenizer: Callable[[Path], object] | None = None,
        after_save: Callable[[Path], Future[object] | None] | None = None,
        after_run: Callable[[Path], str] | None = None,
        recipe: str = "",
        identity: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.state, self.options, self.accelerator = state, state.options, state.accelerator
        self.validator, self.save_tokenizer = validator, save_tokenizer
        self.after_save, self.after_run, self.recipe = after_save, after_run, recipe
        self.facts = dict(facts or {})
        self.console = Console(self.accelerator.is_main_process, bar=not self.options.disable_tqdm)
        self.plan, self.loader = _plan_and_loader(train_dataset, self.options, self.accelerator, collate)
        self.identity = {
            **(identity or {}),
            "seed": self.options.seed,
            "optim": self.options.optim,
            "objective": state.objective,
            "averaged weights (ema_decay)": bool(self.options.ema_decay),
            **self.plan.identity,
        }
        self.total_steps = self._count_steps()
        self.nonfinite = NonfiniteUpdates(state, self.loader, None, self.console.print)
        self.log = RunLog()
        device = self.accelerator.device
        self._loss_sum = torch.zeros((), dtype=exact_dtype(device), device=device)
        self._figure_sums = torch.zeros(len(state.figures), 2, dtype=exact_dtype(device), device=device)
        self._signal = 0

    def _count_steps(self) -> float:
        if self.options.max_steps > 0:
            return self.options.max_steps
        # With a token budget the number of batches may differ a little from epoch to epoch: the learning rate schedule
        # uses this estimate, the end of the run is exact. Infinite for a stream.
        steps = self.options.num_train_epochs * self.plan.updates_per_epoch
        return max(1, math.ceil(steps)) if math.isfinite(steps) else steps

    def run(self) -> EndReason:
        """Trains until something ends it, and returns the reason.

        Raises:
            ArgumentError: the directory holds another run, or a checkpoint that does not continue with these options.
            TrainingError: too many updates in a row were not finite.
            CheckpointError: a checkpoint cannot be written or read.
            InUseError: another process is writing the directory.
        """
        with contextlib.ExitStack() as stack:
            stack.enter_context(report_lost_processes(self.accelerator))
            self.output_dir = check_output_dir(self.options)
            if self.accelerator.is_main_process:
                stack.enter_context(only_writer(self.output_dir))
            checkpoint = self._restore()
            reason = self._end_reason()
            if reason is not None and read_summary(self.output_dir).get("steps") == self.state.progress.step:
                step = self.state.progress.step
                self.console.print(f"{self.output_dir}: this run finished at step {step}; there is nothing left to do")
                return EndReason.ALREADY_FINISHED
            self._open(checkpoint)
            return self._run_updates(self._end_reason())

    def _run_updates(self, reason: EndReason | None) -> EndReason:
        """From the state before the next update to the end of the run."""
        a, p = self.options, self.state.progress
        self.console.start(self.total_steps, a.max_train_seconds, p.step, p.elapsed_seconds)
        updates = self.plan.updates(p.epoch, p.index, p.stream)
        self._mark = time.perf_counter()
        with StopSignals(self.console.print) as signals, contextlib.closing(self.loader.stream(updates)) as stream:
            while reason is None:
                update, micro_batches = next(stream)
                self.run_update(update, micro_batches)
                p.advance(update.epoch, update.index, update.updates_in_epoch, update.after)
                self._count_time(signals)
                self.console.advance(p.step, p.elapsed_seconds)
                if p.step % a.logging_steps == 0:
                    self._log()
                if self.validator and a.eval_steps and p.step % a.eval_steps == 0 and not self._signal:
                    self._evaluate()
                reason = self._end_reason()
                if reason is None and a.save_steps and p.step % a.save_steps == 0:
                    self._share(self._save())
            self._finish(reason)
        return reason

    def _restore(self) -> Path | None:
        """Brings a fresh or a resumed run to its first update; returns the checkpoint that it continues."""
        a, accelerator = self.options, self.accelerator
        check_output_dir(a)  # again, now that no other run can write there
        accelerator.wait_for_everyone()  # all processes check the directory before the main one writes to it
        self.checkpoints = CheckpointManager(
            self.output_dir,
            accelerator,
            limit=a.save_total_limit,
            identity=self.identity,
            save_tokenizer=self.save_tokenizer,
            log=self.console.print,
        )
        checkpoint = self.checkpoints.find(a.resume_from_checkpoint)
        check_savable(a, self.state.model, self.save_tokenizer)
        self.state.seed()
        if checkpoint is not None:
            self.checkpoints.restore(checkpoint, self.state)
        return checkpoint

    def _open(self, checkpoint: Path | None) -> None:
        """Prepares the directory of a run that continues `checkpoint`, or a fresh one."""
        a, accelerator, step = self.options, self.accelerator, self.state.progress.step
        named = checkpoint is not None and a.resume_from_checkpoint != "latest"
        if named:
            self.checkpoints.set_aside(checkpoint, step)
        forgotten = checkpoint is not None and self.checkpoints.publish_best(checkpoint, self.state, named=named)
        if accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            if named:
                (self.output_dir / SUMMARY).unlink(missing_ok=True)  # it describes the branch that was set aside
            self.checkpoints.store.clean()
            write_atomically(self.output_dir / RECIPE, self.recipe)
            self.log.open(self.output_dir / LOG_FILE, step if a.resume_from_checkpoint else None)
        if accelerator.log_with:
            accelerator.init_trackers("training")
        self.nonfinite.folder = self.output_dir / "nonfinite"
        event = "start" if checkpoint is None else "resume"
        # A killed run has no summary; this line has the facts in its place.
        self.log.write(event, step=step, processes=accelerator.num_processes, versions=versions(), **self.facts)
        if forgotten:
            self.log.write(FORGET, step=step)

    # --- one update -----------------------------------------------------------------------------------------------

    def run_update(self, update: Update, micro_batches: list[MicroBatch]) -> None:
        """One optimizer step over this rank's share of a global batch."""
        accelerator, state, p = self.accelerator, self.state, self.state.progress
        done = max(p.step / self.total_steps, p.elapsed_seconds / (self.options.max_train_seconds or math.inf))
        for group in state.optimizer.param_groups:
            group["lr"] = state.schedule.at(p.step, done)
        # A model may have a schedule of its own, such as that of scheduled sampling.
        if hasattr(state.model, "set_training_progress"):
            state.model.set_training_progress(p.step)
        source_tokens, target_tokens = self._count_tokens(update, micro_batches)
        if not target_tokens:  # all rows of a stream's update are too long: there is nothing to learn from
            self.gradient_norm = 0.0
            return
        for number, batch in enumerate(micro_batches, start=1):
            # Gradients are exchanged once per update, in the last backward pass.
            last = number == len(micro_batches)
            with contextlib.nullcontext() if last else accelerator.no_sync(state.step_module):
                # The mean of a micro-batch becomes its share of the mean over the update. The exchange averages over
                # processes; the factor cancels this.
                share = batch.target_tokens * accelerator.num_processes / target_tokens
                self._train_on(batch, share)
        self.gradient_norm = self._clip_gradients(self.options.max_grad_norm or math.inf)
        finite = math.isfinite(self.gradient_norm)
        if finite or accelerator.scaler is not None:  # the scaler of fp16 skips by itself, and lowers its scale
            state.optimizer.step()
        self.nonfinite.count(update, finite)
        state.optimizer.zero_grad()
        if state.average is not None:
            state.average.update(p.step)
        p.source_tokens += source_tokens
        p.target_tokens += target_tokens
        p.interval_source_tokens += source_tokens
        p.interval_target_tokens += target_tokens

    def _clip_gradients(self, limit: float) -> float:
        """Scales the gradients down to the norm `limit`; returns their norm before."""
        self.accelerator.unscale_gradients()
        parameters = [parameter for parameter in self.state.model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in parameters])
        before = float(norm)
        if before > limit:  # else torch's own function would multiply all of them by 1
            torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
        return before

    def _count_tokens(self, update: Update, micro_batches: list[MicroBatch]) -> tuple[int, int]:
        """Source and target tokens of an update over all processes."""
        if update.source_tokens is not None and update.target_tokens is not None:
            return update.source_tokens, update.target_tokens
        counts = [[batch.source_tokens, batch.target_tokens, batch.left_out] for batch in micro_batches]
        totals = summed([float(sum(column)) for column in zip(*counts, strict=True)], self.accelerator)
        self.state.progress.left_out_rows += int(totals[2])
        return int(totals[0]), int(totals[1])

    def _train_on(self, batch: MicroBatch, share: float) -> None:
        """Adds gradient, loss and figures of one micro-batch, whose mean loss is multiplied by `share`."""
        mean_loss, figures = self.state.step_module(**batch.inputs)
        finite = torch.isfinite(mean_loss.detach())
        # A loss that is not finite makes every gradient so, on every process: all skip the update.
        self.accelerator.backward(mean_loss * torch.where(finite, share, math.nan))
        self._loss_sum += torch.where(finite, mean_loss.detach(), 0.0) * batch.target_tokens
        if figures is not None and batch.target_tokens:
            self._figure_sums += figures

    def _count_time(self, signals: StopSignals) -> None:
        """Adds the time since the last mark. All processes take the longest, and the signal of any of them."""
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        seconds, number = largest([seconds, float(signals.check())], self.accelerator)
        self._signal = int(number)
        p = self.state.progress
        p.elapsed_seconds += seconds
        p.update_seconds += seconds
        p.interval_seconds += seconds

    @contextlib.contextmanager
    def _timed(self, counter: str) -> Iterator[None]:
        """Sets a field of the progress to the time spent here, and adds it to the run's time, alike on every rank."""
        started, p = time.perf_counter(), self.state.progress
        yield
        (seconds,) = largest([time.perf_counter() - started], self.accelerator)
        setattr(p, counter, seconds)
        p.elapsed_seconds += seconds
        self._mark = time.perf_counter()

    def _end_reason(self) -> EndReason | None:
        a, p = self.options, self.state.progress
        if self._signal:
            return EndReason(signal.Signals(self._signal).name)
        if a.max_steps > 0 and p.step >= a.max_steps:
            return EndReason.MAX_STEPS
        if a.max_steps < 0 and p.epochs >= a.num_train_epochs - 1e-9:
            return EndReason.EPOCHS
        if a.early_stopping_patience and p.evaluations_without_gain >= a.early_stopping_patience:
            return EndReason.EARLY_STOPPING
        if a.max_train_seconds and p.step:
            # The budget must cover one more update, the last evaluation and the last save.
            reserve = p.update_seconds / p.step + p.saving_seconds
            reserve += 0.0 if p.evaluated_step == p.step else p.evaluation_seconds
            if p.elapsed_seconds + reserve >= a.max_train_seconds:
                return EndReason.SECONDS
        return None

    # --- between updates ------------------------------------------------------------------------------------------

    def _gather_loss(self) -> None:
        """Moves the sums of loss and figures from the devices to the progress, over all processes."""
        p = self.state.progress
        p.interval_loss += float(self.accelerator.reduce(self._loss_sum, reduction="sum"))
        self._loss_sum.zero_()
        if self.state.figures:
            p.add_figures(self.state.figures, self.accelerator.reduce(self._figure_sums, reduction="sum").tolist())
            self._figure_sums.zero_()

    def _log(self) -> None:
        p = self.state.progress
        self._gather_loss()
        numbers = p.interval_numbers()
        numbers["learning_rate"] = self.state.optimizer.param_groups[0]["lr"]
        numbers["grad_norm"] = self.gradient_norm
        numbers["memory_mb"] = peak_memory_mb(self.accelerator.device)
        if p.left_out_rows:
            numbers["left_out_rows"] = p.left_out_rows
        times = {"elapsed_seconds": p.elapsed_seconds, "eta_seconds": self._seconds_left()}
        self.log.write("train", step=p.step, epoch=p.epochs, **numbers, **times)
        self.accelerator.log({f"train/{name}": value for name, value in numbers.items()}, step=p.step)
        self.console.show_update(p.step, p.epochs, numbers, times["eta_seconds"])
        p.start_interval()

    def _seconds_left(self) -> float:
        """What the updates, evaluations and saves that are left take if each takes as long as so far."""
        a, p, total = self.options, self.state.progress, self.total_steps
        left = (total - p.step) * p.update_seconds / p.step
        if math.isfinite(total):
            due = ((a.eval_steps if self.validator else None, p.evaluation_seconds), (a.save_steps, p.saving_seconds))
            # Those of this step come after its line of the log.
            left += sum((total // steps - (p.step - 1) // steps) * seconds for steps, seconds in due if steps)
        return max(0.0, min(left, (a.max_train_seconds or math.inf) - p.elapsed_seconds))

    def _evaluate(self) -> None:
        """Measures the weights (or their average), and publishes them if they are the best so far."""
        a, state, p = self.options, self.state, self.state.progress
        assert self.validator is not None
        # Random numbers that a search draws must not change the training that follows.
        # The generator of this process's GPU alone: reading another's would take memory on that GPU.
        devices = [torch.cuda.current_device()] if self.accelerator.device.type == "cuda" else []
        with self._timed("evaluation_seconds"), torch.random.fork_rng(devices), state.evaluated_weights():
            metrics = self.validator.measure(state.unwrapped_step, state.model, self.accelerator)
            if a.best_metric not in metrics:
                raise ArgumentError(f"metric_for_best_model={a.best_metric!r}: must be one of {', '.join(metrics)}")
            best = p.record_evaluation(metrics, a.best_metric, a.early_stopping_threshold)
            if best:
                self.checkpoints.publish(state.model)
        state.schedule.observe(p.evaluations_without_gain == 0)
        named = {f"eval_{name}": value for name, value in metrics.items()}
        sample = self.validator.sample
        shown = {} if sample is None else {"sample": sample}
        times = {"elapsed_seconds": p.elapsed_seconds}
        self.log.write("eval", step=p.step, epoch=p.epochs, **named, best=best, **times, **shown)
        self.accelerator.log({f"eval/{name}": value for name, value in metrics.items()}, step=p.step)
        line = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.console.print(f"step {p.step}  evaluation  {line}{'  (best so far)' if best else ''}")
        if sample is not None:
            self.console.print(sample)

    def _save(self) -> Path:
        """Writes a checkpoint, which is everything that a resumed run needs; returns its folder."""
        with self._timed("saving_seconds"):
            self._gather_loss()
            folder = self.checkpoints.save(self.state)
        p = self.state.progress
        self.log.write("save", step=p.step, seconds=p.saving_seconds)
        return folder

    def _share(self, folder: Path) -> None:
        """Gives a checkpoint to `after_save`."""
        if self.after_save is not None and self.accelerator.is_main_process:
            reader = self.after_save(folder)
            if reader is not None:
                self.checkpoints.spare(folder, reader)

    def _finish(self, reason: EndReason) -> None:
        """Last evaluation, last checkpoint, summary and picture."""
        p, interrupted = self.state.progress, bool(self._signal)
        if self.validator is not None and not interrupted and p.evaluated_step != p.step:
            self._evaluate()
        if p.best_step is None:
            with self.state.evaluated_weights():
                self.checkpoints.publish(self.state.model)
        self._save()
        self.log.write("stop" if interrupted else "end", step=p.step, reason=reason)
        self.console.close()
        if p.left_out_rows:
            self.console.print(f"{p.left_out_rows:,} rows of the stream were too long and left out")
        if self.accelerator.is_main_process:
            if not interrupted:
                update_summary(self.output_dir, self._summary(reason))
            if self.after_run is not None:
                self.console.print(self.after_run(self.output_dir))
        if interrupted:
            self.console.print(
                f"stopped by {reason} at step {p.step}; the state is saved in {self.output_dir}, continue with "
                "--resume_from_checkpoint latest"
            )
        self.accelerator.wait_for_everyone()

    def _summary(self, reason: EndReason) -> dict[str, Any]:
        best = self.state.progress.best_step is not None
        return {
            **self.facts,
            "parameters": sum(parameter.numel() for parameter in self.state.model.parameters()),
            "stop_reason": reason,
            **self.state.progress.totals(),
            "best_metric_name": self.options.best_metric if best else None,
            **describe(self.accelerator),
        }


def _plan_and_loader(
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
