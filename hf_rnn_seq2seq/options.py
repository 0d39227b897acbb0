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
from collections.abc import Collection, Mapping, Sequence
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
# What other toolkits call an option, and its name here; a list where several are meant.
_ELSEWHERE = {
    "accum_count": ["gradient_accumulation_steps"],
    "attention": ["attention_type"],
    "batch": ["per_device_train_batch_size", "batch_size"],
    "batch_size": ["per_device_train_batch_size"],
    "beam": ["num_beams"],
    "beam_size": ["num_beams"],
    "beams": ["num_beams"],
    "bf16": ["mixed_precision", "dtype"],
    "bidir": ["bidirectional"],
    "bptt": ["max_target_length"],
    "checkpoint": ["model_name_or_path", "model"],
    "clip": ["max_grad_norm"],
    "clip_norm": ["max_grad_norm"],
    "config": ["preset"],
    "data": ["dataset_name"],
    "dec_layers": ["decoder_layers"],
    "do_eval": ["eval_steps"],
    "do_train": [],
    "dropout_rate": ["dropout"],
    "emb_size": ["embedding_size"],
    "embedding_dim": ["embedding_size"],
    "enc_layers": ["encoder_layers"],
    "epochs": ["num_train_epochs"],
    "eval_batch_size": ["per_device_eval_batch_size"],
    "eval_strategy": ["eval_steps"],
    "evaluation_strategy": ["eval_steps"],
    "fp16": ["mixed_precision", "dtype"],
    "gpu": ["device"],
    "gpus": ["num_processes", "device"],
    "gradient_clipping": ["max_grad_norm"],
    "hidden": ["hidden_size"],
    "hidden_dim": ["hidden_size"],
    "layers": ["encoder_layers", "decoder_layers"],
    "load": ["model_name_or_path", "model"],
    "log_steps": ["logging_steps"],
    "lr": ["learning_rate"],
    "max_length": ["max_new_tokens"],
    "model": ["model_name_or_path"],
    "model_type": ["preset"],
    "n_epochs": ["num_train_epochs"],
    "nbest": ["n_best"],
    "num_layers": ["encoder_layers", "decoder_layers"],
    "num_return_sequences": ["n_best"],
    "optimizer": ["optim"],
    "out": ["output_dir", "output_file"],
    "patience": ["early_stopping_patience"],
    "precision": ["mixed_precision", "dtype"],
    "report": ["report_to"],
    "resume": ["resume_from_checkpoint"],
    "rnn_size": ["hidden_size"],
    "rnn_type": ["cell_type"],
    "save_dir": ["output_dir"],
    "save_strategy": ["save_steps"],
    "scheduler": ["lr_scheduler_type"],
    "src": ["source_lang", "input_file"],
    "src_lang": ["source_lang"],
    "src_vocab_size": ["source_vocab_size"],
    "steps": ["max_steps"],
    "tgt": ["target_lang"],
    "tgt_lang": ["target_lang"],
    "tokenizer": ["tokenizer_name_or_path", "tokenizer_algorithm"],
    "train_steps": ["max_steps"],
    "units": ["hidden_size"],
    "valid_file": ["validation_file"],
    "valid_steps": ["eval_steps"],
    "warmup": ["warmup_steps"],
    "warmup_ratio": ["warmup_steps"],
    "word_vec_size": ["embedding_size"],
    "world_size": ["num_processes"],
}


def suggestion(name: str, known: Collection[str], dashes: str = "") -> str:
    """What to write in place of an option that does not exist: `; here it is called ...`, or the nearest name.

    Args:
        name: without dashes.
        known: the names of the command's options, without dashes.
        dashes: what is put in front of a name.
    """
    meant = [option for option in _ELSEWHERE.get(name, ()) if option in known]
    if meant:
        return f"; here it is called {' or '.join(dashes + option for option in meant)}"
    if name.startswith("do_"):
        return "; the command itself says what is done: leave it out"
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"; the nearest is {dashes}{nearest[0]}" if nearest else "; --help all lists the options"


# Options of version 0.1.0 that are gone. Its recipes hold every option, so they have these with their defaults.
_REMOVED = {"subword_sampling_alpha": None, "cuda_graphs": False}


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
            (item,) = typing.get_args(member)
            words.append("whole numbers separated by commas" if item is int else "a list separated by commas")
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


