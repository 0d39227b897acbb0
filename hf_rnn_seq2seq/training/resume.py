"""Finding, writing and restoring the checkpoints of a run, together with all of its processes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from transformers import PreTrainedModel

from hf_rnn_seq2seq.errors import ArgumentError, CheckpointError
from hf_rnn_seq2seq.run_directory import LOG_FILE
from hf_rnn_seq2seq.training import checkpoints
from hf_rnn_seq2seq.training.log import NONE_YET, published_step
from hf_rnn_seq2seq.training.state import TrainingState


class CheckpointManager:
    """The checkpoints of a run directory.

    Args:
        output_dir: the run directory.
        accelerator: the processes.
        limit: how many checkpoints stay, see `CheckpointStore`.
        identity: what a resumed run must have in common with the run that saved.
        save_tokenizer: writes what a checkpoint holds in addition to the model into a folder.
        log: prints a message on the main process.
    """

    def __init__(
        self,
        output_dir: Path,
        accelerator: Accelerator,
        *,
        limit: int | None,
        identity: Mapping[str, Any],
        save_tokenizer: Callable[[Path], object] | None,
        log: Callable[[str], None],
    ) -> None:
        self.output_dir, self.accelerator = output_dir, accelerator
        self.store = checkpoints.CheckpointStore(output_dir, limit)
        self.identity, self.save_tokenizer, self.log = dict(identity), save_tokenizer, log

    def find(self, resume_from: str | None) -> Path | None:
        """The checkpoint to continue from; `latest` is the newest that verifies, None if there is none.

        Raises:
            ArgumentError: the named checkpoint is missing or damaged.
        """
        if resume_from is None:
            return None
        if resume_from != "latest":
            named = checkpoints.named_checkpoint(self.output_dir, resume_from)
            reason = checkpoints.damage(named)
            if reason is not None:
                raise ArgumentError(f"resume_from_checkpoint={resume_from!r}: {reason}")
            return named
        latest = self._on_main(lambda: self.store.latest(self.log))
        if latest is None:
            self.log(f"{self.output_dir}: no complete checkpoint, so training starts at step 0")
        return latest

    def restore(self, checkpoint: Path, state: TrainingState) -> None:
        """Sets the state, weights included, to what the checkpoint holds.

        Raises:
            ArgumentError: the checkpoint belongs to a run with other data, another seed or other batches.
            CheckpointError: the checkpoint belongs to another model.
        """
        stored = json.loads((checkpoint / checkpoints.STATE).read_text(encoding="utf-8"))
        for name, value in self.identity.items():
            found = stored["identity"].get(name)
            if (name, found) == ("objective", "ml"):
                found = None  # as earlier versions wrote it for texts
            if found != value:
                raise ArgumentError(
                    f"{checkpoint}: was trained with {name} {found!r}, this run has {value!r}; "
                    "only the same can be continued (the sentences of an update are per_device_train_batch_size x "
                    "processes x gradient_accumulation_steps)"
                )
        state.read(checkpoint, stored)
        processes, rank = len(stored["random"]), self.accelerator.process_index
        if processes == self.accelerator.num_processes:
            checkpoints.restore_random_state(stored["random"][rank])
        else:
            # The order of the samples does not change; only dropout draws other masks.
            set_seed(state.options.seed + 1009 * state.progress.step + rank)
            self.log(f"the run had {processes} processes and continues with {self.accelerator.num_processes}")
        self.log(f"resuming from {checkpoint} at step {state.progress.step}")
        for field in checkpoints.different_fields(state.model, checkpoint, of_training=True):
            self.log(field)
        if changed := state.progress.choose_by(state.options.best_metric):
            self.log(changed)

    def set_aside(self, checkpoint: Path, step: int) -> None:
        """Sets aside all checkpoints later than a named one, whose step is `step`, and logs their new paths."""
        for path in self._on_main(lambda: self.store.set_aside(checkpoint, step)):
            self.log(f"{path}: set aside, the run goes on from step {step}")

    def publish_best(self, checkpoint: Path, state: TrainingState, *, named: bool) -> bool:
        """Publishes the best weights of a restored run if its directory has the weights of another branch.

        Nothing changes if the best weights are in no checkpoint and the run continues its latest one: it was killed
        after an evaluation, and repeats that evaluation.

        Args:
            checkpoint: the checkpoint that was restored.
            state: of the run.
            named: the user named the checkpoint. If no checkpoint holds the best weights, the best is forgotten.

        Returns:
            whether the best was forgotten.
        """
        progress = state.progress
        own = self._on_main(lambda: self.store.holds(checkpoint))
        published = self._on_main(lambda: published_step(self.output_dir / LOG_FILE)) if own else None
        if progress.best_step in (None, published):
            return False
        best = checkpoint if progress.best_step == progress.step else None
        if best is None and own:
            best = self._on_main(lambda: self.store.of_step(progress.best_step))
        if best is not None:
            state.read_weights(best)
            with state.evaluated_weights():
                self.publish(state.model)
            state.read_weights(checkpoint)
            return False
        if not named and published != NONE_YET:
            return False
        self.log(
            f"the best weights, of step {progress.best_step}, are in no checkpoint; the next evaluation is the best"
        )
        progress.forget_best()
        return True

    def publish(self, model: PreTrainedModel) -> None:
        """Makes these weights the model of the run directory."""
        self._on_main(lambda: checkpoints.publish(self.output_dir, lambda folder: self._write_model(model, folder)))

    def save(self, state: TrainingState) -> Path:
        """Writes a checkpoint; returns its folder."""
        random_states = gather_object([checkpoints.random_state()])
        carried = state.carried()

        def write(folder: Path) -> None:
            self._write_model(state.model, folder)
            content = {**state.write(folder, carried), "random": random_states, "identity": self.identity}
            (folder / checkpoints.STATE).write_text(json.dumps(content), encoding="utf-8")

        folder = self._on_main(lambda: self.store.save(state.progress.step, write, state.progress.best_step))
        assert folder is not None
        return folder

    def spare(self, folder: Path, reader: Future[object]) -> None:
        """Keeps a checkpoint until `reader` is done, even if newer ones replace it."""
        self.store.readers[folder] = reader

    def _write_model(self, model: PreTrainedModel, folder: Path) -> None:
        model.save_pretrained(folder, max_shard_size="1000GB")
        if self.save_tokenizer is not None:
            self.save_tokenizer(folder)

    def _on_main(self, action: Callable[[], Any]) -> Any:
        """Runs `action` on the main process; its result, or its failure, reaches every process, so that none waits."""
        outcome: list[Any] = [None, None]
        if self.accelerator.is_main_process:
            try:
                outcome[0] = action()
            except CheckpointError as error:
                outcome[1] = str(error)
        if self.accelerator.num_processes > 1:
            broadcast_object_list(outcome)
        if outcome[1] is not None:
            raise CheckpointError(outcome[1])
        return outcome[0]
