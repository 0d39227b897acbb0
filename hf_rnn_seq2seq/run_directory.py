"""What a trained directory holds: the checkpoint, the options it was trained with, and the facts of its run."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rnn_seq2seq.errors import CheckpointError, one_line
from hf_rnn_seq2seq.files import digest, write_atomically

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

SUMMARY = "summary.json"
RECIPE = "recipe.yaml"
LOG_FILE = "train_log.jsonl"
CHECKPOINTS = "checkpoints"
WEIGHTS = "model.safetensors"
ATTENTION, LEARNING_CURVE = "attention.png", "learning_curve.png"
ENSEMBLE = "ensemble.json"
# The format of the rows of a run's files; another file is read in the same format (its columns: `columns_of_run`).
ROW_FORMAT = ("task", "header", "feature_column", "file_format", "several_references", "image_folder", "captions_file")
DATA_OPTIONS = (
    "dataset_name",
    "dataset_config_name",
    "train_file",
    "validation_file",
    "test_file",
    "source_lang",
    "target_lang",
    "source_column",
    "target_column",
    *ROW_FORMAT,
    "alignment_column",
    "validation_writers",
    "test_writers",
    "max_train_samples",
    "max_eval_samples",
    "max_predict_samples",
    "validation_fraction",
    "test_fraction",
    "data_seed",
)


# Entries of a tokenizer's files on its last call, its location and its code, which do not affect the ids.
_NOT_IDS = ("padding", "truncation", "name_or_path", "is_local", "local_files_only", "auto_map", "model_max_length")


def load_checkpoint(
    name: str | os.PathLike[str],
    *,
    device: str | None = None,
    dtype: str | None = None,
    attention: bool = False,
    reads: str = "text",
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Model (in evaluation mode) and tokenizer of a local directory, or of a Hub repository `user/name`.

    `attention` asks for an implementation that returns attention weights. `device` defaults to a GPU of NVIDIA where
    there is one. `reads` says what the caller gives the model: `text`, `pictures` or `anything`. Raises
    CheckpointError in one line for whatever keeps the checkpoint from loading, and for a model that reads something
    else.
    """
    model, tokenizer = load_as("Seq2SeqLM", name, device=device, dtype=dtype, attention=attention)
    found = "pictures" if model.main_input_name == "pixel_values" else "text"
    if reads not in (found, "anything"):
        tool = "hf-rnn caption" if found == "pictures" else "hf-rnn translate"
        raise CheckpointError(f"{name}: the model reads {found}, not {reads}; {tool} is for it")
    known = getattr(tokenizer, "target_vocab_size", None) or len(tokenizer)
    if known > model.config.vocab_size:
        raise CheckpointError(
            f"{name}: the tokenizer has {known} target tokens, the model's vocab_size is {model.config.vocab_size}"
        )
    return model, tokenizer


