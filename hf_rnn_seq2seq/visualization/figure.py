"""What every picture shares: ink, the check of an output path, and a writer that leaves nothing half-written."""

import functools
import io
import os
from pathlib import Path
from typing import Any

from hf_rnn_seq2seq.errors import PlotError
from hf_rnn_seq2seq.files import write_atomically

SUFFIXES = (".png", ".svg", ".pdf")
DPI = 160
INK, QUIET, FAINT = "#1b2733", "#7a8794", "#e4e9ee"
# Told apart under the common colour deficiencies and in print (after Okabe and Ito, darkened for thin lines).
SERIES = ("#0f4a8f", "#d1600a", "#15806b", "#9c3f86", "#b8860b", "#4aa3d8", "#555f69")


def check_output(output: str | os.PathLike[str]) -> Path:
    """The path of a picture; raises PlotError for a suffix that is not drawn or a folder that does not exist."""
    path = Path(output)
    if path.suffix.lower() not in SUFFIXES:
        raise PlotError(f"output {str(output)!r}: the suffix must be one of {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise PlotError(f"output {str(output)!r}: folder {str(path.parent)!r} does not exist")
    return path


def new_figure(**options: Any) -> Any:
    """An empty matplotlib figure, which a notebook shows without pyplot."""
    return _figure_class()(**options, dpi=DPI)


@functools.cache
def _figure_class() -> type:
    from matplotlib.figure import Figure

    class Picture(Figure):
        """A notebook asks a value for its picture; a figure made without pyplot has none to give."""

        def _repr_png_(self) -> tuple[bytes, dict[str, int]]:
            content = _rendered(self, "png", DPI)
            width, height = (int.from_bytes(content[start : start + 4], "big") for start in (16, 20))  # PNG, IHDR
            return content, {"width": width * 100 // DPI, "height": height * 100 // DPI}  # sharp on a dense display

    return Picture


def save_figure(figure: Any, output: str | os.PathLike[str], dpi: int = DPI) -> Path:
    """Write a matplotlib figure as PNG, SVG or PDF: whole or not at all, the same bytes for the same picture."""
    path = check_output(output)
    write_atomically(path, _rendered(figure, path.suffix.lower()[1:], dpi))
    return path


def _rendered(figure: Any, kind: str, dpi: int) -> bytes:
    import matplotlib

    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}[kind]
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "hf_rnn_seq2seq"}):
        figure.savefig(buffer, format=kind, dpi=dpi, bbox_inches="tight", pad_inches=0.12, metadata=metadata)
    return buffer.getvalue()


def dress(ax: Any, title: str) -> None:
    """The look of a line chart: title at the left, light horizontal rules, no frame."""
    ax.set_title(title, loc="left", fontsize=10, color=INK, pad=8)
    ax.grid(axis="y", color=FAINT, linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("#c3ccd5")
    ax.tick_params(which="both", length=0, labelsize=8, labelcolor=QUIET)


def log_axis(ax: Any) -> None:
    """A logarithmic y axis: numbers as people write them, powers of ten where it spans more than four of them."""
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    ax.set_yscale("log")
    low, high = ax.get_ylim()
    if high / low < 1e4:
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
        ax.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
