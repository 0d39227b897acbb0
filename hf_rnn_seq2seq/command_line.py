"""What the scripts share: one clear line for bad input, and the options that mean the same everywhere."""

import argparse
import contextlib
import importlib
import io
import logging
import math
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from hf_rnn_seq2seq.errors import (
    ArgumentError,
    is_ours,
    is_out_of_memory,
    is_undecodable,
    last_input,
    one_line,
    reason,
    undecodable,
)
from hf_rnn_seq2seq.option_parser import help_line, help_screen, suggestion, version
from hf_rnn_seq2seq.options import convert, expand_path, import_code

# Where an option or a positional word names files or folders.
PATHS = (
    {"card", "dataset_name", "density", "directories", "directory", "ensemble", "font", "imports", "input"}
    | {"input_file", "json", "lexicon", "model", "models", "output_dir", "output_file", "pairs", "pictures"}
    | {"plot_by_length", "prime", "references", "replace_unknown", "runs", "shortlist", "sources", "space", "table"}
    | {"targets", "teachers", "test_file", "train_file", "translations", "unlabeled_file", "window"}
)


class Parser(argparse.ArgumentParser):
    """An argument parser that takes no abbreviations and reports bad input in one line, exit code 2."""

    def __init__(self, description: str | None) -> None:
        super().__init__(description=description, allow_abbrev=False, add_help=False)
        self.renamed: dict[str, str] = {}  # old spelling of an option -> the new one
        self.add_argument("-h", "--help", nargs="?", const="", choices=("", "all"), help=argparse.SUPPRESS)
        self.add_argument("--version", action="version", version=f"hf_rnn_seq2seq {version()}", help=argparse.SUPPRESS)
        self.add_argument("--model_name_or_path", help=argparse.SUPPRESS)
        self.add_argument(
            "--import",
            dest="imports",
            metavar="FILE",
            help="`mine.py` or a module with an attention or a model of your own",
        )

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")

    def rename(self, old: str, new: str) -> None:
        """Reads the option `old` as `new`, and says so; both with their dashes."""
        self.renamed[old] = new

    def format_help(self, everything: bool = False) -> str:
        """The text of `--help`, or of `--help all` with the options that commands share and all of the description."""
        groups = []
        for number, group in enumerate(self._action_groups):
            actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
            groups.append((f"{group.title}:", [(_help_line(action), number < 2) for action in actions]))
        return help_screen(self.description or "", self.format_usage(), groups, everything) + "\n"

    def format_usage(self) -> str:
        """The program and its positional words."""
        words = [action.metavar or action.dest for action in self._actions if not action.option_strings]
        return " ".join(["usage:", self.prog, *map(str, words), "[--option value ...]"]) + "\n"

    def parse_args(
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """Reads a command as it is typed.

        `-` stands for `_` in a name, a flag may be followed by true or false, options may stand before the positional
        words also where they take several, `~` and `$NAME` in a path are what a shell would make of them. A word that
        is not UTF-8 is refused, since nothing can be translated or written under it.
        """
        words = self._as_declared(sys.argv[1:] if args is None else list(args))
        for help_word in {"-h", "--help"} & set(words):
            print(self.format_help("all" in words[words.index(help_word) :]), end="")
            self.exit(0)
        words = self._hand_back(self._model_in_front(words))
        self._check_names(words)
        found, unknown = self.parse_known_args(words, namespace)
        if unknown:
            self.error(f"{unknown[0]}: no option takes it, and no name stands there; --help shows what does")
        for name, value in vars(found).items():
            for word in value if isinstance(value, list) else [value]:
                if isinstance(word, str) and is_undecodable(word):
                    self.error(undecodable(name, word))
            if name in PATHS and isinstance(value, str):
                setattr(found, name, self._path(name, value))
            elif name in PATHS and isinstance(value, list):
                setattr(found, name, [self._path(name, each) for each in value])
        if imports := vars(found).pop("imports"):
            import_code(imports)
        return found

    def _check_names(self, words: list[str]) -> None:
        """Refuses an unknown option before anything else: a missing word is often the consequence."""
        for word in words:
            name = word.partition("=")[0]
            if name.startswith("--") and len(name) > 2 and name not in self._option_string_actions:
                known = {option.lstrip("-") for option in self._option_string_actions}
                self.error(f"{name}: no such option{suggestion(name[2:], known, '--')}")

    def _model_in_front(self, words: list[str]) -> list[str]:
        """The words with the value of --model_name_or_path as the first positional one."""
        for number, word in enumerate(words):
            name, equals, value = word.partition("=")
            if name == "--model_name_or_path":
                rest = words[number + 1 :] if equals else words[number + 2 :]
                value = value if equals else next(iter(words[number + 1 : number + 2]), "")
                return [value, *words[:number], *rest]
        return words

    def _path(self, name: str, text: str) -> str:
        try:
            return expand_path(name, text)
        except ArgumentError as error:
            self.error(str(error))

    def _as_declared(self, words: list[str]) -> list[str]:
        """The words with the names of options as they are declared, and flags without their true or false."""
        known, read = self._option_string_actions, []
        while words:
            name, equals, value = words.pop(0).partition("=")
            name = (
                name.replace("-", "_").replace("__", "--", 1) if name.startswith("--") and name not in known else name
            )
            if name in self.renamed:
                new = self.renamed[name]
                print(f"warning: {name} is called {new} now; the old name ends with the next release", file=sys.stderr)
                name = new
            action = known.get(name)
            if isinstance(action, argparse._StoreTrueAction):
                if not equals and words and words[0].lower() in ("true", "false"):
                    equals, value = "=", words.pop(0)
                if equals and value.lower() not in ("true", "false"):
                    self.error(f"{name[2:]}={value!r}: must be true or false")
                read += [name] if not equals or value.lower() == "true" else []
            else:
                read.append(name + equals + value)
        return read

    def _hand_back(self, words: list[str]) -> list[str]:
        """The words with the positional ones in front that an option of several words would swallow at the end.

        An option with choices keeps what is one of them; another keeps all but the last word.
        """
        needed = sum(not action.option_strings and action.nargs in (None, "+") for action in self._actions)
        count, number, swallowing = 0, 0, None
        while number < len(words):
            name, equals, _ = words[number].partition("=")
            action = self._option_string_actions.get(name)
            number += 1
            if action is None:
                count += not name.startswith("--")
                continue
            start = number
            most = 0 if equals or action.nargs == 0 else len(words) if action.nargs == "+" else 1
            while number < len(words) and number - start < most and not words[number].startswith("--"):
                number += 1
            if action.nargs in ("+", "?") and number > start:
                swallowing = action, start, number
        if count >= needed or swallowing is None:
            return words
        action, start, end = swallowing
        if action.choices is not None:
            first = next((n for n in range(start + 1, end) if words[n] not in action.choices), end)
        else:
            first = max(end - 1, start + (action.nargs == "+"))
        return [*words[first:end], *words[:first], *words[end:]]


def _help_line(action: argparse.Action) -> str:
    if action.choices is not None:
        kind = "|".join(map(str, action.choices))
    elif action.nargs == 0:
        kind = ""
    else:
        returns = getattr(action.type, "__annotations__", {}).get("return")
        kind = str(action.metavar or {int: "N", float: "X"}.get(returns, "TEXT"))
    kind += " ..." if action.nargs in ("+", "*") else ""
    meaning = " ".join((action.help or "").replace("%%", "%").split())
    name = next((name for name in action.option_strings), "").removeprefix("--")
    if not name:
        return f"  {(action.metavar or action.dest):<37} {meaning}"
    return help_line(name, kind, meaning, None if action.nargs == 0 else action.default)


def at_least(smallest: int, largest: int | None = None) -> Callable[[str], int]:
    """An argparse type: a whole number not below `smallest`, nor above `largest`."""
    allowed = f"at least {smallest}" + ("" if largest is None else f" and at most {largest}")

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = smallest - 1
        if value < smallest or (largest is not None and value > largest):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of {allowed}")
        return value

    return parse


def finite(
    smallest: float | None = None, largest: float | None = None, *, above: float | None = None
) -> Callable[[str], float]:
    """An argparse type: a number that is neither infinite nor none at all, nor outside the limits."""
    sides = (("of at least", smallest), ("above", above), ("of at most", largest))
    limits = [f" {side} {limit:g}" for side, limit in sides if limit is not None]
    allowed = "a finite number" + " and".join(limits)

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        too_low = (smallest is not None and value < smallest) or (above is not None and value <= above)
        if not math.isfinite(value) or too_low or (largest is not None and value > largest):
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
        return value

    return parse


def true_or_false(text: str) -> bool:
    """An argparse type: `true` or `false`, as a recipe writes them."""
    try:
        return convert("option", text, bool)
    except ArgumentError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false") from None


def add_model_options(parser: Parser) -> None:
    """Where and in which precision the model runs."""
    group = parser.add_argument_group("model")
    group.add_argument("--device", help="such as cpu or cuda:0 (default: a GPU where there is one)")
    group.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="(default: the checkpoint's)")