def load_as(
    kind: str,
    name: str | os.PathLike[str],
    *,
    device: str | None = None,
    dtype: str | None = None,
    attention: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As `load_checkpoint`, for a model of this `kind`: a name of `KINDS` that has an Auto class."""
    import transformers

    auto_class = getattr(transformers, f"AutoModelFor{kind}")
    device = usable_device(device)
    path = Path(name)
    if path.exists() or path.parent.is_dir() or str(name).count("/") != 1:
        if not path.is_dir():
            raise CheckpointError(f"{name}: no such directory; expected one that training or save_pretrained wrote")
        refuse_ensemble(name)
        if not (path / "config.json").is_file():
            raise CheckpointError(f"{name}: has no config.json; expected a directory that training wrote")
        require_kind(path, kind)
    options: dict[str, Any] = {"dtype": dtype} if dtype else {}
    if attention:
        options["attn_implementation"] = "eager"
    try:
        tokenizer = read_tokenizer(name)
        model = auto_class.from_pretrained(name, use_safetensors=True, **options)
    except Exception as error:  # safetensors, tokenizers and json each raise classes of their own
        raise CheckpointError(f"{name}: the checkpoint cannot be loaded: {one_line(error, 300)}") from error
    require_finite(model.state_dict().items(), f"{name}: " + (f"in {dtype}, " if dtype else ""))
    return model.eval().to(device), tokenizer


# What models are for, as in the names of the Auto classes, and a tool that uses them.
KINDS = {
    "SequenceClassification": ("names classes", "hf-rnn classify"),
    "CausalLM": ("continues a text", 'pipeline("text-generation")'),
    "Handwriting": ("writes by hand", "hf-rnn write"),
    "Seq2SeqLM": ("writes text", "hf-rnn translate"),
}


def model_kind(folder: str | os.PathLike[str]) -> str:
    """What the model in a folder is for: a name of `KINDS`."""
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
        names = [str(name) for name in config.get("architectures") or ()]
    except (OSError, ValueError, AttributeError):
        names = []  # what reads it next says what is wrong
    return next((kind for kind in KINDS for name in names if name.endswith(f"For{kind}")), "Seq2SeqLM")


def require_kind(folder: str | os.PathLike[str], kind: str) -> None:
    """Raises CheckpointError if the model in a folder is for something else than `kind`."""
    if (found := model_kind(folder)) != kind:
        does, tool = KINDS[found]
        raise CheckpointError(f"{folder}: the model {does}; {tool} is for it")


def writes_by_hand(folder: str | os.PathLike[str]) -> bool:
    """Whether the model in a folder predicts points of a pen."""
    return model_kind(folder) == "Handwriting"


def load_any(name: str | os.PathLike[str]) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As `load_checkpoint`, whatever the model of a directory is for, if it has a tokenizer."""
    kind = model_kind(name)
    if kind in ("SequenceClassification", "CausalLM"):
        return load_as(kind, name)
    return load_checkpoint(name, reads="anything")


def read_tokenizer(name: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """The tokenizer of a directory or a Hub repository. Its BPE dropout is off: texts are always split alike."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(name)
    for side in ("backend_tokenizer", "target_backend_tokenizer"):
        model = getattr(getattr(tokenizer, side, None), "model", None)
        if getattr(model, "dropout", None):
            model.dropout = None
    return tokenizer


def read_image_processor(name: str | os.PathLike[str]) -> BaseImageProcessor:
    """What prepares the pictures that a model reads.

    Raises:
        CheckpointError: the directory does not say how they are prepared.
    """
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(name)
    except Exception as error:  # of transformers, the Hub's client and json
        raise CheckpointError(f"{name}: its image processor cannot be loaded: {one_line(error, 300)}") from error


def require_finite(tensors: Iterable[tuple[str, Tensor]], where: str) -> None:
    """Raises CheckpointError, which begins with `where`, for the first of the named tensors that holds nan or inf."""
    from hf_rnn_seq2seq.model.pretrained import not_finite

    if found := not_finite(tensors):
        raise CheckpointError(f"{where}{found}; name a checkpoint from before, or train again at a lower learning_rate")


def usable_device(name: str | None) -> str:
    """The device to compute on: the one that was named, else a GPU where there is one.

    Raises:
        CheckpointError: there is no such device here.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if torch.device(name).type == "meta":
            raise ValueError("it holds no numbers")
        torch.zeros(1, device=name)
    except Exception as error:  # torch raises RuntimeError, AssertionError and others
        found = ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]
        found += ["mps"] if torch.backends.mps.is_available() else []
        reason = " ".join(str(error).split())[:100]
        raise CheckpointError(
            f"device={name!r}: cannot be used ({reason}); this machine has {', '.join(found)}"
        ) from None
    return name


def refuse_ensemble(name: str | os.PathLike[str]) -> None:
    """Raises CheckpointError for a directory that `train.py --num_seeds` wrote, where one model is wanted."""
    if (Path(name) / ENSEMBLE).is_file():
        raise CheckpointError(f"{name}: is an ensemble; name one of its models: {', '.join(members(name))}")


def members(name: str | os.PathLike[str]) -> list[str]:
    """The checkpoints of a directory that `train.py --num_seeds` wrote; any other name alone, as it is.

    Raises:
        CheckpointError: ensemble.json has another form.
    """
    path = Path(name) / ENSEMBLE
    if not path.is_file():
        return [str(name)]
    try:
        found = json.loads(path.read_text(encoding="utf-8"))["members"]
        return [str(Path(name) / str(member)) for member in [found[0], *found[1:]]]
    except (ValueError, KeyError, TypeError, IndexError):
        raise CheckpointError(f"{path}: not readable; expected {{'members': [directories]}}") from None


def load_models(
    names: Sequence[str], *, attention: bool = False, **options: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[PreTrainedModel]]:
    """The first model of some directories or ensembles, its tokenizer, and the models that decode together with it.

    Arguments as for `load_checkpoint`. Raises CheckpointError as `load_checkpoint` and `load_ensemble`.
    """
    first, *others = [member for name in names for member in members(name)]
    model, tokenizer = load_checkpoint(first, attention=attention, **options)
    return model, tokenizer, load_ensemble(others, first, model, tokenizer, **options) if others else []


def load_ensemble(
    directories: Sequence[str],
    first: str,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    **options: str | None,
) -> list[PreTrainedModel]:
    """The models that decode together with `model`, which was loaded from `first`; `options` as for `load_checkpoint`.

    Raises:
        CheckpointError: one that cannot be loaded or has another vocabulary, or `model` has no search of its own.
    """
    if not hasattr(model, "search"):
        raise CheckpointError(f"{first}: an ensemble needs models of this package, not a {type(model).__name__}")
    members = []
    for directory in directories:
        member, own = load_checkpoint(directory, **options)
        if _vocabularies(own) != _vocabularies(tokenizer):
            raise CheckpointError(
                f"{directory}: its vocabulary is not that of {first}; models decode together with one tokenizer only"
            )
        if _reading(own) != _reading(tokenizer):
            raise CheckpointError(
                f"{directory}: its tokenizer reads texts otherwise than that of {first} (case, form or splitting); "
                "models decode together with one tokenizer only"
            )
        members.append(member)
    return members


def _reading(tokenizer: PreTrainedTokenizerBase) -> list[Any]:
    """What a tokenizer does to the texts of each side before it looks up tokens, and to outputs."""
    sides = (getattr(tokenizer, name, None) for name in ("backend_tokenizer", "target_backend_tokenizer"))
    parts = [json.loads(side.to_str()) for side in sides if side is not None]
    steps = [(part.get("normalizer"), part.get("pre_tokenizer")) for part in parts]
    return [*steps, getattr(tokenizer, "output_form", None)]


def _vocabularies(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, int], dict[str, int]]:
    """Tokens by name; the second is that of the target where it has its own."""
    return tokenizer.get_vocab(), getattr(tokenizer, "get_target_vocab", dict)()


