"""The embedded corpus of captions: drawn shapes, which need no download, and where each of them is.

The name of a picture ("shapes/train/0/17") determines it: one object or two on a gray ground, and the caption "a small
red circle left of a large blue square". Of two objects the left one or the upper one is named first, by the larger of
the two distances, so that a picture has one caption.

Train, validation and test are split by the caption: what a picture of the test split shows is in no picture of another
split, in any place. The split of a caption depends only on its text.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw

from hf_rnn_seq2seq.errors import DataError
from hf_rnn_seq2seq.files import content_hash

LICENSE = "Apache-2.0"
SPLITS = ("train", "validation", "test")
HELD_OUT_PERCENT = 5  # of the captions, for validation and for test each
SIDE = 64  # pixels
SIZES = {"small": (14, 17), "large": (24, 29)}  # side of the box in pixels, smallest and largest
COLORS = {
    "red": (214, 40, 40),
    "green": (48, 160, 64),
    "blue": (44, 84, 212),
    "yellow": (240, 212, 40),
    "black": (24, 24, 24),
    "white": (250, 250, 250),
}
KINDS = ("circle", "square", "triangle", "cross")
MARGIN = 8  # pixels by which one distance of two objects exceeds the other

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; the last two are outside."""


@dataclass(frozen=True)
class Shape:
    """One object of a picture."""

    size: str
    color: str
    kind: str
    box: Box

    @property
    def words(self) -> str:
        return f"a {self.size} {self.color} {self.kind}"


def generator_version() -> str:
    """Hash of the code that determines pictures and captions."""
    return content_hash([Path(__file__)])[:16]


def generate(split: str, seed: int, rows: int, version: str = "") -> Iterator[dict[str, str | int]]:
    """Rows of one split for `datasets`; `version` is part of the cache key only.

    Yields:
        `source` (the name of a picture), `target` (its caption) and `id`. Only those of train depend on the seed.
    """
    for row in range(rows):
        name = f"shapes/{split}/{seed if split == 'train' else 0}/{row}"
        yield {"source": name, "target": caption(name), "id": row}


def caption(name: str) -> str:
    """What is true of a picture."""
    return _caption(scene(name))


@lru_cache(maxsize=4096)
def scene(name: str) -> tuple[Shape, ...]:
    """The objects of a picture, in the order of its caption.

    Raises:
        DataError: no picture has this name.
    """
    parts = name.split("/")
    if len(parts) != 4 or parts[0] != "shapes" or parts[1] not in SPLITS or not all(map(str.isdecimal, parts[2:])):
        raise DataError(f"picture {name!r}: a drawn one is called shapes/SPLIT/SEED/NUMBER, as shapes/test/0/17")
    chance = random.Random(name)
    while True:
        found = _draw_scene(chance)
        if found and split_of(_caption(found)) == parts[1]:
            return found


def split_of(text: str) -> str:
    """The only split in which a caption may occur. A single object is always in train: there are few of them."""
    if " of " not in text and " above " not in text:
        return "train"
    percent = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=4).digest(), "big") % 100
    return SPLITS[2] if percent < HELD_OUT_PERCENT else SPLITS[1] if percent < 2 * HELD_OUT_PERCENT else SPLITS[0]


def _draw_scene(chance: random.Random) -> tuple[Shape, ...]:
    """One object or two; nothing where two are too close, or neither distance is clearly the larger."""
    shapes = []
    for _ in range(1 if chance.random() < 0.1 else 2):
        size = chance.choice(list(SIZES))
        side = chance.randint(*SIZES[size])
        left, top = chance.randrange(SIDE - side + 1), chance.randrange(SIDE - side + 1)
        box = (left, top, left + side, top + side)
        shapes.append(Shape(size, chance.choice(list(COLORS)), chance.choice(KINDS), box))
    if len(shapes) == 1:
        return tuple(shapes)
    across, down = (shapes[1].box[axis] + shapes[1].box[axis + 2] for axis in (0, 1))
    across, down = across - shapes[0].box[0] - shapes[0].box[2], down - shapes[0].box[1] - shapes[0].box[3]
    gaps = [max(shapes[one].box[axis] - shapes[1 - one].box[axis + 2] for one in (0, 1)) for axis in (0, 1)]
    if abs(abs(across) - abs(down)) < 2 * MARGIN or max(gaps) < 2:
        return ()
    first = across if abs(across) > abs(down) else down
    return tuple(shapes if first > 0 else shapes[::-1])


def _caption(shapes: tuple[Shape, ...]) -> str:
    if len(shapes) == 1:
        return shapes[0].words
    across, down = (
        abs(shapes[0].box[axis] + shapes[0].box[axis + 2] - shapes[1].box[axis] - shapes[1].box[axis + 2])
        for axis in (0, 1)
    )
    return f"{shapes[0].words} {'left of' if across > down else 'above'} {shapes[1].words}"


def named_objects(words: list[str]) -> list[int | None]:
    """For each word of a caption the number of the object whose size, color or kind it names, else None."""
    numbers, number = [], -1
    for word in words:
        number += word == "a"
        numbers.append(number if number >= 0 and (word in SIZES or word in COLORS or word in KINDS) else None)
    return numbers


def draw(name: str) -> Image.Image:
    """The picture of a name, RGB of 64 x 64 pixels."""
    chance = random.Random(f"{name}/ground")
    level = chance.randint(110, 190)
    picture = Image.new("RGB", (SIDE, SIDE), (level, level, level))
    pen = ImageDraw.Draw(picture)
    for shape in scene(name):
        left, top, right, bottom = shape.box[0], shape.box[1], shape.box[2] - 1, shape.box[3] - 1
        fill, third = COLORS[shape.color], (right - left + 1) // 3
        if shape.kind == "circle":
            pen.ellipse((left, top, right, bottom), fill)
        elif shape.kind == "square":
            pen.rectangle((left, top, right, bottom), fill)
        elif shape.kind == "triangle":
            pen.polygon([((left + right) // 2, top), (right, bottom), (left, bottom)], fill)
        else:
            pen.rectangle((left + third, top, right - third, bottom), fill)
            pen.rectangle((left, top + third, right, bottom - third), fill)
    return picture
