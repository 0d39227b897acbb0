"""Reads option groups from a recipe and a command line, suggests a name for a wrong one, and prints help.

Recipes are YAML files of options, found by path or by name.
"""

import dataclasses
import difflib
import re
import sys
import typing
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from hf_rnn_seq2seq.errors import ArgumentError, is_undecodable, one_line, undecodable
from hf_rnn_seq2seq.options import FALSE, TRUE, OptionGroup, convert, describe_type, members_of, short_type

# Options whose names are keywords of Python, and the fields that hold them.
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
    "cpu": ["device"],
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
    "lexicon": ["file_format"],
    "load": ["model_name_or_path", "model"],
    "log_steps": ["logging_steps"],
    "lr": ["learning_rate"],
    "max_length": ["max_new_tokens"],
    "model": ["model_name_or_path"],
    "model_type": ["preset"],
    "n_epochs": ["num_train_epochs"],
    "nbest": ["n_best"],
    "no_cuda": ["device"],
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
    "use_cpu": ["device"],
    "valid_file": ["validation_file"],
    "valid_steps": ["eval_steps"],
    "warmup": ["warmup_steps"],
    "warmup_ratio": ["warmup_steps"],
    "word_vec_size": ["embedding_size"],
    "world_size": ["num_processes"],
}
# What training reads from the environment.
_OF_ENVIRONMENT = ("cpu", "device", "gpu", "no_cuda", "use_cpu")


def suggestion(name: str, known: Collection[str], dashes: str = "") -> str:
    """What to write in place of an option that does not exist: `; here it is called ...`, or the nearest name.

    Args:
        name: without dashes.
        known: the names of the command's options, without dashes.
        dashes: what is put in front of a name.
    """
    foreign = {}
    for other, options in _ELSEWHERE.items():
        if meant := [option for option in options if option in known]:
            foreign[other] = meant
    if name.startswith("do_") and name not in foreign:
        return "; the command itself says what is done: leave it out"
    if name in _OF_ENVIRONMENT and name not in foreign and "cpu_threads" in known:
        return "; the environment decides it: ACCELERATE_USE_CPU=true, or CUDA_VISIBLE_DEVICES=0"
    # What an option is called here is only said of a name of another library, also with a letter too many or too few.
    others = difflib.get_close_matches(name, foreign, n=1, cutoff=0.85)
    nearest = difflib.get_close_matches(name, [*others, *known], n=1, cutoff=0.6)
    if not nearest:
        return "; --help all lists the options"
    if nearest[0] in known:
        return f"; the nearest is {dashes}{nearest[0]}"
    return f"; here it is called {' or '.join(dashes + option for option in foreign[nearest[0]])}"


# Options of version 0.1.0 that are gone. Its recipes hold every option, so they have these with their defaults.
_REMOVED = {"subword_sampling_alpha": None, "cuda_graphs": False}


def parse_arguments(
    argv: Sequence[str],
    groups: Sequence[type[OptionGroup]],
    model_options: Mapping[str, Any] | None = None,
    *,
    description: str = "",
    reserved: Mapping[str, str] | None = None,
) -> tuple[Any, ...]:
    """Reads `[RECIPE.yaml] [--option value ...]`; the command line wins over the recipe, the recipe over defaults.

    Args:
        argv: the words after the program's name. `--option=value`, `--option value` and a bare `--flag` for a
            true/false option are accepted; `-` and `_` are the same inside a name.
        groups: option dataclasses, whose field names together are the options.
        model_options: further option names with their annotations, or with objects that have a `hint`, a `default` and
            a `help`; a name that a group already holds belongs to the group.
        reserved: options that only a recipe may hold, each with the reason why the command line may not.

    Returns:
        One instance for each group, in order, then the dictionary of the model options that were given.

    Raises:
        ArgumentError: unknown option (with the nearest name), value of the wrong type or out of range.
        SystemExit: after printing the options, for `--help`.
    """
    given, words = read_words(argv, groups, model_options, description=description, reserved=reserved)
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


def check_known(name: str, known: Collection[str]) -> None:
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

    Prints the text of `--help` or `--version` and ends where one of them is asked for. `reserved` options are refused,
    each for its reason.
    """
    if "--version" in argv:
        print(f"hf_rnn_seq2seq {version()}")
        raise SystemExit(0)
    for asked in {"-h", "--help"} & set(argv):
        usage = f"usage: {Path(sys.argv[0]).name} [{positional}] [--option value ...]"
        described = _help_groups(groups, model_options or {}, reserved or {})
        print(help_screen(description, usage, described, everything="all" in argv[argv.index(asked) :]))
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
            is_flag = bool in members_of(hints[name])
            if is_flag and (not words or str(words[0]).lower() not in (*TRUE, *FALSE, "none")):
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


# ---------------------------------------------------------------- recipes


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

    YAML 1.1 also takes `no` (Norwegian, or no mixed precision) and `on` for truth values.
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


# ---------------------------------------------------------------- help

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


def help_screen(
    description: str, usage: str, groups: Iterable[tuple[str, list[tuple[str, bool]]]], everything: bool
) -> str:
    """The text of `--help`: each option in one line with what it takes, its meaning and its default.

    Args:
        description: of the command; its first line is shown, or all of it with `everything`.
        usage: the line that shows how the command is written.
        groups: the heading of each group and the lines of its options, each with whether `--help` shows it.
        everything: the text of `--help all`.
    """
    text = description.strip()
    lines = [text if everything else text.partition("\n")[0], "", usage.strip()]
    left_out = 0
    for heading, options in groups:
        shown = [line for line, common in options if everything or common]
        lines += ["", heading, *shown] if shown and len(shown) == len(options) else shown
        left_out += len(options) - len(shown)
    if left_out:
        lines += ["", f"{left_out} more options: --help all"]
    return "\n".join(lines).strip()


def _help_groups(
    groups: Sequence[type[OptionGroup]], model_options: Mapping[str, Any], without: Collection[str]
) -> Iterator[tuple[str, list[tuple[str, bool]]]]:
    """Heading and lines of each group, for `help_screen`; `model_options` as in `parse_arguments`."""
    claimed, spelled = set(without), {field: name for name, field in _FIELDS.items()}
    for group in groups:
        hints, lines = typing.get_type_hints(group), []
        for field in dataclasses.fields(group):
            if field.name in claimed:
                continue
            claimed.add(field.name)
            default = field.default if field.default is not dataclasses.MISSING else field.default_factory()  # type: ignore[misc]
            kind = short_type(hints[field.name], field.metadata["choices"])
            line = help_line(spelled.get(field.name, field.name), kind, field.metadata["help"], default)
            lines.append((line, field.name in COMMON))
        yield (group.__doc__ or group.__name__).strip().splitlines()[0], lines
    lines = []
    for name, field in model_options.items():
        if name not in claimed:
            kind = short_type(getattr(field, "hint", field))
            line = help_line(name, kind, getattr(field, "help", ""), getattr(field, "default", None))
            lines.append((line, name in COMMON))
    yield "Fields of the model's configuration:", lines
