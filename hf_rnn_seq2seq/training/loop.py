"""The training loop, over Accelerate, for any sequence-to-sequence model of transformers.

`TrainingLoop.run` is the whole of it: update, log, evaluate, save, stop. The loss of an update is the sum over the
target tokens of the whole global batch divided by their number, however that batch is split over processes and
micro-batches.
"""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from hf_rnn_seq2seq.data.loader import MicroBatch, Update
from hf_rnn_seq2seq.errors import ArgumentError, TrainingError
from hf_rnn_seq2seq.files import only_writer, write_atomically
from hf_rnn_seq2seq.run_directory import RECIPE, read_summary, update_summary
from hf_rnn_seq2seq.training import checkpoints as checkpointing
from hf_rnn_seq2seq.training.adaptation import freeze
from hf_rnn_seq2seq.training.arguments import TrainingOptions
from hf_rnn_seq2seq.training.batches import plan_and_loader
from hf_rnn_seq2seq.training.heap import Heap
from hf_rnn_seq2seq.training.launch import (
    StopSignals,
    check_output_dir,
    check_savable,
    largest,
    naming_lost_processes,
    summed,
)
from hf_rnn_seq2seq.training.log import LOG_FILE, RunLog, Screen, draw_learning_curve, versions
from hf_rnn_seq2seq.training.nonfinite import FiniteGuard
from hf_rnn_seq2seq.training.report import interval_facts, run_facts
from hf_rnn_seq2seq.training.state import StateKeeper, TrainingState
from hf_rnn_seq2seq.training.validation import Validator

__all__ = ["TrainingError", "TrainingLoop", "check_output_dir"]


