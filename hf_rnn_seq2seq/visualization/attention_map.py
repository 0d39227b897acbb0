"""Attention heat maps.

Matplotlib is imported when the first picture is drawn; no display is needed. The suffix of a file selects PNG, SVG or
PDF. Files are written atomically, and the same input gives the same bytes.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from unicodedata import east_asian_width

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.visualization.figure import INK, QUIET, check_output, new_figure, save_figure
from hf_rnn_seq2seq.visualization.fonts import choose_fonts
from hf_rnn_seq2seq.visualization.labels import is_right_to_left, printable_label, printable_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage
    from numpy import ndarray
    from torch import Tensor

MAX_WIDTH = 13.0  # inches of maps in one row
COLORS = ("#ffffff", "#d6e6f4", "#8fc1de", "#3787c0", "#0f4a8f", "#061f45")  # from 0 (white) to the largest weight


@dataclass(frozen=True)
class Panel:
    """One translation with its attention: `weights` is (heads, target, source), or (target, source)."""

    weights: "Tensor | ndarray"
    target_tokens: Sequence[str]
    title: str = ""


def attention_heatmap(
    weights: "Tensor | ndarray",
    source_tokens: Sequence[str],
    target_tokens: Sequence[str],
    *,
    output: str | os.PathLike[str] | None = None,
    ax: "Axes | None" = None,
    title: str = "",
    font_file: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Draws which source tokens each target token attends to (Bahdanau et al. 2014, figure 3).

    Args:
        weights: (target, source), or (heads, target, source) for one map per head; any array or tensor, values >= 0.
        source_tokens: labels of the columns, drawn from right to left if their script is.
        target_tokens: labels of the rows.
        output: file to write, .png, .svg or .pdf.
        ax: Matplotlib axes to draw (target, source) weights into, instead of a new figure.
        font_file: font to prefer over the installed ones.

    Returns:
        The Matplotlib figure. The image of each map holds exactly `weights`.

    Raises ArgumentError if shapes and labels disagree or a weight is negative or not finite; warns with
    MissingGlyphWarning about characters that no installed font has.
    """
    if ax is None:
        panel = Panel(weights, target_tokens, title)
        return attention_panels([panel], source_tokens, output=output, font_file=font_file)
    array = _as_array(weights, source_tokens, target_tokens)
    if len(array) != 1:
        raise ArgumentError(f"ax takes the weights of one head, (target, source); got {len(array)} heads")
    families = choose_fonts([*source_tokens, *target_tokens, title], font_file)
    labels = printable_labels(source_tokens), printable_labels(target_tokens)
    _draw(ax, array[0], *labels, families=families, title=_title(title), limit=_upper_limit([array]))
    return save_figure(ax.figure, output)


