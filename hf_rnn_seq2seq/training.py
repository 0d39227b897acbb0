"""The training loop, over Accelerate, for any sequence-to-sequence model of transformers.

`TrainingLoop.run` is the whole of it: update, log, evaluate, save, stop. The loss of an update is the sum over the
target tokens of the whole global batch divided by their number, however that batch is split over processes and
micro-batches.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from torch import Tensor, nn

from . import checkpointing
from .arguments import ArgumentError, TrainingArguments
from .checkpointing import CheckpointStore
from .optimization import LearningRate, WeightAverage, build_optimizer
from .progress import Progress
from .run_control import StopSignals, largest
from .run_directory import RECIPE, SUMMARY, CheckpointError, read_summary, update_summary, write_atomically
from .run_log import LOG_FILE, RunLog, Screen, draw_learning_curve, peak_memory_mb, versions
from .updates import BatchLoader, MicroBatch, Update, UpdatePlan
from .validation import Validator

RUN_FILES = ("config.json", checkpointing.WEIGHTS, RECIPE, LOG_FILE, SUMMARY, checkpointing.CHECKPOINTS)
TIMED_STEPS = 20


class TrainingError(RuntimeError):
    """Training that cannot go on; the message says what happened and what to try."""


class StepModule(nn.Module):
    """A model reduced to its training loss: what Accelerate wraps, so that the model itself stays as it is.

    The wrapper takes the mixed precision and the gradient exchange upon itself; evaluation and saving use `model`.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        known = inspect.signature(model.forward).parameters
        wanted = {"use_cache": False, "skip_logits": True}
        self.options = {name: value for name, value in wanted.items() if name in known}

    def forward(self, **batch: Tensor) -> Tensor:
        """The mean loss over the label tokens of a batch, ()."""
        return self.model(**batch, **self.options).loss


