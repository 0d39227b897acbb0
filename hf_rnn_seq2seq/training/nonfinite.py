"""Updates whose loss or gradient is not finite: skipped, counted, kept for a look, and the end of a run if many."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from hf_rnn_seq2seq.data.loader import BatchLoader, Update
from hf_rnn_seq2seq.errors import TrainingError
from hf_rnn_seq2seq.training.state import TrainingState


class FiniteGuard:
    """Skips updates whose gradient is not finite, counts them, keeps their batches, and stops after too many in a row.

    On a GPU nobody waits to learn whether a gradient was finite: a fused optimizer skips on the device, and the
    counting happens when `inspect` reads the flags of all updates since the last time.
    """

    def __init__(
        self, state: TrainingState, loader: BatchLoader, folder: Path | None, say: Callable[[str], None]
    ) -> None:
        self.state, self.loader, self.folder, self.say = state, loader, folder, say
        self._pending: list[tuple[int, Update, Tensor]] = []

    def step(self, norm: Tensor, update: Update) -> None:
        """One optimizer step, if the gradient's norm () is finite."""
        state = self.state
        bad = ~torch.isfinite(norm)
        if state.accelerator.scaler is not None:
            state.optimizer.step()  # with fp16 the scaler skips by itself
        elif state.fused:
            # Fused kernels skip the step on the device where found_inf is 1.
            state.plain_optimizer.grad_scale = None  # type: ignore[attr-defined]
            state.plain_optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
            state.optimizer.step()
        elif not bool(bad):
            state.optimizer.step()
        self._pending.append((state.progress.step + 1, update, bad))
        if norm.device.type == "cpu":
            self.inspect()

    def inspect(self) -> None:
        """Counts what was skipped since the last call.

        Raises:
            TrainingError: `max_skipped_updates` in a row.
        """
        if not self._pending:
            return
        flags = torch.stack([bad for _, _, bad in self._pending]).tolist()
        pending, self._pending = self._pending, []
        progress, scaled = self.state.progress, self.state.accelerator.scaler is not None
        # While fp16 looks for its scale it comes down from 2**16 by halving, which skips up to 16 updates.
        limit = self.state.arguments.max_skipped_updates + (16 if scaled else 0)
        for (step, update, _), bad in zip(pending, flags, strict=True):
            progress.skipped_in_row = progress.skipped_in_row + 1 if bad else 0
            progress.skipped_updates += bad
            if bad and not scaled:
                self.say(f"step {step}: loss or gradient is not finite, the update is skipped")
                self._keep_batch(step, update)
            if progress.skipped_in_row >= limit:
                raise TrainingError(
                    f"step {step}: loss or gradient was not finite {limit} times in a row; the batches are in "
                    f"{self.folder}. A lower learning_rate ({self.state.arguments.learning_rate:g}), more "
                    "warmup_steps or a smaller max_grad_norm may help; --resume_from_checkpoint latest continues "
                    "from the last checkpoint"
                )

    def _keep_batch(self, step: int, update: Update) -> None:
        if self.folder is None or not self.state.accelerator.is_main_process:
            return
        columns = self.loader.columns(update, update.rows)
        kept = {name: columns[name] for name in ("id", "input_ids", "labels") if name in columns}
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{step:08d}.json"
        path.write_text(json.dumps({"step": step, "rows": list(update.rows), **kept}), encoding="utf-8")
