"""What a run tells about itself in numbers: at every log step, and when it has ended."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from hf_rnn_seq2seq.training.log import peak_memory_mb, versions

if TYPE_CHECKING:
    from hf_rnn_seq2seq.training.loop import TrainingLoop


def interval_facts(loop: TrainingLoop) -> tuple[dict[str, float], dict[str, float]]:
    """The numbers of the updates since the last log line, and the run's time so far and to come (seconds)."""
    a, p = loop.arguments, loop.state.progress
    loss, seconds = p.interval_loss / max(p.interval_target_tokens, 1), max(p.interval_seconds, 1e-9)
    figures = {name: total / max(count, 1.0) for name, (total, count) in p.interval_figures.items()}
    facts = {
        "loss": loss,
        "perplexity": math.exp(min(figures.get("ml_loss", loss), 700.0)),
        **figures,
        "learning_rate": loop.state.optimizer.param_groups[0]["lr"],
        "grad_norm": float(loop.norm),
        "target_tokens_per_second": p.interval_target_tokens / seconds,
        "source_tokens_per_second": p.interval_source_tokens / seconds,
        "memory_mb": peak_memory_mb(loop.accelerator.device),
    }
    left = [(loop.total_steps - p.step) * p.elapsed_seconds / p.step]
    if a.max_train_seconds:
        left.append(a.max_train_seconds - p.elapsed_seconds)
    return facts, {"elapsed_seconds": p.elapsed_seconds, "eta_seconds": max(0.0, min(left))}


def run_facts(loop: TrainingLoop, reason: str) -> dict[str, Any]:
    """The facts of a run that ended for `reason`. Rates leave evaluation and saving out."""
    p, device = loop.state.progress, loop.accelerator.device
    seconds = max(p.update_seconds, 1e-9)
    return {
        **loop.facts,
        "parameters": sum(parameter.numel() for parameter in loop.model.parameters()),
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
        **({"left_out_rows": p.left_out_rows} if p.left_out_rows else {}),
        "best_step": p.best_step,
        "best_metric_name": loop.arguments.best_metric if p.best_step is not None else None,
        "best_metric": p.best_value,
        **{f"eval_{name}": value for name, value in p.evaluation.items()},
        "mixed_precision": loop.accelerator.mixed_precision,
        "processes": loop.accelerator.num_processes,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if device.type == "cuda" else device.type,
        "peak_memory_mb": peak_memory_mb(device),
        "versions": versions(),
    }
