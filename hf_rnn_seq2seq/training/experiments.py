"""Several systems on one corpus with one budget: the runs of a comparison, and their training."""

import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hf_rnn_seq2seq.errors import ArgumentError, one_line
from hf_rnn_seq2seq.files import content_hash
from hf_rnn_seq2seq.option_parser import named_files, read_recipe
from hf_rnn_seq2seq.run_directory import read_summary
from hf_rnn_seq2seq.training.arguments import RunOptions

# In the environment of a training run that another command starts and waits for: it ends when that command does.
OF_ANOTHER_COMMAND = "HF_RNN_SEQ2SEQ_OF_ANOTHER_COMMAND"


@dataclass(frozen=True)
class Run:
    """One training run: a system with one seed."""

    system: str
    seed: int
    options: dict[str, Any]
    folder: str  # name of its directory


def read_systems(names: Sequence[str], presets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of each system by its name, in order.

    A name is a preset, the file of a recipe (its stem names the system), or the file of an experiment:

        options: {hidden_size: 256}            # of all systems
        systems:
          additive: {preset: bahdanau2014}     # of one system

    Raises:
        ArgumentError: an unknown name, a file of another form, or one name for two systems.
    """
    systems: dict[str, dict[str, Any]] = {}
    for name in names:
        if name in presets:
            named = {name: {"preset": name}}
        elif not name.endswith((".yaml", ".yml")) and name not in named_files():
            raise ArgumentError(f"{name!r}: neither a preset ({', '.join(presets)}) nor a .yaml file")
        else:
            if "ladders" in Path(name).parts and not Path(name).exists():
                now = Path(*("experiments" if part == "ladders" else part for part in Path(name).parts))
                raise ArgumentError(f"{name!r}: the folder ladders is called experiments now; name {now}")
            content = read_recipe(name)
            named = _read_experiment(name, content) if "systems" in content else {Path(name).stem: content}
        for system, options in named.items():
            if system in systems:
                raise ArgumentError(f"{system!r}: two systems have this name; each row of the table needs its own")
            systems[system] = options
    return systems


def _read_experiment(file: str, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    common, systems = content.get("options") or {}, content["systems"]
    extra = sorted(set(content) - {"options", "systems"})
    if extra:
        raise ArgumentError(f"{file}: {extra[0]!r}: unknown key; allowed are options, systems")
    if not isinstance(common, dict) or not isinstance(systems, dict) or not systems:
        raise ArgumentError(f"{file}: options and systems must be mappings, systems of at least one name")
    for name, options in systems.items():
        if not isinstance(options, dict):
            raise ArgumentError(f"{file}: system {name!r} must be a mapping of options")
    return {str(name): {**common, **options} for name, options in systems.items()}


def plan_runs(systems: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> list[Run]:
    """Every system with every seed: all systems with the first seed, then all with the second, and so on."""
    if len(set(seeds)) < len(seeds):
        raise ArgumentError(f"seeds={','.join(map(str, seeds))}: each only once")
    folders = {name: re.sub(r"[^0-9A-Za-z._-]+", "-", name).strip("-.") or "system" for name in systems}
    if len(set(folders.values())) < len(folders):
        raise ArgumentError(f"systems {', '.join(systems)}: two of the names make the same directory")
    return [
        Run(name, seed, {**options, "seed": seed}, folders[name] + (f"-seed{seed}" if len(seeds) > 1 else ""))
        for seed in seeds
        for name, options in systems.items()
    ]


def prepare(runs: Sequence[Run], directory: Path, common: Sequence[str], *, scored: bool = True) -> None:
    """Checks every run and writes its recipe into DIRECTORY/logs, before the first run is trained.

    Args:
        common: words of the command line that every run gets.
        scored: the runs are scored on a test set, which each must have.

    Raises:
        ArgumentError: an option that is not allowed, or an earlier run with other options or other files.
    """
    check_options(runs, common, scored=scored)
    (directory / "logs").mkdir(parents=True, exist_ok=True)
    for run in runs:
        recipe = _recipe(run, directory)
        text = yaml.safe_dump(run.options, sort_keys=False, allow_unicode=True) + f"# {shlex.join(common)}\n"
        hashed = f"{text}# files {files_hash(run, common)}\n"
        if (directory / run.folder).exists() and recipe.is_file():
            _require_same_run(directory, run, text, hashed)
        recipe.write_text(hashed, encoding="utf-8")


def check_options(runs: Sequence[Run], common: Sequence[str], *, scored: bool) -> None:
    """Raises ArgumentError for a run that cannot be trained; arguments as for `prepare`. Writes nothing that stays."""
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        for run in runs:
            recipe.write_text(yaml.safe_dump(run.options, allow_unicode=True), encoding="utf-8")
            _check_options(run, [str(recipe), *common], scored)


def dry_run(runs: Sequence[Run], common: Sequence[str]) -> str:
    """Checks every run and describes its options, without writing anything that stays.

    Args:
        common: pairs of `--name` and value that every run gets; they win over its own.
    """
    check_options(runs, common, scored=True)
    given = {name.removeprefix("--"): value for name, value in zip(common[::2], common[1::2], strict=True)}
    options = {run.folder: {**run.options, **given} for run in runs}
    return "\n".join(f"{folder}: {', '.join(f'{k}={v}' for k, v in own.items())}" for folder, own in options.items())


def _recipe(run: Run, directory: Path) -> Path:
    return directory / "logs" / f"{run.folder}.yaml"


def _check_options(run: Run, words: Sequence[str], scored: bool) -> None:
    from hf_rnn_seq2seq.data.corpus import check_files, require_splits
    from hf_rnn_seq2seq.training.components import model_config

    try:
        options = RunOptions.parse(words)
        if scored and (task := options.data.task) != "translation":
            raise ArgumentError(f"task={task!r}: compare scores translations; evaluate takes several models of a task")
        model_config(options)
        splits = ("train", "test") if scored else ("train",)
        for name in (f"{split}_file" for split in splits):
            if options.data.dataset_name is None and getattr(options.data, name) is None:
                use = "trained and tested" if scored else "trained"
                raise ArgumentError(f"{name}=None: each system is {use}; give --{name}, or --dataset_name")
        check_files(options.data)
        require_splits(options.data, splits)
    except ValueError as error:
        raise ArgumentError(f"system {run.system!r}: {one_line(error)}") from None


def files_hash(run: Run, common: Sequence[str]) -> str:
    """Hash of the files, checkpoints and saved data sets that a run's options name.

    A finished run is kept only as long as they are what it was trained on.
    """
    words = [str(value) for value in run.options.values()] + [word.partition("=")[2] or word for word in common]
    files: list[Path] = []
    for name in dict.fromkeys(part for word in words for part in (word, *word.split(",")) if part):
        if os.path.isfile(name):
            files.append(Path(name))
        elif os.path.isdir(name):
            checkpoint = ("config.json", "tokenizer.json", "model.safetensors")
            files += [path for path in map(Path(name).joinpath, checkpoint) if path.is_file()]
            files += sorted(Path(name).glob("state.json")) + sorted(Path(name).glob("*/state.json"))
    return content_hash(files)


def _require_same_run(directory: Path, run: Run, text: str, hashed: str) -> None:
    """An existing run is kept or continued only with its own options and files."""
    recorded = _recipe(run, directory).read_text(encoding="utf-8")
    if recorded == hashed:
        return
    options, marker, _ = recorded.rpartition("# files ")
    if options == text:
        difference = "was trained on other files than those that the options name now"
    elif recorded == text and not marker:
        difference = f"does not say on which files it was trained ({_recipe(run, directory)})"
    else:
        difference = f"has other options ({_recipe(run, directory)})"
    raise ArgumentError(
        f"output_dir={str(directory)!r}: its run {run.folder} {difference}; give another directory, or the options and "
        "files it was started with"
    )


_running: set[subprocess.Popen[bytes]] = set()


def stop_running() -> None:
    """Asks the runs that `train` started to save their state and to end."""
    for child in [*_running]:
        child.send_signal(signal.SIGTERM)


def train(run: Run, directory: Path, common: Sequence[str]) -> bool:
    """Trains or resumes a run in a process of its own; returns whether it is finished."""
    folder, log = directory / run.folder, directory / "logs" / f"{run.folder}.log"
    # A run that was stopped has a summary too once it is evaluated, but without the reason of an end.
    if "stop_reason" in read_summary(folder):
        report(f"{run.folder}: finished earlier")
        return True
    program = [sys.executable, "-m", "hf_rnn_seq2seq.commands.train"]
    command = [*program, str(_recipe(run, directory)), *common, "--output_dir", str(folder)]
    command += ["--resume_from_checkpoint", "latest"]
    report(f"{run.folder}: training, output in {log}")
    start = time.monotonic()
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        environment = os.environ | {OF_ANOTHER_COMMAND: str(os.getpid())}
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        _running.add(child)
        try:
            code = child.wait()
        except (KeyboardInterrupt, SystemExit):
            stop_running()
            child.wait()
            raise
        finally:
            _running.discard(child)
    if code:
        report(f"{run.folder}: FAILED with exit code {code}: {_last_line(log)}")
        return False
    report(f"{run.folder}: done in {time.monotonic() - start:,.0f} s")
    return True


def report(message: str) -> None:
    """Prints a line with the time to standard error."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')}  {message}\n")  # at once: several runs report
    sys.stderr.flush()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")
