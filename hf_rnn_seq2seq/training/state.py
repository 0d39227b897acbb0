"""What training changes: weights, optimizer, learning rate and the counters of the run."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_rnn_seq2seq.evaluation import scores
from hf_rnn_seq2seq.model.loss import perplexity
from hf_rnn_seq2seq.run_directory import WEIGHTS
from hf_rnn_seq2seq.training.arguments import TrainingOptions
from hf_rnn_seq2seq.training.checkpoints import AVERAGE, CARRIED, load_optimizer, load_weights, save_optimizer
from hf_rnn_seq2seq.training.optimization import LearningRate, WeightAverage, build_optimizer

LOWER_IS_BETTER = {"loss", "perplexity"} | scores.LOWER_IS_BETTER


@dataclass
class Progress:
    """Counters of a run, which a resumed run continues. Times are in seconds."""

    step: int = 0
    epoch: int = 0  # of the next update
    index: int = 0  # of the next update within its epoch
    updates_in_epoch: int = 0
    stream: dict[str, Any] | None = None  # position in a streamed corpus; None at the start of an epoch
    left_out_rows: int = 0  # rows of a stream that were too long
    elapsed_seconds: float = 0.0  # evaluation and saving included
    update_seconds: float = 0.0  # evaluation and saving left out
    source_tokens: int = 0
    target_tokens: int = 0
    # Since the last log line:
    interval_loss: float = 0.0  # summed over target tokens
    interval_figures: dict[str, list[float]] = field(default_factory=dict)  # the sum and the number of each
    interval_source_tokens: int = 0
    interval_target_tokens: int = 0
    interval_seconds: float = 0.0
    # Evaluation:
    evaluated_step: int | None = None
    evaluation: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best_metric_name: str | None = None
    best_value: float | None = None  # of the metric of this name
    best_loss: float | None = None
    evaluations_without_gain: int = 0
    # Updates that were not finite:
    skipped_updates: int = 0
    skipped_in_row: int = 0
    # Duration of the last evaluation and of the last save, which a time budget reserves:
    evaluation_seconds: float = 0.0
    saving_seconds: float = 0.0

    @property
    def epochs(self) -> float:
        """Passes over the data so far, fractions included."""
        return self.epoch + (self.index / self.updates_in_epoch if self.updates_in_epoch else 0.0)

    def advance(self, epoch: int, index: int, updates_in_epoch: int, stream: dict[str, Any] | None = None) -> None:
        """Advances the counters past one update; `updates_in_epoch` is 0 while the number is unknown."""
        self.step += 1
        self.updates_in_epoch, self.stream = updates_in_epoch, stream
        at_end = index + 1 == updates_in_epoch
        self.epoch, self.index = (epoch + 1, 0) if at_end else (epoch, index + 1)

    def add_figures(self, names: Sequence[str], sums: Sequence[Sequence[float]]) -> None:
        """Adds the sum and the number of each figure to those since the last log line."""
        for name, (total, count) in zip(names, sums, strict=True):
            before = self.interval_figures.get(name, [0.0, 0.0])
            self.interval_figures[name] = [before[0] + total, before[1] + count]

    def record_evaluation(self, metrics: Mapping[str, float], name: str, threshold: float) -> bool:
        """Records an evaluation; returns whether it is the best so far.

        The better metric `name` wins; at a tie (a BLEU of 0) the lower loss, and at equal loss the later evaluation.
        A value that is not finite never wins. Early stopping and the plateau schedule count gains: a gain is a better
        metric or, at a tie, a lower loss; with a threshold, only a metric that is better by more than the threshold.
        """
        value, loss = metrics[name], metrics["loss"]
        sign = -1 if name in LOWER_IS_BETTER else 1
        best, gained = math.isfinite(value) and math.isfinite(loss), True
        if best and self.best_value is not None:
            gain = sign * (value - self.best_value)
            # A state that an earlier version wrote has no loss.
            lower = math.inf if self.best_loss is None else self.best_loss - loss
            best = gain > 0 or (gain == 0 and lower >= 0)
            gained = gain > threshold or (gain == threshold == 0 and lower > 0)
        if best:
            self.best_value, self.best_loss, self.best_step = value, loss, self.step
            self.best_metric_name = name
        self.evaluations_without_gain = 0 if best and gained else self.evaluations_without_gain + 1
        self.evaluated_step, self.evaluation = self.step, dict(metrics)
        return best

    def choose_by(self, name: str) -> str | None:
        """Lets the metric `name` choose the best weights from now on.

        Values of two metrics do not compare. If the last evaluation was the best, its value of `name` is the one to
        beat; otherwise the next evaluation becomes the best.

        Returns:
            a message on the change; None if the metric is the same.
        """
        before = self.best_metric_name
        if self.best_step is None or before in (name, None):  # an earlier version wrote no name
            return None
        if self.evaluated_step == self.best_step and math.isfinite(self.evaluation.get(name, math.nan)):
            self.best_metric_name, self.best_value, self.evaluations_without_gain = name, self.evaluation[name], 0
            return f"{name} chooses the best weights in place of {before}: so far those of step {self.best_step}"
        self.forget_best()
        return f"{name} chooses the best weights in place of {before}, among the evaluations from now on"

    def forget_best(self) -> None:
        """Forgets the best evaluation, so that the next one becomes the best and publishes its weights."""
        self.best_step = self.best_metric_name = self.best_value = self.best_loss = None
        self.evaluations_without_gain = 0

    def interval_numbers(self) -> dict[str, float]:
        """Loss, perplexity, the model's own numbers and speed of the updates since the last log line."""
        loss, seconds = self.interval_loss / max(self.interval_target_tokens, 1), max(self.interval_seconds, 1e-9)
        figures = {name: total / max(count, 1.0) for name, (total, count) in self.interval_figures.items()}
        return {
            "loss": loss,
            "perplexity": perplexity(figures.get("ml_loss", loss)),
            **figures,
            "target_tokens_per_second": self.interval_target_tokens / seconds,
            "source_tokens_per_second": self.interval_source_tokens / seconds,
        }

    def start_interval(self) -> None:
        """Sets everything that is counted since the last log line to zero."""
        self.interval_loss = self.interval_seconds = 0.0
        self.interval_figures = {}
        self.interval_source_tokens = self.interval_target_tokens = 0

    def totals(self) -> dict[str, Any]:
        """The numbers of the whole run, for its summary. Rates leave out the time of evaluation and saving."""
        seconds = max(self.update_seconds, 1e-9)
        return {
            "steps": self.step,
            "epochs": self.epochs,
            "train_seconds": self.elapsed_seconds,
            "update_seconds": self.update_seconds,
            "source_tokens": self.source_tokens,
            "target_tokens": self.target_tokens,
            "source_tokens_per_second": self.source_tokens / seconds,
            "target_tokens_per_second": self.target_tokens / seconds,
            "skipped_updates": self.skipped_updates,
            **({"left_out_rows": self.left_out_rows} if self.left_out_rows else {}),
            "best_step": self.best_step,
            "best_metric": self.best_value,
            **{f"eval_{name}": value for name, value in self.evaluation.items()},
        }

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        known = {item.name for item in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in state.items() if name in known})


