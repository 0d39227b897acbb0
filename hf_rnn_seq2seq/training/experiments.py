"""Several systems on one corpus with one budget: which runs there are, and the table of what became of them."""

import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.options import read_recipe

# Of a run's summary.json, as the table shows it.
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


@dataclass(frozen=True)
class Run:
    """One training run: a system with one seed."""

    system: str
    seed: int
    options: dict[str, Any]
    folder: str  # name of its directory


def read_systems(names: Sequence[str], presets: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The options of each system by its name, in order.

    A name is that of a preset, or the file of a recipe (named by its stem), or a file of a ladder:

        options: {hidden_size: 256}            # of all its systems
        systems:
          additive: {preset: bahdanau2014}     # each system's own

    Raises:
        ArgumentError: nothing of that name, a file of another form, or one name for two systems.
    """
    systems: dict[str, dict[str, Any]] = {}
    for name in names:
        if name in presets:
            found = {name: {"preset": name}}
        elif not name.endswith((".yaml", ".yml")):
            raise ArgumentError(f"{name!r}: neither a preset ({', '.join(presets)}) nor a .yaml file")
        else:
            content = read_recipe(name)
            found = _ladder(name, content) if "systems" in content else {Path(name).stem: content}
        for system, options in found.items():
            if system in systems:
                raise ArgumentError(f"{system!r}: two systems have this name; it is their row in the table")
            systems[system] = options
    return systems


def _ladder(file: str, content: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    common, systems = content.get("options") or {}, content["systems"]
    extra = sorted(set(content) - {"options", "systems"})
    if extra:
        raise ArgumentError(f"{file}: {extra[0]!r} stands beside systems; only options and systems may")
    if not isinstance(common, dict) or not isinstance(systems, dict) or not systems:
        raise ArgumentError(f"{file}: options and systems must be mappings, systems of at least one name")
    for name, options in systems.items():
        if not isinstance(options, dict):
            raise ArgumentError(f"{file}: system {name!r} must be a mapping of options")
    return {str(name): {**common, **options} for name, options in systems.items()}


def plan_runs(systems: Mapping[str, Mapping[str, Any]], seeds: Sequence[int]) -> list[Run]:
    """Every system with every seed; a second seed comes after every system has had the first."""
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


def table_rows(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """A row for each system: the mean over its runs, and `bleu_spread`, from the lowest to the highest BLEU.

    Args:
        results: system -> the facts of its finished runs; none where every run failed.
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
    """The table and, under it, what it takes to read it: budget, machine, signatures, command."""
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
