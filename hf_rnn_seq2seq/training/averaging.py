"""Checkpoint averaging: one model whose weights are the mean of several (Junczys-Dowmunt 2016, section 3)."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from hf_rnn_seq2seq.errors import CheckpointError
from hf_rnn_seq2seq.files import whole_folder
from hf_rnn_seq2seq.model.pretrained import not_finite
from hf_rnn_seq2seq.run_directory import SUMMARY, WEIGHTS, read_tokenizer, refuse_ensemble, vocabulary_hash
from hf_rnn_seq2seq.training.checkpoints import MANIFEST, STATE

# Files that describe one run or one checkpoint, not the average.
OF_ONE = (SUMMARY, STATE, MANIFEST, "trainer_state.json", "model.safetensors.index.json")


def average_weights(directories: Sequence[str | os.PathLike[str]]) -> dict[str, Tensor]:
    """The mean of the floating-point weights, summed in float64 and stored in the first checkpoint's type.

    One checkpoint is read at a time, so memory holds the sums and one of them. Other tensors must be equal.

    Raises:
        CheckpointError: a checkpoint is missing, is not finite, or has other names or shapes than the first.
    """
    from safetensors.torch import load_file

    sums: dict[str, Tensor] = {}
    types: dict[str, torch.dtype] = {}
    for number, directory in enumerate(directories):
        path = Path(directory) / WEIGHTS
        if not path.is_file():
            raise CheckpointError(f"{directory}: has no {WEIGHTS}")
        weights = load_file(path)
        if problem := not_finite(weights.items()):
            raise CheckpointError(f"{directory}: {problem}; leave it out")
        if number == 0:
            types = {name: tensor.dtype for name, tensor in weights.items()}
            sums = {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
            continue
        if different := sorted(sums.keys() ^ weights.keys()):
            raise CheckpointError(f"{directory}: differs from {directories[0]} in which weights it has: {different[0]}")
        for name, tensor in weights.items():
            if tensor.shape != sums[name].shape:
                raise CheckpointError(
                    f"{directory}: {name} has the shape {tuple(tensor.shape)}, in {directories[0]} "
                    f"{tuple(sums[name].shape)}"
                )
            if tensor.is_floating_point():
                sums[name] += tensor
            elif not torch.equal(tensor, sums[name]):
                raise CheckpointError(f"{directory}: {name} differs and is not averaged")
    count = len(directories)
    return {
        name: (total / count).to(types[name]) if total.is_floating_point() else total for name, total in sums.items()
    }


def _require_one_vocabulary(directories: Sequence[str | os.PathLike[str]]) -> None:
    """Each row of the embeddings must belong to one token in all; checkpoints without a tokenizer are not compared."""
    named = [directory for directory in directories if (Path(directory) / "tokenizer_config.json").is_file()]
    hashes = [vocabulary_hash(read_tokenizer(directory)) for directory in named]
    for directory, vocabulary in zip(named, hashes, strict=True):
        if vocabulary != hashes[0]:
            raise CheckpointError(
                f"{directory}: its vocabulary is not that of {named[0]}; average runs of one tokenizer"
            )


def average_checkpoints(directories: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str]) -> None:
    """Writes a checkpoint with averaged weights; everything else (config, tokenizer) is the first one's.

    `output` appears whole or not at all.

    Raises:
        CheckpointError: fewer than two checkpoints, an ensemble, `output` exists, or the weights or vocabularies differ
            in kind.
    """
    from safetensors.torch import save_file

    output = Path(output)
    if len(directories) < 2:
        raise CheckpointError(f"{len(directories)} checkpoint(s) given; averaging needs at least 2")
    if output.exists():
        raise CheckpointError(f"{output} exists; name a directory that does not")
    if not output.absolute().parent.is_dir():
        raise CheckpointError(f"{output}: its folder does not exist")
    for directory in directories:
        refuse_ensemble(directory)
    _require_one_vocabulary(directories)
    weights = average_weights(directories)
    with whole_folder(output) as part:
        first = Path(directories[0])
        carried = ("*.json", "*.txt", "*.model", "*.spm", "custom_generate/*.py", "*.py")
        for source in sorted({path for pattern in carried for path in first.glob(pattern)}):
            if source.name not in OF_ONE:
                target = part / source.relative_to(first)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(source, target)
        save_file(weights, part / WEIGHTS, metadata={"format": "pt"})
