"""Options as dataclass fields: read from a YAML recipe, overridden by `--option value`, checked before anything starts.

A group of options is a dataclass whose fields are made with `option(...)`. The same checks run however a value
arrives: keyword argument, recipe or command line.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib.util
import math
import os
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_rnn_seq2seq.errors import ArgumentError, is_undecodable, one_line, undecodable


def option(
    default: Any,
    help: str,
    *,
    choices: Sequence[Any] | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
    above: float | None = None,
    below: float | None = None,
    path: bool = False,
) -> Any:
    """A dataclass field with its help text and its allowed range; a list default is copied for each instance.

    In a `path` (or several, between commas) `~` and `$NAME` are what a shell would make of them.
    """
    limits = {"at least": at_least, "at most": at_most, "greater than": above, "less than": below}
    metadata = {
        "help": help,
        "choices": tuple(choices) if choices else None,
        "path": path,
        "limits": {words: value for words, value in limits.items() if value is not None},
    }
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class OptionGroup:
    """Base of the option dataclasses: checks every field's type, choices and range when constructed.

    Raises:
        ArgumentError: naming the field, its value and what is allowed.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = convert(field.name, getattr(self, field.name), hints[field.name])
            if field.metadata.get("path") and value is not None:
                value = expand_path(field.name, value)
            _check_allowed(field.name, value, field.metadata)
            setattr(self, field.name, value)
        self.validate()

    def validate(self) -> None:
        """Checks that involve more than one field; groups override it."""


def expand_path(name: str, text: str) -> str:
    """Paths between commas with `~` and the variables of the environment replaced.

    Raises:
        ArgumentError: a variable is not set.
    """
    parts = [os.path.expandvars(os.path.expanduser(part.strip())) for part in text.split(",")]
    for part in parts:
        unknown = re.search(r"\$\w+|\$\{\w+\}", part)
        if unknown and not os.path.exists(part):
            raise ArgumentError(
                f"{name}={text!r}: {unknown[0]} is not set in the environment; set it, or write the path"
            )
    return ",".join(parts)


# The names of options that are no names in Python, and their fields.
_FIELDS = {"import": "imports"}


# Options of version 0.1.0 that are gone. Its recipes hold every option, so they have these with their defaults.
_REMOVED = {"subword_sampling_alpha": None, "cuda_graphs": False}


def import_code(names: str) -> None:
    """Imports files `mine.py` or modules, between commas, which register an attention or a model of the user's own.

    Raises:
        ArgumentError: one cannot be imported, or a file has the name of a module that is loaded.
    """
    for name in names.split(","):
        path = Path(name)
        try:
            if path.suffix != ".py":
                importlib.import_module(name)
                continue
            loaded = sys.modules.get(path.stem)
            if loaded is not None and getattr(loaded, "__file__", None) == str(path.resolve()):
                continue
            if loaded is not None or not path.stem.isidentifier():
                raise ArgumentError(f"import={name!r}: {path.stem} is taken or is no name; give the file another name")
            spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
            module = importlib.util.module_from_spec(spec)
            sys.modules[path.stem] = module
            try:
                spec.loader.exec_module(module)
            except BaseException:
                del sys.modules[path.stem]
                raise
        except ArgumentError:
            raise
        except Exception as error:  # whatever the user's code raises
            raise ArgumentError(
                f"import={name!r}: cannot be imported ({type(error).__name__}: {one_line(error, 200)}); name a file "
                "`mine.py` or a module"
            ) from error


def _check_allowed(name: str, value: Any, metadata: Mapping[str, Any]) -> None:
    choices, limits = metadata.get("choices"), metadata.get("limits", {})
    for item in value if isinstance(value, list) else [value]:
        if item is None:
            continue
        if choices and item not in choices:
            raise ArgumentError(f"{name}={item!r}: must be one of {', '.join(map(str, choices))}")
        broken = {
            "at least": lambda v, limit: v < limit,
            "at most": lambda v, limit: v > limit,
            "greater than": lambda v, limit: v <= limit,
            "less than": lambda v, limit: v >= limit,
        }
        if any(broken[words](item, limit) for words, limit in limits.items()):
            allowed = " and ".join(f"{words} {limit}" for words, limit in limits.items())
            raise ArgumentError(f"{name}={item!r}: must be {allowed}")


