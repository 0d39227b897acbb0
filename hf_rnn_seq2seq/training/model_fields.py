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

from hf_rnn_seq2seq.model.presets import PRESETS

_SOURCE = Path(__file__).resolve().parents[1] / "model" / "configuration_rnn_seq2seq.py"
_NOT_OPTIONS = {"encoder", "vocab_size", "source_vocab_size", "use_cache", "is_encoder_decoder", "transformers_version"}


@dataclass(frozen=True)
class ModelField:
    """An option of the model: its annotation, its default, and the first sentence about it."""

    hint: Any
    default: Any
    help: str


@lru_cache
def model_fields() -> dict[str, ModelField]:
    """The options that are fields of `RnnSeq2SeqConfig`, and `preset`, by name."""
    tree = ast.parse(_SOURCE.read_text(encoding="utf-8"))
    (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "RnnSeq2SeqConfig")
    meanings = _meanings(ast.get_docstring(config) or "")
    fields = {"preset": ModelField(str, None, f"system of a paper: {', '.join(PRESETS)}")}
    for node in config.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            name = node.target.id
            if name not in _NOT_OPTIONS and not name.endswith("_token_id"):
                # Annotations are built-in types and literals; the file is our own.
                hint = eval(ast.unparse(node.annotation), {"Literal": Literal})
                fields[name] = ModelField(hint, ast.literal_eval(node.value), meanings.get(name, ""))
    return fields


def _meanings(docstring: str) -> dict[str, str]:
    """The first sentence on each argument of a Google-style docstring."""
    arguments = textwrap.dedent(docstring.partition("Args:\n")[2].split("\n\n")[0])
    entries = re.findall(r"^(\w+): (.*?)(?=^\w+: |\Z)", arguments, re.DOTALL | re.MULTILINE)
    return {name: re.split(r"(?<=[\w)`\]])[.;:](?:\s|$)", " ".join(text.split()))[0] for name, text in entries}
