"""Train several systems on one corpus with one budget, and compare them:

    python scripts/compare.py scripts/experiments/tatoeba.yaml --output_dir runs/ladder --train_file train.tsv \
        --validation_file dev.tsv --test_file test.tsv --source_lang fra --target_lang eng
    python scripts/compare.py scripts/experiments/fixed_vector.yaml --output_dir runs/two --seeds 1,2,3

A system is a preset, a recipe, or one of the systems of an experiment file (hf_rnn_seq2seq/training/experiments.py).
Options of scripts/train.py after the names apply to every system. `--seeds 1,2,3` trains each system with each seed,
and the table has the mean and the spread.

Runs are trained one after the other, each by scripts/train.py in a process of its own, with its output in DIR/logs. The
same command again continues: finished runs are kept, a stopped one is resumed. Then every model translates the test
split. DIR gets table.md, table.json, bleu_by_length.png (figure 2 of Bahdanau 2014) and learning_curves.png.
`--dry_run` checks every system and prints the runs.

Exit codes: 0 done, 1 a run failed (the others are compared), 2 bad input.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.model.presets import PRESETS
from hf_rnn_seq2seq.options import expand_path, version
from hf_rnn_seq2seq.training.experiments import Run, dry_run, plan_runs, prepare, read_systems, train

DECIDED_HERE = ("output_dir", "seeds", "seed", "resume_from_checkpoint")


def read_command(argv: Sequence[str]) -> tuple[list[str], Path, list[int], list[str]]:
    """Names of systems, the directory, seeds, and the words for every run."""
    if not argv or "-h" in argv or "--help" in argv:
        print(__doc__.strip())
        raise SystemExit(0)
    if "--version" in argv:
        print(f"hf_rnn_seq2seq {version()}")
        raise SystemExit(0)
    names, given, common = [], {"seeds": "42"}, []
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
        if name not in DECIDED_HERE:
            common.append(word)
            continue
        if name not in ("output_dir", "seeds"):
            raise ArgumentError(f"{name}: compare.py decides it for each run; seeds are given as --seeds 1,2,3")
        if not equals and not words:
            raise ArgumentError(f"{name}: needs a value")
        given[name] = value if equals else words.pop(0)
    if not names:
        raise ArgumentError("no system: name presets, recipes or an experiment file before the options")
    if "output_dir" not in given:
        raise ArgumentError("output_dir=None: must name the directory of the comparison")
    try:
        seeds = [int(seed) for seed in given["seeds"].split(",")]
    except ValueError:
        raise ArgumentError(f"seeds={given['seeds']!r}: must be whole numbers separated by commas") from None
    return names, Path(expand_path("output_dir", given["output_dir"])), seeds, common


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    options = [word for word in words if word.replace("-", "_") != "__dry_run"]
    names, directory, seeds, common = read_command(options)
    runs = plan_runs(read_systems(names, list(PRESETS)), seeds)
    if len(options) < len(words):
        print(dry_run(runs, common))
        return 0

    from hf_rnn_seq2seq.files import only_writer

    with only_writer(directory):
        prepare(runs, directory, common)
        command_line.load_libraries()
        finished = [run for run in runs if train(run, directory, common)]
        if not finished:
            raise ArgumentError(f"no run finished; see {directory / 'logs'}")
        command = shlex.join(["python", "scripts/compare.py", *words])
        print(write_results(runs, finished, directory, command))
    return 0 if len(finished) == len(runs) else 1


def write_results(runs: Sequence[Run], finished: Sequence[Run], directory: Path, command: str) -> str:
    """Evaluates the finished runs, and writes the tables and the two pictures; returns the table."""
    from hf_rnn_seq2seq.evaluation.length_bins import score_by_length
    from hf_rnn_seq2seq.files import write_atomically
    from hf_rnn_seq2seq.training.comparison_table import collect, evaluate, markdown
    from hf_rnn_seq2seq.visualization.learning_curve import plot_learning_curve, plot_score_by_length

    systems = evaluate(finished, directory)
    rows, facts = collect(runs, finished, systems, directory, command)
    bins = {}
    for run, system in zip(finished, systems, strict=True):
        if run.seed == finished[0].seed:
            test_set = system.test_set
            bins[run.system] = score_by_length(test_set.sources, system.hypotheses, test_set.references)
    plot_score_by_length(bins, directory / "bleu_by_length.png")
    plot_learning_curve({run.folder: directory / run.folder for run in finished}, directory / "learning_curves.png")
    lengths = {name: [vars(one) for one in scores] for name, scores in bins.items()}
    content = {"rows": rows, "facts": facts, "bleu_by_length": lengths}
    write_atomically(directory / "table.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    table = markdown(rows, facts)
    write_atomically(directory / "table.md", table)
    return table