def convert(name: str, value: Any, annotation: Any) -> Any:
    """The value as its annotation wants it; text (of a command line, or a YAML `1e-3`) is parsed.

    Raises:
        ArgumentError: when the value cannot be read as any type the annotation allows.
    """
    members = _members(annotation)
    if type(None) in members and (value is None or str(value).strip().lower() in ("none", "null")):
        return None
    for member in members:
        if member is Any or member not in (type(None), *_CONVERTERS) and not _is_parametrised(member):
            return yaml.safe_load(value) if isinstance(value, str) else value
        converted = _convert_member(value, member)
        if converted is not _REFUSED:
            return converted
    raise ArgumentError(f"{name}={value!r}: must be {describe_type(annotation)}")


def describe_type(annotation: Any) -> str:
    """The allowed values in words: `a whole number`, `one of a, b`, `a number or none`."""
    words = []
    for member in _members(annotation):
        if typing.get_origin(member) is typing.Literal:
            words.append("one of " + ", ".join(map(str, typing.get_args(member))))
        elif typing.get_origin(member) is list:
            words.append("a list separated by commas")
        else:
            words.append(_WORDS.get(member, getattr(member, "__name__", str(member))))
    return " or ".join(words)


_REFUSED = object()
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    type(None): "none",
    Any: "anything",
}