GENERATION: dict[str, tuple[Callable[[str], float], str]] = {
    "num_beams": (at_least(1), "1 is greedy"),
    "max_new_tokens": (at_least(1), "longest translation in tokens"),
    "length_penalty": (finite(), "beam scores are divided by length to this power"),
    "no_repeat_ngram_size": (at_least(0), "never write an n-gram of this size twice"),
}


def add_generation_options(parser: Parser) -> None:
    """What overrides the checkpoint's generation config; nothing given, nothing overridden."""
    group = parser.add_argument_group("generation (default: the checkpoint's generation config)")
    for name, (kind, meaning) in GENERATION.items():
        group.add_argument(f"--{name}", type=kind, help=meaning)


def add_batch_options(parser: Parser) -> None:
    """How a long input is cut into batches, for a command that reads it a window at a time."""
    parser.add_argument("--batch_size", type=at_least(1), default=64, help="sentences (default: 64)")
    parser.add_argument("--max_tokens", type=at_least(1), default=16384, help="padded tokens of a batch")
    parser.add_argument("--max_source_length", type=at_least(2), help="tokens that a source is cut at")
    parser.add_argument("--window", type=at_least(1), default=2048, help="sources that are read and sorted at a time")
    parser.rename("--no_progress", "--disable_tqdm")
    parser.add_argument(
        "--disable_tqdm",
        action="store_true",
        help="no progress bar; where standard error is a file there is none anyway",
    )


