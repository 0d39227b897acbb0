"""Options as dataclass fields, whose values are converted and checked before anything starts.

A group of options is a dataclass whose fields are made with `option(...)`. The same checks run however a value
arrives: keyword argument, recipe or command line.
"""

from __future__ import annotations

import dataclasses
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

from hf_rnn_seq2seq.errors import ArgumentError, one_line


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
            if field.metadata.get("path") and isinstance(value, str):
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


def import_code(names: str) -> None:
    """Imports files `mine.py` or modules, between commas, which register an attention or a model of the user's own.

    Raises:
        ArgumentError: one cannot be imported, or a file has the name of a module that is loaded.
    """
    sys.modules["hf_rnn_seq2seq"].register()  # before what the code registers
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
    members = members_of(annotation)
    if type(None) in members and (value is None or str(value).strip().lower() in ("none", "null")):
        return None
    for member in members:
        if member is Any or member not in (type(None), *_CONVERTERS) and not _is_parametrized(member):
            return yaml.safe_load(value) if isinstance(value, str) else value
        converted = _convert_member(value, member)
        if converted is not _REFUSED:
            return converted
    raise ArgumentError(f"{name}={value!r}: must be {describe_type(annotation)}")


def describe_type(annotation: Any) -> str:
    """The allowed values in words: `a whole number`, `one of a, b`, `a number or none`."""
    words = []
    for member in members_of(annotation):
        if typing.get_origin(member) is typing.Literal:
            words.append("one of " + ", ".join(map(str, typing.get_args(member))))
        elif typing.get_origin(member) is list:
            (item,) = typing.get_args(member)
            words.append("whole numbers separated by commas" if item is int else "a list separated by commas")
        else:
            words.append(_WORDS.get(member, getattr(member, "__name__", str(member))))
    return " or ".join(words)


def short_type(annotation: Any, choices: Sequence[Any] | None = None) -> str:
    """What an option takes, as `--help` names it: `N`, `TEXT`, `a|b|c`; nothing for a flag."""
    if choices:
        return "|".join(map(str, choices))
    for member in members_of(annotation):
        if typing.get_origin(member) is typing.Literal:
            return "|".join(map(str, typing.get_args(member)))
    members = set(members_of(annotation)) - {type(None)}
    if bool in members:
        return ""
    if str in members:
        return "TEXT"
    return "X" if float in members else "N" if int in members else "LIST"


_REFUSED = object()
TRUE, FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
_WORDS: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a finite number",
    str: "text",
    type(None): "none",
    Any: "anything",
}


def members_of(annotation: Any) -> tuple[Any, ...]:
    """The alternatives of a union, the narrower first: `bool` before `int` before `float` before `str`."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        order = [typing.Literal, bool, int, float, list, dict, str]

        def rank(member: Any) -> int:
            kind = typing.get_origin(member) or member
            return order.index(kind) if kind in order else len(order)

        return tuple(sorted(typing.get_args(annotation), key=rank))
    return (annotation,)


def _is_parametrized(member: Any) -> bool:
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
    return True if word in TRUE else False if word in FALSE else _REFUSED


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
