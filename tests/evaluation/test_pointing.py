"""Whether words look at what they name: attention that is put on an object, beside it, and everywhere."""

import pytest
import torch
from torch import Tensor

from hf_rnn_seq2seq.data import shapes
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.errors import AttentionError
from hf_rnn_seq2seq.evaluation.pointing import pointing
from hf_rnn_seq2seq.generation.translate import Hypothesis

NAMES = [f"shapes/test/0/{number}" for number in range(12)]
TOKENIZER = build_tokenizer((), map(shapes.caption, NAMES), algorithm="word", min_frequency=1)
SIDE = 8


def caption(name: str, looks: list[int | None], text: str | None = None, states: int = SIDE * SIDE) -> Hypothesis:
    """A caption of two heads, whose mean has its largest weight in the middle of an object; None: in a far corner."""
    ids = TOKENIZER(text or shapes.caption(name))["input_ids"]
    weights = torch.full((2, len(ids), states), 1 / (2 * states))
    for row, number in enumerate(looks):
        weights[:, row, states - SIDE * SIDE + region(name, number)] += torch.tensor([0.9, 0.1]) / 2
    return Hypothesis("", tuple(ids), attention=weights)


def region(name: str, number: int | None) -> int:
    """The region in the middle of an object's box; for None one of a corner that is in no box."""
    boxes = [shape.box for shape in shapes.scene(name)]
    pixel = shapes.SIDE // SIDE
    if number is not None:
        left, top, right, bottom = boxes[number]
        return (top + bottom) // 2 // pixel * SIDE + (left + right) // 2 // pixel
    corners = [(0, 0), (0, SIDE - 1), (SIDE - 1, 0), (SIDE - 1, SIDE - 1)]
    free = [
        (row, column)
        for row, column in corners
        if not any(
            left <= (column + 0.5) * pixel < right and top <= (row + 0.5) * pixel < bottom
            for left, top, right, bottom in boxes
        )
    ]
    return free[0][0] * SIDE + free[0][1]


def objects(name: str) -> list[int | None]:
    return [*shapes.named_objects(shapes.caption(name).split()), None]


@pytest.mark.parametrize("states", [64, 65], ids=["regions", "regions after a state of the whole picture"])
def test_words_that_look_at_their_object_are_counted(states: int) -> None:
    found = pointing(NAMES, [caption(name, objects(name), states=states) for name in NAMES], TOKENIZER)
    assert (found.inside, found.words, found.share) == (6 * len(NAMES), 6 * len(NAMES), 100.0)
    area = [
        (shape.box[2] - shape.box[0]) * (shape.box[3] - shape.box[1]) for name in NAMES for shape in shapes.scene(name)
    ]
    expected = 100 * sum(area) / len(area) / shapes.SIDE**2
    assert found.share_by_chance == pytest.approx(expected, rel=0.2)  # regions are coarser than pixels


def test_words_that_look_elsewhere_are_not() -> None:
    swapped = [[None if number is None else 1 - number for number in objects(name)] for name in NAMES]
    apart = [caption(name, looks) for name, looks in zip(NAMES, swapped, strict=True)]
    assert pointing(NAMES, apart, TOKENIZER).share == 0.0
    nowhere = [caption(name, [None] * len(objects(name))) for name in NAMES]
    assert pointing(NAMES, nowhere, TOKENIZER).share == 0.0
    # A third object is none of the picture's.
    text = f"{shapes.caption(NAMES[0])} above a small red circle"
    looks = [*objects(NAMES[0])[:-1], None, None, 0, 0, 0, None]
    found = pointing(NAMES[:1], [caption(NAMES[0], looks, text)], TOKENIZER)
    assert (found.inside, found.words) == (6, 9)


def test_regions_of_no_square_have_no_place() -> None:
    weights: Tensor = torch.full((1, 2, 50 + 5), 1 / 55)
    with pytest.raises(AttentionError, match="55 states of a picture: must be the regions of a square"):
        pointing(NAMES[:1], [Hypothesis("", (4, 2), attention=weights)], TOKENIZER)
