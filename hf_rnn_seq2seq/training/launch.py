"""Processes, threads, signals, and the checks before a run starts."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any

import psutil
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, is_initialized
from accelerate.utils import DistributedDataParallelKwargs, DistributedType, ProjectConfiguration
from huggingface_hub import get_token
from transformers import PreTrainedModel

from hf_rnn_seq2seq.errors import ArgumentError, TrainingError, one_line
from hf_rnn_seq2seq.run_directory import CHECKPOINTS, LOG_FILE, RECIPE, SUMMARY, WEIGHTS
from hf_rnn_seq2seq.training.arguments import TrainingOptions
from hf_rnn_seq2seq.training.environment import usable_cores
from hf_rnn_seq2seq.training.experiments import OF_ANOTHER_COMMAND
from hf_rnn_seq2seq.training.log import usable_trackers

RUN_FILES = ("config.json", WEIGHTS, RECIPE, LOG_FILE, SUMMARY, CHECKPOINTS)
SUPPORTED = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
_ONLY_WHOLE_MODELS = (
    "must be one process, several CPUs or several GPUs (MULTI_CPU, MULTI_GPU), each with the whole model: checkpoints "
    "and the exact resume hold whole models, and the models of this package fit on one GPU"
)


def check_output_dir(arguments: TrainingOptions) -> Path:
    """The run directory.

    Raises:
        ArgumentError: none is given, or it holds a run that this one is not asked to continue.
    """
    if arguments.output_dir is None:
        raise ArgumentError("output_dir=None: must name the run directory")
    folder = Path(arguments.output_dir)
    nearest = _existing(folder)
    if not nearest.is_dir():
        where = "is a file" if nearest == folder else f"{nearest} is a file"
        raise ArgumentError(f"output_dir={arguments.output_dir!r}: {where}; must be a directory")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ArgumentError(f"output_dir={arguments.output_dir!r}: {nearest} cannot be written; name another directory")
    existing = [name for name in RUN_FILES if (folder / name).exists()]
    if existing and arguments.resume_from_checkpoint is None:
        raise ArgumentError(
            f"output_dir={arguments.output_dir!r}: already holds a run ({existing[0]}); give another directory, or "
            "continue with --resume_from_checkpoint latest"
        )
    return folder


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(each for each in (folder, *folder.absolute().parents) if each.exists())


def check_before_work(arguments: TrainingOptions) -> None:
    """Checks at the start what the end of a run needs.

    Raises:
        ArgumentError: the output directory cannot be written, or push_to_hub is set without a token.
    """
    if arguments.output_dir is not None:
        check_output_dir(dataclasses.replace(arguments, resume_from_checkpoint="latest"))
    if arguments.push_to_hub and not (arguments.hub_token or get_token()):
        raise ArgumentError(
            "push_to_hub=True: there is no token of the Hub; run `hf auth login`, set HF_TOKEN, or give hub_token"
        )


def check_savable(
    arguments: TrainingOptions, model: PreTrainedModel, save_tokenizer: Callable[[Path], object] | None
) -> None:
    """Saves a checkpoint without its tensors into a temporary folder.

    Raises:
        ArgumentError: config or tokenizer cannot be written, or the disk has no room for a checkpoint.
    """
    with tempfile.TemporaryDirectory() as folder:
        try:
            model.config.save_pretrained(folder)
            if model.can_generate():
                model.generation_config.save_pretrained(folder)
            if save_tokenizer is not None:
                save_tokenizer(Path(folder))
        except Exception as error:  # each library raises classes of its own
            where = f"output_dir={arguments.output_dir!r}"
            raise ArgumentError(f"{where}: no checkpoint could be saved: {one_line(error)}") from error
    if arguments.output_dir is None:
        return
    free = shutil.disk_usage(_existing(Path(arguments.output_dir))).free
    # The weights of the best model, and a checkpoint: the weights again, and twice their size for the optimizer.
    needed = 4 * sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    if free < needed:
        raise ArgumentError(
            f"output_dir={arguments.output_dir!r}: the disk has {free >> 20} MiB left; a checkpoint and the best "
            f"weights need about {(needed >> 20) + 1}; free some, or name another directory"
        )


def exact_dtype(device: torch.device) -> torch.dtype:
    """The type in which sums over many batches are kept: float64, which MPS does not have."""
    return torch.float32 if device.type == "mps" else torch.float64


def use_all_cores(chosen: int | None = None) -> int:
    """Sets torch's threads and returns their number: `chosen`, else the cores divided by the local processes.

    `accelerate launch` sets OMP_NUM_THREADS to 1 by default, which leaves the other cores idle; a larger number was
    set by the user and stays.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    environment = os.environ.get("OMP_NUM_THREADS", "")
    if chosen is not None:
        threads = chosen
    elif environment.isdigit() and (int(environment) > 1 or not launched):
        threads = int(environment)
    else:
        threads = max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    torch.set_num_threads(threads)
    return threads


def has_bfloat16() -> bool:
    """Whether the device that Accelerate uses has instructions for bfloat16 products."""
    if os.environ.get("ACCELERATE_USE_CPU", "false").lower() not in ("true", "1"):
        if torch.cuda.is_available():
            return torch.cuda.is_bf16_supported(including_emulation=False)
        if torch.backends.mps.is_available():
            return torch.backends.mps.is_macos_or_newer(14, 0)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))


def resolve_precision(precision: str, log: Callable[[str], None] = print) -> str:
    """`mixed_precision` with `auto` decided for this machine; prints a warning if bfloat16 is only emulated."""
    if precision == "auto":
        return "bf16" if has_bfloat16() else "no"
    if precision == "bf16" and not has_bfloat16():
        log("mixed_precision=bf16: this processor emulates bfloat16, several times slower than `no` (or `auto`)")
    return precision


