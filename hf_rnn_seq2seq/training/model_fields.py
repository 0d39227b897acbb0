"""The fields of the model's configuration as options of the command line.

They are read from the source text: importing the class would import torch, which takes longer than all of `--help`.
"""

import ast
import re
import textwrap
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.model.presets import CAUSAL_PRESETS, CLASSIFIER_PRESETS, HANDWRITING_PRESETS, PRESETS

_MODEL = Path(__file__).resolve().parents[1] / "model"
# The class that a task configures.
CONFIGS = {
    "translation": "RnnSeq2SeqConfig",
    "captioning": "RnnSeq2SeqConfig",
    "classification": "RnnClassifierConfig",
    "handwriting": "RnnHandwritingConfig",
    "text": "RnnCausalConfig",
}
_PRESETS = {
    ("translation", "captioning"): PRESETS,
    ("classification",): CLASSIFIER_PRESETS,
    ("handwriting",): HANDWRITING_PRESETS,
    ("text",): CAUSAL_PRESETS,
}
_OF_PICTURES = ("xu2015",)  # presets whose encoder reads them
_NOT_OPTIONS = {"alphabet", "encoder", "feature_token_ids", "is_encoder_decoder", "offset_deviation"}
_NOT_OPTIONS |= {"source_vocab_size", "transformers_version", "use_cache", "vocab_size"}


@dataclass(frozen=True)
class ModelField:
    """An option of the model: its annotation, its default, and the first sentence about it."""

    hint: Any
    default: Any
    help: str


@lru_cache
def model_fields(task: str | None = None) -> dict[str, ModelField]:
    """The options that are fields of a task's configuration (None: of any task's), and `preset`, by name."""
    presets = [name for tasks, names in _PRESETS.items() if task in (*tasks, None) for name in names]
    fields = {"preset": ModelField(str, None, f"system of a paper: {', '.join(presets)}")}
    for config in dict.fromkeys(CONFIGS.values() if task is None else [CONFIGS[task]]):
        fields |= {name: field for name, field in _fields_of(config).items() if name not in fields}
    return fields


def check_preset(preset: str, task: str, encoder: object = None) -> None:
    """Raises ArgumentError for a preset of another task; `encoder` is the one that replaces that of the preset."""
    allowed = next((tasks for tasks, names in _PRESETS.items() if preset in names), (task,))
    if preset in _OF_PICTURES and task != "captioning" and (task not in allowed or encoder is None):
        raise ArgumentError(f"preset={preset!r}: reads pictures; give task='captioning', or another preset")
    if task not in allowed:
        own = next(names for tasks, names in _PRESETS.items() if task in tasks)
        raise ArgumentError(f"preset={preset!r}: is for task={allowed[0]!r}; give that, or one of {', '.join(own)}")


def _fields_of(name: str) -> dict[str, ModelField]:
    """The fields of a configuration and of the classes of ours that it extends."""
    config = _config_classes().get(name)
    if config is None:  # a class of transformers
        return {}
    fields: dict[str, ModelField] = {}
    for base in config.bases:
        fields.update(_fields_of(ast.unparse(base)))
    meanings = _meanings(ast.get_docstring(config) or "")
    for node in config.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            field = node.target.id
            if field not in _NOT_OPTIONS and not field.endswith("_token_id"):
                # Annotations are built-in types and literals; the file is our own.
                hint = eval(ast.unparse(node.annotation), {"Literal": Literal})
                fields[field] = ModelField(hint, ast.literal_eval(node.value), meanings.get(field, ""))
    return fields


@lru_cache
def _config_classes() -> dict[str, ast.ClassDef]:
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in sorted(_MODEL.glob("configuration_*.py"))]
    return {node.name: node for tree in trees for node in tree.body if isinstance(node, ast.ClassDef)}


def _meanings(docstring: str) -> dict[str, str]:
    """The first sentence on each argument of a Google-style docstring."""
    arguments = textwrap.dedent(docstring.partition("Args:\n")[2].split("\n\n")[0])
    entries = re.findall(r"^(\w+): (.*?)(?=^\w+: |\Z)", arguments, re.DOTALL | re.MULTILINE)
    return {name: _first_sentence(" ".join(text.split())) for name, text in entries}


def _first_sentence(text: str) -> str:
    """Up to the first full stop outside of brackets, without it."""
    ends = [match.start() for match in re.finditer(r"\.(?:\s|$)", text)]
    return next((text[:end] for end in ends if text.count("(", 0, end) == text.count(")", 0, end)), text)
