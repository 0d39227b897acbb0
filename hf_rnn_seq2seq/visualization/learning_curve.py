"""Line charts: how runs learn, from their logs, and how systems score by source length."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hf_rnn_seq2seq.errors import PlotError
from hf_rnn_seq2seq.visualization.figure import (
    INK,
    QUIET,
    SERIES,
    check_output,
    dress,
    log_axis,
    new_figure,
    save_figure,
)
from hf_rnn_seq2seq.visualization.fonts import choose_fonts, printable_labels, warn_about

LOG_FILE = "train_log.jsonl"
# title, what is drawn as a thin line (training), what is drawn with markers (evaluation), logarithmic axis
CHARTS = (
    ("loss", "loss", "eval_loss", False),
    ("perplexity", "perplexity", "eval_perplexity", True),
    ("BLEU, validation", None, "eval_bleu", False),
    ("chrF, validation", None, "eval_chrf", False),
    ("learning rate", "learning_rate", None, False),
    ("target tokens per second", "target_tokens_per_second", None, False),
)
Path_ = str | os.PathLike[str]


def read_log(path: Path_) -> list[dict[str, Any]]:
    """Rows of a run's log, a `train_log.jsonl` or the run directory that holds one, in the order of steps.

    What a later row says of a step replaces what an earlier one said: a resumed run repeats steps. An unfinished last
    line, left by a run that was stopped, is ignored. Raises PlotError for other content.
    """
    file = Path(path) / LOG_FILE if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise PlotError(f"{file}: no such log; expected a run directory or its {LOG_FILE}")
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
            raise PlotError(f"{file}: line {number} is not a JSON object") from None
        if isinstance(row, dict) and isinstance(row.get("step"), int):  # other rows tell of events, not of steps
            rows.setdefault(row["step"], {}).update(row)
    if not rows:
        raise PlotError(f"{file}: the log holds no step")
    return [rows[step] for step in sorted(rows)]


def _series(rows: Sequence[Mapping[str, Any]], key: str | None) -> tuple[list[int], list[float]]:
    """Steps and values where the value is a finite number."""
    points = [
        (int(row["step"]), float(row[key]))
        for row in rows
        if key is not None and isinstance(row.get(key), (int, float)) and math.isfinite(row[key])
    ]
    return [step for step, _ in points], [value for _, value in points]


def _named(logs: Path_ | Sequence[Path_] | Mapping[str, Path_]) -> dict[str, list[dict[str, Any]]]:
    """Rows of every log by the name its line gets; directories that share a name keep their parents'."""
    if isinstance(logs, Mapping):
        return {name: read_log(path) for name, path in logs.items()}
    paths = [Path(path) for path in ([logs] if isinstance(logs, (str, os.PathLike)) else logs)]
    folders = [path.parent if path.name == LOG_FILE else path for path in paths]
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [str(folder) for folder in folders]
    return {name: read_log(path) for name, path in zip(names, paths, strict=True)}


def plot_learning_curve(
    logs: Path_ | Sequence[Path_] | Mapping[str, Path_], output: Path_ | None = None, *, title: str = ""
) -> Any:
    """Draw what one or several runs logged, a chart for each quantity that any of them has.

    Args:
        logs: run directories or `train_log.jsonl` files, one or several, or name -> path.
        output: file to write, .png, .svg or .pdf.

    Returns the matplotlib figure. Raises PlotError when a log is missing, unreadable or holds nothing to draw.
    """
    if output is not None:
        check_output(output)
    runs = _named(logs)
    charts = [
        chart for chart in CHARTS if any(_series(rows, key)[0] for rows in runs.values() for key in chart[1:3] if key)
    ]
    if not charts:
        raise PlotError(f"the logs of {', '.join(runs)} hold no quantity to draw, such as loss or eval_bleu")
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
        _legend(figure, list(runs))
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK, parse_math=False)
    if output is not None:
        save_figure(figure, output)
    return figure


