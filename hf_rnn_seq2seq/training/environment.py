"""The machine and the software that a run uses."""

from __future__ import annotations

import os
import resource
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from accelerate import Accelerator


def describe(accelerator: Accelerator) -> dict[str, Any]:
    """Precision, processes, threads, device, peak memory and versions, for the summary of a run."""
    device = accelerator.device
    return {
        "mixed_precision": accelerator.mixed_precision,
        "processes": accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "peak_memory_mb": peak_memory_mb(device),
        "versions": versions(),
    }


def usable_cores() -> int:
    """The cores that this process may use, of which a scheduler may have left it a part."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def peak_memory_mb(device: torch.device) -> float:
    """The peak memory so far, MiB: of the GPU, else the resident memory of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def versions() -> dict[str, str]:
    """The versions of the software that the numbers of a run depend on."""
    known = {
        "python": ".".join(map(str, sys.version_info[:3])),
        "platform": f"{os.uname().sysname} {os.uname().machine}",
    }
    for package in ("hf_rnn_seq2seq", "torch", "transformers", "accelerate", "datasets", "tokenizers", "sacrebleu"):
        try:
            known[package] = version(package)
        except PackageNotFoundError:
            continue
    return known
