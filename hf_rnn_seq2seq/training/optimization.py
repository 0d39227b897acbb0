"""Optimizers, learning rate schedules, and the running average of the weights."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from hf_rnn_seq2seq.training.arguments import TrainingOptions


def build_optimizer(model: nn.Module, arguments: TrainingOptions) -> torch.optim.Optimizer:
    """AdamW, Adam, SGD or Adadelta over the trainable parameters, with weight decay on matrices only.

    Adam and SGD are fused (one kernel for all parameters) on devices that support it, which include the CPU.
    """
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": arguments.weight_decay},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    rate = arguments.learning_rate
    fused = all(p.device.type in ("cpu", "cuda", "mps", "xpu") and p.is_floating_point() for p in trainable)
    if arguments.optim == "sgd":
        return torch.optim.SGD(groups, lr=rate, fused=fused)
    if arguments.optim == "adadelta":
        return torch.optim.Adadelta(groups, lr=rate, rho=arguments.adadelta_rho, eps=arguments.adam_epsilon)
    kind = torch.optim.AdamW if arguments.optim == "adamw" else torch.optim.Adam
    betas = (arguments.adam_beta1, arguments.adam_beta2)
    return kind(groups, lr=rate, betas=betas, eps=arguments.adam_epsilon, fused=fused)


class LearningRate:
    """The learning rate as a function of the step and of the progress of the run.

    After `warmup_steps` updates of linear growth:
        constant      the peak
        linear        down to min_lr_ratio at the end of the run
        cosine        the same along half a cosine (Loshchilov and Hutter 2017)
        inverse_sqrt  peak x sqrt(warmup / step) (Vaswani 2017, section 5.3)
        plateau       times plateau_factor after plateau_patience evaluations without a gain
        halving       the peak until halving_start of the run, then halved halving_times times at equal distances.
                      Luong 2015, section 4.1 (10 epochs, halved every epoch after 5): 0.5 and 5.
                      tensorflow/nmt luong10: 0.5 and 10; luong234: 0.67 and 4.

    Progress is the share of the steps that are done, or of `max_train_seconds` if that is larger: the schedule of a run
    with a time budget ends with the budget on any machine.
    """

    def __init__(self, arguments: TrainingOptions) -> None:
        self.arguments = arguments
        self.plateau_cuts = 0
        self.evaluations_without_gain = 0

    def at(self, step: int, progress: float) -> float:
        """The rate of update `step` (from 0) when the share `progress` of the run is done."""
        return self.arguments.learning_rate * self.factor(step, min(max(progress, 0.0), 1.0))

    def factor(self, step: int, progress: float) -> float:
        a = self.arguments
        if step < a.warmup_steps:
            return (step + 1) / a.warmup_steps
        if a.lr_scheduler_type == "linear":
            return max(a.min_lr_ratio, 1 - progress)
        if a.lr_scheduler_type == "cosine":
            return a.min_lr_ratio + (1 - a.min_lr_ratio) * (1 + math.cos(math.pi * progress)) / 2
        if a.lr_scheduler_type == "inverse_sqrt":
            return math.sqrt(max(a.warmup_steps, 1) / max(step + 1, 1))
        if a.lr_scheduler_type == "halving":
            past = (progress - a.halving_start) / (1 - a.halving_start)
            return 0.5 ** min(max(math.floor(past * a.halving_times + 1e-9), 0), a.halving_times)
        if a.lr_scheduler_type == "plateau":
            return max(a.min_lr_ratio, a.plateau_factor**self.plateau_cuts)
        return 1.0

    def observe(self, gained: bool) -> None:
        """Counts an evaluation, for `plateau`."""
        self.evaluations_without_gain = 0 if gained else self.evaluations_without_gain + 1
        if self.evaluations_without_gain >= self.arguments.plateau_patience:
            self.plateau_cuts += 1
            self.evaluations_without_gain = 0

    def state_dict(self) -> dict[str, int]:
        return {"plateau_cuts": self.plateau_cuts, "evaluations_without_gain": self.evaluations_without_gain}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self.plateau_cuts = state["plateau_cuts"]
        self.evaluations_without_gain = state["evaluations_without_gain"]


class WeightAverage:
    """Exponential moving average of the trainable weights (Polyak and Juditsky 1992).

    The decay grows with the step, (1 + step) / (10 + step) up to `decay`, so that early weights are soon forgotten.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.names, self.parameters = [], []
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self.names.append(name)
                self.parameters.append(parameter)
        self.average = [parameter.detach().clone() for parameter in self.parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the weights after update `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - decay)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        """A context in which the model holds the average."""
        current = [parameter.detach().clone() for parameter in self.parameters]
        self._write(self.average)
        try:
            yield
        finally:
            self._write(current)

    @torch.no_grad()
    def _write(self, values: list[Tensor]) -> None:
        for parameter, value in zip(self.parameters, values, strict=True):
            parameter.copy_(value)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(zip(self.names, self.average, strict=True))

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, value in zip(self.names, self.average, strict=True):
            value.copy_(state[name])
