"""Line charts: learning curves from the logs of runs, and scores by source length."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.run_directory import LOG_FILE, refuse_ensemble
from hf_rnn_seq2seq.visualization.figure import (
    INK,
    QUIET,
    SERIES,
    check_output,
    legend,
    log_axis,
    new_figure,
    save_figure,
    style_axes,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from hf_rnn_seq2seq.evaluation.length_bins import LengthBin

# title, key of the thin line (training), key of the line with markers (evaluation), whether the axis is logarithmic
CHARTS = (
    ("loss", "loss", "eval_loss", False),
    ("bits a character", "bits_per_character", "eval_bits_per_character", False),
    ("perplexity", "perplexity", "eval_perplexity", True),
    ("BLEU, validation", None, "eval_bleu", False),
    ("chrF, validation", None, "eval_chrf", False),
    ("accuracy, validation", None, "eval_accuracy", False),
    ("learning rate", "learning_rate", None, False),
    ("target tokens per second", "target_tokens_per_second", None, False),
)
PathLike = str | os.PathLike[str]
Rows = list[dict[str, Any]]


def read_log(path: PathLike) -> Rows:
    """Rows of a `train_log.jsonl`, named by its path or its run directory, in the order of steps.

    A resumed run repeats steps: the values of a later row replace those of an earlier row with the same step. An
    unfinished last line of an interrupted run is ignored. Raises ArgumentError for other content, and CheckpointError
    for a directory of several runs.
    """
    refuse_ensemble(path)
    file = Path(path) / LOG_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise ArgumentError(f"{file}: no such log; expected a run directory or its {LOG_FILE}")
    rows: dict[int, dict[str, Any]] = {}
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            raise ArgumentError(f"{file}: line {number} is not a JSON object") from None
        if isinstance(row, dict) and isinstance(row.get("step"), int):  # other rows are events
            rows.setdefault(row["step"], {}).update(row)
    if not rows:
        raise ArgumentError(f"{file}: the log contains no step")
    return [rows[step] for step in sorted(rows)]


def _series(rows: Rows, key: str | None) -> tuple[list[int], list[float]]:
    """Steps and values of the rows in which `key` is a finite number."""
    points = [
        (int(row["step"]), float(row[key]))
        for row in rows
        if key is not None and isinstance(row.get(key), (int, float)) and math.isfinite(row[key])
    ]
    return [step for step, _ in points], [value for _, value in points]


def has_curve(log: PathLike) -> bool:
    """Whether a log has two values of some quantity, so that there is a line to draw."""
    rows = read_log(log)
    return any(len(_series(rows, key)[0]) > 1 for chart in CHARTS for key in chart[1:3])


def _named(logs: PathLike | Sequence[PathLike] | Mapping[str, PathLike]) -> dict[str, Rows]:
    """Rows of each log by the name of its line: that of the directory, or the whole path if two have the same name."""
    if isinstance(logs, Mapping):
        return {name: read_log(path) for name, path in logs.items()}
    paths = [Path(path) for path in ([logs] if isinstance(logs, (str, os.PathLike)) else logs)]
    folders = [path.parent if path.name == LOG_FILE else path for path in paths]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return {name: read_log(path) for name, path in zip(names, paths, strict=True)}


def plot_learning_curve(
    logs: PathLike | Sequence[PathLike] | Mapping[str, PathLike], output: PathLike | None = None, *, title: str = ""
) -> "Figure":
    """Draws the logs of one or several runs, a chart for each quantity that any of them has.

    Args:
        logs: run directories or `train_log.jsonl` files, one or several, or name -> path.
        output: file to write, .png, .svg or .pdf.

    Returns the Matplotlib figure. Raises ArgumentError if a log is missing or unreadable or contains nothing to draw.
    """
    check_output(output)
    runs = _named(logs)
    charts = [
        chart for chart in CHARTS if any(_series(rows, key)[0] for rows in runs.values() for key in chart[1:3] if key)
    ]
    if not charts:
        raise ArgumentError(f"the logs of {', '.join(runs)} contain no quantity to draw, such as loss or eval_bleu")
    columns = 1 if len(charts) == 1 else 2 if len(charts) <= 4 else 3
    height = -(-len(charts) // columns)
    figure = new_figure(figsize=(3.7 * columns, 2.6 * height + 0.3), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = list(figure.subplots(height, columns, squeeze=False).flat)
    for ax, chart in zip(axes, charts, strict=False):
        _draw_chart(ax, chart, runs)
    for ax in axes[len(charts) :]:
        ax.set_visible(False)
    if len(runs) > 1:
        legend(figure, list(runs))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, parse_math=False)
    return save_figure(figure, output)


def _draw_chart(
    ax: "Axes", chart: tuple[str, str | None, str | None, bool], runs: Mapping[str, list[dict[str, Any]]]
) -> None:
    title, training, evaluation, logarithmic = chart
    both = False
    for position, rows in enumerate(runs.values()):
        color = SERIES[position % len(SERIES)]
        steps, values = _series(rows, training)
        marked, scores = _series(rows, evaluation)
        both = both or bool(steps and marked)
        # The training line is faint if evaluation is drawn too.
        ax.plot(steps, values, color=color, linewidth=1.1 if marked else 1.5, alpha=0.45 if marked else 1.0)
        ax.plot(marked, scores, color=color, linewidth=1.5, marker="o", markersize=3.2)
        if marked and len(runs) == 1 and evaluation in ("eval_bleu", "eval_chrf"):
            best = max(range(len(scores)), key=scores.__getitem__)
            ax.annotate(
                f"{scores[best]:.1f}",
                (marked[best], scores[best]),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=color,
            )
            ax.margins(y=0.15)
    if logarithmic:
        log_axis(ax)
    elif training in ("target_tokens_per_second", "learning_rate"):
        from matplotlib.ticker import StrMethodFormatter

        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}" if training == "learning_rate" else "{x:,.0f}"))
    style_axes(ax, f"{title}   (thin: training, dots: validation)" if both else title)
    ax.set_xlabel("update", fontsize=8, color=QUIET, loc="right", labelpad=2)


def plot_score_by_length(systems: Mapping[str, Sequence["LengthBin"]], output: PathLike | None = None) -> "Figure":
    """Draws BLEU and length ratio by source length (Cho et al. 2014; Bahdanau et al. 2014, figure 2).

    Args:
        systems: name -> bins, as `score_by_length` returns them.
        output: file to write, .png, .svg or .pdf.

    Returns the Matplotlib figure. Bars, and the numbers above them, show the number of sentences in each bin.
    """
    if not systems or not all(systems.values()):
        raise ArgumentError("systems: each needs at least one length bin")
    check_output(output)
    figure = new_figure(figsize=(7.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    # The last bin has no upper bound; it is drawn as wide as the others.
    width = min((one.high - one.low + 1 for bins in systems.values() for one in bins), default=1)
    centers = {one.low: one.low + (width - 1) / 2 for bins in systems.values() for one in bins}
    _draw_counts(left, {centers[one.low]: one.sentences for bins in systems.values() for one in bins}, width)
    for position, bins in enumerate(systems.values()):
        style = {"color": SERIES[position % len(SERIES)], "marker": "o", "markersize": 3.5, "linewidth": 1.6}
        lengths = [centers[one.low] for one in bins]
        left.plot(lengths, [one.bleu for one in bins], **style)
        right.plot(lengths, [one.length_ratio for one in bins], **style)
    left.set_ylim(0, 1.15 * max(left.get_ylim()[1], 1e-6))
    right.set_xlim(left.get_xlim())
    right.axhline(1.0, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
    style_axes(left, "BLEU")
    style_axes(right, "length of the translation / of the reference")
    for ax in (left, right):
        ax.set_xlabel("source length, words (bars: sentences)", fontsize=8, color=QUIET, loc="right")
    legend(figure, list(systems))
    return save_figure(figure, output)


def _draw_counts(ax: "Axes", counts: Mapping[float, int], width: int) -> None:
    """Draws a bar for the sentences of each bin behind the lines, and its number above it."""
    shade = ax.twinx()
    shade.bar(list(counts), list(counts.values()), width=0.72 * width, color="#e9eef3")
    shade.set_ylim(0, 3.2 * max(counts.values()))
    shade.axis("off")
    ax.set_zorder(shade.get_zorder() + 1)
    ax.patch.set_visible(False)
    for center, sentences in counts.items():  # above the axes: lines may cross the bars
        where = {"xy": (center, 1), "xycoords": ("data", "axes fraction"), "ha": "center", "va": "top"}
        ax.annotate(f"{sentences:,}", **where, fontsize=7, color=QUIET)