def add_search_option(parser: Parser) -> None:
    """What decodes in place of `generate()`."""
    parser.add_argument(
        "--search",
        help="a method of the model, or MODULE:FUNCTION, called as model.generate is (default: search, which finds "
        "what generate finds)",
    )


def find_search(name: str | None, model: object) -> Callable[..., Any] | None:
    """The callable behind --search; raises ValueError when there is none of that name."""
    if name is None:
        return None
    module, colon, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function) if colon else getattr(model, name)
        if not callable(found):
            raise AttributeError(f"{name} is a {type(found).__name__}")
        return found
    except (ImportError, AttributeError, ValueError) as error:
        kind = type(model).__name__
        raise ValueError(f"--search {name!r}: neither a method of {kind} nor MODULE:FUNCTION ({error})") from None


def generation_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The generation options that were given."""
    return {name: getattr(arguments, name) for name in GENERATION if getattr(arguments, name) is not None}


def add_data_options(parser: Parser, *, training: bool = False) -> None:
    """The data options of training, under the names of Hugging Face's translation example.

    With `training` those that choose the training split, else those that choose a split to test.
    """
    group = parser.add_argument_group("data (default: what the run was trained on)")
    parser.rename("--dataset", "--dataset_name")
    group.add_argument(
        "--dataset_name",
        help="`cldr`, `shapes`, `documents`, `hershey` or `pydoc`, a saved `datasets` folder, or a name on the Hub",
    )
    group.add_argument("--dataset_config_name", help="its configuration; for cldr a pair of locales such as en-fr")
    group.add_argument(
        f"--{'train' if training else 'test'}_file",
        help="TSV, CSV, JSONL or Parquet file, or two text files `a,b`; may be .gz",
    )
    group.add_argument("--file_format", metavar="NAME", help="as in training, of a lexicon: cmudict, ipa, ...")
    group.add_argument("--source_lang", help="language of the source sentences")
    group.add_argument("--target_lang", help="language of the target sentences")
    group.add_argument("--source_column", help="column of a table that holds the source")
    group.add_argument("--target_column", help="column of a table that holds the target")
    group.add_argument(
        "--header", type=true_or_false, metavar="BOOL", help="false: a table has no header, columns are numbers from 0"
    )
    limit = f"--max_{'train' if training else 'predict'}_samples"
    group.add_argument(limit, type=at_least(1), help="use only so many rows")
    group.add_argument("--data_seed", type=at_least(0, 2**32 - 1), help="seed of what a corpus draws")
    if not training:
        group.add_argument("--split", default="test", choices=("train", "validation", "test"), help="(default: test)")


def data_options(arguments: argparse.Namespace, *, training: bool = False) -> dict[str, Any]:
    """What `add_data_options` chose, for training or for testing, None where nothing was given; the split is apart."""
    names = ("dataset_name", "dataset_config_name", "source_lang", "target_lang", "source_column", "target_column")
    names += (
        "file_format",
        "header",
        "data_seed",
        *(("train_file", "max_train_samples") if training else ("test_file", "max_predict_samples")),
    )
    return {name: getattr(arguments, name) for name in names}


def sentence_parser(description: str | None, *, title: str) -> Parser:
    """The parser of a command that draws one sentence of one model."""
    parser = Parser(description)
    parser.add_argument("model", metavar="DIR", help="directory that training wrote, or user/name on the Hub")
    parser.add_argument("sentence", nargs="?", help="the source; or --text")
    parser.add_argument("--text", help="the source")
    parser.rename("--output", "--output_file")
    parser.add_argument("--output_file", required=True, help="picture to write: .png, .svg or .pdf")
    parser.add_argument("--title", help=title)
    add_generation_options(parser)
    add_model_options(parser)
    return parser


def parse_sentence(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """What a `sentence_parser` reads; an empty sentence is refused."""
    arguments = parser.parse_args(argv)
    if (arguments.sentence is None) == (arguments.text is None):
        parser.error("sentence: give one, as a word after the model or as --text")
    arguments.sentence = arguments.sentence if arguments.text is None else arguments.text
    if not arguments.sentence.strip():
        parser.error("sentence is empty; there is nothing to draw")
    return arguments


def systems_parser(description: str | None) -> Parser:
    """The parser of a script that looks at what several models make of one test set."""
    parser = Parser(description)
    parser.add_argument("models", nargs="+", metavar="DIR", help="directories that training wrote")
    parser.add_argument("--batch_size", type=at_least(1), default=64, help="sentences (default: 64)")
    parser.rename("--no_progress", "--disable_tqdm")
    parser.add_argument("--disable_tqdm", action="store_true", help="no progress bar")
    add_generation_options(parser)
    add_data_options(parser)
    add_model_options(parser)
    return parser


def parse_systems(parser: Parser, argv: Sequence[str] | None) -> argparse.Namespace:
    """What a parser with data options reads; a file beside another split than test is refused."""
    arguments = parser.parse_args(argv)
    if arguments.test_file and arguments.split != "test":
        parser.error(f"--test_file is the test split; it does not go with --split {arguments.split}")
    return arguments


def analysis_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `error_analysis.analyze_systems` takes beside the models and the data."""
    import torch

    where = {"split": arguments.split, "device": arguments.device, "dtype": arguments.dtype}
    how = {
        "batch_size": arguments.batch_size,
        "progress": not arguments.disable_tqdm,
        "workers": torch.get_num_threads(),
    }
    return where | how | generation_options(arguments)


