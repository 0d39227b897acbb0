"""Handwriting as pictures: the line itself, the densities it was drawn from, and which character the window was at."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.files import write_atomically
from hf_rnn_seq2seq.model.modeling_rnn_handwriting import Handwriting
from hf_rnn_seq2seq.visualization.figure import INK, QUIET, check_output, new_figure, save_figure
from hf_rnn_seq2seq.visualization.fonts import choose_fonts
from hf_rnn_seq2seq.visualization.labels import printable_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Strokes = Sequence[Sequence[Sequence[float]]]

LINE = 60.0  # pixels of a word's height in an SVG
PEN = 0.045  # width of the line, in heights of a word
MARGIN = 0.25  # around the writing, in heights of a word
PRIME = "#9aa5b1"
PIXELS = 320  # of a density, along its longer side


def draw_line(
    writing: Handwriting, output: str | os.PathLike[str], *, prime: Strokes = (), caption: str | None = None
) -> Path:
    """Writes the line: as .svg one path for each stroke, which a plotter can follow; as .png or .pdf a picture.

    Args:
        writing: what was written.
        output: file to write.
        prime: strokes that came before, drawn in gray.
        caption: text of the SVG for readers that do not see it; None: what was to be written.

    Raises:
        ArgumentError: the suffix is unknown, or the folder does not exist.
    """
    check_output(output)
    path = Path(output)
    if path.suffix.lower() != ".svg":
        figure = new_figure(figsize=_size([*prime, *writing.strokes], writing.unit))
        ax = figure.add_axes((0, 0, 1, 1))
        draw_strokes(ax, prime, writing.unit, color=PRIME)
        draw_strokes(ax, writing.strokes, writing.unit)
        save_figure(figure, path)
        return path
    left, bottom, right, top = _box([*prime, *writing.strokes], writing.unit)
    scale = LINE / writing.unit
    width, height = (right - left) * scale, (top - bottom) * scale
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.1f} {height:.1f}">',
        f"<title>{escape(caption if caption is not None else writing.text or 'handwriting')}</title>",
        f'<g fill="none" stroke-width="{PEN * LINE:.2f}" stroke-linecap="round" stroke-linejoin="round">',
    ]
    for strokes, color in ((prime, PRIME), (writing.strokes, INK)):
        for stroke in strokes:
            places = [f"{(x - left) * scale:.2f} {(top - y) * scale:.2f}" for x, y in stroke]
            places = places * 2 if len(places) == 1 else places  # a dot is a line from a place to itself
            lines.append(f'<path stroke="{color}" d="M{" L".join(places)}"/>')
    write_atomically(path, "\n".join([*lines, "</g>", "</svg>"]) + "\n")
    return path


def draw_strokes(ax: Axes, strokes: Strokes, unit: float, color: str = INK) -> None:
    """Draws strokes into axes, with equal scales and without a frame."""
    for stroke in strokes:
        ax.plot([x for x, _ in stroke], [y for _, y in stroke], color=color, linewidth=1.6, solid_capstyle="round")
        if len(stroke) == 1:
            ax.plot(*stroke[0], color=color, marker="o", markersize=1.6)
    ax.set_aspect("equal")
    ax.margins(0.05)
    ax.set_axis_off()


def draw_sheet(
    writings: Sequence[Handwriting], output: str | os.PathLike[str] | None = None, *, columns: int = 4
) -> Figure:
    """Draws several writings, each with its text above; those that met the limit of points are marked."""
    if not writings:
        raise ArgumentError("writings: there is nothing to draw")
    check_output(output)
    rows = -(-len(writings) // columns)
    figure = new_figure(figsize=(2.6 * columns, 1.25 * rows))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    fonts = choose_fonts([writing.text or "" for writing in writings])
    for ax in grid:
        ax.set_axis_off()
    for ax, writing in zip(grid, writings, strict=False):
        draw_strokes(ax, writing.strokes, writing.unit)
        text = printable_label(writing.text or "", longest=40).replace("$", r"\$")
        ax.set_title(
            text + ("" if writing.finished else " (not finished)"), fontsize=7, color=QUIET, family=fonts, pad=2
        )
    return save_figure(figure, output)


def draw_window(writing: Handwriting, output: str | os.PathLike[str] | None = None) -> Figure:
    """Draws phi(t, u): the point along x, the character along y, above the writing itself (Graves 2013, figure 13).

    Raises:
        ArgumentError: nothing was read while it was written.
    """
    if writing.window is None or writing.text is None:
        raise ArgumentError("window: the network reads no text; only synthesis has one")
    check_output(output)
    letters = [*writing.text, "end"]
    window = writing.window.float().cpu()[:, -len(letters) :]  # of a prime's text nothing is shown
    figure = new_figure(figsize=(7.5, 1.2 + 0.24 * len(letters) + 1.4), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(0.24 * len(letters) + 0.5, 1.2))
    above.imshow(window.T.numpy(), aspect="auto", origin="lower", cmap="Blues", interpolation="nearest", vmin=0)
    labels = [printable_label(letter, longest=4).replace("$", r"\$") for letter in letters]
    above.set_yticks(range(len(letters)), labels, family=choose_fonts(letters), fontsize=9, color=INK)
    above.set_xlabel("point", fontsize=8, color=QUIET, loc="right")
    above.tick_params(length=0, labelsize=8)
    draw_strokes(below, writing.strokes, writing.unit)
    return save_figure(figure, output)


def draw_density(
    writing: Handwriting, deviation: Sequence[float], output: str | os.PathLike[str] | None = None
) -> Figure:
    """Draws the densities of all points, each where the pen was, added together (Graves 2013, figure 10).

    Args:
        writing: what was written.
        deviation: `offset_deviation` of the network's configuration.
        output: file to write, .png, .svg or .pdf.
    """
    import torch

    check_output(output)
    scale = torch.tensor([*deviation]) * writing.unit
    offsets = writing.points[:, :2].float().cpu() * scale
    places = torch.tensor(writing.start) + offsets.cumsum(0)
    left, bottom, right, top = _box([places.tolist()], writing.unit)
    step = max(right - left, top - bottom) / PIXELS
    across, up = (torch.arange(low, high, step) for low, high in ((left, right), (bottom, top)))
    grid = torch.stack(torch.meshgrid(up, across, indexing="ij")[::-1], -1)
    mixture = type(writing.mixture)(*(tensor.float().cpu() for tensor in writing.mixture))
    total = torch.zeros(grid.shape[:2])
    for number, place in enumerate(places):
        here = type(mixture)(*(tensor[number] for tensor in mixture))
        total += here.log_density_of_offset((grid - place) / scale).exp()
    figure = new_figure(figsize=_size([places.tolist()], writing.unit))
    ax = figure.add_axes((0, 0, 1, 1))
    # A small blob is far denser than the wide ones between strokes: by its root both are seen.
    ax.imshow(total.sqrt().sqrt().numpy(), origin="lower", extent=(left, right, bottom, top), cmap="magma")
    ax.set_axis_off()
    return save_figure(figure, output)


def _box(strokes: Strokes, unit: float) -> tuple[float, float, float, float]:
    """Left, bottom, right and top of some strokes, with a margin."""
    across = [x for stroke in strokes for x, _ in stroke]
    up = [y for stroke in strokes for _, y in stroke]
    margin = MARGIN * unit
    return min(across) - margin, min(up) - margin, max(across) + margin, max(up) + margin


def _size(strokes: Strokes, unit: float) -> tuple[float, float]:
    """Width and height of a picture in inches, at most 12 wide."""
    left, bottom, right, top = _box(strokes, unit)
    scale = min(0.8 / unit, 12 / (right - left))
    return (right - left) * scale, (top - bottom) * scale
