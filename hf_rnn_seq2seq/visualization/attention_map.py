"""Pictures: attention heat maps here, learning curves and score by length in `curves.py`, all offered under this name.

matplotlib loads with the first picture, and no display is needed. Files are PNG, SVG or PDF by their suffix, written
all at once, the same bytes for the same input.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import east_asian_width

from hf_rnn_seq2seq.errors import PlotError
from hf_rnn_seq2seq.visualization.figure import INK, QUIET, check_output, new_figure, save_figure
from hf_rnn_seq2seq.visualization.fonts import choose_fonts, is_right_to_left, printable_labels, warn_about
from hf_rnn_seq2seq.visualization.learning_curve import plot_learning_curve, plot_score_by_length, read_log

__all__ = [
    "Panel",
    "PlotError",
    "attention_heatmap",
    "attention_panels",
    "plot_learning_curve",
    "plot_score_by_length",
    "read_log",
    "save_figure",
]

WIDEST = 13.0  # inches of maps beside each other
SCALE = ("#ffffff", "#d6e6f4", "#8fc1de", "#3787c0", "#0f4a8f", "#061f45")  # white is no attention


@dataclass(frozen=True)
class Panel:
    """One translation with its attention: `weights` is (heads, target, source), or (target, source)."""

    weights: Any
    target_tokens: Sequence[str]
    title: str = ""


def attention_heatmap(
    weights: Any,
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    *,
    output: str | os.PathLike[str] | None = None,
    ax: Any = None,
    title: str = "",
    font_file: str | os.PathLike[str] | None = None,
) -> Any:
    """Draw which source tokens each target token attends to (Bahdanau et al. 2014, figure 3).

    Args:
        weights: (target, source), or (heads, target, source) for one map a head. Any array or CPU tensor, values >= 0.
        source_tokens: labels of the columns, drawn from right to left where the script is.
        target_tokens: labels of the rows.
        output: file to write, .png, .svg or .pdf.
        ax: matplotlib axes to draw (target, source) weights into, in place of a new figure.
        font_file: font to prefer over the installed ones.

    Returns:
        The matplotlib figure. Each map's image holds exactly `weights`.

    Raises PlotError when shapes and labels disagree or a weight is negative or not a number; warns with
    MissingGlyphWarning for characters that no installed font has.
    """
    if ax is None:
        panel = Panel(weights, target_tokens, title)
        return attention_panels([panel], source_tokens, output=output, font_file=font_file)
    array = _checked(weights, source_tokens, target_tokens)
    if len(array) != 1:
        raise PlotError(f"ax takes the weights of one head, (target, source); got {len(array)} heads")
    families, missing = choose_fonts([*source_tokens, *target_tokens, title], font_file)
    labels = printable_labels(source_tokens, missing), printable_labels(target_tokens, missing)
    _draw(ax, array[0], *labels, families=families, title=_title(title, missing), limit=_upper_limit([array]))
    warn_about(missing)
    if output is not None:
        save_figure(ax.figure, output)
    return ax.figure


def attention_panels(
    panels: Sequence[Panel],
    source_tokens: Sequence[str],
    *,
    output: str | os.PathLike[str] | None = None,
    font_file: str | os.PathLike[str] | None = None,
) -> Any:
    """Several translations of one source in one picture: a row for each, a column for each head, one colour scale."""
    if not panels:
        raise PlotError("nothing to draw: no translation was given")
    if output is not None:
        check_output(output)
    arrays = [_checked(panel.weights, source_tokens, panel.target_tokens) for panel in panels]
    heads = len(arrays[0])
    if any(len(array) != heads for array in arrays):
        raise PlotError(f"panels have different numbers of heads: {[len(array) for array in arrays]}")
    texts = [token for panel in panels for token in [*panel.target_tokens, panel.title]]
    families, missing = choose_fonts([*source_tokens, *texts, "␣…·"], font_file)
    cell = cell_size(max(len(source_tokens), *(array.shape[1] for array in arrays)))
    source_labels = printable_labels(source_tokens, missing)
    width = len(source_tokens) * cell
    # Heads stand side by side as long as the picture stays as wide as a page, and go on in the next line.
    columns = min(heads, max(1, int(WIDEST / (width + 0.15))))
    places = [(row, head) for row in range(len(panels)) for head in range(0, heads, columns)]  # the first of each line
    sizes = [arrays[row].shape[1] * cell for row, _ in places]
    figure, grid = _grid(sizes, columns, width, gap=_label_room(source_labels, cell) + 0.5)
    limit = _upper_limit(arrays)
    for line, (row, first) in enumerate(places):
        target_labels = printable_labels(panels[row].target_tokens, missing)
        for column, ax in enumerate(grid[line]):
            head = first + column
            if head >= heads:
                ax.set_visible(False)
                continue
            name = f"head {head + 1}" if heads > 1 else ""
            title = "    ".join(filter(None, (_title(panels[row].title, missing) if head == 0 else "", name)))
            shown = None if column else target_labels
            image = _draw(ax, arrays[row][head], source_labels, shown, families=families, title=title, limit=limit)
    _scale_bar(grid[0][-1], image, width=width, height=sizes[0])
    warn_about(missing)
    if output is not None:
        save_figure(figure, output)
    return figure


def _grid(sizes: Sequence[float], columns: int, width: float, gap: float) -> tuple[Any, Any]:
    """A figure and its axes, a line for each of `sizes` (heights, inches), `gap` inches between them."""
    beside, left = 0.15, 1.0
    whole = columns * width + (columns - 1) * beside
    high = sum(sizes) + (len(sizes) - 1) * gap
    figure = new_figure(figsize=(left + whole + 1.2, high + gap + 0.5))
    grid = figure.subplots(len(sizes), columns, squeeze=False, gridspec_kw={"height_ratios": sizes})
    across, down = figure.get_size_inches()
    figure.subplots_adjust(
        left=left / across, right=(left + whole) / across, bottom=0.5 / down, top=(0.5 + high) / down
    )
    figure.subplots_adjust(wspace=beside / width, hspace=gap * len(sizes) / sum(sizes))
    return figure, grid


def _label_room(labels: Sequence[str], cell: float) -> float:
    """Height of the turned source labels in inches, about; scripts with wide letters take two places for one."""
    places = max(sum(2 if east_asian_width(letter) in "WF" else 1 for letter in label) for label in labels)
    return 0.15 + places * 0.62 * min(11.0, max(7.0, cell * 72 * 0.6)) / 72


def _title(text: str, missing: set[str]) -> str:
    """A title as it is drawn: it may be a translation, with whatever characters a model says."""
    return printable_labels([text], missing, longest=200)[0] if text.strip() else ""


def cell_size(tokens: int) -> float:
    """Side of a cell in inches: comfortable for a short sentence, still readable for 80 tokens."""
    return min(0.42, max(0.17, 7.5 / tokens))


def _checked(weights: Any, source_tokens: Sequence[str], target_tokens: Sequence[str]) -> Any:
    """Weights as a (heads, target, source) array of floats."""
    import numpy

    array = numpy.asarray(weights.detach().float().cpu() if hasattr(weights, "detach") else weights, dtype=float)
    if array.ndim == 2:
        array = array[None]
    expected = (len(target_tokens), len(source_tokens))
    if array.ndim != 3 or array.shape[1:] != expected or 0 in array.shape:
        raise PlotError(f"weights have shape {array.shape}; {expected[0]} target and {expected[1]} source tokens")
    if not numpy.isfinite(array).all() or (array < 0).any():
        raise PlotError("weights must be numbers of at least 0; some are negative, infinite or not a number")
    return array


def _upper_limit(arrays: Sequence[Any]) -> float:
    """The darkest colour's value: the largest weight rounded up to a tenth, so that diffuse attention shows too."""
    largest = max(float(array.max()) for array in arrays)
    return min(max(-(-largest // 0.1) * 0.1, 0.2), max(largest, 1.0))


def _draw(
    ax: Any,
    array: Any,
    source_labels: Sequence[str],
    target_labels: Sequence[str] | None,
    *,
    families: list[str],
    title: str,
    limit: float,
) -> Any:
    """Draw one map, source labels above it, target labels (None: no labels) to its left."""
    from matplotlib.colors import LinearSegmentedColormap

    rows, columns = array.shape
    size = min(11.0, max(7.0, cell_size(max(rows, columns)) * 72 * 0.6))
    colours = LinearSegmentedColormap.from_list("attention", SCALE)
    image = ax.imshow(array, cmap=colours, vmin=0, vmax=limit, interpolation="none", aspect="equal")
    text = {"fontfamily": families, "fontsize": size, "color": INK, "parse_math": False}
    ax.xaxis.tick_top()
    upright = max(map(len, source_labels)) <= 2
    turn = {"rotation": 50 if columns <= 28 else 90, "rotation_mode": "anchor", "ha": "left", "va": "center"}
    right_to_left = is_right_to_left(source_labels)
    ax.set_xticks(range(columns), source_labels, **({} if upright else turn), **text)
    ax.set_yticks(range(rows), target_labels if target_labels is not None else [""] * rows, **text)
    if right_to_left:
        ax.invert_xaxis()
    ax.set_xticks([position - 0.5 for position in range(1, columns)], minor=True)
    ax.set_yticks([position - 0.5 for position in range(1, rows)], minor=True)
    ax.grid(which="minor", color="#e9edf1", linewidth=0.5)
    ax.tick_params(which="both", length=0, pad=3)
    ax.set_axisbelow(False)
    for spine in ax.spines.values():
        spine.set_color("#c3ccd5")
        spine.set_linewidth(0.6)
    if title:
        ax.set_xlabel(title, loc="left", labelpad=8, **(text | {"fontsize": max(size, 9.0), "color": QUIET}))
    return image


def _scale_bar(ax: Any, image: Any, width: float, height: float) -> None:
    """A thin colour scale of fixed size beside a map of `width` by `height` inches."""
    from matplotlib.ticker import MaxNLocator

    length = min(height, 1.8)
    beside = ax.inset_axes((1 + 0.16 / width, 1 - length / height, 0.12 / width, length / height))
    bar = ax.figure.colorbar(image, cax=beside, ticks=MaxNLocator(5))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0, labelcolor=QUIET)
    bar.set_label("attention weight", fontsize=8, color=QUIET)
