"""Trains several systems on one corpus with one budget, and compares them.

    python scripts/compare.py scripts/experiments/tatoeba.yaml --output_dir runs/ladder --train_file train.tsv \\
        --validation_file dev.tsv --test_file test.tsv --source_lang fra --target_lang eng
    python scripts/compare.py scripts/experiments/fixed_vector.yaml --output_dir runs/two --seeds 1,2,3

A system is a preset, a recipe, or one of the systems of an experiment file (hf_rnn_seq2seq/training/experiments.py).
The other options are those of scripts/train.py and apply to every system.

Runs are trained one after the other, each by scripts/train.py in a process of its own, with its output in DIR/logs. The
same command again continues: finished runs are kept, a stopped one is resumed. Then every model translates the test
split. DIR gets table.md, table.json, bleu_by_length.png (figure 2 of Bahdanau 2014) and learning_curves.png.

Exit codes: 0 done, 1 a run failed (the others are compared), 2 bad input.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hf_rnn_seq2seq import command_line
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.model.presets import PRESETS
from hf_rnn_seq2seq.option_parser import read_words
from hf_rnn_seq2seq.options import OptionGroup, option
from hf_rnn_seq2seq.training.arguments import GROUPS
from hf_rnn_seq2seq.training.experiments import Run, dry_run, plan_runs, prepare, read_systems, train
from hf_rnn_seq2seq.training.model_fields import model_fields

DECIDED_HERE = dict.fromkeys(
    ("seed", "num_seeds", "resume_from_checkpoint"),
    "compare.py decides it for each run; seeds are given as --seeds 1,2,3",
)


@dataclass
class Comparison(OptionGroup):
    """The comparison."""

    output_dir: str | None = option(None, "the folder of the comparison; one run directory for each system", path=True)
    seeds: list[int] = option([42], "train each system with each seed; the table has mean and spread", at_least=0)
    dry_run: bool = option(False, "check every system and print the runs, write nothing")

    def validate(self) -> None:
        if self.output_dir is None:
            raise ArgumentError("output_dir=None: must name the directory of the comparison")


def read_command(argv: Sequence[str]) -> tuple[list[str], Comparison, list[str]]:
    """Names of systems, the options of the comparison, and the words for every run."""
    groups = (Comparison, *GROUPS)
    given, names = read_words(
        argv, groups, model_fields(), description=__doc__ or "", positional="SYSTEM ...", reserved=DECIDED_HERE
    )
    if not names:
        raise ArgumentError("no system: name presets, recipes or an experiment file")
    own = {name: given.pop(name) for name in Comparison.__dataclass_fields__ if name in given}
    return names, Comparison(**own), [word for name, value in given.items() for word in (f"--{name}", value)]


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    names, options, common = read_command(words)
    runs = plan_runs(read_systems(names, list(PRESETS)), options.seeds)
    if options.dry_run:
        print(dry_run(runs, common))
        return 0

    from hf_rnn_seq2seq.files import only_writer

    directory = Path(options.output_dir)
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
            bins[run.system] = score_by_length(test_set.sources, system.hypotheses, test_set.scored)
    plot_score_by_length(bins, directory / "bleu_by_length.png")
    plot_learning_curve({run.folder: directory / run.folder for run in finished}, directory / "learning_curves.png")
    lengths = {name: [vars(one) for one in scores] for name, scores in bins.items()}
    content = {"rows": rows, "facts": facts, "bleu_by_length": lengths}
    write_atomically(directory / "table.json", json.dumps(content, indent=2, ensure_ascii=False) + "\n")
    table = markdown(rows, facts)
    write_atomically(directory / "table.md", table)
    return table