def _draw_chart(ax: Any, chart: tuple[str, str | None, str | None, bool], runs: Mapping[str, list[Any]]) -> None:
    title, training, evaluation, logarithmic = chart
    both = False
    for position, rows in enumerate(runs.values()):
        colour = SERIES[position % len(SERIES)]
        steps, values = _series(rows, training)
        marked, scores = _series(rows, evaluation)
        both = both or bool(steps and marked)
        # Training is the quiet line where evaluation is drawn too.
        ax.plot(steps, values, color=colour, linewidth=1.1 if marked else 1.5, alpha=0.45 if marked else 1.0)
        ax.plot(marked, scores, color=colour, linewidth=1.5, marker="o", markersize=3.2)
        if marked and len(runs) == 1 and evaluation in ("eval_bleu", "eval_chrf"):
            best = max(range(len(scores)), key=scores.__getitem__)
            ax.annotate(
                f"{scores[best]:.1f}",
                (marked[best], scores[best]),
                xytext=(0, 5),
                textcoords="offset points",
                ha="center",
                fontsize=8,
                color=colour,
            )
            ax.margins(y=0.15)
    if logarithmic:
        log_axis(ax)
    elif training in ("target_tokens_per_second", "learning_rate"):
        from matplotlib.ticker import StrMethodFormatter

        ax.set_ylim(bottom=0)
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}" if training == "learning_rate" else "{x:,.0f}"))
    dress(ax, f"{title}   (thin: training, dots: validation)" if both else title)
    ax.set_xlabel("update", fontsize=8, color=QUIET, loc="right", labelpad=2)


def _legend(figure: Any, names: Sequence[str]) -> None:
    """Names of the lines under the charts."""
    from matplotlib.lines import Line2D

    families, missing = choose_fonts(names)
    warn_about(missing)
    lines = [Line2D([], [], color=SERIES[position % len(SERIES)], linewidth=2) for position in range(len(names))]
    legend = figure.legend(
        lines,
        [name.replace("$", r"\$") for name in printable_labels(names, missing, longest=60)],
        loc="outside lower left",
        ncols=min(len(names), 4),
        frameon=False,
        labelcolor=INK,
        prop={"family": families, "size": 9},
    )
    legend.set_in_layout(True)


def plot_score_by_length(systems: Mapping[str, Sequence[Any]], output: Path_ | None = None, *, title: str = "") -> Any:
    """BLEU and length ratio by source length, a line for each system (Cho et al. 2014; Bahdanau et al. 2014, figure 2).

    Args:
        systems: name -> bins as `comparison.score_by_length` returns them.
        output: file to write, .png, .svg or .pdf.

    Returns the matplotlib figure. Bars, and the numbers over them, say how many sentences a point stands for.
    """
    if not systems or not all(systems.values()):
        raise PlotError("nothing to draw: every system needs at least one length bin")
    if output is not None:
        check_output(output)
    figure = new_figure(figsize=(7.4, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    # The last bin has no end: it is drawn as wide as the others.
    width = min((one.high - one.low + 1 for bins in systems.values() for one in bins), default=1)
    middle = lambda one: one.low + (width - 1) / 2  # noqa: E731
    counts = {middle(one): one.sentences for bins in systems.values() for one in bins}
    shade = left.twinx()
    shade.bar(list(counts), list(counts.values()), width=0.72 * width, color="#e9eef3")
    shade.set_ylim(0, 3.2 * max(counts.values()))
    shade.axis("off")
    left.set_zorder(shade.get_zorder() + 1)
    left.patch.set_visible(False)
    for place, sentences in counts.items():  # above the lines, which may run through any bar
        where = {"xy": (place, 1), "xycoords": ("data", "axes fraction"), "ha": "center", "va": "top"}
        left.annotate(f"{sentences:,}", **where, fontsize=7, color=QUIET)
    for position, bins in enumerate(systems.values()):
        style = {"color": SERIES[position % len(SERIES)], "marker": "o", "markersize": 3.5, "linewidth": 1.6}
        lengths = [middle(one) for one in bins]
        left.plot(lengths, [one.bleu for one in bins], **style)
        right.plot(lengths, [one.length_ratio for one in bins], **style)
    left.set_ylim(0, 1.15 * max(left.get_ylim()[1], 1e-6))
    right.set_xlim(left.get_xlim())
    right.axhline(1.0, color=QUIET, linewidth=0.8, linestyle=(0, (4, 3)))
    dress(left, title or "BLEU")
    dress(right, "length of the translation / of the reference")
    for ax in (left, right):
        ax.set_xlabel("source length, words (bars: sentences)", fontsize=8, color=QUIET, loc="right")
    _legend(figure, list(systems))
    if output is not None:
        save_figure(figure, output)
    return figure
