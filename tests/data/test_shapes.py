"""The embedded corpus of captions: what is drawn is what is said, where it is said to be, and in one split."""

import numpy as np
import pytest

from hf_rnn_seq2seq.data import shapes
from hf_rnn_seq2seq.errors import DataError

NAMES = [f"shapes/{split}/0/{number}" for split in shapes.SPLITS for number in range(40)]


@pytest.mark.parametrize("name", NAMES[::8])
def test_every_object_is_drawn_in_its_color_within_its_box(name: str) -> None:
    pixels = np.asarray(shapes.draw(name))
    ground = np.ones(pixels.shape[:2], dtype=bool)
    for shape in shapes.scene(name):
        left, top, right, bottom = shape.box
        held = (pixels[top:bottom, left:right] == shapes.COLORS[shape.color]).all(-1)
        filled = {"circle": 0.785, "square": 1.0, "triangle": 0.5, "cross": 5 / 9}[shape.kind]
        assert held.mean() == pytest.approx(filled, abs=0.12)  # pixels at the edge
        assert held[0].any() and held[-1].any() and held[:, 0].any() and held[:, -1].any(), "the box is tight"
        assert shapes.SIZES[shape.size][0] <= right - left <= shapes.SIZES[shape.size][1]
        ground[top:bottom, left:right] = False
    assert len(np.unique(pixels[ground].reshape(-1, 3), axis=0)) == 1, "nothing else is drawn"


def test_the_caption_says_what_is_where() -> None:
    for name in NAMES:
        objects, words = shapes.scene(name), shapes.caption(name).split()
        if len(objects) == 1:
            assert words == objects[0].words.split()
            continue
        one, other = ((shape.box[0] + shape.box[2], shape.box[1] + shape.box[3]) for shape in objects)
        axis = 0 if "left" in words else 1
        assert one[axis] < other[axis] and abs(one[axis] - other[axis]) > abs(one[1 - axis] - other[1 - axis])
        relation = ["left", "of"] if axis == 0 else ["above"]
        assert words == [*objects[0].words.split(), *relation, *objects[1].words.split()]


def test_a_caption_is_in_one_split_only() -> None:
    captions = {split: {row["target"] for row in shapes.generate(split, 0, 200)} for split in shapes.SPLITS}
    assert all(map(len, captions.values()))
    for one in shapes.SPLITS:
        for other in shapes.SPLITS:
            assert one == other or not captions[one] & captions[other]


def test_a_picture_depends_on_its_name_alone() -> None:
    assert list(shapes.generate("train", 0, 5)) == list(shapes.generate("train", 0, 8))[:5]
    first = {seed: [row["source"] for row in shapes.generate("train", seed, 3)] for seed in (0, 1)}
    assert not {*first[0]} & {*first[1]}
    assert list(shapes.generate("test", 0, 3)) == list(shapes.generate("test", 1, 3))
    drawn = shapes.draw("shapes/train/0/1").tobytes()
    shapes.scene.cache_clear()
    assert shapes.draw("shapes/train/0/1").tobytes() == drawn


def test_words_belong_to_objects() -> None:
    words = ["a", "small", "red", "circle", "left", "of", "a", "large", "blue", "square"]
    assert shapes.named_objects(words) == [None, 0, 0, 0, None, None, None, 1, 1, 1]
    assert shapes.named_objects(["red", "a", "dog", "</s>"]) == [None, None, None, None]


@pytest.mark.parametrize("name", ["picture.png", "shapes/train/0", "shapes/dev/0/1", "shapes/test/0/-1"])
def test_a_name_of_no_picture_is_refused(name: str) -> None:
    with pytest.raises(DataError, match="a drawn one is called shapes/SPLIT/SEED/NUMBER"):
        shapes.draw(name)
