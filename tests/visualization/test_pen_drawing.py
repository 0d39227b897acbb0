"""Pictures of handwriting: the line, a sheet of several, the window, the densities."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.model.mixture_density import Mixture
from hf_rnn_seq2seq.model.modeling_rnn_handwriting import Handwriting
from hf_rnn_seq2seq.visualization import pen_drawing


def writing(text: str | None = "a<b", finished: bool = True) -> Handwriting:
    """Two strokes of which the second is a dot, each point far from the one before."""
    points = torch.tensor([[0.0, 0, 0], [1, 1, 1], [1, 0, 1]])
    far = Mixture(
        end=torch.zeros(3),
        weight=torch.zeros(3, 1),
        mean=torch.tensor([[[1.0, 1]], [[1, 0]], [[0, 0]]]),
        deviation=torch.full((3, 1, 2), -3.0),
        correlation=torch.zeros(3, 1),
    )
    window = None if text is None else torch.eye(3, len(text) + 1)
    strokes = [[(0.0, 0.0), (1.0, 1.0)], [(2.0, 1.0)]]
    return Handwriting(text, strokes, finished, points, far, window)


def test_an_svg_has_a_path_for_each_stroke(tmp_path: Path) -> None:
    """y points down there; a dot is a line to itself; what came before is gray."""
    path = pen_drawing.draw_line(writing(), tmp_path / "hand.svg", prime=[[(-1.0, 0.0), (0.0, 0.0)]])
    text = path.read_text()
    margin, unit = pen_drawing.MARGIN * pen_drawing.LINE, pen_drawing.LINE
    left, top = margin + unit, margin
    assert f'd="M{left:.2f} {top + unit:.2f} L{left + unit:.2f} {top:.2f}"' in text
    dot = f"{left + 2 * unit:.2f} {top:.2f}"
    assert f'd="M{dot} L{dot}"' in text and "<title>a&lt;b</title>" in text
    assert text.count("<path") == 3 and text.count(pen_drawing.PRIME) == 1


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_every_picture_is_written(suffix: str, tmp_path: Path) -> None:
    one = writing()
    pen_drawing.draw_line(one, tmp_path / f"line{suffix}")
    pen_drawing.draw_sheet([one, writing("$b$", finished=False)], tmp_path / f"sheet{suffix}")
    pen_drawing.draw_window(one, tmp_path / f"window{suffix}")
    pen_drawing.draw_density(one, [1.0, 1.0], tmp_path / f"density{suffix}")
    assert len([path for path in tmp_path.iterdir() if path.stat().st_size > 200]) == 4


def test_a_density_is_where_the_next_point_is(tmp_path: Path) -> None:
    pen_drawing.draw_density(writing(), [1.0, 1.0], tmp_path / "density.png")
    with Image.open(tmp_path / "density.png") as picture:
        bright = picture.convert("L")
    width, height = bright.size
    margin = pen_drawing.MARGIN

    def at(x: float, y: float) -> int:
        across = (x + margin) / (2 + 2 * margin) * width
        return bright.getpixel((int(across), int((1 + margin - y) / (1 + 2 * margin) * height)))

    assert min(at(1, 1), at(2, 1)) > 50 > 30 > at(0, 1) and at(0, 0) < 30


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="window: the network reads no text"):
        pen_drawing.draw_window(writing(None))
    with pytest.raises(ArgumentError, match="there is nothing to draw"):
        pen_drawing.draw_sheet([])
    with pytest.raises(ArgumentError, match="the suffix must be one of"):
        pen_drawing.draw_line(writing(), tmp_path / "hand.gif")
