"""Train several systems on one corpus with one budget, and compare them:

    python scripts/compare.py scripts/experiments/tatoeba.yaml --output_dir runs/ladder --train_file train.tsv \
        --validation_file dev.tsv --test_file test.tsv --source_lang fra --target_lang eng
    python scripts/compare.py seminar seminar_attention --output_dir runs/two --dataset_name cldr --source_lang en \
        --target_lang fr --max_steps 500

A system is a preset, a recipe, or each system of an experiment file (see hf_rnn_seq2seq/training/experiments.py).
Options of scripts/train.py after the names hold for every system. `--seeds 1,2,3` trains each system once for each
seed, and the table gives the mean and the spread.

Runs come one after the other, each by scripts/train.py in a process of its own, its output in DIR/logs. The same
command again continues: finished runs are kept, a stopped one is resumed. Every model then translates the test split.
`--dry_run` checks every system and prints the runs. DIR gets table.md, table.json, bleu_by_length.png (figure 2 of
Bahdanau 2014) and learning_curves.png. Exit codes: 0 done, 1 a run failed (the others are compared), 2 bad input.
"""

import inspect
import json
import os
import platform
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_rnn_seq2seq import RnnSeq2SeqConfig, command_line
from hf_rnn_seq2seq.data.arguments import DataArguments, TokenizerArguments
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.model.presets import PRESETS
from hf_rnn_seq2seq.options import expand_path, parse_arguments
from hf_rnn_seq2seq.training.arguments import GenerationArguments, TrainingOptions
from hf_rnn_seq2seq.training.experiments import Run, markdown, plan_runs, read_systems, table_rows

GROUPS = (DataArguments, TokenizerArguments, GenerationArguments, TrainingOptions)
OWN = ("output_dir", "seeds", "seed", "resume_from_checkpoint")


def read_command(argv: Sequence[str]) -> tuple[list[str], Path, list[int], list[str]]:
    """Names of systems, the directory, seeds, and the words that every run gets."""
    if not argv or "-h" in argv or "--help" in argv:
        print(__doc__.strip())
        raise SystemExit(0)
    names, own, common = [], {"seeds": "42"}, []
    words = list(argv)
    for word in words:
        if command_line.is_undecodable(word):
            raise ArgumentError(command_line.undecodable("word of the command line", word))
    while words and not words[0].startswith("--"):
        names.append(words.pop(0))
    while words:
        word = words.pop(0)
        name, equals, value = word[2:].partition("=")
        name = name.replace("-", "_")
        if name not in OWN:
            common.append(word)
            continue
        if name not in ("output_dir", "seeds"):
            raise ArgumentError(f"{name}: compare.py decides it for each run; seeds are given as --seeds 1,2,3")
        if not equals and not words:
            raise ArgumentError(f"{name}: needs a value")
        own[name] = value if equals else words.pop(0)
    if not names:
        raise ArgumentError("no system: name presets, recipes or an experiment file before the options")
    if "output_dir" not in own:
        raise ArgumentError("output_dir=None: must name the directory of the comparison")
    try:
        seeds = [int(seed) for seed in own["seeds"].split(",")]
    except ValueError:
        raise ArgumentError(f"seeds={own['seeds']!r}: must be whole numbers separated by commas") from None
    return names, Path(expand_path("output_dir", own["output_dir"])), seeds, common


def check(run: Run, recipe: Path, common: Sequence[str]) -> None:
    """A mistake in the last system must not wait until the first are trained."""
    fields = {name: kind for name, kind in inspect.get_annotations(RnnSeq2SeqConfig).items() if name != "use_cache"}
    words = [str(recipe), *common]
    try:
        *_, options = parse_arguments(words, GROUPS, {"preset": str, **fields})
        preset = options.pop("preset", None)
        if options.get("attention_type") == "location":
            options.setdefault("max_source_positions", 128)
        if preset:
            RnnSeq2SeqConfig.from_preset(preset, **options)
        else:
            RnnSeq2SeqConfig(**options)
    except ValueError as error:
        raise ArgumentError(f"system {run.system!r}: {command_line.one_line(error)}") from None


