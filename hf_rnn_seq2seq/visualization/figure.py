"""What every picture uses: colors, axes, the legend, the check of an output path, and an atomic writer."""

import functools
import io
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.files import check_output_file, write_atomically
from hf_rnn_seq2seq.visualization.fonts import choose_fonts
from hf_rnn_seq2seq.visualization.labels import printable_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
DPI = 160
INK, QUIET, FAINT = "#1b2733", "#7a8794", "#e4e9ee"
# Distinguishable with the common color deficiencies and in print (after Okabe and Ito, darkened for thin lines).
SERIES = ("#0f4a8f", "#d1600a", "#15806b", "#9c3f86", "#b8860b", "#4aa3d8", "#555f69")


def check_output(output: str | os.PathLike[str] | None, option: str = "output") -> None:
    """Raises ArgumentError if a picture, unless it is None, has an unknown suffix or cannot be written there.

    `option` is what named it.
    """
    if output is None:
        return
    if Path(output).suffix.lower() not in SUFFIXES:
        raise ArgumentError(f"{option}={str(output)!r}: the suffix must be one of {', '.join(SUFFIXES)}")
    check_output_file(output, option)


def new_figure(**options: Any) -> "Figure":
    """An empty Matplotlib figure; a notebook displays it without pyplot."""
    return _figure_class()(**options, dpi=DPI)


@functools.cache
def _figure_class() -> type:
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A figure with the method that a notebook calls to display a value; without pyplot a Figure has none."""

        def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
            content = _rendered(self, "png")
            width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))  # PNG, IHDR
            return content, {"width": width * 100 // DPI, "height": height * 100 // DPI}  # sharp on a dense display

    return Picture


def save_figure(figure: "Figure", output: str | os.PathLike[str] | None) -> "Figure":
    """Writes a figure as PNG, SVG or PDF, atomically, if a file is named; the same picture gives the same bytes."""
    check_output(output)
    if output is not None:
        write_atomically(output, _rendered(figure, Path(output).suffix.lower()[1:]))
    return figure


def _rendered(figure: "Figure", kind: str) -> bytes:
    import matplotlib

    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}[kind]
    # Matplotlib's layout has measured everything once; cutting the margins would measure it again.
    margins = {} if figure.get_layout_engine() else {"bbox_inches": "tight", "pad_inches": 0.12}
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "hf_rnn_seq2seq"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # reported by `choose_fonts`, once
        figure.savefig(buffer, format=kind, dpi=DPI, metadata=metadata, **margins)
    return buffer.getvalue()


def style_axes(ax: "Axes", title: str) -> None:
    """Styles a line chart: title at the left, light horizontal rules, no frame."""
    ax.set_title(title, loc="left", fontsize=10, color=INK, pad=8)
    ax.grid(axis="y", color=FAINT, linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("#c3ccd5")
    ax.tick_params(which="both", length=0, labelsize=8, labelcolor=QUIET)


def log_axis(ax: "Axes") -> None:
    """Makes the y axis logarithmic, with powers of ten only if it spans more than four of them."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high / low < 1e4:
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())


def legend(figure: "Figure", names: Sequence[str]) -> None:
    """Adds the names of the lines below the charts."""
    from matplotlib.lines import Line2D

    lines = [Line2D([], [], color=SERIES[position % len(SERIES)], linewidth=2) for position in range(len(names))]
    drawn = figure.legend(
        lines,
        [printable_label(name, longest=60).replace("$", r"\$") for name in names],
        loc="outside lower left",
        ncols=min(len(names), 4),
        frameon=False,
        labelcolor=INK,
        prop={"family": choose_fonts(names), "size": 9},
    )
    drawn.set_in_layout(True)
