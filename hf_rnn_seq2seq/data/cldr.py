"""The embedded corpus: phrases of the Unicode CLDR in any two locales, generated through Babel, no download.

A sentence is drawn as a *fact* that knows no language, ("quantity", 3, "length-kilometer"), and rendered twice: "3
kilometers", "3 킬로미터". CLDR's patterns are written by professional translators, so the pair is aligned by
construction, with plural agreement and word order as each language wants them. A row's `alignment` says which words
tell the same day, month, weekday, year, number, unit or currency.

Train, validation and test are split by the value a fact is about (a date, a time of day, a number with its unit, an
amount, the set of names in a list), never by the sentence: a value of the test split occurs in no other split, in no
format and in no combination. Which split a value belongs to depends on nothing but the value and the two locales, so a
model trained on any number of rows, with any seed, may be scored on the one test split.

White space is written as plain spaces (CLDR has five kinds) and marks of writing direction are left out, so that a
sentence typed on a keyboard is like those of the corpus.
"""

from __future__ import annotations

import datetime
import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import babel
from babel import Locale, UnknownLocaleError

from hf_rnn_seq2seq.data.cldr_phrases import (
    COUNTRIES,
    CURRENCIES,
    LANGUAGES,
    SECONDS,
    UNITS,
    Fact,
    alignment,
    currency_name,
    phrase,
    render,
    require_data,
    unit_name,
)
from hf_rnn_seq2seq.errors import DataError
from hf_rnn_seq2seq.files import content_hash, digest

LICENCE = "Unicode-3.0"
SPLITS = ("train", "validation", "test")
DATE_FORMATS = ("full", "long", "medium")
HELD_OUT_PERCENT = 5  # of the values, for validation and for test each

YEARS = range(1990, 2040)
MINUTES = range(0, 60, 5)
LARGE = (100, 120, 150, 200, 250, 300, 400, 500, 600, 750, 800, 900, 1000, 1200, 1500, 2000, 2500, 3000, 5000)
CENTS = ("05", "10", "20", "25", "50", "75", "80", "95", "99")


def parse_locale(name: str) -> Locale:
    """`fr`, `pt_BR` or `pt-BR` -> Locale.

    Raises:
        DataError: Babel has no such locale.
    """
    try:
        return Locale.parse(name.strip().replace("-", "_"))
    except (UnknownLocaleError, ValueError) as error:
        raise DataError(f"locale {name!r} is not known to CLDR (they look like 'fr', 'pt_BR', 'zh_Hant')") from error


def parse_pair(name: str) -> tuple[str, str]:
    """`en-fr`, `en-pt_BR` -> the two locales' names.

    Raises:
        DataError: not two locales joined by one hyphen.
    """
    parts = name.split("-")
    if len(parts) != 2 or not all(parts):
        raise DataError(f"cldr configuration {name!r}: expected two locales and one hyphen, as 'en-fr' or 'en-pt_BR'")
    return parts[0], parts[1]


def generator_version() -> str:
    """Hash of all that decides the rows, part of every cache key: the code that draws and renders, Babel's release."""
    code = [Path(__file__), Path(__file__).with_name("cldr_phrases.py")]
    return digest([content_hash(code), babel.__version__])[:16]


def generate(
    source: str, target: str, split: str, seed: int, ranges: Sequence[tuple[int, int]], version: str = ""
) -> Iterator[dict[str, Any]]:
    """Rows of one split for `datasets`' generators; `ranges` are its shards, `version` only marks the cache.

    A train row depends on (seed, row number) alone, so a longer corpus begins with the shorter one and shards may be
    generated in any order; rows may repeat. Validation and test do not depend on the seed and hold no sentence twice.

    Yields:
        `source`, `target` (text), `alignment` (`1-2`, source word and target word) and `id` (row number within the
        split).
    """
    book = phrase_book(source, target)
    for start, stop in ranges:
        if split == "train":
            for row in range(start, stop):
                yield {**book.pair(split, f"train/{seed}/{row}"), "id": row}
        else:
            yield from _distinct(book, split, start, stop)


def _distinct(book: PhraseBook, split: str, start: int, stop: int) -> Iterator[dict[str, Any]]:
    seen: set[str] = set()
    row = attempt = 0
    while row < stop:
        pair = book.pair(split, f"{split}/{attempt}")
        attempt += 1
        if attempt > 20 * stop + 1000:
            raise DataError(f"cldr {book.name}: {split} holds about {row} different sentences, {stop} were asked for")
        if pair["source"] not in seen:
            seen.add(pair["source"])
            if row >= start:
                yield {**pair, "id": row}
            row += 1


