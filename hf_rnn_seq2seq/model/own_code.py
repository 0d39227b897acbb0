"""Puts the file of a user's own attention or model into a checkpoint, so that it loads with `trust_remote_code=True`.

The Hub's copier takes the file of a class and the files that it imports by `from .x import y`. A user's file imports this
package by its name. Its copy in the checkpoint imports the files next to it, and also the classes that config.json looks
for in it, so that the user's file is imported when the checkpoint is loaded.
"""

import ast
import importlib
import json
import logging
import shutil
import sys
from pathlib import Path

from transformers.dynamic_module_utils import get_relative_import_files, get_relative_imports

from .config_checks import ConfigError

logger = logging.getLogger(__name__)

PACKAGE = "hf_rnn_seq2seq"
CLASSES = ("RnnSeq2SeqConfig", "RnnSeq2SeqModel", "RnnSeq2SeqForConditionalGeneration")
_HERE = Path(__file__).parent


def carry_own_code(config_file: Path, attention: type | None) -> None:
    """Adds the user's files to a checkpoint whose config.json was written, and makes its `auto_map` name them.

    A file that cannot travel is named in a warning; the checkpoint then loads where that file is imported first.

    Args:
        config_file: config.json. The copier has written the files of the classes in its `auto_map`.
        attention: the registered class that the config names; None for a score of this package.
    """
    stored = json.loads(config_file.read_text(encoding="utf-8"))
    auto_map = {key: name for key, name in stored.get("auto_map", {}).items() if isinstance(name, str)}
    classes = {key: name.split(".") for key, name in auto_map.items() if "--" not in name}
    own = {module for module, cls in classes.values() if cls not in CLASSES}
    if not classes or not (own or attention):
        return
    folder, imported = config_file.parent, []
    try:
        if attention is not None:
            source = _source_file(attention)
            imported = [f"from .{source.stem} import {attention.__name__}"]
            ours = {key: name for key, name in classes.items() if name[1] in CLASSES}
            _write(folder, source, [f"from .{module} import {cls}" for module, cls in ours.values()])
            stored["auto_map"] |= {key: f"{source.stem}.{cls}" for key, (_, cls) in ours.items()}
            own -= {source.stem}
        for module in own:
            _write(folder, folder / f"{module}.py", imported)
    except ConfigError as error:
        logger.warning("%s: the checkpoint does not carry the code of its own: %s", folder, error)
        return
    config_file.write_text(json.dumps(stored, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _source_file(cls: type) -> Path:
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    if cls.__module__ == "__main__" or file is None:
        raise ConfigError(f"class {cls.__name__} of {cls.__module__}: has no file; define it in a file and import that")
    return Path(file)


def _write(folder: Path, source: Path, more: list[str]) -> None:
    """Writes the user's file with relative imports and the lines `more`, and copies the files that it imports."""
    package = _HERE / "modeling_rnn_seq2seq.py"
    if source.stem in {Path(file).stem for file in [package, *get_relative_import_files(package)]}:
        raise ConfigError(f"{source}: {PACKAGE} has a file of this name; give it another one")
    lines = relative_imports(source).rstrip("\n").split("\n")
    lines += [line for line in more if line not in lines]
    copied = folder / source.name
    copied.write_text("\n".join(lines) + "\n", encoding="utf-8")
    for ours in (_HERE / f"{module}.py" for module in get_relative_imports(copied)):
        for file in [ours, *get_relative_import_files(ours)] if ours.is_file() else []:
            shutil.copyfile(file, folder / Path(file).name)


def relative_imports(file: Path) -> str:
    """The text of a user's file with `from .x import y` in place of its imports of this package.

    Raises:
        ConfigError: it imports something that a checkpoint does not carry.
    """
    text = file.read_text(encoding="utf-8")
    lines = text.split("\n")
    statements = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(statements, key=lambda node: -node.lineno):
        where = f"{file}:{node.lineno}: `{ast.unparse(node)}`"
        if isinstance(node, ast.Import):
            if any(alias.name.split(".")[0] == PACKAGE for alias in node.names):
                raise ConfigError(f"{where}: must be `from {PACKAGE} import ...`")
        elif node.level:
            if not (_HERE / f"{node.module}.py").is_file():
                raise ConfigError(f"{where}: a checkpoint carries one file; write the code into it")
        elif node.module.split(".")[0] == PACKAGE:
            homes = {alias: _home(node.module, alias.name) for alias in node.names}
            if None in homes.values():
                raise ConfigError(f"{where}: must name classes of {PACKAGE}, or something in {PACKAGE}.model")
            new = [f"from .{homes[name]} import {ast.unparse(name)}" for name in node.names]
            lines[node.lineno - 1 : node.end_lineno] = [" " * node.col_offset + line for line in new]
    return "\n".join(lines)


def _home(module: str, name: str) -> str | None:
    """The file of `model/` that defines `name` of `module`; None if none does."""
    if module == PACKAGE:
        module = getattr(getattr(importlib.import_module(PACKAGE), name, None), "__module__", "")
    folder, _, stem = module.rpartition(".")
    return stem if folder == f"{PACKAGE}.model" else None
