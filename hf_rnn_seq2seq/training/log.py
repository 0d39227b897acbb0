"""What a run reports: the JSON lines of its log, a progress bar and messages, and the trackers of Accelerate."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate.utils import LoggerType
from tqdm import tqdm

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.files import write_atomically
from hf_rnn_seq2seq.run_directory import LOG_FILE


class RunLog:
    """The JSON lines of a run. Every line has an `event`; null stands for a number that is not finite.

    Until `open` it writes nothing, as in a dry run, or in a process that is not the main one.
    """

    def __init__(self) -> None:
        self.path: Path | None = None

    def open(self, path: Path, resumed_step: int | None = None) -> None:
        """Writes to this file from now on.

        A resumed run repeats the steps after `resumed_step`, so their lines are removed.
        """
        self.path = path
        if path.exists() and resumed_step is not None:
            lines = [line for line in _read(path) if (line.get("step") or 0) <= resumed_step]
            write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))

    def write(self, event: str, **facts: object) -> None:
        """Appends one line."""
        if self.path is not None:
            line = json.dumps(_finite({"event": event, **facts}), ensure_ascii=False)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")


FORGET = "forget"  # the event of forgetting the best evaluation
NONE_YET = -1  # in place of a step: the best was forgotten, and no evaluation followed


def published_step(path: Path) -> int | None:
    """The step whose weights are in the run directory, as the log of the run says.

    Returns:
        None if the log has no best evaluation; `NONE_YET` if it has none since the best was forgotten.
    """
    for line in reversed(_read(path) if path.is_file() else []):
        if line.get("event") == "eval" and line.get("best"):
            return line.get("step")
        if line.get("event") == FORGET:
            return NONE_YET
    return None


def _read(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a log; a killed process may have written a part of the last one."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Console:
    """Progress bar and messages of the main process; silent on the others."""

    def __init__(self, enabled: bool, bar: bool = True) -> None:
        self.enabled = enabled
        self.has_bar = bar and sys.stderr.isatty()  # in a file, its carriage returns make one long line
        self.bar: tqdm | None = None

    def start(self, total_steps: float | None, seconds: float | None, step: int, elapsed: float) -> None:
        """Opens the bar: over seconds if the run has a time budget, else over steps."""
        if not (self.enabled and self.has_bar):
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
        """Prints one line of numbers, and the loss next to the bar."""
        if self.bar is not None:
            self.bar.set_postfix(loss=f"{facts['loss']:.3f}", refresh=False)
        # A language model reads no source.
        read = f"{facts['source_tokens_per_second']:.0f} in " if facts["source_tokens_per_second"] else ""
        self.print(
            f"step {step}  epoch {epochs:.2f}  loss {facts['loss']:.4f}  ppl {facts['perplexity']:.2f}  "
            f"lr {facts['learning_rate']:.2e}  norm {facts['grad_norm']:.2f}  "
            f"tokens/s {read}{facts['target_tokens_per_second']:.0f} out  "
            f"{facts['memory_mb']:.0f} MiB  {seconds_left:.0f} s left"
        )

    def print(self, message: str) -> None:
        """Prints a line above the bar, on the main process."""
        if self.enabled:
            tqdm.write(message, file=sys.stderr)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def usable_trackers(names: list[str], log: Callable[[str], None]) -> list[str]:
    """The trackers that can be imported; a message names the others.

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
            log(f"report_to={name!r}: not installed, so nothing is sent there; {LOG_FILE} has all numbers")
    return usable
