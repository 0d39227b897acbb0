"""Where a run stands: the numbers that a checkpoint stores and a resumed run continues from."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

LOWER_IS_BETTER = ("loss", "perplexity")


@dataclass
class Progress:
    """Counters of a run. Times are seconds and go on counting in a resumed run."""

    step: int = 0
    epoch: int = 0  # of the next update
    index: int = 0  # of the next update within its epoch
    updates_in_epoch: int = 0
    stream: dict[str, Any] | None = None  # where a streamed corpus stands; None at the start of an epoch
    left_out_rows: int = 0  # of a stream, because they were too long
    elapsed_seconds: float = 0.0  # everything
    update_seconds: float = 0.0  # without evaluation and saving
    source_tokens: int = 0
    target_tokens: int = 0
    # Since the last log line
    interval_loss: float = 0.0  # summed over target tokens
    interval_figures: dict[str, list[float]] = field(default_factory=dict)  # the sum and the number of each
    interval_source_tokens: int = 0
    interval_target_tokens: int = 0
    interval_seconds: float = 0.0
    # Evaluation
    evaluated_step: int | None = None
    evaluation: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best_value: float | None = None
    best_loss: float | None = None
    evaluations_without_gain: int = 0
    # Updates that were not finite
    skipped_updates: int = 0
    skipped_in_row: int = 0
    # How long the last evaluation and the last save took, to stop in time for one more
    evaluation_seconds: float = 0.0
    saving_seconds: float = 0.0

    @property
    def epochs(self) -> float:
        """Passes over the data so far, fractions included."""
        return self.epoch + (self.index / self.updates_in_epoch if self.updates_in_epoch else 0.0)

    def advance(self, epoch: int, index: int, updates_in_epoch: int, stream: dict[str, Any] | None = None) -> None:
        """Moves behind an update of the plan; 0 updates in an epoch say that their number is not known yet."""
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
        """Takes in an evaluation; returns whether it is the best so far.

        The better metric `name` wins; where it ties (a BLEU of 0), the lower loss, and at equal loss the later one.
        What is not finite never wins. A gain, for which early stopping and the plateau schedule wait, is a better
        metric or, at a tie, a lower loss; with a threshold only a metric that is better by more than it.
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
        self.evaluations_without_gain = 0 if best and gained else self.evaluations_without_gain + 1
        self.evaluated_step, self.evaluation = self.step, dict(metrics)
        return best

    def state_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Progress:
        known = {item.name for item in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in state.items() if name in known})
