"""The files of a Hugging Face Space that runs the demo: the app, its requirements, its card, this package, the models.

The package itself travels along, so that the Space needs nothing but what its requirements name.
"""

import importlib.metadata
import json
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hf_rnn_seq2seq.errors import CheckpointError

# What a checkpoint needs to be loaded; training states, logs and pictures stay at home.
MODEL_FILES = ("config.json", "generation_config.json", "model*.safetensors", "model.safetensors.index.json")
MODEL_FILES += ("tokenizer*.json", "special_tokens_map.json", "target_tokenizer.json", "added_tokens.json")
APP = '''"""The demo of these models, as a Space runs it."""

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
license: apache-2.0
{models}---

Type a sentence and watch recurrent encoder-decoders translate it, with what they attend to at every step.
Written by `scripts/app.py --space` of hf_rnn_seq2seq {package}. Run it anywhere with
`pip install gradio=={version} -r requirements.txt && python app.py`.
"""


def write_space(
    directory: str | os.PathLike[str], names: Sequence[str], *, title: str = "", examples: Sequence[str] = ()
) -> Path:
    """Writes a Space's files into a new `directory`, all of them or none.

    Models of local directories are copied into it; those of the Hub are named, and downloaded when the Space starts.

    Raises:
        CheckpointError: the directory exists and is not empty, or a local model has no weights as safetensors.
    """
    target = Path(directory)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"space {str(directory)!r}: exists and is not empty; name a new directory")
    if not target.resolve().parent.is_dir():
        raise CheckpointError(f"space {str(directory)!r}: its folder does not exist")
    title = " ".join(title.split()) or "Watch recurrent models translate"
    with tempfile.TemporaryDirectory(dir=target.resolve().parent, prefix=".space-") as folder:
        made = Path(folder) / "space"
        made.mkdir()
        placed = [_place_model(name, made) for name in names]
        package = Path(__file__).parents[1]
        shutil.copytree(package, made / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        lists = (json.dumps(list(items), ensure_ascii=False) for items in (placed, examples))
        models, sentences = lists
        app = APP.format(models=models, examples=sentences, title=json.dumps(title, ensure_ascii=False))
        (made / "app.py").write_text(app, encoding="utf-8")
        (made / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements()), encoding="utf-8")
        (made / "README.md").write_text(_card(title, names), encoding="utf-8")
        if target.exists():
            target.rmdir()
        os.replace(made, target)
    return target


def requirements() -> list[str]:
    """What the demo needs beside Gradio, whose version the Space's card names: the package's own requirements."""
    kept = []
    for line in importlib.metadata.requires("hf_rnn_seq2seq") or ():
        requirement, _, marker = line.partition(";")
        is_app = re.search(r"extra\s*==\s*['\"]app['\"]", marker)
        if (not marker or is_app) and not requirement.strip().lower().startswith("gradio"):
            kept.append(requirement.strip())
    return kept


def _place_model(name: str, space: Path) -> str:
    """What the app calls this model: its name on the Hub, or the folder of its copy."""
    source = Path(name)
    if not source.is_dir():
        if str(name).count("/") == 1 and not source.parent.is_dir():
            return str(name)
        raise CheckpointError(f"{name}: no such directory; expected one that training or save_pretrained wrote")
    files = sorted({path for pattern in MODEL_FILES for path in source.glob(pattern) if path.is_file()})
    if not any(path.suffix == ".safetensors" for path in files):
        raise CheckpointError(f"{name}: has no weights as safetensors")
    folder = space / "models" / source.resolve().name
    if folder.exists():
        raise CheckpointError(f"{name}: two models of a Space are called {folder.name!r}")
    folder.mkdir(parents=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)
    return folder.relative_to(space).as_posix()


def _card(title: str, names: Sequence[str]) -> str:
    from gradio import __version__ as version

    hub = [str(name) for name in names if not Path(name).is_dir()]
    models = "models:\n" + "".join(f"- {name}\n" for name in hub) if hub else ""
    package = importlib.metadata.version("hf_rnn_seq2seq")
    return CARD.format(title=json.dumps(title, ensure_ascii=False), version=version, models=models, package=package)
