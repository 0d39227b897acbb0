"""Recipes: YAML files of options, found by path or by name."""

import re
from pathlib import Path
from typing import Any

import yaml

from hf_rnn_seq2seq.errors import ArgumentError, one_line


def named_files() -> dict[str, Path]:
    """The recipes and experiments of the project by name: of the checkout, or of the installed wheel."""
    package = Path(__file__).resolve().parent
    folders = [package, package.parent / "scripts"]
    found = [
        path for folder in folders for kind in ("experiments", "recipes") for path in (folder / kind).glob("*.yaml")
    ]
    return {path.stem: path for path in sorted(found)}


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe: the path itself, or one of `named_files`."""
    path = Path(name).expanduser()
    return path if path.suffix or path.exists() else named_files().get(str(name), path)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The options of a YAML recipe, as written; a bare name is one of the project's own.

    Raises:
        ArgumentError: when the file is missing, is not YAML, is not one flat mapping, or sets an option twice.
    """
    try:
        text = find_recipe(path).read_text(encoding="utf-8")
        options = yaml.load(text, Loader=_RecipeLoader)
    except OSError as error:
        raise ArgumentError(f"recipe={str(path)!r}: cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:  # no date 2026-99-99, no list for a name
        raise ArgumentError(f"recipe={str(path)!r}: is not YAML ({one_line(error, 400)})") from None
    if options is None:
        return {}
    if not isinstance(options, dict) or not all(isinstance(name, str) for name in options):
        raise ArgumentError(f"recipe={str(path)!r}: must be lines of `option: value`")
    return options


class _RecipeLoader(yaml.SafeLoader):
    """YAML with two differences: an option set twice is a mistake, and only `true` and `false` are truth values.

    YAML 1.1 also reads `no` (Norwegian, or no mixed precision) and `on` so.
    """

    yaml_implicit_resolvers = {
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value]
        repeated = sorted({name for name in names if names.count(name) > 1})
        if repeated:
            raise yaml.YAMLError(f"{', '.join(repeated)} set twice")
        return super().construct_mapping(node, deep)


_RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile("^(true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
