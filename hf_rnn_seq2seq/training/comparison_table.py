"""The results of a comparison: translations and scores of its runs, and their table."""

import math
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.evaluation import results
from hf_rnn_seq2seq.evaluation.test_set import default_metrics, read_test_set
from hf_rnn_seq2seq.option_parser import read_recipe
from hf_rnn_seq2seq.run_directory import RECIPE, load_checkpoint, read_summary, update_summary
from hf_rnn_seq2seq.training.experiments import Run, report

# Entries of summary.json -> columns of the table.
COLUMNS = {
    "bleu": "BLEU",
    "chrf": "chrF",
    "eval_perplexity": "perplexity, validation",
    "parameters": "parameters",
    "steps": "updates",
    "epochs": "epochs",
    "update_seconds": "seconds of updates",
    "target_tokens_per_second": "target tokens/s",
}
BUDGET = ("max_steps", "num_train_epochs", "max_train_seconds", "per_device_train_batch_size", "train_batch_tokens")


def evaluate(runs: Sequence[Run], directory: Path) -> list[results.System]:
    """Translations and scores of each run's best checkpoint on its test split; the scores go to its summary too."""
    options = {"workers": torch.get_num_threads(), "progress": False}
    systems: list[results.System] = []
    for run in runs:
        folder = str(directory / run.folder)
        test_set = read_test_set(folder, {})
        if systems and test_set.scored != systems[0].test_set.scored:
            raise ArgumentError(f"system {run.system!r}: its test split is not that of {systems[0].name!r}")
        model, tokenizer = load_checkpoint(folder)
        report(f"{run.folder}: translating {len(test_set.sources)} sentences")
        system = results.translate_test_set(run.folder, folder, test_set, model, tokenizer, **options)
        results.score_system(system, default_metrics(test_set))
        for note in (*test_set.notes(), *system.notes()):
            report(f"{run.folder}: {note}")
        update_summary(folder, results.summary_facts(system), forget=results.SCORES)
        systems.append(system)
    return systems


def collect(
    runs: Sequence[Run], finished: Sequence[Run], systems: Sequence[results.System], directory: Path, command: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The rows of the table, and what is needed to read it: corpus, budget, seeds, test set, machine, command."""
    summaries = {run.folder: read_summary(directory / run.folder) for run in finished}
    rows = table_rows({run.system: [summaries[r.folder] for r in finished if r.system == run.system] for run in runs})
    first = summaries[finished[0].folder]
    data, budget = first["data"], shared_budget([read_recipe(directory / run.folder / RECIPE) for run in finished])
    facts = {
        "corpus": f"{data.get('name') or 'local files'}, {data.get('source_lang')} to {data.get('target_lang')}, "
        f"{data['rows']['train']:,} training pairs",
        "budget of each run": ", ".join(f"{name} {value}" for name, value in budget.items()) or "not the same",
        "seeds": ", ".join(map(str, sorted({run.seed for run in runs}))),
        "test": f"{first['test_sentences']} sentences, beam {first['num_beams']}, {first['signature']}",
        **({"test lines": "; ".join(notes)} if (notes := results.notes(systems[0].test_set, systems)) else {}),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {first['threads']} threads, {first['device']}",
        "date": time.strftime("%Y-%m-%d"),
        "command": f"`{command}`",
    }
    return rows, facts


def shared_budget(recipes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The limits that all the recipes set alike."""
    first, *others = [{name: recipe.get(name) for name in BUDGET} for recipe in recipes]
    shared = {name for name in BUDGET if all(other[name] == first[name] for other in others)}
    return {name: value for name, value in first.items() if name in shared and value not in (None, -1)}


def table_rows(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each system: the mean over its runs, and `bleu_spread`, from the lowest to the highest BLEU.

    Args:
        results: system -> the summaries of its finished runs; empty if every run failed.
    """
    rows = []
    for system, runs in results.items():
        row: dict[str, Any] = {"system": system, "runs": len(runs)}
        for key in COLUMNS:
            values = [float(run[key]) for run in runs if isinstance(run.get(key), (int, float))]
            row[key] = statistics.fmean(values) if values and all(map(math.isfinite, values)) else None
        scores = [float(run["bleu"]) for run in runs if "bleu" in run]
        row["bleu_spread"] = [min(scores), max(scores)] if scores else None
        rows.append(row)
    return rows


def markdown(rows: Sequence[Mapping[str, Any]], facts: Mapping[str, Any]) -> str:
    """The table, with the facts as a list under it."""
    lines = ["| system | " + " | ".join(COLUMNS.values()) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
    for row in rows:
        cells = [_cell(key, row) for key in COLUMNS] if row["runs"] else ["failed", *[""] * (len(COLUMNS) - 1)]
        lines.append("| " + " | ".join([str(row["system"]).replace("|", "\\|"), *cells]) + " |")
    lines += ["", *(f"* {name}: {value}" for name, value in facts.items())]
    return "\n".join(lines) + "\n"


def _cell(key: str, row: Mapping[str, Any]) -> str:
    value = row[key]
    if value is None:
        return ""
    if key == "bleu" and row["runs"] > 1:
        low, high = row["bleu_spread"]
        return f"{value:.2f} ({low:.2f} to {high:.2f})"
    return (
        f"{value:,.0f}"
        if key in ("parameters", "steps", "target_tokens_per_second", "update_seconds")
        else f"{value:.2f}"
    )