def parse_arguments(
    argv: Sequence[str],
    groups: Sequence[type[OptionGroup]],
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
        model_options: further option names with their annotations, or with objects that have a `hint`, a `default` and
            a `help`; a name that a group already holds belongs to the group.

    Returns:
        One instance for each group, in order, then the dictionary of the model options that were given.

    Raises:
        ArgumentError: unknown option (with the nearest name), value of the wrong type or out of range.
        SystemExit: after printing the options, for `--help`.
    """
    given, words = read_words(argv, groups, model_options, description=description, positional=positional)
    if len(words) > 1:
        raise ArgumentError(f"{words[1]!r}: one recipe only ({words[0]!r} came first); options start with --")
    options = read_recipe(words[0]) if words else {}
    options = {name: value for name, value in options.items() if name not in _REMOVED or value != _REMOVED[name]}
    values = {_FIELDS.get(name, name): value for name, value in {**options, **given}.items()}
    hints = _hints(groups, model_options)
    for name in values:
        check_known(name, hints)
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
        raise ArgumentError(f"{name}: no such option{suggestion(name, known)}")


def _hints(groups: Sequence[type[OptionGroup]], model_options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The annotation of every option; a name that a group holds belongs to the group."""
    hints = {name: getattr(field, "hint", field) for name, field in (model_options or {}).items()}
    for group in groups:
        hints.update(typing.get_type_hints(group))
    return hints


def read_words(
    argv: Sequence[str],
    groups: Sequence[type[OptionGroup]],
    model_options: Mapping[str, Any] | None = None,
    *,
    description: str = "",
    positional: str = "RECIPE.yaml",
    reserved: Mapping[str, str] | None = None,
) -> tuple[dict[str, str], list[str]]:
    """The options of a command line by name, each value as text, and the words that are no options.

    Prints the text of `--help` or `--version` and ends where one of them is asked for. `reserved` options are refused
    for the reason that stands there.
    """
    if "--version" in argv:
        print(f"hf_rnn_seq2seq {version()}")
        raise SystemExit(0)
    if asked := {"-h", "--help"} & set(argv):
        everything = "all" in argv[argv.index(asked.pop()) :]
        print(format_help(groups, model_options or {}, description, positional, everything, reserved or {}))
        raise SystemExit(0)
    hints = _hints(groups, model_options)
    given: dict[str, str] = {}
    others: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            others.append(word)
            continue
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        name = _FIELDS.get(name, name)
        if reserved and name in reserved:
            raise ArgumentError(f"{name}: {reserved[name]}")
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
    for name, value in (*given.items(), *((positional, word) for word in others)):
        if is_undecodable(value):
            raise ArgumentError(undecodable(name, value))
    return given, others


# The options that `--help` shows; `--help all` shows the others too.
COMMON = frozenset(
    [
        "output_dir",
        "seeds",
        "resume_from_checkpoint",
        "model_name_or_path",
        "dry_run",
        "dataset_name",
        "dataset_config_name",
        "train_file",
        "validation_file",
        "test_file",
        "source_lang",
        "target_lang",
        "tokenizer_algorithm",
        "vocab_size",
        "num_beams",
        "max_new_tokens",
        "seed",
        "per_device_train_batch_size",
        "max_steps",
        "num_train_epochs",
        "max_train_seconds",
        "learning_rate",
        "mixed_precision",
        "eval_steps",
        "save_steps",
        "metric_for_best_model",
        "push_to_hub",
        "preset",
        "cell_type",
        "attention_type",
        "hidden_size",
        "encoder_layers",
        "decoder_layers",
        "dropout",
    ]
)


def version() -> str:
    """This package's version."""
    return sys.modules["hf_rnn_seq2seq"].__version__


def help_line(name: str, kind: str, meaning: str, default: object) -> str:
    """One line of `--help`: the option, what it takes, what it means, and its default."""
    default = "" if default is None or default == [] or "(default" in meaning else f" (default: {default})"
    head, tail = f"  --{name} {kind}".rstrip(), f"{meaning}{default}"
    return f"{head:<39} {tail}" if len(head) < 40 else f"{head}  {tail}"


def format_help(
    groups: Sequence[type[OptionGroup]],
    model_options: Mapping[str, Any],
    description: str,
    positional: str,
    everything: bool = False,
    without: Collection[str] = (),
) -> str:
    """The text of `--help`: each option in one line with what it takes, its meaning and its default.

    Args:
        groups: option dataclasses.
        model_options: annotations, or fields with `hint`, `default` and `help`.
        description: of the command; its first line, or all of it with `everything`.
        positional: the name of the first word.
        everything: every option, and not the common ones alone.
        without: options that are not shown.
    """
    text = description.strip()
    program = Path(sys.argv[0]).name
    lines = [text if everything else text.partition("\n")[0], ""]
    lines += [f"usage: {program} [{positional}] [--option value ...]"]
    claimed = set(without)
    left_out = 0

    def add(heading: str, rows: list[tuple[str, str]]) -> None:
        nonlocal left_out
        shown = [line for name, line in rows if everything or name in COMMON]
        left_out += len(rows) - len(shown)
        if shown:
            lines.extend(["", heading, *shown] if everything else shown)

    for group in groups:
        hints = typing.get_type_hints(group)
        rows = []
        for field in dataclasses.fields(group):
            if field.name in claimed:
                continue
            claimed.add(field.name)
            default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
            spelled = next((name for name, own in _FIELDS.items() if own == field.name), field.name)
            kind = short_type(hints[field.name], field.metadata.get("choices"))
            rows.append((field.name, help_line(spelled, kind, field.metadata.get("help", ""), default)))
        add((group.__doc__ or group.__name__).strip().splitlines()[0], rows)
    rows = []
    for name, field in model_options.items():
        if name not in claimed:
            kind = short_type(getattr(field, "hint", field))
            rows.append((name, help_line(name, kind, getattr(field, "help", ""), getattr(field, "default", None))))
    add("Fields of the model's configuration:", rows)
    if left_out:
        lines += ["", f"{left_out} more options: --help all"]
    return "\n".join(lines).strip()


def short_type(annotation: Any, choices: Sequence[Any] | None = None) -> str:
    """What an option takes, as `--help` names it: `N`, `TEXT`, `a|b|c`; nothing for a flag."""
    if choices:
        return "|".join(map(str, choices))
    for member in _members(annotation):
        if typing.get_origin(member) is typing.Literal:
            return "|".join(map(str, typing.get_args(member)))
    members = set(_members(annotation)) - {type(None)}
    if bool in members:
        return ""
    if str in members:
        return "TEXT"
    return "X" if float in members else "N" if int in members else "LIST"
