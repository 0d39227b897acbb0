"""The embedded corpus of handwriting: English words in two single-stroke fonts, which need no download.

Each word has a slant, a width and a smooth unsteadiness of its own; the font is its writer.

Train, validation and test are split by the word: one of the test split is in no other split, in any font. The words are
names that the Unicode CLDR has in English: of months, days, languages, places, currencies.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
from collections.abc import Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

from hf_rnn_seq2seq.data.hershey_letters import ROMAN, SCRIPT
from hf_rnn_seq2seq.data.strokes import Writing
from hf_rnn_seq2seq.files import content_hash, digest

LICENSE = "Apache-2.0; letters: Hershey Fonts, free to use with the acknowledgements in hershey_letters.py"
FONTS = {"roman": ROMAN, "script": SCRIPT}
SPLITS = ("train", "validation", "test")
ROWS = {"train": 12_000, "validation": 400, "test": 400}
HELD_OUT_PERCENT = 5  # of the words, for validation and for test each
LENGTHS = range(2, 8)  # letters of a word
SLANT = (-0.15, 0.45)  # how far a letter leans over, in its height
WIDTH = (0.8, 1.2)
UNSTEADINESS = 0.03  # heights of a word


def generator_version() -> str:
    """Hash of what determines the strokes."""
    here = Path(__file__)
    return digest([content_hash([here, here.with_name("hershey_letters.py")]), version("Babel")])[:16]


def generate(split: str, seed: int, rows: int, version: str = "") -> Iterator[Writing]:
    """Words of one split; only those of train depend on the seed. `version` is part of the cache key only."""
    chosen = [word for word in words() if split_of(word) == split]
    chance = random.Random(f"hershey/{split}/{seed if split == 'train' else 0}")
    for _ in range(rows):
        yield write(chance.choice(chosen), chance.choice(list(FONTS)), chance)


def split_of(word: str) -> str:
    """The only split in which a word may occur."""
    percent = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest(), "big") % 100
    return SPLITS[2] if percent < HELD_OUT_PERCENT else SPLITS[1] if percent < 2 * HELD_OUT_PERCENT else SPLITS[0]


@lru_cache
def words() -> tuple[str, ...]:
    """The words, in small letters a to z."""
    from babel import Locale

    english = Locale("en")
    names = [*english.languages.values(), *english.territories.values(), *english.scripts.values()]
    names += english.currencies.values()
    for calendar in (english.months, english.days):
        names += calendar["format"]["wide"].values()
    found = {word for name in names for word in re.findall(r"\w+", name.lower())}
    return tuple(sorted(word for word in found if re.fullmatch("[a-z]+", word) and len(word) in LENGTHS))


def write(word: str, font: str, chance: random.Random) -> Writing:
    """A word in a font, with a slant, a width and an unsteadiness drawn at random."""
    slant, width = chance.uniform(*SLANT), chance.uniform(*WIDTH)
    strokes = letters(word, font)
    size = max(y for stroke in strokes for _, y in stroke) - min(y for stroke in strokes for _, y in stroke)
    shakes = [
        (chance.gauss(0, 1), chance.gauss(0, 1), chance.uniform(0.3, 1.2), chance.uniform(0, 6.3)) for _ in range(4)
    ]
    drawn = []
    for stroke in strokes:
        places = []
        for x, y in stroke:
            across = up = 0.0
            for shake_x, shake_y, speed, phase in shakes:
                wave = math.sin(speed * (x + y) / size * 6.3 + phase) * UNSTEADINESS / 2 * size
                across, up = across + shake_x * wave, up + shake_y * wave
            places.append(((x + slant * y) * width + across, y + up))
        drawn.append(places)
    return Writing(word, drawn, writer=font)


@lru_cache(maxsize=4096)
def letters(word: str, font: str) -> list[list[tuple[float, float]]]:
    """The strokes of a word, y up; lines are cut so that unsteadiness can bend them."""
    drawn, edge = [], 0.0
    for letter in word:
        left, right, strokes = glyph(letter, font)
        drawn += [_fine([(x - left + edge, -y) for x, y in stroke]) for stroke in strokes]
        edge += right - left
    return drawn


@lru_cache
def glyph(letter: str, font: str) -> tuple[float, float, list[list[tuple[float, float]]]]:
    """Left side, right side and strokes of a letter, y down."""
    code = FONTS[font][letter]
    pairs = [code[place : place + 2] for place in range(0, len(code), 2)]
    left, right = (float(ord(side) - ord("R")) for side in pairs[0])
    strokes: list[list[tuple[float, float]]] = [[]]
    for pair in pairs[1:]:
        if pair == " R":
            strokes.append([])
        else:
            strokes[-1].append((float(ord(pair[0]) - ord("R")), float(ord(pair[1]) - ord("R"))))
    return left, right, strokes


def _fine(places: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same line with a place in every four units."""
    fine = places[:1]
    for (x1, y1), (x2, y2) in zip(places, places[1:], strict=False):
        steps = max(1, round(math.hypot(x2 - x1, y2 - y1) / 4))
        fine += [(x1 + (x2 - x1) * n / steps, y1 + (y2 - y1) * n / steps) for n in range(1, steps + 1)]
    return fine