class StepModule(nn.Module):
    """A model reduced to its training loss. Accelerate wraps this module, so that the model itself stays as it is.

    The wrapper adds mixed precision and gradient exchange; translating and saving use `model`. `figures` names the
    numbers that forward returns in addition to the loss, for the log.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.figures: tuple[str, ...] = getattr(model, "training_figures", ())
        parameters = inspect.signature(model.forward).parameters
        options = {"use_cache": False, "skip_logits": True, "output_figures": bool(self.figures)}
        self.options = {name: value for name, value in options.items() if name in parameters}

    def forward(self, **batch: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mean loss over the label tokens of a batch, (), and (figures, 2), the sum and the number of each figure.

        The second is None for a model without figures.
        """
        output = self.model(**batch, **self.options)
        return output.loss, output.figures if self.figures else None


class TrainingState:
    """Model, optimizer and counters of a run at step 0, on their device and wrapped by Accelerate.

    Args:
        objective: a module around the model that is trained instead of the model's own loss. It maps a batch to what
            `StepModule.forward` returns, and names its figures. Evaluation keeps the model's own loss. What it carries
            from one update to the next (`carried`, `restore`) is part of a checkpoint.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        options: TrainingOptions,
        accelerator: Accelerator,
        objective: nn.Module | None = None,
    ) -> None:
        if options.gradient_checkpointing:
            model.activation_checkpointing_enable()
        model.to(accelerator.device)
        model.train()
        self.model, self.options, self.accelerator = model, options, accelerator
        # Smoothed labels are an objective of their own too, but may change when a run goes on.
        self.objective = None if options.objective == "ml" else options.objective
        self.plain_optimizer = build_optimizer(model, options)
        self.unwrapped_step = StepModule(model)
        trained: Any = self.unwrapped_step if objective is None else objective
        self.carrying = trained if hasattr(trained, "carried") else None
        self.figures: tuple[str, ...] = trained.figures
        with warnings.catch_warnings():
            # The option's new name, forward_sync_buffers, is unknown to Accelerate and to older versions of torch.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.step_module, self.optimizer = accelerator.prepare(trained, self.plain_optimizer)
        self.average = WeightAverage(model, options.ema_decay) if options.ema_decay else None
        self.schedule = LearningRate(options)
        self.progress = Progress()

    def seed(self) -> None:
        """Seeds the random generators with `seed` + rank, so that processes draw different dropout masks."""
        set_seed(self.options.seed + self.accelerator.process_index)

    def evaluated_weights(self) -> contextlib.AbstractContextManager[None]:
        """A context in which the model holds the average of its weights, if there is one."""
        return self.average.applied() if self.average is not None else contextlib.nullcontext()

    def carried(self) -> dict[str, Tensor]:
        """What the objective carries from one update to the next, over all processes, which call this together."""
        own = {} if self.carrying is None else self.carrying.carried()
        return {name: self.accelerator.reduce(tensor, reduction="sum").cpu() for name, tensor in own.items()}

    def write(self, folder: Path, carried: Mapping[str, Tensor] | None = None) -> dict[str, Any]:
        """Writes the tensors that are not weights of the model, `carried` too; returns the rest, for JSON."""
        if carried:
            save_file({name: tensor.contiguous() for name, tensor in carried.items()}, folder / CARRIED)
        if self.average is not None:
            save_file(self.average.state_dict(), folder / AVERAGE)
        scaler = self.accelerator.scaler
        return {
            "progress": self.progress.state_dict(),
            "optimizer": save_optimizer(self.plain_optimizer, folder),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def read_weights(self, folder: Path) -> None:
        """Restores the weights of a checkpoint and their average, if there is one."""
        load_weights(self.model, folder / WEIGHTS)
        if self.average is not None:
            self.average.load_state_dict(load_file(folder / AVERAGE))

    def read(self, folder: Path, rest: Mapping[str, Any]) -> None:
        """Restores what `write` wrote, and the weights."""
        self.read_weights(folder)
        load_optimizer(self.plain_optimizer, folder, rest["optimizer"])
        self.progress = Progress.from_state(rest["progress"])
        self.schedule.load_state_dict(rest["schedule"])
        if self.carrying is not None:
            self.carrying.restore(load_file(folder / CARRIED))
        if self.accelerator.scaler is not None and rest["scaler"]:
            self.accelerator.scaler.load_state_dict(rest["scaler"])