def _members(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, the narrower first: `bool` before `int` before `float` before `str`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        order = [typing.Literal, bool, int, float, list, dict, str]

        def rank(member: Any) -> int:
            kind = typing.get_origin(member) or member
            return order.index(kind) if kind in order else len(order)

        return tuple(sorted(typing.get_args(annotation), key=rank))
    return (annotation,)


def _is_parametrised(member: Any) -> bool:
    return typing.get_origin(member) in (typing.Literal, list)


def _convert_member(value: Any, member: Any) -> Any:
    if typing.get_origin(member) is typing.Literal:
        allowed = {str(choice): choice for choice in typing.get_args(member)}
        return allowed.get(str(value), _REFUSED)
    if typing.get_origin(member) is list:
        items = [item.strip() for item in value.split(",") if item.strip()] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            return _REFUSED
        (item_type,) = typing.get_args(member) or (str,)
        converted = [_convert_member(item, item_type) for item in items]
        return _REFUSED if _REFUSED in converted else converted
    return _CONVERTERS[member](value) if member in _CONVERTERS else _REFUSED


def _to_bool(value: Any) -> Any:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    return True if word in _TRUE else False if word in _FALSE else _REFUSED


def _to_int(value: Any) -> Any:
    number = _to_float(value)
    if number is _REFUSED or number != int(number):
        return _REFUSED
    return int(value) if isinstance(value, int) else int(number)


def _to_float(value: Any) -> Any:
    if isinstance(value, bool):
        return _REFUSED
    try:
        number = float(value)
    except (TypeError, ValueError):
        return _REFUSED
    return number if math.isfinite(number) else _REFUSED


def _to_str(value: Any) -> Any:
    return value if isinstance(value, str) else str(value) if isinstance(value, (int, float, Path)) else _REFUSED


def _to_dict(value: Any) -> Any:
    loaded = yaml.safe_load(value) if isinstance(value, str) else value
    return loaded if isinstance(loaded, dict) else _REFUSED


_CONVERTERS: dict[Any, Any] = {bool: _to_bool, int: _to_int, float: _to_float, str: _to_str, dict: _to_dict}


def read_recipe(path: str | Path) -> dict[str, Any]:
    """The options of a YAML recipe, as written.

    Raises:
        ArgumentError: when the file is missing, is not YAML, is not one flat mapping, or sets an option twice.
    """
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
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


def parse_arguments(
    argv: Sequence[str],
    groups: Sequence[type],
    model_options: Mapping[str, Any] | None = None,
    *,
    description: str = "",
    positional: str = "RECIPE.yaml",
) -> tuple[Any, ...]:
    """Reads `[RECIPE.yaml] [--option value ...]`; the command line wins over the recipe, the recipe over defaults.

    Args:
        argv: the words after the program's name. `--option=value`, `--option value` and a bare `--flag` for a
            true/false option are accepted; `-` and `_` are the same inside a name.
        groups: option dataclasses, whose field names together are the options.
        model_options: further option names with their annotations (fields of a model config); a name that a group
            already holds belongs to the group.

    Returns:
        One instance for each group, in order, then the dictionary of the model options that were given.

    Raises:
        ArgumentError: unknown option (with the nearest name), value of the wrong type or out of range.
        SystemExit: after printing the options, for `--help`.
    """
    hints = {name: hint for name, hint in (model_options or {}).items()}
    for group in groups:
        hints.update(typing.get_type_hints(group))
    if any(word in ("-h", "--help") for word in argv):
        print(format_help(groups, model_options or {}, description, positional))
        raise SystemExit(0)
    given, recipe = _read_words(argv, hints)
    options = read_recipe(recipe) if recipe else {}
    options = {name: value for name, value in options.items() if name not in _REMOVED or value != _REMOVED[name]}
    values = {**options, **given}
    values = {_FIELDS.get(name, name): value for name, value in values.items()}
    for name, value in values.items():
        check_known(name, hints)
        if isinstance(value, str) and is_undecodable(value):
            raise ArgumentError(undecodable(name, value))
    parsed: list[Any] = []
    claimed: set[str] = set()
    for group in groups:
        names = {field.name for field in dataclasses.fields(group)}
        parsed.append(group(**{name: value for name, value in values.items() if name in names}))
        claimed |= names
    parsed.append({name: convert(name, value, hints[name]) for name, value in values.items() if name not in claimed})
    return tuple(parsed)


def check_known(name: str, known: Mapping[str, Any]) -> None:
    """Raises ArgumentError, naming the nearest known option, when `name` is none of them."""
    if name in _REMOVED:
        raise ArgumentError(f"{name}: was removed in version 0.2.0; leave it out")
    if name not in known:
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"; the nearest is {nearest[0]}" if nearest else "; --help lists all"
        raise ArgumentError(f"{name}: no such option{hint}")


def _read_words(argv: Sequence[str], hints: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
    given: dict[str, Any] = {}
    recipe: str | None = None
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            if recipe is not None:
                raise ArgumentError(f"{word!r}: one recipe only ({recipe!r} came first); options start with --")
            recipe = word
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        name = _FIELDS.get(name, name)
        check_known(name, hints)
        if not equals:
            is_flag = bool in _members(hints[name])
            if is_flag and (not words or str(words[0]).lower() not in (*_TRUE, *_FALSE, "none")):
                value = "true"
            elif not words or words[0].startswith("--"):
                raise ArgumentError(f"{name}: needs a value, {describe_type(hints[name])}")
            else:
                value = words.pop(0)
        given[name] = value
    return given, recipe


def format_help(groups: Sequence[type], model_options: Mapping[str, Any], description: str, positional: str) -> str:
    """The text of `--help`: every option with its allowed values, its default and its meaning."""
    lines = [description.strip(), "", f"usage: [{positional}] [--option value ...]"]
    claimed: set[str] = set()
    for group in groups:
        hints = typing.get_type_hints(group)
        lines += ["", (group.__doc__ or group.__name__).strip().splitlines()[0]]
        for field in dataclasses.fields(group):
            claimed.add(field.name)
            default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
            choices = field.metadata.get("choices")
            kind = "one of " + ", ".join(map(str, choices)) if choices else describe_type(hints[field.name])
            spelled = next((name for name, own in _FIELDS.items() if own == field.name), field.name)
            lines.append(f"  --{spelled}  ({kind}; default {default})\n        {field.metadata.get('help', '')}")
    if model_options:
        lines += ["", "Fields of the model configuration:"]
        lines += [f"  --{name}  ({describe_type(kind)})" for name, kind in model_options.items() if name not in claimed]
    return "\n".join(lines).strip()