class TrainingLoop:
    """One run of training in one directory.

    Args:
        model: any `PreTrainedModel` whose forward takes `input_ids`, `attention_mask`, `labels` (-100 is ignored) and
            returns the mean loss over the label tokens.
        train_dataset: rows with `input_ids`, `labels`, `source_length`, `target_length`, and optionally `id`;
            `dataset[list_of_rows]` gives a dict of lists. Or a TextStream, or a SampledTable.
        arguments: options.
        accelerator: from `run_control.build_accelerator`.
        objective: what is trained in the place of the model's own loss, see `TrainingState`.
        collate: pads a dict of lists to tensors.
        validator: measures the model; None trains without evaluation.
        save_beside: writes what belongs beside the weights of every checkpoint (the tokenizer) into a folder.
        after_save: told the step of every complete checkpoint, on the main process.
        recipe: text of the resolved options, kept in the run directory.
        identity: what must be the same for a resumed run (fingerprint of the data, ...), beside seed and batches.
        facts: what the log and the summary repeat.
    """

    def __init__(
        self,
        model: Any,
        train_dataset: Any,
        arguments: TrainingOptions,
        *,
        accelerator: Accelerator,
        objective: Any = None,
        collate: Callable[[Any], dict[str, Tensor]],
        validator: Validator | None = None,
        save_beside: Callable[[Path], Any] | None = None,
        after_save: Callable[[int], Any] | None = None,
        recipe: str = "",
        identity: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.arguments, self.accelerator = model, arguments, accelerator
        self.objective = objective
        self.validator, self.save_beside = validator, save_beside
        self.after_save, self.recipe = after_save, recipe
        self.screen = Screen(accelerator.is_main_process)
        self.facts = {**(facts or {}), **freeze(model, arguments.freeze, self.screen.say)}
        self.plan, self.loader = plan_and_loader(train_dataset, arguments, accelerator, collate)
        self.identity = {
            **(identity or {}),
            "seed": arguments.seed,
            "optim": arguments.optim,
            "objective": None if objective is None else arguments.objective,
            "averaged weights (ema_decay)": bool(arguments.ema_decay),
            **self.plan.identity,
        }
        self.total_steps = self._count_steps()
        self.heap = Heap()
        self._kind = torch.float32 if accelerator.device.type == "mps" else torch.float64
        self._loss_sum = torch.zeros((), dtype=self._kind, device=accelerator.device)
        self._signal = 0

    def _count_steps(self) -> float:
        if self.arguments.max_steps > 0:
            return self.arguments.max_steps
        # With a token budget the number of batches may differ a little from epoch to epoch: the course of the
        # learning rate uses this estimate, the end of the run is exact. Infinite for a stream.
        steps = self.arguments.num_train_epochs * self.plan.updates_per_epoch
        return max(1, math.ceil(steps)) if math.isfinite(steps) else steps

    def run(self) -> str:
        """Trains until something ends it, and returns the reason.

        Returns:
            `max_steps`, `num_train_epochs`, `max_train_seconds`, `early_stopping`, `already finished`, or the name of
            a signal (`SIGTERM`, `SIGINT`), after which the run can be resumed.

        Raises:
            ArgumentError: the directory holds another run, or a checkpoint that does not continue with these options.
            TrainingError: too many updates in a row were not finite.
            CheckpointError: a checkpoint cannot be written or read.
            InUseError: another process is writing the directory.
        """
        with contextlib.ExitStack() as held:
            held.enter_context(naming_lost_processes(self.accelerator))
            self.output_dir = check_output_dir(self.arguments)
            if self.accelerator.is_main_process:
                held.enter_context(only_writer(self.output_dir))
            self._start()
            reason = self._end_reason()
            if reason is not None and read_summary(self.output_dir).get("steps") == self.state.progress.step:
                step = self.state.progress.step
                self.screen.say(f"{self.output_dir}: this run finished at step {step}; there is nothing left to do")
                return "already finished"
            return self._run_updates(reason)

    def _run_updates(self, reason: str | None) -> str:
        """From the state of `_start` to the end of the run."""
        a, p = self.arguments, self.state.progress
        self.screen.start(self.total_steps, a.max_train_seconds, p.step, p.elapsed_seconds)
        updates = self.plan.updates(p.epoch, p.index, p.stream)
        self._mark = time.perf_counter()
        with StopSignals(self.screen.say) as signals, contextlib.closing(self.loader.stream(updates)) as stream:
            while reason is None:
                update, micro_batches = next(stream)
                self.run_update(update, micro_batches)
                p.advance(update.epoch, update.index, update.updates_in_epoch, update.after)
                self._count_time(signals)
                self.screen.advance(p.step, p.elapsed_seconds)
                if p.step % a.logging_steps == 0:
                    self._log()
                if self.validator and a.eval_steps and p.step % a.eval_steps == 0 and not self._signal:
                    self._evaluate()
                reason = self._end_reason()
                if reason is None and a.save_steps and p.step % a.save_steps == 0:
                    self._save()
            self._finish(reason)
        return reason

    def _start(self) -> None:
        """The state of a fresh or a resumed run, and its directory."""
        a, accelerator = self.arguments, self.accelerator
        check_output_dir(a)  # again, now that no other run can write there
        # Nobody writes the directory before everybody has looked into it.
        accelerator.wait_for_everyone()
        self.keeper = StateKeeper(
            self.output_dir,
            accelerator,
            keep=a.save_total_limit,
            identity=self.identity,
            save_beside=self.save_beside,
            say=self.screen.say,
        )
        checkpoint = self.keeper.find(a.resume_from_checkpoint)
        if checkpoint is not None:
            checkpointing.load_weights(self.model, checkpoint / checkpointing.WEIGHTS)
        self.prepare_state(self.output_dir / "nonfinite")
        if checkpoint is not None:
            self.keeper.restore(checkpoint, self.state)
        main, step = accelerator.is_main_process, self.state.progress.step
        if main:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            self.keeper.store.clean()
            write_atomically(self.output_dir / RECIPE, self.recipe)
        if accelerator.log_with:
            accelerator.init_trackers("training")
        self.log = RunLog(self.output_dir / LOG_FILE if main else None, step if a.resume_from_checkpoint else None)
        event = "start" if checkpoint is None else "resume"
        # A run that is killed leaves this line behind, so it says what the summary will.
        self.log.write(event, step=step, processes=accelerator.num_processes, versions=versions(), **self.facts)

    def prepare_state(self, nonfinite_folder: Path | None) -> None:
        """The state of step 0, wrapped by Accelerate, from which `run_update` can begin."""
        check_savable(self.arguments, self.model, self.save_beside)
        self.state = TrainingState(self.model, self.arguments, self.accelerator, self.objective)
        self._figure_sums = torch.zeros(len(self.state.figures), 2, dtype=self._kind, device=self.accelerator.device)
        self.guard = FiniteGuard(self.state, self.loader, nonfinite_folder, self.screen.say)

    # --- one update -----------------------------------------------------------------------------------------------

    def run_update(self, update: Update, micro_batches: list[MicroBatch]) -> None:
        """One optimizer step over this rank's share of a global batch."""
        accelerator, state, p = self.accelerator, self.state, self.state.progress
        done = max(p.step / self.total_steps, p.elapsed_seconds / (self.arguments.max_train_seconds or math.inf))
        for group in state.optimizer.param_groups:
            group["lr"] = state.schedule.at(p.step, done)
        # A model may have a schedule of its own, such as that of scheduled sampling.
        if hasattr(self.model, "set_training_progress"):
            self.model.set_training_progress(p.step)
        source_tokens, target_tokens = self._count_tokens(update, micro_batches)
        for number, batch in enumerate(micro_batches, start=1):
            # Gradients are exchanged once per update, in the last backward pass.
            last = number == len(micro_batches)
            with contextlib.nullcontext() if last else accelerator.no_sync(state.step_module):
                # A micro-batch's mean becomes its share of the mean over the update. The exchange averages over
                # processes, which the factor undoes.
                share = batch.target_tokens * accelerator.num_processes / target_tokens
                self._train_on(batch, share)
        limit = self.arguments.max_grad_norm or math.inf
        self.norm = accelerator.clip_grad_norm_(self.model.parameters(), limit).detach()
        self.guard.step(self.norm, update)
        state.optimizer.zero_grad()
        self.heap.give_back()
        if state.average is not None:
            state.average.update(p.step)
        p.source_tokens += source_tokens
        p.target_tokens += target_tokens
        p.interval_source_tokens += source_tokens
        p.interval_target_tokens += target_tokens

    def _count_tokens(self, update: Update, micro_batches: list[MicroBatch]) -> tuple[int, int]:
        """Source and target tokens of an update over all processes."""
        if update.source_tokens is not None and update.target_tokens is not None:
            return update.source_tokens, update.target_tokens
        counts = [[batch.source_tokens, batch.target_tokens, batch.left_out] for batch in micro_batches]
        totals = summed([float(sum(column)) for column in zip(*counts, strict=True)], self.accelerator)
        self.state.progress.left_out_rows += int(totals[2])
        return int(totals[0]), max(int(totals[1]), 1)

    def _train_on(self, batch: MicroBatch, share: float) -> None:
        """Adds gradient, loss and figures of one micro-batch, whose mean loss counts `share` times."""
        mean_loss, figures = self.state.step_module(**batch.inputs)
        finite = torch.isfinite(mean_loss.detach())
        # A loss that is not finite makes every gradient so, on every process: all skip alike.
        self.accelerator.backward(mean_loss * torch.where(finite, share, math.nan))
        self._loss_sum += torch.where(finite, mean_loss.detach(), 0.0) * batch.target_tokens
        if figures is not None and batch.target_tokens:
            self._figure_sums += figures

    def _count_time(self, signals: StopSignals) -> None:
        """Adds the time since the last mark; all processes take the longest, and any one's signal."""
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        seconds, number = largest([seconds, float(signals.check())], self.accelerator)
        self._signal = int(number)
        p = self.state.progress
        p.elapsed_seconds += seconds
        p.update_seconds += seconds
        p.interval_seconds += seconds

    @contextlib.contextmanager
    def _beside_training(self, counter: str) -> Any:
        """Times what is no update: into a field of the progress and into the run's whole time, alike on every rank."""
        started, p = time.perf_counter(), self.state.progress
        yield
        (seconds,) = largest([time.perf_counter() - started], self.accelerator)
        setattr(p, counter, seconds)
        p.elapsed_seconds += seconds
        self._mark = time.perf_counter()

    def _end_reason(self) -> str | None:
        a, p = self.arguments, self.state.progress
        if self._signal:
            return signal.Signals(self._signal).name
        if a.max_steps > 0 and p.step >= a.max_steps:
            return "max_steps"
        if a.max_steps < 0 and p.epochs >= a.num_train_epochs - 1e-9:
            return "num_train_epochs"
        if a.early_stopping_patience and p.evaluations_without_gain >= a.early_stopping_patience:
            return "early_stopping"
        if a.max_train_seconds and p.step:
            # The budget covers what is still to come: one more update, the last evaluation and the last save.
            reserve = p.update_seconds / p.step + p.saving_seconds
            reserve += 0.0 if p.evaluated_step == p.step else p.evaluation_seconds
            if p.elapsed_seconds + reserve >= a.max_train_seconds:
                return "max_train_seconds"
        return None

    # --- between updates ------------------------------------------------------------------------------------------

    def _gather_loss(self) -> None:
        """Moves the loss and the figures summed on the devices into the progress, over all processes."""
        p = self.state.progress
        p.interval_loss += float(self.accelerator.reduce(self._loss_sum, reduction="sum"))
        self._loss_sum.zero_()
        if self.state.figures:
            p.add_figures(self.state.figures, self.accelerator.reduce(self._figure_sums, reduction="sum").tolist())
            self._figure_sums.zero_()

    def _log(self) -> None:
        p = self.state.progress
        self.guard.inspect()
        self._gather_loss()
        facts, times = interval_facts(self)
        self.log.write("train", step=p.step, epoch=p.epochs, **facts, **times)
        self.accelerator.log({f"train/{name}": value for name, value in facts.items()}, step=p.step)
        self.screen.show_update(p.step, p.epochs, facts, times["eta_seconds"])
        p.interval_loss = p.interval_seconds = 0.0
        p.interval_figures = {}
        p.interval_source_tokens = p.interval_target_tokens = 0

    def _evaluate(self) -> None:
        """Measures the weights (their average, where one is kept), and keeps them where they are the best so far."""
        a, state, p = self.arguments, self.state, self.state.progress
        assert self.validator is not None
        # What a search draws at random must not change the training that follows.
        with self._beside_training("evaluation_seconds"), torch.random.fork_rng(), state.evaluated_weights():
            metrics = self.validator.measure(state.unwrapped_step, self.model, self.accelerator)
            if a.best_metric not in metrics:
                raise ArgumentError(f"metric_for_best_model={a.best_metric!r}: measured are {', '.join(metrics)}")
            best = p.record_evaluation(metrics, a.best_metric, a.early_stopping_threshold)
            if best:
                self.keeper.publish(self.model)
        state.schedule.observe(p.evaluations_without_gain == 0)
        named = {f"eval_{name}": value for name, value in metrics.items()}
        self.log.write("eval", step=p.step, epoch=p.epochs, **named, best=best, elapsed_seconds=p.elapsed_seconds)
        self.accelerator.log({f"eval/{name}": value for name, value in metrics.items()}, step=p.step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.screen.say(f"step {p.step}  evaluation  {shown}{'  (best so far)' if best else ''}")

    def _save(self) -> None:
        """Writes everything that a resumed run needs."""
        with self._beside_training("saving_seconds"):
            self.guard.inspect()
            self._gather_loss()
            self.keeper.save(self.state)
        p = self.state.progress
        self.log.write("save", step=p.step, seconds=p.saving_seconds)
        if self.after_save is not None and self.accelerator.is_main_process:
            self.after_save(p.step)

    def _finish(self, reason: str) -> None:
        """Last evaluation, last checkpoint, and the files that tell about the run."""
        p, interrupted = self.state.progress, bool(self._signal)
        if self.validator is not None and not interrupted and p.evaluated_step != p.step:
            self._evaluate()
        if p.best_step is None:
            with self.state.evaluated_weights():
                self.keeper.publish(self.model)
        self._save()
        self.log.write("stop" if interrupted else "end", step=p.step, reason=reason)
        self.screen.close()
        if self.accelerator.is_main_process:
            if not interrupted:
                update_summary(self.output_dir, run_facts(self, reason))
            curve = self.output_dir / "learning_curve.png"
            self.screen.say(draw_learning_curve(self.output_dir / LOG_FILE, curve) or f"learning curve in {curve}")
        if interrupted:
            self.screen.say(
                f"stopped by {reason} at step {p.step}; the state is saved in {self.output_dir}, continue with "
                "--resume_from_checkpoint latest"
            )
        self.accelerator.wait_for_everyone()
