"""Writes the files of a Hugging Face Space that runs the demo: app, requirements, card, models and this package.

The package is copied, so that the Space installs only the requirements.
"""

import importlib.metadata
import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from hf_rnn_seq2seq.errors import CheckpointError
from hf_rnn_seq2seq.files import check_new_folder, whole_folder

# The files that loading a checkpoint needs; training states, logs and pictures are not copied.
MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")
MODEL_FILES += ("tokenizer*.json", "special_tokens_map.json", "target_tokenizer.json", "added_tokens.json")
APP = '''"""The demo of these models in a Space."""

from hf_rnn_seq2seq.visualization.demo_app import build_app, launch, load_systems

MODELS = {models}
EXAMPLES = {examples}

demo = build_app(load_systems(MODELS), examples=EXAMPLES, title={title})

if __name__ == "__main__":
    launch(demo, server_name=None)
'''
CARD = """---
title: {title}
colorFrom: blue
colorTo: indigo
sdk: gradio
sdk_version: {version}
app_file: app.py
pinned: false
{license}{models}---

Type a sentence: recurrent encoder-decoders translate it and show their attention at each step.
Written by `scripts/app.py --space` of hf_rnn_seq2seq {package}. Run it anywhere with
`pip install gradio=={version} -r requirements.txt && python app.py`.
"""


def write_space(
    directory: str | os.PathLike[str],
    names: Sequence[str],
    *,
    title: str = "",
    examples: Sequence[str] = (),
    license: str | None = None,
) -> Path:
    """Writes the files of a Space into a new `directory`, all of them or none.

    Local models are copied into it; the Space downloads those of the Hub when it starts. `license`, by its name on the
    Hub, is in the card if it is given.

    Raises:
        CheckpointError: the directory's folder does not exist, or a local model has no weights as safetensors.
        FileExistsError: the directory exists and is not empty.
    """
    target = Path(directory)
    check_new_folder(target, "space")
    if not target.resolve().parent.is_dir():
        raise CheckpointError(f"space={str(directory)!r}: its folder does not exist; create it first")
    title = " ".join(title.split()) or "Watch recurrent models translate"
    with whole_folder(target) as space:
        models = [_copy_model(name, space) for name in names]
        package = Path(__file__).parents[1]
        shutil.copytree(package, space / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        app = APP.format(models=_literal(models), examples=_literal(list(examples)), title=_literal(title))
        (space / "app.py").write_text(app, encoding="utf-8")
        (space / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements()), encoding="utf-8")
        (space / "README.md").write_text(_card(title, names, license), encoding="utf-8")
    return target


def requirements() -> list[str]:
    """The requirements of the package and its extra `app`, without Gradio, which the card of the Space names."""
    lines = []
    for line in importlib.metadata.requires("hf_rnn_seq2seq") or ():
        requirement, _, marker = line.partition(";")
        is_app = re.search(r"extra\s*==\s*['\"]app['\"]", marker)
        if (not marker or is_app) and not requirement.strip().lower().startswith("gradio"):
            lines.append(requirement.strip())
    return lines


def _literal(value: str | list[str]) -> str:
    """A value as Python source; the syntax of JSON is the same."""
    return json.dumps(value, ensure_ascii=False)


def _copy_model(name: str, space: Path) -> str:
    """Copies a local model; returns the name that the app loads: the folder of the copy, or the name on the Hub."""
    source = Path(name)
    if not source.is_dir():
        if str(name).count("/") == 1 and not source.parent.is_dir():
            return str(name)
        raise CheckpointError(f"{name}: no such directory; name one that training or save_pretrained wrote")
    files = sorted({path for pattern in MODEL_FILES for path in source.glob(pattern) if path.is_file()})
    if not any(path.suffix == ".safetensors" for path in files):
        raise CheckpointError(f"{name}: has no safetensors weights; save_pretrained writes them")
    folder = space / "models" / source.resolve().name
    if folder.exists():
        raise CheckpointError(f"{name}: two models of a Space are called {folder.name!r}; rename a directory")
    folder.mkdir(parents=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)
    return folder.relative_to(space).as_posix()


def _card(title: str, names: Sequence[str], license: str | None) -> str:
    hub = [str(name) for name in names if not Path(name).is_dir()]
    models = "models:\n" + "".join(f"- {name}\n" for name in hub) if hub else ""
    version, package = map(importlib.metadata.version, ("gradio", "hf_rnn_seq2seq"))
    license_line = f"license: {license}\n" if license else ""
    return CARD.format(title=_literal(title), version=version, license=license_line, models=models, package=package)