def files_hash(run: Run, common: Sequence[str]) -> str:
    """Hash of the files, checkpoints and saved data sets that a run's options name.

    A finished run is kept only while they are what it was trained on.
    """
    from hf_rnn_seq2seq.files import content_hash

    words = [str(value) for value in run.options.values()] + [word.partition("=")[2] or word for word in common]
    found: list[Path] = []
    for name in dict.fromkeys(part for word in words for part in (word, *word.split(",")) if part):
        if os.path.isfile(name):
            found.append(Path(name))
        elif os.path.isdir(name):
            whole = ("config.json", "tokenizer.json", "model.safetensors")
            found += [path for path in map(Path(name).joinpath, whole) if path.is_file()]
            found += sorted(Path(name).glob("state.json")) + sorted(Path(name).glob("*/state.json"))
    return content_hash(found)


def train(run: Run, directory: Path, common: Sequence[str]) -> bool:
    """Whether the run is finished, now or since an earlier call."""
    folder, log = directory / run.folder, directory / "logs" / f"{run.folder}.log"
    if (folder / "summary.json").is_file():
        say(f"{run.folder}: finished earlier")
        return True
    script = Path(__file__).with_name("train.py")
    command = [sys.executable, str(script), str(directory / "logs" / f"{run.folder}.yaml"), *common]
    command += ["--output_dir", str(folder)]
    if (folder / "checkpoints").is_dir():
        command += ["--resume_from_checkpoint", "latest"]
    say(f"{run.folder}: training, output in {log}")
    start = time.monotonic()
    with log.open("a", encoding="utf-8") as output:
        output.write(f"$ {shlex.join(command)}\n")
        output.flush()
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            code = child.wait()
        except KeyboardInterrupt:
            child.send_signal(signal.SIGTERM)  # it saves its state
            child.wait()
            raise
    if code:
        say(f"{run.folder}: FAILED with exit code {code}: {last_line(log)}")
        return False
    say(f"{run.folder}: done in {time.monotonic() - start:,.0f} s")
    return True


def refuse_other_run(directory: Path, run: Run, recipe: Path, text: str, whole: str) -> None:
    """A run that is there is kept or continued only with its own options, on its own files."""
    recorded = recipe.read_text(encoding="utf-8")
    if recorded == whole:
        return
    options, noted, _ = recorded.rpartition("# files ")
    if options == text:
        differs = "was trained on other files than those that the options name now"
    elif recorded == text and not noted:
        differs = f"does not say on which files it was trained ({recipe})"
    else:
        differs = f"has other options ({recipe})"
    raise ArgumentError(
        f"output_dir={str(directory)!r}: its run {run.folder} {differs}; give another directory, or the options and "
        "files it was started with"
    )


def say(message: str) -> None:
    print(f"{time.strftime('%H:%M:%S')}  {message}", file=sys.stderr, flush=True)


def last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


def evaluate(runs: Sequence[Run], directory: Path) -> list[Any]:
    """Translations and scores of each run's best checkpoint on its test split; the scores go to its summary too."""
    import torch

    from hf_rnn_seq2seq.evaluation import results as reporting
    from hf_rnn_seq2seq.evaluation.test_set import default_metrics, read_test_set
    from hf_rnn_seq2seq.run_directory import load_checkpoint, update_summary

    options = {"workers": torch.get_num_threads(), "progress": False}
    systems: list[Any] = []
    for run in runs:
        folder = str(directory / run.folder)
        test_set = read_test_set(folder, {})
        if systems and test_set.references != systems[0].test_set.references:
            raise ArgumentError(f"system {run.system!r}: its test split is not that of {systems[0].name!r}")
        model, tokenizer = load_checkpoint(folder)
        say(f"{run.folder}: translating {len(test_set.sources)} sentences")
        system = reporting.translate_test_set(run.folder, folder, test_set, model, tokenizer, **options)
        reporting.score_system(system, default_metrics(test_set))
        for note in (*test_set.notes(), *system.notes()):
            say(f"{run.folder}: {note}")
        update_summary(folder, reporting.summary_facts(system))
        systems.append(system)
    return systems


