"""Where each word of a caption looked: the picture once for each word, with the weights of its attention over it."""

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.generation.attention import region_grid
from hf_rnn_seq2seq.visualization.figure import INK, check_output, new_figure, save_figure
from hf_rnn_seq2seq.visualization.fonts import choose_fonts
from hf_rnn_seq2seq.visualization.labels import printable_label

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor

COLUMNS = 6
TILE = 2.0  # inches
SIDE = 600  # pixels of the longer side of a tile: more are not seen
TALLEST = 4.0  # height of a tile in widths; a narrower picture is in the middle of it
SHADE = 0.75  # darkness of a region without weight


def caption_tiles(
    picture: "Image",
    words: Sequence[str],
    weights: "Tensor",
    *,
    output: str | os.PathLike[str] | None = None,
) -> "Figure":
    """Draws the picture, and for each word the picture lit where it looked (Xu 2015, figures 2 and 3).

    Args:
        picture: as it was given; the model saw it scaled to a square.
        words: of the caption.
        weights: (words, regions), the regions row by row.
        output: file to write, .png, .svg or .pdf.

    Returns:
        The Matplotlib figure. Its first axes hold the picture, the others a tile for each word. The light of a tile is
        relative to the word's largest weight; between the middles of regions it is interpolated.

    Raises:
        ArgumentError: not as many rows of weights as words.
        AttentionError: the regions are no square.
    """
    if len(words) != len(weights):
        raise ArgumentError(f"{len(words)} words for {len(weights)} rows of weights; must be the same number")
    check_output(output)
    import numpy as np
    from PIL import Image

    picture = picture.convert("RGB")
    picture.thumbnail((SIDE, SIDE))
    pixels = np.asarray(picture)
    height = TILE * min(max(picture.height / picture.width, 1 / TALLEST), TALLEST)
    columns = min(COLUMNS, len(words) + 1)
    rows = -(-(len(words) + 1) // columns)
    figure = new_figure(figsize=(columns * TILE, rows * (height + 0.35)))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    fonts = choose_fonts(words)
    for ax in grid:
        ax.set_axis_off()
    grid[0].imshow(pixels)
    for ax, word, row in zip(grid[1:], words, region_grid(weights), strict=False):
        light = (row / row.max().clamp(min=1e-12)).numpy().astype(np.float32)
        mask = Image.fromarray(light, mode=None).resize(picture.size, Image.Resampling.BILINEAR)
        shown = pixels * (1 - SHADE + SHADE * np.asarray(mask)[..., None])
        ax.imshow(shown.round().clip(0, 255).astype(np.uint8))
        text = printable_label(word.strip(), longest=24).replace("$", r"\$")
        ax.set_title(text, fontsize=10, color=INK, family=fonts, pad=4)
    figure.subplots_adjust(wspace=0.06, hspace=0.22)
    return save_figure(figure, output)
