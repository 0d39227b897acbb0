"""Complete states of a run on disk: written whole or not at all, and verified before use.

A checkpoint is a folder `OUTPUT_DIR/checkpoints/step-00001000` with the model (loadable by `from_pretrained`),
`optimizer.safetensors`, `average.safetensors` if weights are averaged, `carried.safetensors` if the objective carries
states from update to update, `state.json` (counters, random generators) and `manifest.json` (size and hash of every
other file). It is written under a hidden name, synced and renamed, so a folder with a valid manifest is complete. No
file is a pickle.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Callable, Mapping, Set
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from hf_rnn_seq2seq.errors import ArgumentError, CheckpointError
from hf_rnn_seq2seq.run_directory import CHECKPOINTS, WEIGHTS

MANIFEST = "manifest.json"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
AVERAGE = "average.safetensors"
CARRIED = "carried.safetensors"  # what an objective carries from one update to the next
_NAME = re.compile(r"step-(\d{8,})(?:\.(\d+))?")


class CheckpointStore:
    """The checkpoints of one run directory, on its main process.

    Args:
        output_dir: the run directory.
        limit: how many of the newest stay; None keeps all. The step passed as `best_step` to `save` stays as well.

    Attributes:
        readers: tasks that read a checkpoint, such as an upload; the folder stays until its task is done.
    """

    def __init__(self, output_dir: str | Path, limit: int | None = None) -> None:
        self.folder = Path(output_dir) / CHECKPOINTS
        self.limit = limit
        self.readers: dict[Path, Future[object]] = {}

    def all(self) -> list[Path]:
        """The checkpoints that were written to their end, oldest first; their files are not verified."""
        named = [path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name)]
        return sorted(named, key=_order)

    def latest(self, report: Callable[[str], None] = print) -> Path | None:
        """The newest checkpoint that verifies; a damaged one is reported and skipped."""
        for path in reversed(self.all()):
            reason = damage(path)
            if reason is None:
                return path
            report(f"{path} is not used: {reason}")
        return None

    def save(self, step: int, write: Callable[[Path], None], best_step: int | None = None) -> Path:
        """Writes a checkpoint through `write(folder)`, then removes those beyond `limit`.

        Raises:
            CheckpointError: the disk is full or not writable; earlier checkpoints are untouched.
        """
        temporary = self.folder / f".writing-step-{step:08d}"
        try:
            self.clean()
            temporary.mkdir(parents=True)
            write(temporary)
            write_manifest(temporary)
            # A second state of the same step (after its evaluation, for example) gets a new name: while the folder of
            # the first is being replaced there would be none.
            final = self._free_name(f"step-{step:08d}")
            os.replace(temporary, final)
            sync(self.folder)
        except Exception as error:  # safetensors and tokenizers raise classes of their own for a full disk
            shutil.rmtree(temporary, ignore_errors=True)
            raise CheckpointError(f"checkpoint of step {step} cannot be written to {self.folder}: {error}") from error
        self._remove_old(final, best_step)
        return final

    def of_step(self, step: int | None) -> Path | None:
        """The last checkpoint of a step; None if there is none, or if it is damaged."""
        found = [path for path in self.all() if _order(path)[0] == step]
        return found[-1] if found and damage(found[-1]) is None else None

    def holds(self, checkpoint: Path) -> bool:
        """Whether a folder is a checkpoint of this run that is not set aside."""
        return checkpoint.resolve() in [path.resolve() for path in self.all()]

    def set_aside(self, continued: Path, step: int) -> list[Path]:
        """Renames all checkpoints later than `continued`, so that `latest` follows the branch that starts there.

        `step-00000080` becomes `left-step-00000080`.

        Args:
            continued: the checkpoint that the run continues; it may be another run's, or one set aside before.
            step: its step.

        Returns:
            the new paths.
        """
        here = next((_order(path) for path in self.all() if path.resolve() == continued.resolve()), (step, -1))
        left = []
        for path in self.all():
            if _order(path) > here:
                left.append(self._free_name(f"left-{path.name}"))
                os.replace(path, left[-1])
        return left

    def clean(self) -> None:
        """Removes the folders that a killed process left half written or half deleted."""
        for path in [*self.folder.glob(".writing-*"), *self.folder.glob(".deleting-*")]:
            shutil.rmtree(path, ignore_errors=True)

    def _free_name(self, name: str) -> Path:
        """The folder of this name, or of the first free one of `name.1`, `name.2`, ..."""
        names = [name, *(f"{name}.{number}" for number in range(1, 1000))]
        return next(self.folder / name for name in names if not (self.folder / name).exists())

    def _remove_old(self, newest: Path, best_step: int | None) -> None:
        if self.limit is None:
            return
        self.readers = {path: task for path, task in self.readers.items() if not task.done()}
        steps = sorted({_order(path)[0] for path in self.all()})
        staying = {*steps[-self.limit :], best_step}
        for path in self.all():
            step = _order(path)[0]
            superseded = step == _order(newest)[0] and path != newest
            if path != newest and path not in self.readers and (step not in staying or superseded):
                # Renamed first: a folder with the name of a checkpoint is never partly deleted.
                deleted = path.with_name(f".deleting-{path.name}")
                os.replace(path, deleted)
                shutil.rmtree(deleted, ignore_errors=True)


def _order(path: Path) -> tuple[int, int]:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match.group(1)), int(match.group(2) or 0)


def named_checkpoint(output_dir: str | Path, name: str) -> Path:
    """The folder of a checkpoint, given its path, its name or step in the run, or its run directory.

    Raises:
        ArgumentError: there is no such checkpoint.
    """
    path, store = Path(name), CheckpointStore(output_dir)
    step = re.fullmatch(r"(?:step-)?(\d+)", name)
    same = [each for each in store.all() if each.name == name]
    same = same or [each for each in store.all() if step and _order(each)[0] == int(step[1])]
    if same and not path.is_dir():
        return same[-1]
    newest = CheckpointStore(path).latest(lambda _: None)
    if newest is None and not path.is_dir():
        existing = ", ".join(each.name for each in store.all()) or "none"
        raise ArgumentError(
            f"resume_from_checkpoint={name!r}: no such checkpoint; must be latest, false, the folder of one, or "
            f"one of {output_dir}: {existing}"
        )
    return newest or path


def write_manifest(folder: Path) -> None:
    """Records and syncs every file of a checkpoint."""
    files = _readable_files(folder)
    entries = {str(p.relative_to(folder)): {"bytes": p.stat().st_size, "sha256": _hash(p)} for p in files}
    (folder / MANIFEST).write_text(json.dumps({"files": entries}, indent=1), encoding="utf-8")
    for path in [*files, folder / MANIFEST, *(p for p in folder.rglob("*") if p.is_dir()), folder]:
        sync(path)


def _readable_files(folder: Path) -> list[Path]:
    """The files of a folder, after giving them the permissions of new files: safetensors writes private ones."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    probe = folder / ".probe"
    probe.touch()
    mode = probe.stat().st_mode
    probe.unlink()
    for path in files:
        path.chmod(mode)
    return files