def write_results(runs: Sequence[Run], finished: Sequence[Run], systems: Sequence[Any], directory: Path) -> str:
    """The table and the two pictures; returns the table."""
    from hf_rnn_seq2seq.evaluation import results as reporting
    from hf_rnn_seq2seq.evaluation.length_bins import score_by_length
    from hf_rnn_seq2seq.files import write_atomically
    from hf_rnn_seq2seq.run_directory import read_summary
    from hf_rnn_seq2seq.visualization.learning_curve import plot_learning_curve, plot_score_by_length

    summaries = {run.folder: read_summary(directory / run.folder) for run in finished}
    results = {run.system: [summaries[r.folder] for r in finished if r.system == run.system] for run in runs}
    rows = table_rows(results)
    first = summaries[finished[0].folder]
    recipe = TrainingOptions(**{k: v for k, v in recipe_of(directory, finished[0]).items() if k in budget_names()})
    data = first["data"]
    budget = {name: getattr(recipe, name) for name in budget_names()}
    facts = {
        "corpus": f"{data.get('name') or 'local files'}, {data.get('source_lang')} to {data.get('target_lang')}, "
        f"{data['rows']['train']:,} training pairs",
        "budget of each run": ", ".join(f"{name} {value}" for name, value in budget.items() if value not in (None, -1)),
        "seeds": ", ".join(map(str, sorted({run.seed for run in runs}))),
        "test": f"{first['test_sentences']} sentences, beam {first['num_beams']}, {first['signature']}",
        **({"test lines": "; ".join(notes)} if (notes := reporting.notes(systems[0].test_set, systems)) else {}),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {first['threads']} threads, {first['device']}",
        "date": time.strftime("%Y-%m-%d"),
        "command": f"`{shlex.join(['python', 'scripts/compare.py', *sys.argv[1:]])}`",
    }
    table = markdown(rows, facts)
    bins: dict[str, Any] = {}
    for run, system in zip(finished, systems, strict=True):
        if run.seed == finished[0].seed:
            test_set = system.test_set
            bins[run.system] = score_by_length(test_set.sources, system.hypotheses, test_set.references)
    plot_score_by_length(bins, directory / "bleu_by_length.png")
    plot_learning_curve({run.folder: directory / run.folder for run in finished}, directory / "learning_curves.png")
    lengths = {name: [vars(one) for one in found] for name, found in bins.items()}
    content = {"rows": rows, "facts": facts, "bleu_by_length": lengths}
    write_atomically(directory / "table.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    write_atomically(directory / "table.md", table)
    return table


def budget_names() -> tuple[str, ...]:
    return ("max_steps", "num_train_epochs", "max_train_seconds", "per_device_train_batch_size", "train_batch_tokens")


def recipe_of(directory: Path, run: Run) -> dict[str, Any]:
    from hf_rnn_seq2seq.options import read_recipe

    return read_recipe(directory / run.folder / "recipe.yaml")


def main(argv: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if argv is None else argv)
    options = [word for word in words if word.replace("-", "_") != "__dry_run"]
    names, directory, seeds, common = read_command(options)
    runs = plan_runs(read_systems(names, list(PRESETS)), seeds)
    if options != words:
        return dry_run(runs, common)

    from hf_rnn_seq2seq.files import only_writer

    with only_writer(directory):
        return compare(runs, directory, common)


def dry_run(runs: Sequence[Run], common: Sequence[str]) -> int:
    """Checks every system, prints its options, and writes nothing that stays."""
    import yaml

    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "recipe.yaml"
        for run in runs:
            recipe.write_text(yaml.safe_dump(run.options, allow_unicode=True), encoding="utf-8")
            check(run, recipe, common)
    for run in runs:
        print(f"{run.folder}: {', '.join(f'{name}={value}' for name, value in run.options.items())}")
    return 0


def compare(runs: Sequence[Run], directory: Path, common: list[str]) -> int:
    """Trains what is not trained yet, evaluates all, and writes the tables."""
    import yaml

    (directory / "logs").mkdir(parents=True, exist_ok=True)
    for run in runs:
        recipe = directory / "logs" / f"{run.folder}.yaml"
        text = yaml.safe_dump(run.options, sort_keys=False, allow_unicode=True)
        text += f"# {shlex.join(common)}\n"
        whole = f"{text}# files {files_hash(run, common)}\n"
        if (directory / run.folder).exists() and recipe.is_file():
            refuse_other_run(directory, run, recipe, text, whole)
        recipe.write_text(whole, encoding="utf-8")
        check(run, recipe, common)
    command_line.quiet_libraries()
    finished = [run for run in runs if train(run, directory, common)]
    if not finished:
        raise ArgumentError(f"no run finished; see {directory / 'logs'}")
    systems = evaluate(finished, directory)
    print(write_results(runs, finished, systems, directory))
    return 0 if len(finished) == len(runs) else 1


if __name__ == "__main__":
    command_line.run(main)
