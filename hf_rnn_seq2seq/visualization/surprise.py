"""A text whose tokens are shaded by how surprised a language model is by each, as a page or as a picture."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.files import check_output_file, write_atomically
from hf_rnn_seq2seq.generation.surprise import token_nats
from hf_rnn_seq2seq.visualization.figure import INK, QUIET, SUFFIXES, new_figure, save_figure
from hf_rnn_seq2seq.visualization.fonts import choose_fonts
from hf_rnn_seq2seq.visualization.pages import plain_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DARKEST = 8.0  # bits of the darkest shade
WIDTH = 76  # characters of a line of a picture
_RED = (214, 69, 65)
_STYLE = """
body { font: 15px/1.7 ui-monospace, monospace; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1b2733; }
p.text { white-space: pre-wrap; overflow-wrap: anywhere; }
"""

Token = tuple[str, float]
"""A token of the text as it is written, and its bits."""


def surprise_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> list[Token]:
    """The tokens of a text in order, and the bits of each; of the parts of one character the first has its text.

    Raises:
        ArgumentError: the text is empty.
    """
    if not text:
        raise ArgumentError("text '': is empty; give some characters")
    read = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    ids = np.asarray(read["input_ids"], dtype=np.int32)
    bits = token_nats(model, ids, start=tokenizer.bos_token_id) / math.log(2)
    tokens, done = [], 0
    for (_, end), value in zip(read["offset_mapping"], bits, strict=True):
        tokens.append((text[done:end], float(value)))
        done = max(done, end)
    return tokens


def draw_surprise(tokens: Sequence[Token], output: str | os.PathLike[str]) -> None:
    """Writes a page (.html) or a picture (.png, .svg, .pdf)."""
    check_surprise_output(output)
    if Path(output).suffix.lower() == ".html":
        write_atomically(output, surprise_page(tokens))
    else:
        save_figure(surprise_picture(tokens), output)


def check_surprise_output(output: str | os.PathLike[str], option: str = "output") -> None:
    """Raises ArgumentError for an unknown suffix, or where no file can be written; `option` is what named it."""
    if Path(output).suffix.lower() not in (".html", *SUFFIXES):
        raise ArgumentError(f"{option}={str(output)!r}: the suffix must be one of .html, {', '.join(SUFFIXES)}")
    check_output_file(output, option)


def _shade(bits: float) -> float:
    return min(max(bits / DARKEST, 0.0), 1.0)


def _caption(tokens: Sequence[Token]) -> str:
    characters = sum(len(text) for text, _ in tokens)
    mean = sum(bits for _, bits in tokens) / max(characters, 1)
    return f"{characters} characters, {mean:.2f} bits each; the darkest shade is {DARKEST:g} bits and more"


def surprise_page(tokens: Sequence[Token]) -> str:
    """The page; it fetches nothing, and treats the text as text. The bits of a token are in its tooltip."""
    color = ", ".join(map(str, _RED))
    spans = []
    for text, bits in tokens:
        style = f"background: rgba({color}, {_shade(bits):.3f})"
        spans.append(f'<span style="{style}" title="{bits:.2f} bits">{html.escape(text)}</span>')
    body = f'<p>{html.escape(_caption(tokens))}</p>\n<p class="text">{"".join(spans)}</p>'
    return plain_page("Bits of each token", _STYLE, body)


def surprise_picture(tokens: Sequence[Token]) -> Figure:
    """The picture: a grid of characters. The bits of a token of several characters are spread over them."""
    cells, row, place = [], 0, 0
    for text, bits in tokens:
        for character in text:
            if place == WIDTH:
                row, place = row + 1, 0
            cells.append((row, place, " " if character in "\n\t" else character, bits / len(text)))
            place += 1
            if character == "\n":
                row, place = row + 1, 0
    rows = row + 1
    figure = new_figure(figsize=(0.105 * WIDTH, 0.21 * (rows + 1.6)))
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(-0.5, WIDTH + 0.5)
    ax.set_ylim(rows + 0.3, -1.3)
    ax.axis("off")
    fonts = ["DejaVu Sans Mono", *choose_fonts(text for text, _ in tokens)]
    from matplotlib.patches import Rectangle

    for line, column, character, bits in cells:
        red = tuple(1 - _shade(bits) * (1 - channel / 255) for channel in _RED)
        ax.add_patch(Rectangle((column, line - 0.5), 1, 1, facecolor=red, linewidth=0))
        ax.text(
            column + 0.5,
            line,
            character,
            ha="center",
            va="center",
            family=fonts,
            fontsize=9,
            color=INK,
            parse_math=False,
        )
    ax.text(0, -0.95, _caption(tokens), ha="left", va="center", fontsize=8, color=QUIET)
    return figure