def attention_panels(
    panels: Sequence[Panel],
    source_tokens: Sequence[str],
    *,
    output: str | os.PathLike[str] | None = None,
    font_file: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Draws several translations of one source: a row for each, a column for each head, one color scale for all."""
    if not panels:
        raise ArgumentError("nothing to draw: no translation was given")
    check_output(output)
    arrays = [_as_array(panel.weights, source_tokens, panel.target_tokens) for panel in panels]
    heads = len(arrays[0])
    if any(len(array) != heads for array in arrays):
        raise ArgumentError(f"panels have different numbers of heads: {[len(array) for array in arrays]}")
    texts = [token for panel in panels for token in [*panel.target_tokens, panel.title]]
    families = choose_fonts([*source_tokens, *texts, "␣…·"], font_file)
    cell = cell_size(max(len(source_tokens), *(array.shape[1] for array in arrays)))
    source_labels = printable_labels(source_tokens)
    width = len(source_tokens) * cell
    # The heads of a panel share a line of the picture up to the width of a page, then continue in the next line.
    columns = min(heads, max(1, int(MAX_WIDTH / (width + 0.15))))
    lines = [(row, head) for row in range(len(panels)) for head in range(0, heads, columns)]  # panel, first head
    heights = [arrays[row].shape[1] * cell for row, _ in lines]
    figure, grid = _grid(heights, columns, width, gap=_label_height(source_labels, cell) + 0.5)
    limit = _upper_limit(arrays)
    for axes, (row, first_head) in zip(grid, lines, strict=True):
        target_labels = printable_labels(panels[row].target_tokens)
        for column, ax in enumerate(axes):
            head = first_head + column
            if head >= heads:
                ax.set_visible(False)
                continue
            name = f"head {head + 1}" if heads > 1 else ""
            title = "    ".join(filter(None, (_title(panels[row].title) if head == 0 else "", name)))
            row_labels = None if column else target_labels
            image = _draw(ax, arrays[row][head], source_labels, row_labels, families=families, title=title, limit=limit)
    _color_bar(grid[0][-1], image, width=width, height=heights[0])
    return save_figure(figure, output)


def _grid(heights: Sequence[float], columns: int, width: float, gap: float) -> tuple["Figure", "ndarray"]:
    """A figure and its axes (lines, columns): `heights` of the lines, `width` of a map and `gap` of lines in inches."""
    space, left, bottom = 0.15, 1.0, 0.5
    grid_width = columns * width + (columns - 1) * space
    grid_height = sum(heights) + (len(heights) - 1) * gap
    figure_width, figure_height = left + grid_width + 1.2, bottom + grid_height + gap
    figure = new_figure(figsize=(figure_width, figure_height))
    grid = figure.subplots(len(heights), columns, squeeze=False, gridspec_kw={"height_ratios": heights})
    figure.subplots_adjust(
        left=left / figure_width,
        right=(left + grid_width) / figure_width,
        bottom=bottom / figure_height,
        top=(bottom + grid_height) / figure_height,
        wspace=space / width,
        hspace=gap * len(heights) / sum(heights),
    )
    return figure, grid


def _label_height(labels: Sequence[str], cell: float) -> float:
    """Approximate height of the rotated source labels in inches; a wide letter counts twice."""
    letters = max(sum(2 if east_asian_width(letter) in "WF" else 1 for letter in label) for label in labels)
    return 0.15 + letters * 0.62 * _font_size(cell) / 72


def _title(text: str) -> str:
    return printable_label(text, longest=200) if text.strip() else ""


def cell_size(tokens: int) -> float:
    """Side of a cell in inches: comfortable for a short sentence, still readable for 80 tokens."""
    return min(0.42, max(0.17, 7.5 / tokens))


def _font_size(cell: float) -> float:
    return min(11.0, max(7.0, cell * 72 * 0.6))


def _as_array(weights: "Tensor | ndarray", source_tokens: Sequence[str], target_tokens: Sequence[str]) -> "ndarray":
    """Checks weights and returns them as a (heads, target, source) array of floats."""
    import numpy

    array = numpy.asarray(weights.detach().float().cpu() if hasattr(weights, "detach") else weights, dtype=float)
    if array.ndim == 2:
        array = array[None]
    expected = (len(target_tokens), len(source_tokens))
    if array.ndim != 3 or array.shape[1:] != expected or 0 in array.shape:
        raise ArgumentError(f"weights have shape {array.shape}; {expected[0]} target and {expected[1]} source tokens")
    if not numpy.isfinite(array).all() or (array < 0).any():
        raise ArgumentError("weights: must be finite and at least 0; some are negative, infinite or not a number")
    return array


def _upper_limit(arrays: Sequence["ndarray"]) -> float:
    """The value of the darkest color: the largest weight rounded up to 0.1, so that diffuse attention is visible."""
    largest = max(float(array.max()) for array in arrays)
    return min(max(-(-largest // 0.1) * 0.1, 0.2), max(largest, 1.0))


def _draw(
    ax: "Axes",
    array: "ndarray",
    source_labels: Sequence[str],
    target_labels: Sequence[str] | None,
    *,
    families: list[str],
    title: str,
    limit: float,
) -> "AxesImage":
    """Draws one map, with source labels above it and target labels (None: no labels) at its left."""
    from matplotlib.colors import LinearSegmentedColormap

    rows, columns = array.shape
    size = _font_size(cell_size(max(rows, columns)))
    colors = LinearSegmentedColormap.from_list("attention", COLORS)
    image = ax.imshow(array, cmap=colors, vmin=0, vmax=limit, interpolation="none", aspect="equal")
    text = {"fontfamily": families, "fontsize": size, "color": INK, "parse_math": False}
    ax.xaxis.tick_top()
    rotation = {"rotation": 50 if columns <= 28 else 90, "rotation_mode": "anchor", "ha": "left", "va": "center"}
    ax.set_xticks(range(columns), source_labels, **(rotation if max(map(len, source_labels)) > 2 else {}), **text)
    ax.set_yticks(range(rows), target_labels if target_labels is not None else [""] * rows, **text)
    if is_right_to_left(source_labels):
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


def _color_bar(ax: "Axes", image: "AxesImage", width: float, height: float) -> None:
    """Draws a thin color bar of fixed size at the right of a map of `width` by `height` inches."""
    from matplotlib.ticker import MaxNLocator

    length = min(height, 1.8)
    inset = ax.inset_axes((1 + 0.16 / width, 1 - length / height, 0.12 / width, length / height))
    bar = ax.figure.colorbar(image, cax=inset, ticks=MaxNLocator(5))
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=0, labelcolor=QUIET)
    bar.set_label("attention weight", fontsize=8, color=QUIET)
