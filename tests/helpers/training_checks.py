"""Checks of runs and checkpoints that several test files share."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def assert_same_weights(first: dict, second: dict, tolerance: float = 2e-5) -> None:
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        # BART's key biases change all scores equally: their gradient is rounding error, which Adam scales up.
        near = 1e-4 if name.endswith("k_proj.bias") else tolerance
        torch.testing.assert_close(tensor, second[name], atol=near, rtol=0, msg=lambda m, n=name: f"{n}: {m}")


def copy_until(run: Path, target: Path, step: int) -> None:
    """The run directory as it stood after a checkpoint."""
    name = f"checkpoints/step-{step:08d}"
    shutil.copytree(run / name, target / name)
    shutil.copy(run / "train_log.jsonl", target)


def assert_identical_states(first: Path, second: Path, step: int) -> None:
    folders = [run / "checkpoints" / f"step-{step:08d}" for run in (first, second)]
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes(), name
    states = [json.loads((folder / "state.json").read_text()) for folder in folders]
    for state in states:
        for name in [name for name in state["progress"] if name.endswith("seconds")]:
            del state["progress"][name]
    assert states[0] == states[1]
