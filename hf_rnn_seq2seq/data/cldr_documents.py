"""The embedded corpus of documents: phrases of the Unicode CLDR, one a line, which need no download.

A document has 4 to 10 phrases. Two of them are in two of the LANGUAGES, all others are in English; its label is the
language of the first of the two. Which words stand in it is not enough to tell: their order decides. `deciding` says
which line it is, so that it can be measured whether a model's attention finds it.

The phrases are those of the corpus `cldr`, whose splits they keep: a value of the test split (a date, an amount, a list
of names) occurs in no other split of its pair of languages.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from hf_rnn_seq2seq.data import cldr
from hf_rnn_seq2seq.files import content_hash, digest

LICENSE = cldr.LICENSE  # that of the phrases
LANGUAGES = ("de", "es", "fi", "fr", "hu", "it", "pl", "tr")
POOL = {"train": 1500, "validation": 300, "test": 300}  # different phrases of each language
SHORTEST, LONGEST = 4, 10  # phrases of a document


class Document(NamedTuple):
    """Its phrases, its label, and the number of the phrase that decides the label."""

    phrases: list[str]
    label: str
    deciding: int

    @property
    def text(self) -> str:
        """One phrase a line."""
        return "\n".join(self.phrases)


def generator_version() -> str:
    """Hash of everything that determines the documents."""
    return digest([cldr.generator_version(), content_hash([Path(__file__)])])[:16]


def generate(split: str, seed: int, rows: int, version: str = "") -> Iterator[dict[str, str | int]]:
    """Rows of one split for `datasets`; `version` is part of the cache key only.

    Yields:
        `source` (the document), `target` (its label) and `id`. Only those of train depend on the seed.
    """
    for row in range(rows):
        found = document(split, seed if split == "train" else 0, row)
        yield {"source": found.text, "target": found.label, "id": row}


def document(split: str, seed: int, row: int) -> Document:
    """The document that split, seed and number determine."""
    chance = random.Random(f"documents/{split}/{seed}/{row}")
    first, second = chance.sample(LANGUAGES, 2)
    phrases = [chance.choice(_english(split)) for _ in range(chance.randint(SHORTEST, LONGEST))]
    places = sorted(chance.sample(range(len(phrases)), 2))
    for place, language in zip(places, (first, second), strict=True):
        phrases[place] = chance.choice(_foreign(split)[language])
    return Document(phrases, first, places[0])


@lru_cache
def _pairs(split: str, language: str) -> tuple[tuple[str, str], ...]:
    """Phrases in English and in a language, which differ and are not only numbers."""
    book, found, number = cldr.phrase_book("en", language), {}, 0
    while len(found) < POOL[split]:
        pair = book.pair(split, f"documents/{split}/{number}")
        number += 1
        if pair["source"] != pair["target"] and any(map(str.isalpha, pair["target"])):
            found[pair["source"]] = pair["target"]
    return tuple(found.items())


@lru_cache
def _english(split: str) -> tuple[str, ...]:
    return tuple(sorted({source for language in LANGUAGES for source, _ in _pairs(split, language)}))


@lru_cache
def _foreign(split: str) -> dict[str, tuple[str, ...]]:
    """The phrases of each language that are phrases of no other one, such as a list of two names would be."""
    sides = {language: {target for _, target in _pairs(split, language)} for language in LANGUAGES}
    sides["en"] = set(_english(split))
    return {
        language: tuple(sorted(sides[language].difference(*(sides[other] for other in sides if other != language))))
        for language in LANGUAGES
    }