def damage(folder: Path) -> str | None:
    """Why a checkpoint cannot be used, or None if every file is as it was written."""
    try:
        entries = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"it has no readable {MANIFEST}"
    for name, entry in entries.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {entry['bytes']}"
        if _hash(path) != entry["sha256"]:
            return f"{name} has changed since it was written"
    return None


def publish(output_dir: str | Path, write: Callable[[Path], None]) -> None:
    """Replaces the model files in the run directory, each at once, the weights last.

    Raises:
        CheckpointError: the disk is full or not writable; the previous weights are untouched.
    """
    output_dir = Path(output_dir)
    temporary = output_dir / ".writing-model"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        write(temporary)
        files = sorted(_readable_files(temporary), key=lambda path: path.name == WEIGHTS)
        for path in files:
            sync(path)
        for path in files:
            target = output_dir / path.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        sync(output_dir)
    except Exception as error:
        raise CheckpointError(f"the model cannot be written to {output_dir}: {error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sync(path: Path) -> None:
    """Writes a file, or the entries of a folder, through to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def never_saved(model: nn.Module) -> Set[str]:
    """Names of the weights that `save_pretrained` leaves out as constants, such as Marian's sinusoidal positions."""
    return set(getattr(model, "_keys_to_ignore_on_save", None) or ())


def load_weights(model: nn.Module, file: Path) -> None:
    """Loads saved weights into a model. Tied weights are stored once and reach every place that uses them.

    Raises:
        CheckpointError: a weight is missing, is not the model's, or has another shape; or the checkpoint's model
            computes something else with the same weights.
    """
    if different := different_fields(model, file.parent, of_training=False):
        raise CheckpointError(f"{'; '.join(different)} ({file.parent}); a resumed run keeps its model")
    try:
        stored = load_file(file)
        missing, unexpected = model.load_state_dict(stored, strict=False)
    except Exception as error:
        raise CheckpointError(f"{file}: does not fit the model: {' '.join(str(error).split())[:500]}") from None
    state = model.state_dict(keep_vars=True)
    filled = {state[name].data_ptr() for name in stored if name in state}
    missing = [name for name in missing if state[name].data_ptr() not in filled and name not in never_saved(model)]
    if missing or unexpected:
        raise CheckpointError(f"{file}: does not fit the model: lacks {missing[:3]}, has in excess {unexpected[:3]}")


# Parts of the names of the fields that training alone reads, so that a run may continue with other values.
OF_TRAINING = ("dropout", "weight_drop", "label_smoothing", "scheduled_sampling", "teacher_forcing", "layerdrop")
OF_TRAINING += ("sampled_attention", "_loss", "alignment_weight", "doubly_stochastic", "hop_penalty", "logits_memory")
OF_TRAINING += ("freeze_encoder", "initializer")
_ABOUT_FILES = ("transformers_version", "dtype", "torch_dtype", "architectures", "use_cache", "auto_map")


def different_fields(model: PreTrainedModel, folder: Path, *, of_training: bool) -> list[str]:
    """`hidden_size=32: the checkpoint has 16` for each field that differs.

    Args:
        of_training: True compares the fields that only training reads, such as `dropout`; False compares all others.
    """
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return []
    current = json.loads(model.config.to_json_string(use_diff=False))
    names = [name for name in current if name in stored and name not in _ABOUT_FILES and not name.startswith("_")]
    names = [name for name in names if any(part in name for part in OF_TRAINING) == of_training]
    changed = [name for name in names if _fields(current[name]) != _fields(stored[name])]
    return [f"{name}={current[name]!r}: the checkpoint has {stored[name]!r}" for name in changed]


def _fields(value: Any) -> Any:
    """The value of a field; of the configuration of an encoder its type alone, because files leave out defaults."""
    return value.get("model_type") if isinstance(value, dict) and "model_type" in value else value


def save_optimizer(optimizer: torch.optim.Optimizer, folder: Path) -> dict[str, Any]:
    """Writes the tensors of an optimizer to `optimizer.safetensors`; returns the rest, for JSON."""
    state = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    scalars: dict[str, dict[str, Any]] = {}
    for index, values in state["state"].items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value.detach().contiguous()
            else:
                scalars.setdefault(str(index), {})[name] = value
    save_file(tensors, folder / OPTIMIZER)
    return {"param_groups": state["param_groups"], "scalars": scalars}


def load_optimizer(optimizer: torch.optim.Optimizer, folder: Path, rest: Mapping[str, Any]) -> None:
    """Restores what `save_optimizer` wrote.

    Raises:
        CheckpointError: the state belongs to another optimizer or another model.
    """
    state: dict[int, dict[str, Any]] = {}
    for key, tensor in load_file(folder / OPTIMIZER).items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = tensor
    for index, values in rest["scalars"].items():
        state.setdefault(int(index), {}).update(values)
    groups = [{k: tuple(v) if k == "betas" else v for k, v in group.items()} for group in rest["param_groups"]]
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{folder}: its optimizer state does not fit this run: {error}") from None


def random_state() -> dict[str, Any]:
    """The state of this process's random generators (Python, NumPy, torch on CPU and GPU), for JSON."""
    kind, keys, *rest = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
        "torch": torch.get_rng_state().numpy().tobytes().hex(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().numpy().tobytes().hex()
    if torch.backends.mps.is_available():
        state["mps"] = torch.mps.get_rng_state().numpy().tobytes().hex()
    return state


def restore_random_state(state: Mapping[str, Any]) -> None:
    """Sets this process's random generators to what `random_state` recorded."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.asarray(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(_bytes_tensor(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes_tensor(state["cuda"]))
    if "mps" in state and torch.backends.mps.is_available():
        torch.mps.set_rng_state(_bytes_tensor(state["mps"]))


def _bytes_tensor(text: str) -> Tensor:
    return torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)
