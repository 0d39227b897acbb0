"""A network that writes by hand on a test split: the density of real points, and how many of its own writings end."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModel

from hf_rnn_seq2seq.data.arguments import SPLITS, DataArguments
from hf_rnn_seq2seq.data.batching import plan_batches
from hf_rnn_seq2seq.data.strokes import PenCollator, PenCorpus, load_pen_corpus
from hf_rnn_seq2seq.errors import ArgumentError, CheckpointError, DataError, one_line
from hf_rnn_seq2seq.model.configuration_rnn_handwriting import RnnHandwritingConfig
from hf_rnn_seq2seq.model.modeling_rnn_handwriting import Handwriting, RnnForHandwriting
from hf_rnn_seq2seq.run_directory import recipe_options, require_finite, require_kind, usable_device

WRITTEN = 200  # texts of the test split that are written


@dataclass(frozen=True)
class HandwritingResult:
    """What was measured, and the writings."""

    split: str
    own: bool  # the run's own test split, whose numbers its summary keeps
    numbers: dict[str, float]
    writings: list[Handwriting]


def load_writer(
    name: str | os.PathLike[str], *, device: str | None = None, dtype: str | None = None
) -> RnnForHandwriting:
    """The network of a directory, or of a Hub repository `user/name`, in evaluation mode.

    Raises:
        CheckpointError: it cannot be loaded, or is another kind of model.
    """
    device = usable_device(device)
    if Path(name).exists() and not (Path(name) / "config.json").is_file():
        raise CheckpointError(f"{name}: has no config.json; expected a directory that training wrote")
    if Path(name).exists():
        require_kind(name, "Handwriting")
    try:
        model = AutoModel.from_pretrained(name, use_safetensors=True, **({"dtype": dtype} if dtype else {}))
    except Exception as error:  # safetensors and json each raise classes of their own
        raise CheckpointError(f"{name}: the checkpoint cannot be loaded: {one_line(error, 300)}") from error
    if not isinstance(model, RnnForHandwriting):
        raise CheckpointError(f"{name}: the model is a {type(model).__name__}, which does not write by hand")
    require_finite(model.state_dict().items(), f"{name}: ")
    return model.eval().to(device)


def run_corpus(
    directory: str | os.PathLike[str],
    config: RnnHandwritingConfig,
    chosen: Mapping[str, Any],
    splits: Sequence[str] = SPLITS,
) -> PenCorpus:
    """A run's own corpus, or that of the `chosen` options; for a network that reads text, what its alphabet can write.

    Raises:
        ArgumentError: no option names the data.
        DataError: one of the `splits` is missing, or no text of it can be written.
    """
    names = DataArguments.__dataclass_fields__
    options = {key: value for key, value in recipe_options(directory).items() if key in names and value is not None}
    if "test_file" in chosen:
        options = {key: value for key, value in options.items() if key == "max_target_length"}
    options |= chosen | {"task": "handwriting"}
    if not any(options.get(key) for key in ("dataset_name", "train_file", "test_file")):
        raise ArgumentError(
            f"{directory}: has no recipe.yaml that says what it was trained on; name the data, with --test_file"
        )
    corpus = load_pen_corpus(DataArguments(**options), config.point_tolerance, splits=splits)
    for split in splits:
        if split not in corpus.splits:
            raise DataError(f"{directory}: the data has no {split} split; name {split}_writers or --{split}_file")
    if config.reads_text:
        corpus = corpus.written_with(config.alphabet)
    for split in splits:
        if not len(corpus.splits[split]):
            raise DataError(f"{directory}: no text of the {split} split is written in the alphabet of the model")
    return corpus


def measure_handwriting(
    directory: str | os.PathLike[str],
    chosen: Mapping[str, Any],
    *,
    split: str = "test",
    batch_size: int = 64,
    bias: float = 0.5,
    device: str | None = None,
    dtype: str | None = None,
) -> HandwritingResult:
    """Measures a run on its own test split, or on the data that the `chosen` options name.

    Numbers: `nats_per_row` and `nats_per_point`, of offsets divided by the network's `offset_deviation` (lower is
    better; below 0 where the density is above 1); `rows` and `points`; of a network that reads text `finished`, the
    percentage of the first 200 texts that it wrote, with a bias, to the end (`Handwriting.finished`).

    Raises:
        ArgumentError: no option names the data.
        DataError: the split is missing, or no text of it can be written.
    """
    given = {key: value for key, value in chosen.items() if value is not None}
    model = load_writer(directory, device=device, dtype=dtype)
    rows = run_corpus(directory, model.config, given, (split,)).splits[split]
    collate, nats = PenCollator(model.config.alphabet, model.config.offset_deviation), 0.0
    points = sum(rows["target_length"])
    with torch.no_grad():
        for batch in plan_batches(rows["source_length"], rows["target_length"], batch_size=batch_size, shuffle=False):
            inputs = {name: tensor.to(model.device) for name, tensor in collate(rows[batch]).items()}
            nats += float(model(**inputs, num_items_in_batch=1, use_cache=False).loss)
    numbers = {"nats_per_row": nats / len(rows), "nats_per_point": nats / points}
    numbers |= {"rows": len(rows), "points": points}
    writings: list[Handwriting] = []
    if model.config.reads_text:
        texts = rows["text"][:WRITTEN]
        generator = torch.Generator(model.device).manual_seed(0)
        for start in range(0, len(texts), batch_size):
            writings += model.write(texts[start : start + batch_size], bias=bias, generator=generator)
        numbers["finished"] = 100 * sum(writing.finished for writing in writings) / len(writings)
    return HandwritingResult(split, split == "test" and not given, numbers, writings)