def build_accelerator(arguments: TrainingOptions, log: Callable[[str], None] = print) -> Accelerator:
    """An Accelerator for `TrainingLoop`, which does batches, accumulation and normalization itself.

    Raises:
        ArgumentError: mixed_precision=fp16 without a GPU, which would silently run in float32; or a distribution
            that shards the model (FSDP, DeepSpeed), whose states the checkpoints here do not hold.
    """
    precision = resolve_precision(arguments.mixed_precision, log)
    if precision == "fp16" and not (torch.cuda.is_available() or torch.backends.mps.is_available()):
        raise ArgumentError("mixed_precision='fp16': needs a GPU; on a CPU bf16 or no")
    for sharding in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        # The launcher sets it; on some devices Accelerate would ignore it silently.
        if os.environ.get(f"ACCELERATE_USE_{sharding}", "false").lower() in ("true", "1"):
            raise ArgumentError(f"distributed_type={sharding}: {_ONLY_WHOLE_MODELS}")
    options: dict[str, Any] = {}
    if arguments.output_dir is not None and not arguments.dry_run:
        output_dir = Path(arguments.output_dir)
        options["project_config"] = ProjectConfiguration(
            project_dir=str(output_dir), logging_dir=str(output_dir / "tensorboard")
        )
        options["log_with"] = usable_trackers(arguments.report_to, log) or None
    # Accelerate keeps the precision of a process's first run and refuses another; a notebook trains several.
    if is_initialized() and AcceleratorState().mixed_precision != precision:
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision=precision,
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        **options,
    )
    if accelerator.distributed_type not in SUPPORTED:
        raise ArgumentError(f"distributed_type={accelerator.distributed_type.value}: {_ONLY_WHOLE_MODELS}")
    if precision == "fp16" and accelerator.device.type == "cpu":
        raise ArgumentError("mixed_precision='fp16': needs a GPU; on a CPU bf16 or no")
    return accelerator


class StopSignals:
    """Context in which SIGTERM and SIGINT ask for a stop after the current update; a second one exits at once.

    `received` is the number of the signal, 0 until then. A terminal sends an interrupt to every process and a launcher
    forwards it again, so a repetition within a second is not a second request. The death of the launcher, or
    of the command that started several runs, counts as SIGTERM, since nothing else would stop this process.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self.log = log
        self.received = 0
        self._first = 0.0
        self._previous: dict[int, Any] = {}
        self._parent = os.getppid() if {"ACCELERATE_MIXED_PRECISION", OF_ANOTHER_COMMAND} & os.environ.keys() else None
        if not _runs(int(os.environ.get(OF_ANOTHER_COMMAND, os.getpid()))):
            self._parent = 0  # the command, which names itself, ended before this began

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self.received:
            self.received, self._first = number, time.monotonic()
            self.log(f"{signal.Signals(number).name}: finishing this update, then saving; once more to exit at once")
        elif time.monotonic() - self._first > 1.0:
            os._exit(128 + number)

    def check(self) -> int:
        """The signal received so far, or 0."""
        if not self.received and self._parent is not None and os.getppid() != self._parent:
            self.received = signal.SIGTERM
            self.log("what started this run has ended: saving and stopping")
        return self.received


def _runs(process: int) -> bool:
    try:
        # A zombie has ended; its entry stays until its parent reads the exit status.
        return psutil.Process(process).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def largest(values: list[float], accelerator: Accelerator) -> list[float]:
    """The maximum of each value over all processes, so that every rank takes the same branch."""
    return _over_processes(values, accelerator, torch.distributed.ReduceOp.MAX)


def summed(values: list[float], accelerator: Accelerator) -> list[float]:
    """The sum of each value over all processes."""
    return _over_processes(values, accelerator, torch.distributed.ReduceOp.SUM)


def _over_processes(values: list[float], accelerator: Accelerator, operation: Any) -> list[float]:
    # On the CPU, so that no process waits for its GPU.
    if accelerator.num_processes == 1:
        return values
    tensor = torch.tensor(values, dtype=torch.float64)
    # Accelerate's group of several GPUs takes no tensor on the CPU; the group of a CPU run does.
    takes_cpu = "cpu:" in torch.distributed.get_backend_config()
    group = None if takes_cpu else _cpu_group(torch.distributed.group.WORLD)
    torch.distributed.all_reduce(tensor, op=operation, group=group)
    return tensor.tolist()


@functools.cache
def _cpu_group(world: Any) -> Any:
    """A group of all processes of `world` for tensors on the CPU; the first exchange makes it, in every process."""
    return torch.distributed.new_group(backend="gloo")


@contextlib.contextmanager
def report_lost_processes(accelerator: Accelerator) -> Iterator[None]:
    """Turns the error of an exchange with a dead process into a TrainingError with the reason.

    No process waits for a dead one: its connections close, and reading from them fails.
    """
    try:
        yield
    except RuntimeError as error:
        if accelerator.num_processes == 1 or not _is_broken_exchange(error):
            raise
        raise TrainingError(
            f"process {accelerator.process_index} of {accelerator.num_processes}: another process of this run has "
            "ended, so this one ends too; --resume_from_checkpoint latest continues from the last checkpoint "
            f"({(str(error).splitlines() or [type(error).__name__])[0][:200]})"
        ) from error


def _is_broken_exchange(error: RuntimeError) -> bool:
    words = str(error).lower()
    return isinstance(error, torch.distributed.DistError) or any(w in words for w in ("gloo", "nccl", "by peer"))
