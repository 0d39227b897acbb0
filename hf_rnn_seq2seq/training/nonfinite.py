"""Updates whose loss or gradient is not finite: skipped, counted, and saved; too many in a row end the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from hf_rnn_seq2seq.data.loader import BatchLoader, Update
from hf_rnn_seq2seq.errors import TrainingError
from hf_rnn_seq2seq.training.state import TrainingState


class NonfiniteUpdates:
    """Counts the updates that were skipped, and saves their batches.

    Args:
        state: its progress holds the counters.
        loader: reads the batches.
        folder: for the batches; None saves none.
        log: prints a message.
    """

    def __init__(
        self, state: TrainingState, loader: BatchLoader, folder: Path | None, log: Callable[[str], None]
    ) -> None:
        self.state, self.loader, self.folder, self.log = state, loader, folder, log

    def count(self, update: Update, finite: bool) -> None:
        """Counts one update.

        Raises:
            TrainingError: `max_skipped_updates` in a row were not finite.
        """
        progress, options, scaled = self.state.progress, self.state.options, self.state.accelerator.scaler is not None
        progress.skipped_in_row = 0 if finite else progress.skipped_in_row + 1
        progress.skipped_updates += not finite
        if not finite and not scaled:
            self.log(f"step {progress.step + 1}: loss or gradient is not finite, the update is skipped")
            self._save_batch(progress.step + 1, update)
        # The loss scale of fp16 starts at 2**16 and is halved by each skipped update, up to 16 times.
        limit = options.max_skipped_updates + (16 if scaled else 0)
        if progress.skipped_in_row >= limit:
            saved = "" if scaled or self.folder is None else f"; the batches are in {self.folder}"
            raise TrainingError(
                f"step {progress.step + 1}: loss or gradient was not finite {limit} times in a row{saved}. A lower "
                f"learning_rate ({options.learning_rate:g}), more warmup_steps or a smaller max_grad_norm may help; "
                "--resume_from_checkpoint latest continues from the last checkpoint"
            )

    def _save_batch(self, step: int, update: Update) -> None:
        if self.folder is None or not self.state.accelerator.is_main_process:
            return
        columns = self.loader.columns(update, update.rows)
        saved = {name: columns[name] for name in ("id", "input_ids", "labels") if name in columns}
        self.folder.mkdir(exist_ok=True)
        path = self.folder / f"step-{step:08d}.json"
        path.write_text(json.dumps({"step": step, "rows": list(update.rows), **saved}), encoding="utf-8")