@lru_cache(maxsize=8)
def phrase_book(source: str, target: str) -> PhraseBook:
    """The phrase book of two locales, kept."""
    return PhraseBook(source, target)


class PhraseBook:
    """Draws facts and renders them in two locales.

    Raises:
        DataError: an unknown locale, the same locale twice, or a locale without the names and patterns needed.
    """

    def __init__(self, source: str, target: str) -> None:
        self.locales = parse_locale(source), parse_locale(target)
        self.name = f"{self.locales[0]}-{self.locales[1]}"
        if self.locales[0] == self.locales[1]:
            raise DataError(f"source and target locale are both {source!r}; two different ones are needed")
        for locale in self.locales:
            require_data(locale)
        self.countries = self._shared(COUNTRIES, lambda code, locale: locale.territories.get(code))
        self.languages = self._shared(LANGUAGES, lambda code, locale: locale.languages.get(code))
        self.currencies = self._shared(CURRENCIES, currency_name)
        self.units = self._shared(UNITS, unit_name)
        self.styles = [s for s in ("standard", "or") if all(s in locale.list_patterns for locale in self.locales)]
        day = datetime.date(2026, 3, 12)
        self.forms = [form for form in DATE_FORMATS if self._complete(("date", form, day))]
        self.intervals = self._complete(("interval", day, datetime.date(2026, 4, 1)))
        self.periods = [s for s in ("yMMMM", "yQQQQ") if self._complete(("period", s, day))]
        self.rare_plurals = self._rare_plurals()
        self.kinds: list[Callable[[random.Random, str], Fact]] = []
        self.shares: list[int] = []
        for share, kind in self._menu():
            self.kinds.append(kind)
            self.shares.append(share)

    def pair(self, split: str, key: str) -> dict[str, str]:
        """The sentence pair of `split` that `key` decides, and its alignment."""
        chance = random.Random(key)
        fact = chance.choices(self.kinds, self.shares)[0](chance, split)
        source, target = (phrase(fact, locale) for locale in self.locales)
        return {"source": source.text, "target": target.text, "alignment": alignment(source, target)}

    def split_of(self, value: Fact) -> str:
        """The only split in which a value may occur.

        A number whose plural form few other numbers share ("1 kilometer") stays in train: held out, it would take the
        only example of the word form along.
        """
        if value[0] in ("relative", "quantity", "amount") and value[1] in self.rare_plurals:
            return "train"
        number = hashlib.blake2b(repr(value).encode(), digest_size=4).digest()
        percent = int.from_bytes(number, "big") % 100
        return SPLITS[2] if percent < HELD_OUT_PERCENT else SPLITS[1] if percent < 2 * HELD_OUT_PERCENT else SPLITS[0]

    def _complete(self, fact: Fact) -> bool:
        """Whether both locales have the names a fact needs: where none is, Babel writes "M03" or fails."""
        try:
            return not any("M0" in render(fact, locale) for locale in self.locales)
        except KeyError:
            return False

    def _shared(self, codes: Sequence[str], name: Callable[[str, Locale], str | None]) -> list[str]:
        """The codes that both locales name, each by a name of its own."""
        names = [[name(code, locale) for code in codes] for locale in self.locales]
        counts = [Counter(side) for side in names]
        return [
            code
            for code, *both in zip(codes, *names, strict=True)
            if all(n is not None and n != code and counts[i][n] == 1 for i, n in enumerate(both))
        ]

    def _rare_plurals(self) -> set[int | Decimal]:
        numbers = [*range(1, 100), *LARGE, *(Decimal(f"{n}.5") for n in range(1, 30))]
        forms = {n: tuple(locale.plural_form(n) for locale in self.locales) for n in numbers}
        counts = Counter(forms.values())
        return {n for n, form in forms.items() if counts[form] < 8}

    def _menu(self) -> list[tuple[int, Callable[[random.Random, str], Fact]]]:
        """What sentences are made of: shares (of 100) and how each kind is drawn."""
        return [
            (14, self._date),
            (12, lambda chance, split: ("datetime", self._date(chance, split), self._time(chance, split))),
            (9 if self.intervals else 0, self._interval),
            (2 if self.periods else 0, self._period),
            (5, self._relative),
            (11, self._quantity),
            (11, self._amount),
            (7, lambda chance, split: self._pair_of(chance, split, self._quantity)),
            (6, lambda chance, split: self._pair_of(chance, split, self._amount)),
            (9, lambda chance, split: self._names(chance, split, "territory", self.countries)),
            (5, lambda chance, split: self._names(chance, split, "language", self.languages)),
            (2, lambda chance, split: self._names(chance, split, "month", range(1, 13))),
            (7, lambda chance, split: ("aside", self._country(chance), self._amount(chance, split))),
        ]

    @staticmethod
    def _hold(chance: random.Random, draw: Callable[[], Fact], belongs: Callable[[Fact], bool]) -> Fact:
        """Draws until the value belongs to the split; one in twenty does, so this ends."""
        while not belongs(value := draw()):
            pass
        return value

    def _value(self, chance: random.Random, split: str, draw: Callable[[], Fact]) -> Fact:
        return self._hold(chance, draw, lambda value: self.split_of(value) == split)

    def _day(self, chance: random.Random, split: str) -> datetime.date:
        def draw() -> Fact:
            year, month = chance.choice(YEARS), chance.randint(1, 12)
            following = datetime.date(year + month // 12, month % 12 + 1, 1)
            return "date", year, month, chance.randint(1, (following - datetime.timedelta(days=1)).day)

        return datetime.date(*self._value(chance, split, draw)[1:])

    def _date(self, chance: random.Random, split: str) -> Fact:
        day = self._day(chance, split)
        wanted = chance.choice(self.forms)
        # "May 12, 2026" is long and medium: the target takes the first, so that one source has one translation.
        text = render(("date", wanted, day), self.locales[0])
        first = next(form for form in self.forms if render(("date", form, day), self.locales[0]) == text)
        return "date", first, day

    def _time(self, chance: random.Random, split: str) -> Fact:
        value = self._value(chance, split, lambda: ("time", chance.randrange(24), chance.choice(MINUTES)))
        return "time", datetime.time(*value[1:])

    def _interval(self, chance: random.Random, split: str) -> Fact:
        while True:
            first = self._day(chance, split)
            days = [first + datetime.timedelta(days=n) for n in range(1, 41)]
            last = [d for d in days if self.split_of(("date", d.year, d.month, d.day)) == split and d.year in YEARS]
            if last:
                return "interval", first, chance.choice(last)

    def _period(self, chance: random.Random, split: str) -> Fact:
        skeleton = chance.choice(self.periods)
        months = range(1, 13) if skeleton == "yMMMM" else (1, 4, 7, 10)
        value = self._value(chance, split, lambda: (skeleton, "month", chance.choice(YEARS), chance.choice(months)))
        return "period", skeleton, datetime.date(value[2], value[3], 1)

    def _relative(self, chance: random.Random, split: str) -> Fact:
        units = list(SECONDS)
        _, number, unit = self._value(
            chance, split, lambda: ("relative", self._number(chance, large=False), chance.choice(units))
        )
        return "relative", number, unit, chance.choice((-1, 1))

    def _number(self, chance: random.Random, large: bool = True) -> int:
        kind = chance.random()
        if kind < 0.1:
            return 1
        if kind < 0.6:
            return chance.randint(2, 20)
        return chance.choice(LARGE) if large and kind > 0.85 else chance.randint(21, 60)

    def _quantity(self, chance: random.Random, split: str) -> Fact:
        def draw() -> Fact:
            half = chance.random() < 0.1
            number = Decimal(f"{chance.randint(1, 20)}.5") if half else self._number(chance)
            return "quantity", number, chance.choice(self.units)

        return self._value(chance, split, draw)

    def _amount(self, chance: random.Random, split: str) -> Fact:
        def draw() -> Fact:
            cents = chance.random() < 0.2
            number = Decimal(f"{chance.randint(2, 60)}.{chance.choice(CENTS)}") if cents else self._number(chance)
            return "amount", number, chance.choice(self.currencies)

        return self._value(chance, split, draw)

    def _country(self, chance: random.Random) -> Fact:
        return "territory", chance.choice(self.countries)

    def _pair_of(self, chance: random.Random, split: str, draw: Callable[[random.Random, str], Fact]) -> Fact:
        first = draw(chance, split)
        second = self._hold(chance, lambda: draw(chance, split), lambda fact: fact[2] != first[2])
        return "list", chance.choice(self.styles), first, second

    def _names(self, chance: random.Random, split: str, kind: str, codes: Sequence[Any]) -> Fact:
        drawn: list[Any] = []

        def draw() -> Fact:
            drawn[:] = chance.sample(codes, chance.choices((2, 3, 4), (4, 4, 2))[0])
            return "list", kind, *sorted(drawn)  # in another order it is the same list

        self._value(chance, split, draw)
        return "list", chance.choice(self.styles), *((kind, code) for code in drawn)
