"""The picture of where each word looked: a tile for each word, lit at its region."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hf_rnn_seq2seq.errors import ArgumentError, AttentionError
from hf_rnn_seq2seq.visualization.caption_tiles import caption_tiles

WHITE = Image.new("RGB", (60, 40), (255, 255, 255))


def test_each_word_lights_its_region(tmp_path: Path) -> None:
    weights = torch.zeros(5, 16)
    places = [0, 3, 6, 12, 15]
    for row, place in enumerate(places):
        weights[row, place] = 0.5 + row / 10
    words = ["a", "red", "$circle$", "left", "of"]
    figure = caption_tiles(WHITE, words, weights, output=tmp_path / "where.png")
    with Image.open(tmp_path / "where.png") as picture:
        assert picture.width > 300
    axes = figure.axes
    assert [ax.get_title() for ax in axes[1:6]] == ["a", "red", r"\$circle\$", "left", "of"]
    shown = [np.asarray(ax.images[0].get_array()) for ax in axes[:6]]
    assert (shown[0] == 255).all() and shown[0].shape == (40, 60, 3)
    for tile, place in zip(shown[1:], places, strict=True):
        light = tile[5::10, 7::15].mean(-1)  # the middles of 4 x 4 regions
        assert light.shape == (4, 4) and light.argmax() == place and light.max() > 230
        assert light.flatten()[(place + 8) % 16] == pytest.approx(64, abs=2)  # a quarter of the light remains


@pytest.mark.parametrize(("size", "shown"), [((1, 5000), (600, 1)), ((5000, 3), (1, 600)), ((3000, 2000), (400, 600))])
def test_the_drawing_is_no_larger_than_it_can_show(size: tuple[int, int], shown: tuple[int, int]) -> None:
    """A picture of any size and shape; the one that was given stays as it is."""
    picture = Image.new("RGB", size)
    figure = caption_tiles(picture, ["a", "line"], torch.ones(2, 16))
    assert all(ax.images[0].get_array().shape[:2] == shown for ax in figure.axes[:3])
    assert figure.get_figheight() <= 8.5 and picture.size == size


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="2 words for 3 rows of weights"):
        caption_tiles(WHITE, ["a", "b"], torch.ones(3, 16))
    with pytest.raises(AttentionError, match="12 states of a picture"):
        caption_tiles(WHITE, ["a"], torch.ones(1, 12))
    with pytest.raises(ArgumentError, match="the suffix must be one of"):
        caption_tiles(WHITE, ["a"], torch.ones(1, 16), output=tmp_path / "where.gif")
