"""What training changes (weights, optimizer, learning rate, counters), and how it reaches the disk and returns."""

from __future__ import annotations

import contextlib
import inspect
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object, set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hf_rnn_seq2seq.errors import ArgumentError, CheckpointError
from hf_rnn_seq2seq.training import checkpoints as checkpointing
from hf_rnn_seq2seq.training.arguments import TrainingOptions
from hf_rnn_seq2seq.training.checkpoints import CheckpointStore
from hf_rnn_seq2seq.training.optimization import LearningRate, WeightAverage, build_optimizer
from hf_rnn_seq2seq.training.progress import Progress


class StepModule(nn.Module):
    """A model reduced to its training loss: what Accelerate wraps, so that the model itself stays as it is.

    The wrapper takes the mixed precision and the gradient exchange upon itself; translating and saving use `model`.
    `figures` names what forward returns beside the loss, for the log.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.figures: tuple[str, ...] = getattr(model, "training_figures", ())
        known = inspect.signature(model.forward).parameters
        wanted = {"use_cache": False, "skip_logits": True, "output_figures": bool(self.figures)}
        self.options = {name: value for name, value in wanted.items() if name in known}

    def forward(self, **batch: Tensor) -> tuple[Tensor, Tensor | None]:
        """The mean loss over the label tokens of a batch, (), and (figures, 2), the sum and the number of each figure.

        Without figures the second is None.
        """
        told = self.model(**batch, **self.options)
        return told.loss, told.figures if self.figures else None


class TrainingState:
    """Model, optimizer and counters of a run, on their device and wrapped by Accelerate.

    Random generators are seeded with `seed` + rank, so that processes draw different dropout masks.

    Args:
        objective: what is trained in the place of the model's own loss: a module around the model that maps a batch to
            what `StepModule.forward` returns, and names its figures. Evaluation keeps the model's own loss.
    """

    def __init__(self, model: Any, arguments: TrainingOptions, accelerator: Accelerator, objective: Any = None) -> None:
        if arguments.gradient_checkpointing:
            model.activation_checkpointing_enable()
        model.to(accelerator.device)
        model.train()
        self.model, self.arguments, self.accelerator = model, arguments, accelerator
        self.plain_optimizer = build_optimizer(model, arguments)
        self.fused = bool(self.plain_optimizer.defaults.get("fused"))
        self.unwrapped_step = StepModule(model)
        trained = self.unwrapped_step if objective is None else objective
        self.figures: tuple[str, ...] = trained.figures
        with warnings.catch_warnings():
            # The option's new name, forward_sync_buffers, is known neither to Accelerate nor to older torch.
            warnings.filterwarnings("ignore", "`broadcast_buffers` is deprecated", FutureWarning)
            self.step_module, self.optimizer = accelerator.prepare(trained, self.plain_optimizer)
        self.average = WeightAverage(model, arguments.ema_decay) if arguments.ema_decay else None
        self.schedule = LearningRate(arguments)
        self.progress = Progress()
        set_seed(arguments.seed + accelerator.process_index)

    def evaluated_weights(self) -> contextlib.AbstractContextManager[None]:
        """The model holds the average of the weights meanwhile, where one is kept."""
        return self.average.applied() if self.average is not None else contextlib.nullcontext()

    def write(self, folder: Path) -> dict[str, Any]:
        """Writes the tensors beside the weights; returns the rest, for JSON."""
        if self.average is not None:
            save_file(self.average.state_dict(), folder / "average.safetensors")
        scaler = self.accelerator.scaler
        return {
            "progress": self.progress.state_dict(),
            "optimizer": checkpointing.save_optimizer(self.plain_optimizer, folder),
            "schedule": self.schedule.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
        }

    def read(self, folder: Path, rest: Mapping[str, Any]) -> None:
        """Restores what `write` wrote; the weights are loaded before the model is wrapped."""
        checkpointing.load_optimizer(self.plain_optimizer, folder, rest["optimizer"])
        self.progress = Progress.from_state(rest["progress"])
        self.schedule.load_state_dict(rest["schedule"])
        if self.average is not None:
            self.average.load_state_dict(load_file(folder / "average.safetensors"))
        if self.accelerator.scaler is not None and rest["scaler"]:
            self.accelerator.scaler.load_state_dict(rest["scaler"])


class StateKeeper:
    """Finds, writes and restores the states of a run directory, together with all processes.

    Args:
        output_dir: the run directory.
        accelerator: the processes.
        keep: checkpoints to keep, see `CheckpointStore`.
        identity: what a resumed run must have in common with the run that saved.
        save_beside: writes what belongs beside the weights (the tokenizer) into a folder.
        say: shows a message on the main process.
    """

    def __init__(
        self,
        output_dir: Path,
        accelerator: Accelerator,
        *,
        keep: int | None,
        identity: Mapping[str, Any],
        save_beside: Callable[[Path], Any] | None,
        say: Callable[[str], None],
    ) -> None:
        self.output_dir, self.accelerator = output_dir, accelerator
        self.store = CheckpointStore(output_dir, keep)
        self.identity, self.save_beside, self.say = dict(identity), save_beside, say

    def find(self, resume_from: str | None) -> Path | None:
        """The checkpoint to continue from: `latest` takes the newest that verifies, None where there is none.

        Raises:
            ArgumentError: the named checkpoint is missing or damaged.
        """
        if resume_from is None:
            return None
        found: list[str | None] = [None]
        if resume_from == "latest":
            if self.accelerator.is_main_process:
                latest = self.store.latest(self.say)
                found = [str(latest) if latest else None]
            if self.accelerator.num_processes > 1:
                broadcast_object_list(found)
            if found[0] is None:
                self.say(f"{self.output_dir}: no complete checkpoint, so training starts at step 0")
        else:
            named = checkpointing.named_checkpoint(self.output_dir, resume_from)
            reason = checkpointing.damage(named)
            if reason is not None:
                raise ArgumentError(f"resume_from_checkpoint={resume_from!r}: {reason}")
            found = [str(named)]
        return Path(found[0]) if found[0] else None

    def restore(self, checkpoint: Path, state: TrainingState) -> None:
        """Brings everything but the weights back to where the checkpoint left it.

        Raises:
            ArgumentError: the checkpoint belongs to a run with other data, another seed or other batches.
        """
        stored = json.loads((checkpoint / checkpointing.STATE).read_text(encoding="utf-8"))
        for name, value in self.identity.items():
            if stored["identity"].get(name) != value:
                raise ArgumentError(
                    f"{checkpoint}: was trained with {name} {stored['identity'].get(name)!r}, this run has {value!r}; "
                    "only the same can be continued (the sentences of an update are per_device_train_batch_size x "
                    "processes x gradient_accumulation_steps)"
                )
        state.read(checkpoint, stored)
        processes, rank = len(stored["random"]), self.accelerator.process_index
        if processes == self.accelerator.num_processes:
            checkpointing.restore_random_state(stored["random"][rank])
        else:
            # The same samples follow; only dropout draws other masks.
            set_seed(state.arguments.seed + 1009 * state.progress.step + rank)
            self.say(f"the run had {processes} processes and continues with {self.accelerator.num_processes}")
        self.say(f"resuming from {checkpoint} at step {state.progress.step}")

    def publish(self, model: Any) -> None:
        """Makes these weights the model of the run directory."""
        self._on_main(lambda: checkpointing.publish(self.output_dir, lambda folder: self._write_model(model, folder)))

    def save(self, state: TrainingState) -> None:
        """Writes a checkpoint."""
        random_states = gather_object([checkpointing.random_state()])

        def write(folder: Path) -> None:
            self._write_model(state.model, folder)
            content = {**state.write(folder), "random": random_states, "identity": self.identity}
            (folder / checkpointing.STATE).write_text(json.dumps(content), encoding="utf-8")

        self._on_main(lambda: self.store.save(state.progress.step, write, state.progress.best_step))

    def _write_model(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder, max_shard_size="1000GB")
        if self.save_beside is not None:
            self.save_beside(folder)

    def _on_main(self, action: Callable[[], Any]) -> None:
        """Runs on the main process; every process learns of its failure, so that none waits for ever."""
        failure: list[str | None] = [None]
        if self.accelerator.is_main_process:
            try:
                action()
            except CheckpointError as error:
                failure = [str(error)]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(failure)
        if failure[0] is not None:
            raise CheckpointError(failure[0])
