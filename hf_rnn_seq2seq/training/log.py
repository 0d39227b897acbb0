"""What a run says while it runs: JSON lines always, a progress bar and messages, the trackers of Accelerate."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import LoggerType
from tqdm import tqdm

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.files import write_atomically

LOG_FILE = "train_log.jsonl"


class RunLog:
    """The JSON lines of a run. Every line has an `event`; a number that is not finite is written as null.

    Args:
        path: the file; None writes nothing (a dry run, or a process that is not the main one).
        resumed_step: lines of later steps, which are going to happen again, are dropped first.
    """

    def __init__(self, path: Path | None, resumed_step: int | None = None) -> None:
        self.path = path
        if path is not None and path.exists() and resumed_step is not None:
            lines = [line for line in _read(path) if (line.get("step") or 0) <= resumed_step]
            write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def write(self, event: str, **facts: Any) -> None:
        """Appends one line."""
        if self.path is not None:
            line = json.dumps(_finite({"event": event, **facts}), ensure_ascii=False)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def _read(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log; a process that was killed may have left the last one torn."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Screen:
    """Progress bar and messages of the main process; silent on the others."""

    def __init__(self, shown: bool) -> None:
        self.shown = shown
        self.bar: tqdm | None = None

    def start(self, total_steps: float | None, seconds: float | None, step: int, elapsed: float) -> None:
        """Opens the bar: over seconds where a time budget ends the run, else over steps."""
        if not self.shown:
            return
        self.in_seconds = seconds is not None
        total = seconds if self.in_seconds else total_steps
        form = "{desc}: {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}" if self.in_seconds else None
        options = {"bar_format": form} if form else {}
        self.bar = tqdm(total=total, desc="training", unit=" steps", dynamic_ncols=True, mininterval=0.5, **options)
        self.advance(step, elapsed)

    def advance(self, step: int, elapsed: float) -> None:
        if self.bar is not None:
            now = min(elapsed, self.bar.total) if self.in_seconds else step
            self.bar.update(now - self.bar.n)

    def show_update(self, step: int, epochs: float, facts: dict[str, float], seconds_left: float) -> None:
        """One line of numbers, the loss also beside the bar."""
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{facts['loss']:.3f}", refresh=False)
        self.say(
            f"step {step}  epoch {epochs:.2f}  loss {facts['loss']:.4f}  ppl {facts['perplexity']:.2f}  "
            f"lr {facts['learning_rate']:.2e}  norm {facts['grad_norm']:.2f}  "
            f"tokens/s {facts['source_tokens_per_second']:.0f} in {facts['target_tokens_per_second']:.0f} out  "
            f"{facts['memory_mb']:.0f} MiB  {seconds_left:.0f} s left"
        )

    def say(self, message: str) -> None:
        """A line above the bar, on the main process."""
        if self.shown:
            tqdm.write(message, file=sys.stderr)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def usable_trackers(names: list[str], say: Callable[[str], None]) -> list[str]:
    """The trackers that can be imported; the others are named in a message.

    Raises:
        ArgumentError: a name that Accelerate does not know.
    """
    known = {str(kind.value): (str(kind.value),) for kind in LoggerType if kind != LoggerType.ALL}
    known["tensorboard"] = ("tensorboard", "tensorboardX")
    usable = []
    for name in names:
        if name not in known:
            raise ArgumentError(f"report_to={name!r}: must be one of {', '.join(sorted(known))}, or none")
        if any(importlib.util.find_spec(package) for package in known[name]):
            usable.append(name)
        else:
            say(f"report_to={name!r}: not installed, so nothing is sent there; {LOG_FILE} holds everything")
    return usable


def draw_learning_curve(log_path: Path, output: Path) -> str | None:
    """Draws the curve of a log; returns what to tell the reader where that is not possible."""
    try:
        from hf_rnn_seq2seq.visualization.learning_curve import plot_learning_curve

        plot_learning_curve(log_path, output)
    except ImportError as error:
        return f"no {output.name}: {error} (pip install 'hf_rnn_seq2seq[plot]')"
    except ValueError as error:
        return f"no {output.name}: {error}"
    return None


def peak_memory_mb(device: torch.device) -> float:
    """Most memory held so far, MiB: of the GPU, else resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def versions() -> dict[str, str]:
    """Versions of what a run's numbers depend on."""
    from importlib.metadata import PackageNotFoundError, version

    found = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "platform": f"{os.uname().sysname} {os.uname().machine}",
    }
    for package in ("hf_rnn_seq2seq", "torch", "transformers", "accelerate", "datasets", "tokenizers", "sacrebleu"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