class TrainingLoop:
    """One run of training in one directory.

    Args:
        model: any `PreTrainedModel` whose forward takes `input_ids`, `attention_mask`, `labels` (-100 is ignored) and
            returns the mean loss over the label tokens.
        train_dataset: rows with `input_ids`, `labels`, `source_length`, `target_length`, and optionally `id`;
            `dataset[list_of_rows]` gives a dict of lists.
        arguments: options; `output_dir` is needed except in a dry run.
        accelerator: from `run_control.build_accelerator`.
        collate: pads a dict of lists to tensors.
        validator: measures the model; None trains without evaluation.
        save_beside: writes what belongs beside the weights of every checkpoint (the tokenizer) into a folder.
        recipe: text of the resolved options, kept in the run directory.
        identity: what must be the same for a resumed run (fingerprint of the data, ...), and is compared.
        facts: what the summary repeats.

    Raises:
        ArgumentError: the directory holds another run, or a checkpoint that does not continue with these options.
    """

    def __init__(
        self,
        model: Any,
        train_dataset: Any,
        arguments: TrainingArguments,
        *,
        accelerator: Accelerator,
        collate: Callable[[Any], dict[str, Tensor]],
        validator: Validator | None = None,
        save_beside: Callable[[Path], Any] | None = None,
        recipe: str = "",
        identity: Mapping[str, Any] | None = None,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        self.model, self.arguments, self.accelerator = model, arguments, accelerator
        self.dataset, self.validator, self.save_beside = train_dataset, validator, save_beside
        self.recipe, self.facts = recipe, dict(facts or {})
        self.screen = Screen(accelerator.is_main_process)
        processes, accumulation = accelerator.num_processes, arguments.gradient_accumulation_steps
        self.plan = UpdatePlan(
            train_dataset["source_length"][:],
            train_dataset["target_length"][:],
            batch_size=arguments.per_device_train_batch_size * processes * accumulation,
            max_tokens=arguments.train_batch_tokens,
            seed=arguments.seed,
        )
        self.loader = BatchLoader(
            train_dataset,
            collate,
            rank=accelerator.process_index,
            processes=processes,
            accumulation=accumulation,
            device=accelerator.device,
        )
        self.identity = {
            **(identity or {}),
            "seed": arguments.seed,
            "optim": arguments.optim,
            "averaged weights (ema_decay)": bool(arguments.ema_decay),
            "training rows": len(self.plan.source_lengths),
            "sentences per update": self.plan.batch_size,
            "train_batch_tokens": self.plan.max_tokens,
        }
        self.total_steps = self._count_steps()
        self.progress = Progress()
        self.schedule = LearningRate(arguments)
        self._pending: list[tuple[int, Update, Tensor]] = []

    def _count_steps(self) -> int:
        if self.arguments.max_steps > 0:
            return self.arguments.max_steps
        # With a token budget the number of batches may differ a little from epoch to epoch: the course of the
        # learning rate uses this estimate, the end of the run is exact.
        return max(1, math.ceil(self.arguments.num_train_epochs * len(self.plan.epoch(0))))

    # --- the loop -------------------------------------------------------------------------------------------------

    def run(self) -> str:
        """Trains until something ends it, and returns the reason.

        Returns:
            `max_steps`, `num_train_epochs`, `max_train_seconds`, `early_stopping`, `already finished`, or the name of
            a signal (`SIGTERM`, `SIGINT`), after which the run can be resumed.

        Raises:
            TrainingError: too many updates in a row were not finite.
            CheckpointError: a checkpoint cannot be written.
        """
        a, p = self.arguments, self._start()
        if self._already_finished():
            self.screen.say(f"{a.output_dir}: this run finished at step {p.step}; there is nothing left to do")
            return "already finished"
        reason = self._end_reason(0)
        updates = self.plan.updates(p.epoch, p.index)
        self._mark = time.perf_counter()
        with StopSignals(self.screen.say) as signals, contextlib.closing(self.loader.stream(updates)) as stream:
            while reason is None:
                update, micro_batches = next(stream)
                self._run_update(update, micro_batches)
                p.advance(update.epoch, update.index, update.updates_in_epoch)
                self._count_time(signals)
                self.screen.advance(p.step, p.elapsed_seconds)
                if p.step % a.logging_steps == 0:
                    self._log()
                reason = self._end_reason(self._signal)
                evaluates = self.validator is not None and a.eval_steps and p.step % a.eval_steps == 0
                if evaluates and not self._signal:
                    self._evaluate()
                    reason = reason or self._end_reason(self._signal)
                if reason is None and a.save_steps and p.step % a.save_steps == 0:
                    self._save()
        self._finish(reason)
        return reason

    def _run_update(self, update: Update, micro_batches: list[MicroBatch]) -> None:
        """One optimizer step over this rank's share of a global batch."""
        accelerator, p = self.accelerator, self.progress
        progress = max(p.step / self.total_steps, p.elapsed_seconds / (self.arguments.max_train_seconds or math.inf))
        rate = self.schedule.at(p.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        for number, batch in enumerate(micro_batches, start=1):
            # Gradients are exchanged once per update, in the last backward pass.
            last = number == len(micro_batches)
            with contextlib.nullcontext() if last else accelerator.no_sync(self.step_module):
                loss = self.step_module(**batch.inputs)
                # The mean over this micro-batch becomes its share of the mean over the update; the exchange averages
                # over processes, which the factor undoes.
                share = batch.target_tokens * accelerator.num_processes / update.target_tokens
                # A loss that is not finite makes every gradient so, on every process: all skip alike.
                guard = torch.where(torch.isfinite(loss.detach()), 1.0, math.nan)
                accelerator.backward(loss * guard * share)
            self._loss_sum += torch.nan_to_num(loss.detach().to(self._loss_sum.dtype), 0.0, 0.0, 0.0) * (
                batch.target_tokens
            )
        limit = self.arguments.max_grad_norm or math.inf
        self._norm = accelerator.clip_grad_norm_(self.model.parameters(), limit).detach()
        self._step_optimizer(update)
        p.source_tokens += update.source_tokens
        p.target_tokens += update.target_tokens
        p.interval_source_tokens += update.source_tokens
        p.interval_target_tokens += update.target_tokens

    def _step_optimizer(self, update: Update) -> None:
        """Applies the gradient, unless it is not finite; nobody waits for a GPU to find that out."""
        bad = ~torch.isfinite(self._norm)
        scaled = self.accelerator.scaler is not None  # of fp16: skips by itself, and overflows are its normal work
        if scaled:
            self.optimizer.step()
            self._pending.append((self.progress.step + 1, update, bad))
        elif self._fused:
            # The fused kernels skip the step on the device where found_inf is 1.
            self._plain_optimizer.grad_scale, self._plain_optimizer.found_inf = None, bad.float()
            self.optimizer.step()
            self._pending.append((self.progress.step + 1, update, bad))
        else:
            if not bool(bad):
                self.optimizer.step()
            self._pending.append((self.progress.step + 1, update, bad))
        self.optimizer.zero_grad()
        if self.average is not None:
            self.average.update(self.progress.step)
        if self.accelerator.device.type == "cpu" or len(self._pending) >= self.arguments.logging_steps:
            self._inspect_pending()

    def _inspect_pending(self) -> None:
        """Counts the updates that were skipped; stops after too many in a row."""
        if not self._pending:
            return
        flags = torch.stack([bad for _, _, bad in self._pending]).tolist()
        pending, self._pending = self._pending, []
        p, a = self.progress, self.arguments
        for (step, update, _), bad in zip(pending, flags, strict=True):
            if not bad:
                p.skipped_in_row = 0
                continue
            p.skipped_updates += 1
            p.skipped_in_row += 1
            if self.accelerator.scaler is None:
                self._report_skip(step, update)
            # While fp16 looks for its scale it halves 2**16 down, which alone is up to 16 skipped updates.
            if p.skipped_in_row >= a.max_skipped_updates + (16 if self.accelerator.scaler is not None else 0):
                raise TrainingError(
                    f"step {step}: loss or gradient was not finite {p.skipped_in_row} times in a row (learning rate "
                    f"{self.optimizer.param_groups[0]['lr']:g}); the batches are in {a.output_dir}/nonfinite. A lower "
                    "learning_rate, more warmup_steps or a smaller max_grad_norm may help; resume from the last "
                    "checkpoint with --resume_from_checkpoint latest"
                )

    def _report_skip(self, step: int, update: Update) -> None:
        self.screen.say(f"step {step}: loss or gradient is not finite, the update is skipped")
        if self.accelerator.is_main_process and self.arguments.output_dir and not self.arguments.dry_run:
            columns = self.dataset[list(update.rows)]
            kept = {name: columns[name] for name in ("id", "input_ids", "labels") if name in columns}
            folder = Path(self.arguments.output_dir) / "nonfinite"
            folder.mkdir(exist_ok=True)
            text = json.dumps({"step": step, "rows": list(update.rows), **kept})
            write_atomically(folder / f"step-{step:08d}.json", text)
        self.log.write("skip", step=step, rows=len(update.rows))

    def _count_time(self, signals: StopSignals) -> None:
        """Adds the time since the last mark; all processes take the longest, and any one's signal."""
        now = time.perf_counter()
        seconds, self._mark = now - self._mark, now
        seconds, number = largest([seconds, float(signals.check())], self.accelerator)
        self._signal = int(number)
        self._add_seconds(seconds, updating=True)

    def _add_seconds(self, seconds: float, updating: bool = False) -> None:
        self.progress.elapsed_seconds += seconds
        if updating:
            self.progress.update_seconds += seconds
            self.progress.interval_seconds += seconds

    def _end_reason(self, signal_number: int) -> str | None:
        a, p = self.arguments, self.progress
        if signal_number:
            import signal

            return signal.Signals(signal_number).name
        if a.max_steps > 0 and p.step >= a.max_steps:
            return "max_steps"
        if a.max_steps < 0 and p.epochs >= a.num_train_epochs - 1e-9:
            return "num_train_epochs"
        if a.early_stopping_patience and p.evaluations_without_gain >= a.early_stopping_patience:
            return "early_stopping"
        reserve = p.saving_seconds + (0.0 if p.evaluated_step == p.step else p.evaluation_seconds)
        reserve += p.update_seconds / p.step if p.step else 0.0
        if a.max_train_seconds and p.step and p.elapsed_seconds + reserve >= a.max_train_seconds:
            return "max_train_seconds"
        return None

    # --- what happens between updates -----------------------------------------------------------------------------

    def _interval_loss(self) -> float:
        """The loss summed since the last log line, over all processes."""
        self.progress.interval_loss += float(self.accelerator.reduce(self._loss_sum, reduction="sum"))
        self._loss_sum.zero_()
        return self.progress.interval_loss

    def _log(self) -> None:
        a, p = self.arguments, self.progress
        self._inspect_pending()
        loss = self._interval_loss() / max(p.interval_target_tokens, 1)
        seconds = max(p.interval_seconds, 1e-9)
        facts = {
            "loss": loss,
            "perplexity": math.exp(min(loss, 700.0)),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "grad_norm": float(self._norm),
            "target_tokens_per_second": p.interval_target_tokens / seconds,
            "source_tokens_per_second": p.interval_source_tokens / seconds,
            "memory_mb": peak_memory_mb(self.accelerator.device),
        }
        left = [(self.total_steps - p.step) * p.elapsed_seconds / p.step]
        if a.max_train_seconds:
            left.append(a.max_train_seconds - p.elapsed_seconds)
        eta = max(0.0, min(left))
        self.log.write(
            "train", step=p.step, epoch=p.epochs, **facts, elapsed_seconds=p.elapsed_seconds, eta_seconds=eta
        )
        self.accelerator.log({f"train/{name}": value for name, value in facts.items()}, step=p.step)
        self.screen.note(loss=f"{loss:.3f}", tok_s=f"{facts['target_tokens_per_second']:.0f}")
        self.screen.say(
            f"step {p.step}  epoch {p.epochs:.2f}  loss {loss:.4f}  ppl {facts['perplexity']:.2f}  "
            f"lr {facts['learning_rate']:.2e}  norm {facts['grad_norm']:.2f}  "
            f"tokens/s {facts['source_tokens_per_second']:.0f} source {facts['target_tokens_per_second']:.0f} target  "
            f"{facts['memory_mb']:.0f} MiB  {eta:.0f} s left"
        )
        p.interval_loss, p.interval_seconds = 0.0, 0.0
        p.interval_source_tokens = p.interval_target_tokens = 0

    def _evaluate(self) -> None:
        """Measures the weights (their average, where one is kept), and keeps them where they are the best."""
        assert self.validator is not None
        a, p = self.arguments, self.progress
        started = time.perf_counter()
        # What a search draws at random must not change the training that follows.
        with torch.random.fork_rng(), self.average.applied() if self.average else contextlib.nullcontext():
            metrics = self.validator.measure(self._unwrapped_step, self.model, self.accelerator)
            if a.best_metric not in metrics:
                raise ArgumentError(f"metric_for_best_model={a.best_metric!r}: measured are {', '.join(metrics)}")
            gained = p.record_evaluation(metrics, a.best_metric, a.early_stopping_threshold)
            if gained:
                self._publish()
        self.schedule.observe(gained)
        (p.evaluation_seconds,) = largest([time.perf_counter() - started], self.accelerator)
        self._add_seconds(p.evaluation_seconds)
        facts = {f"eval_{name}": value for name, value in metrics.items()}
        self.log.write("eval", step=p.step, epoch=p.epochs, **facts, best=gained, elapsed_seconds=p.elapsed_seconds)
        self.accelerator.log({f"eval/{name}": value for name, value in metrics.items()}, step=p.step)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())
        self.screen.say(f"step {p.step}  evaluation  {shown}{'  (best so far)' if gained else ''}")
        self._mark = time.perf_counter()

    def _write_model(self, folder: Path) -> None:
        self.model.save_pretrained(folder, max_shard_size="1000GB")
        if self.save_beside is not None:
            self.save_beside(folder)

    def _publish(self) -> None:
        self._on_main(lambda: checkpointing.publish(self._output_dir, self._write_model))

    def _save(self) -> None:
        """Writes everything a resumed run needs."""
        started = time.perf_counter()
        p = self.progress
        self._inspect_pending()
        self._interval_loss()
        states = gather_object([checkpointing.random_state()])
        self._on_main(lambda: self.store.save(p.step, lambda folder: self._write_state(folder, states), p.best_step))
        (p.saving_seconds,) = largest([time.perf_counter() - started], self.accelerator)
        self._add_seconds(p.saving_seconds)
        self.log.write("save", step=p.step, seconds=p.saving_seconds)
        self._mark = time.perf_counter()

    def _write_state(self, folder: Path, random_states: list[dict[str, Any]]) -> None:
        self._write_model(folder)
        scaler = self.accelerator.scaler
        state = {
            "progress": self.progress.state_dict(),
            "optimizer": checkpointing.save_optimizer(self._plain_optimizer, folder),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "random": random_states,
            "identity": self.identity,
        }
        if self.average is not None:
            checkpointing.save_file(self.average.state_dict(), folder / "average.safetensors")
        (folder / checkpointing.STATE).write_text(json.dumps(state), encoding="utf-8")

    def _on_main(self, action: Callable[[], Any]) -> None:
        """Runs on the main process; every process learns of its failure, so that none waits for ever."""
        failure: list[str | None] = [None]
        if self.accelerator.is_main_process:
            try:
                action()
            except CheckpointError as error:
                failure = [str(error)]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(failure)
        if failure[0] is not None:
            raise CheckpointError(failure[0])

    # --- beginning and end ----------------------------------------------------------------------------------------

    def _start(self) -> Progress:
        a, accelerator = self.arguments, self.accelerator
        if a.output_dir is None:
            raise ArgumentError("output_dir=None: must name the run directory")
        self._output_dir = Path(a.output_dir)
        self.store = CheckpointStore(self._output_dir, a.save_total_limit)
        checkpoint = self._find_checkpoint()
        if checkpoint is not None:
            checkpointing.load_weights(self.model, checkpoint / checkpointing.WEIGHTS)
        self._prepare()
        if checkpoint is not None:
            self._restore(checkpoint)
        if accelerator.is_main_process:
            self._output_dir.mkdir(parents=True, exist_ok=True)
            self.store.clean()
            write_atomically(self._output_dir / RECIPE, self.recipe)
        accelerator.wait_for_everyone()
        if accelerator.log_with:
            accelerator.init_trackers("training")
        log_path = self._output_dir / LOG_FILE if accelerator.is_main_process else None
        self.log = RunLog(log_path, self.progress.step if checkpoint is not None else None)
        self.log.write(
            "start" if checkpoint is None else "resume",
            step=self.progress.step,
            processes=accelerator.num_processes,
            checkpoint=str(checkpoint) if checkpoint else None,
            versions=versions(),
        )
        p = self.progress
        self.screen.start(self.total_steps, a.max_train_seconds, p.step, p.elapsed_seconds)
        return p

    def _prepare(self) -> None:
        """Model and optimizer on their device, wrapped; random generators seeded, differently on each process."""
        a, accelerator = self.arguments, self.accelerator
        if a.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        self.model.to(accelerator.device)
        self.model.train()
        self._plain_optimizer = build_optimizer(self.model, a)
        self._fused = bool(self._plain_optimizer.defaults.get("fused"))
        self._unwrapped_step = StepModule(self.model)
        self.step_module, self.optimizer = accelerator.prepare(self._unwrapped_step, self._plain_optimizer)
        self.average = WeightAverage(self.model, a.ema_decay) if a.ema_decay else None
        kind = torch.float32 if accelerator.device.type == "mps" else torch.float64
        self._loss_sum = torch.zeros((), dtype=kind, device=accelerator.device)
        self._signal = 0
        set_seed(a.seed + accelerator.process_index)

    def _find_checkpoint(self) -> Path | None:
        """The checkpoint to resume from, the same on all processes; refuses to start over an existing run."""
        a = self.arguments
        found: list[str | None] = [None]
        held = [name for name in RUN_FILES if (self._output_dir / name).exists()]
        if a.resume_from_checkpoint is None and held:
            raise ArgumentError(
                f"output_dir={a.output_dir!r}: already holds a run ({held[0]}); give another directory, or continue "
                "with --resume_from_checkpoint latest"
            )
        # Nobody may write the directory before everybody has looked into it.
        self.accelerator.wait_for_everyone()
        if a.resume_from_checkpoint == "latest":
            if self.accelerator.is_main_process:
                latest = self.store.latest(self.screen.say)
                found = [str(latest) if latest else None]
            if self.accelerator.num_processes > 1:
                broadcast_object_list(found)
        elif a.resume_from_checkpoint is not None:
            reason = checkpointing.damage(Path(a.resume_from_checkpoint))
            if reason is not None:
                raise ArgumentError(f"resume_from_checkpoint={a.resume_from_checkpoint!r}: {reason}")
            found = [a.resume_from_checkpoint]
        if found[0] is None and a.resume_from_checkpoint:
            self.screen.say(f"{a.output_dir}: no complete checkpoint, so training starts at step 0")
        return Path(found[0]) if found[0] else None

    def _restore(self, checkpoint: Path) -> None:
        state = json.loads((checkpoint / checkpointing.STATE).read_text(encoding="utf-8"))
        for name, value in self.identity.items():
            saved = state["identity"].get(name)
            if saved != value:
                raise ArgumentError(
                    f"{checkpoint}: was trained with {name} {saved!r}, this run has {value!r}; it can only continue "
                    "with the same (the sentences of an update are per_device_train_batch_size x processes x "
                    "gradient_accumulation_steps)"
                )
        checkpointing.load_optimizer(self._plain_optimizer, checkpoint, state["optimizer"])
        self.progress = Progress.from_state(state["progress"])
        self.schedule.load_state_dict(state["schedule"])
        if self.average is not None:
            self.average.load_state_dict(checkpointing.load_file(checkpoint / "average.safetensors"))
        if self.accelerator.scaler is not None and state["scaler"]:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        rank = self.accelerator.process_index
        if len(state["random"]) == self.accelerator.num_processes:
            checkpointing.restore_random_state(state["random"][rank])
        else:
            # The same samples follow; only dropout draws other masks.
            set_seed(self.arguments.seed + self.progress.step * 1009 + rank)
            self.screen.say(f"resuming a run of {len(state['random'])} processes with {self.accelerator.num_processes}")
        self.screen.say(f"resuming from {checkpoint} at step {self.progress.step}")

    def _already_finished(self) -> bool:
        p = self.progress
        summary = read_summary(self._output_dir) if p.step else {}
        return summary.get("steps") == p.step and self._end_reason(0) is not None

    def _finish(self, reason: str) -> None:
        """Last evaluation, last checkpoint, and the files that tell about the run."""
        p, main = self.progress, self.accelerator.is_main_process
        interrupted = bool(self._signal)
        if self.validator is not None and not interrupted and p.evaluated_step != p.step:
            self._evaluate()
        if p.best_step is None:
            with self.average.applied() if self.average else contextlib.nullcontext():
                self._publish()
        self._save()
        self.log.write("stop" if interrupted else "end", step=p.step, reason=reason)
        self.screen.close()
        if main and not interrupted:
            update_summary(self._output_dir, self.summary(reason))
        if main:
            message = draw_learning_curve(self._output_dir / LOG_FILE, self._output_dir / "learning_curve.png")
            self.screen.say(message or f"learning curve in {self._output_dir / 'learning_curve.png'}")
        if interrupted:
            self.screen.say(
                f"stopped by {reason} at step {p.step}; the state is saved in {self._output_dir}, continue with "
                "--resume_from_checkpoint latest"
            )
        self.accelerator.wait_for_everyone()

    def summary(self, reason: str) -> dict[str, Any]:
        """The facts of the run. Rates are per second of updating, evaluation and saving not counted."""
        p, accelerator = self.progress, self.accelerator
        seconds = max(p.update_seconds, 1e-9)
        return {
            **self.facts,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "steps": p.step,
            "epochs": p.epochs,
            "stop_reason": reason,
            "train_seconds": p.elapsed_seconds,
            "update_seconds": p.update_seconds,
            "source_tokens": p.source_tokens,
            "target_tokens": p.target_tokens,
            "source_tokens_per_second": p.source_tokens / seconds,
            "target_tokens_per_second": p.target_tokens / seconds,
            "skipped_updates": p.skipped_updates,
            "best_step": p.best_step,
            "best_metric_name": self.arguments.best_metric if p.best_step is not None else None,
            "best_metric": p.best_value,
            **{f"eval_{name}": value for name, value in p.evaluation.items()},
            "mixed_precision": self.arguments.mixed_precision,
            "processes": accelerator.num_processes,
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if accelerator.device.type == "cuda" else accelerator.device.type,
            "peak_memory_mb": peak_memory_mb(accelerator.device),
            "versions": versions(),
        }
