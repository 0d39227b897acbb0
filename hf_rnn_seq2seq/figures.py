"""What every picture shares: ink, the check of an output path, and a writer that leaves nothing half-written."""

import io
import os
from pathlib import Path
from typing import Any

from hf_rnn_seq2seq.run_directory import write_atomically

SUFFIXES = (".png", ".svg", ".pdf")
INK, QUIET, FAINT = "#1b2733", "#7a8794", "#e4e9ee"
# Told apart under the common colour deficiencies and in print (after Okabe and Ito, darkened for thin lines).
SERIES = ("#0f4a8f", "#d1600a", "#15806b", "#9c3f86", "#b8860b", "#4aa3d8", "#555f69")


class PlotError(ValueError):
    """A picture that cannot be drawn as asked; the message names what is wrong and what is allowed."""


def check_output(output: str | os.PathLike[str]) -> Path:
    """The path of a picture; raises PlotError for a suffix that is not drawn or a folder that does not exist."""
    path = Path(output)
    if path.suffix.lower() not in SUFFIXES:
        raise PlotError(f"output {str(output)!r}: the suffix must be one of {', '.join(SUFFIXES)}")
    if not path.parent.is_dir():
        raise PlotError(f"output {str(output)!r}: folder {str(path.parent)!r} does not exist")
    return path


def save_figure(figure: Any, output: str | os.PathLike[str], dpi: int = 160) -> Path:
    """Write a matplotlib figure as PNG, SVG or PDF: whole or not at all, the same bytes for the same picture."""
    import matplotlib

    path = check_output(output)
    kind = path.suffix.lower()[1:]
    metadata = {"svg": {"Date": None}, "pdf": {"CreationDate": None}, "png": None}[kind]
    buffer = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "hf_rnn_seq2seq"}):
        figure.savefig(buffer, format=kind, dpi=dpi, bbox_inches="tight", pad_inches=0.12, metadata=metadata)
    write_atomically(path, buffer.getvalue())
    return path


def dress(ax: Any, title: str) -> None:
    """The look of a line chart: title at the left, light horizontal rules, no frame."""
    ax.set_title(title, loc="left", fontsize=10, color=INK, pad=8)
    ax.grid(axis="y", color=FAINT, linewidth=0.8)
    ax.set_axisbelow(True)
    for side in ("top", "right", "left"):
        ax.spines[side].set_visible(False)
    ax.spines["bottom"].set_color("#c3ccd5")
    ax.tick_params(which="both", length=0, labelsize=8, labelcolor=QUIET)