def require_vocabulary(name: str | os.PathLike[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Tokens must have the ids that they have in the checkpoint `name`; further ones may follow.

    Raises:
        CheckpointError: one has another id, so that its row in the checkpoint's tables is another token's.
    """
    try:
        own = read_tokenizer(name)
    except (OSError, ValueError):
        return  # weights without a tokenizer: nothing to compare
    for known, given in zip(_vocabularies(own), _vocabularies(tokenizer), strict=True):
        moved = [token for token, place in known.items() if given.get(token) != place]
        if moved:
            raise CheckpointError(
                f"tokenizer_name_or_path: {len(moved)} of {len(known)} tokens of {name} have another id in it, or none "
                f"({moved[0]!r:.40}); leave it out, and the checkpoint's own tokenizer is used"
            )


def vocabulary_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of what token ids mean; files that hold ids keep it, so that they are read with the right tokenizer."""
    return digest(_vocabularies(tokenizer))


def tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of the files that a tokenizer saves, without the padding and truncation of its last call."""
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        total = hashlib.sha256()
        for path in sorted(Path(folder).rglob("*")):
            if path.suffix == ".json":
                content = json.loads(path.read_text(encoding="utf-8"), parse_float=_rounded)
                content = {k: v for k, v in content.items() if k not in _NOT_IDS}
                total.update(json.dumps([path.name, content], sort_keys=True).encode())
            elif path.is_file():
                total.update(path.read_bytes())
    return total.hexdigest()


def _rounded(number: str) -> str:
    """The last digit of a piece's score may change when `tokenizers` writes and reads it."""
    return f"{float(number):.9g}"


def model_hash(model: PreTrainedModel) -> str:
    """Hash of what decides a model's output: its weights, configuration and generation config."""
    return tensors_hash(model.state_dict(), [model.config.to_dict(), model.generation_config.to_dict()])


def tensors_hash(tensors: Mapping[str, Tensor], configs: Sequence[Mapping[str, Any]]) -> str:
    """Hash of named tensors and of the configurations that belong to them."""
    import torch

    content = [{name: value for name, value in config.items() if name not in _NOT_CONTENT} for config in configs]
    total = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


_NOT_CONTENT = ("_name_or_path", "transformers_version")  # where a model was loaded from, and by what


def data_options(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The data options in DIRECTORY/recipe.yaml, as `load_corpus` names them; empty when there is no such file.

    Raises CheckpointError for other content.
    """
    flat = recipe_options(directory)
    options = {key: flat[key] for key in DATA_OPTIONS if flat.get(key) is not None}
    if flat.get("alignment_unit") == "token":  # what reads a run's data counts words
        options.pop("alignment_column", None)
    return options if any(key in options for key in ("dataset_name", "train_file", "test_file")) else {}


def recipe_options(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """All options in DIRECTORY/recipe.yaml; empty when there is no such file.

    Raises CheckpointError for other content.
    """
    import yaml

    path = Path(directory) / RECIPE
    if not path.is_file():
        return {}
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: expected options by name, found {type(content).__name__}")
    return dict(content)


def read_summary(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """DIRECTORY/summary.json, empty when there is none. Raises CheckpointError when it is not a JSON object."""
    path = Path(directory) / SUMMARY
    return read_json(path) if path.is_file() else {}


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises CheckpointError when it holds something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path}: not readable as JSON: {error}") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def update_summary(
    directory: str | os.PathLike[str], facts: Mapping[str, Any], forget: Collection[str] = ()
) -> dict[str, Any]:
    """Merge `facts` into DIRECTORY/summary.json, all at once or not at all; returns the whole summary.

    Args:
        forget: names whose old values go, also where `facts` has no new one.
    """
    merged = {name: value for name, value in read_summary(directory).items() if name not in forget} | dict(facts)
    write_atomically(Path(directory) / SUMMARY, json.dumps(merged, indent=2, ensure_ascii=False) + "\n")
    return merged