class _OneLine(logging.Handler):
    """Our own warnings, as a script prints them."""

    def emit(self, record: logging.LogRecord) -> None:
        if os.environ.get("RANK", "0") == "0":  # every process reads the same and would say the same
            print(f"warning: {one_line(record.getMessage())}", file=sys.stderr)


def load_libraries() -> None:
    """Loads transformers with this package's models, and keeps standard error for what the user needs.

    That is our progress, warnings of one line, errors. A command calls this when it has read its options.
    """
    import huggingface_hub
    import transformers

    import hf_rnn_seq2seq

    hf_rnn_seq2seq.register()
    if sys.stderr is None or not sys.stderr.isatty():  # a bar in a file is one long line of carriage returns
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
        huggingface_hub.utils.disable_progress_bars()
    huggingface_hub.logging.set_verbosity_error()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    ours = logging.getLogger("hf_rnn_seq2seq")
    if not ours.handlers:
        ours.addHandler(_OneLine())
    warnings.showwarning = lambda message, *_, **__: print(f"warning: {one_line(message)}", file=sys.stderr)


TRACEBACK = "HF_RNN_SEQ2SEQ_TRACEBACK"


def run(main: Callable[[Sequence[str] | None], int | None]) -> NoReturn:
    """Run a script's `main`: the one place where scripts end.

    Bad input ends in `error: ...` and exit code 2, what nobody expected in one such line and 1, an interruption in 130.
    """
    with contextlib.suppress(ValueError):  # of a thread that is not the first
        # What is half-written is removed on the way out; training has a handler of its own.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that lacks a character is no reason to stop
    try:
        code = main(None) or 0
        if sys.stdout is not None:
            sys.stdout.flush()
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        code = 130
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        code = 141
    except Exception as error:
        if os.environ.get(TRACEBACK):
            traceback.print_exc()
        message, code = verdict(error)
        rank, processes = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
        process = "" if rank == "0" else f"process {rank} of {processes}: "
        print(f"error: {process}{message}", file=sys.stderr)
    if code:
        _drop_output()
    sys.exit(code)


def _drop_output() -> None:
    """What could not be written is not tried again when Python ends, which would say so in words of its own."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def verdict(error: BaseException) -> tuple[str, int]:
    """What to say of an exception that ends a script, in one line, and the exit code: 2 where its input is at fault."""
    cause: BaseException | None = error
    while cause is not None and not is_ours(cause):
        cause = cause.__cause__  # libraries wrap what a callback of ours raised
    if cause is not None:
        return one_line(cause), 2 if isinstance(cause, ValueError) else 1
    place = last_input()
    where = f" (last input: {place})" if place else ""
    if is_out_of_memory(error):
        detail = f" ({one_line(error, 200)})" if str(error) else ""
        return f"out of memory{where}{detail}; a smaller batch, or shorter sentences, need less", 1
    if isinstance(error, OSError):
        return f"{reason(error)}{where}", 2
    told = f"{type(error).__name__}: {one_line(error, 600)}" if str(error) else type(error).__name__
    return f"unexpected {told}{where}; {TRACEBACK}=1 shows where it came from", 1
