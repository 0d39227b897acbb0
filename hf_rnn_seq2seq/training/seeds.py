"""One recipe with several seeds: models that decode together, trained side by side on the cores there are."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.files import write_atomically
from hf_rnn_seq2seq.run_directory import CHECKPOINTS, ENSEMBLE, LOG_FILE, RECIPE, WEIGHTS
from hf_rnn_seq2seq.training.arguments import RunOptions
from hf_rnn_seq2seq.training.environment import usable_cores
from hf_rnn_seq2seq.training.experiments import Run, check_options, prepare, report, stop_running, train


def check_seeds(options: RunOptions) -> None:
    """Raises what `train_seeds` raises before it writes anything."""
    check_options(_runs(options), (), scored=False)


def _runs(options: RunOptions) -> list[Run]:
    """The runs of `num_seeds`, one for each seed from `seed` on."""
    training = options.training
    count = f"num_seeds={training.num_seeds}"
    if training.output_dir is None:
        raise ArgumentError(f"{count}: needs output_dir")
    if training.push_to_hub:
        raise ArgumentError(f"{count}: push_to_hub sends one model; send one afterwards")
    if (task := options.data.task) != "translation":
        raise ArgumentError(f"{count}: models that decode together translate; train one model with task={task!r}")
    for name in (WEIGHTS, RECIPE, LOG_FILE, CHECKPOINTS):
        if (Path(training.output_dir) / name).exists():
            raise ArgumentError(
                f"output_dir={training.output_dir!r}: already holds a run of one model ({name}); give another directory"
            )
    recipe = yaml.safe_load(options.recipe()) | {"num_seeds": 1, "cpu_threads": training.cpu_threads or 1}
    seeds = range(training.seed, training.seed + training.num_seeds)
    return [Run(f"seed {seed}", seed, recipe | {"seed": seed}, f"seed-{seed}") for seed in seeds]


def train_seeds(options: RunOptions) -> bool:
    """Trains `num_seeds` models in `output_dir`/seed-K, and names them in `output_dir`/ensemble.json.

    Beside it are the configuration and the tokenizer of the first, which `pipeline(model=output_dir)` reads before
    anything else. The first seed is `seed`. As many run at a time as the cores allow with `cpu_threads` (default: 1)
    each. The same command continues: finished runs are kept, stopped ones are resumed.

    Returns:
        whether all are finished.

    Raises:
        ArgumentError: no output_dir, an option that several runs cannot share, a run that cannot be trained, or an
            earlier run with other options.
    """
    runs = _runs(options)
    folder = Path(str(options.training.output_dir))
    prepare(runs, folder, (), scored=False)
    workers = max(1, usable_cores() // (options.training.cpu_threads or 1))
    with ThreadPoolExecutor(min(workers, len(runs))) as pool:
        try:
            finished = list(pool.map(lambda run: train(run, folder, ()), runs))
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            stop_running()
            raise
    if all(finished):
        first = folder / runs[0].folder
        for path in [first / "config.json", *first.glob("*token*.json")]:
            shutil.copy(path, folder)
        members = {"members": [run.folder for run in runs]}
        write_atomically(folder / ENSEMBLE, json.dumps(members) + "\n")
        report(
            f"{folder}: {len(runs)} models; pipeline(), translate.py, evaluate_bleu.py and distill.py take it as one"
        )
    return all(finished)
