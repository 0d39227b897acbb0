"""Recombination: forms for combinations of features that a table lacks (after Andreas 2020, 1904.09545).

Two rows of one word whose features differ in one show what that feature changes: `books N;NOM;PL` beside `book
N;NOM;SG` shows that SG in the place of PL takes an `s` away. What has stood in the same place once may stand in the
same place elsewhere: a row `olds ADJ;NOM;PL` gives `old ADJ;NOM;SG`, a combination that no row has. The paper exchanges
any two fragments of a text so; here a fragment is a feature with the letters that it changes.

A change is what differs between two forms of a word, without the letters that both begin and end with. To put one
feature in the place of another, the changes are read that were seen beside the most similar other features. The one
that most words show is made. At least `LEAST_WORDS` words must show it, and at least `SHARE` of the words whose changes
fit the form. A pair of features is used only if at least `PRECISION` of the known forms would have been written, each
from the rows of the other words. Of the rows that lead to one combination only those count whose changes were seen
beside the most similar features; a word gets the form that most of its rows give.
"""

import random
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from hf_rnn_seq2seq.errors import DataError

LEAST_WORDS, SHARE, PRECISION = 2, 0.5, 0.8
_SEPARATOR = re.compile(r"([;+])")


class Change(NamedTuple):
    """`old` letters become `new` ones, at the start, at the end or inside of a form."""

    old: str
    new: str
    at_start: bool
    at_end: bool

    @classmethod
    def between(cls, before: str, after: str) -> "Change":
        shorter = min(len(before), len(after))
        start = next((i for i in range(shorter) if before[i] != after[i]), shorter)
        end = next((i for i in range(shorter - start) if before[-1 - i] != after[-1 - i]), shorter - start)
        return cls(before[start : len(before) - end], after[start : len(after) - end], not start, not end)

    def applied(self, form: str) -> str | None:
        """The changed form; None where the change does not fit, or would fit everywhere."""
        if self.old == self.new or (self.at_start and self.at_end) or not (self.old or self.at_start or self.at_end):
            return None
        if self.at_end:
            return form[: len(form) - len(self.old)] + self.new if form.endswith(self.old) else None
        if self.at_start:
            return self.new + form[len(self.old) :] if form.startswith(self.old) else None
        place = form.rfind(self.old, 1)  # affixes stand near the end more often than near the start
        return form[:place] + self.new + form[place + len(self.old) :] if place > 0 else None


Features = frozenset[str]
Pair = tuple[str, str]  # a feature, and the one in its place
Words = Mapping[Change, set[str]]  # a change, and the words that show it


class Guess(NamedTuple):
    """The form of a word with a combination of features, as one row of it tells."""

    number: int  # of the row
    form: str
    difference: int  # between the other features of the row and those that the change was seen with
    features: str
    precision: float  # of the change


class Recombiner:
    """What the rows of a table, (word, form, features), show of features that stand in each other's place."""

    def __init__(self, rows: Sequence[tuple[str, str, str]]) -> None:
        self.rows = rows
        self.parts = [_SEPARATOR.split(features) for *_, features in rows]
        self.seen = {frozenset(parts[::2]) for parts in self.parts}
        # (word, other features) -> a feature and its form
        alike: dict[tuple[str, Features], list[Pair]] = defaultdict(list)
        for (word, form, _), parts in zip(rows, self.parts, strict=True):
            for feature in dict.fromkeys(parts[::2]):
                alike[word, frozenset(parts[::2]) - {feature}].append((feature, form))
        self.changes: dict[Pair, dict[Features, dict[Change, set[str]]]] = defaultdict(lambda: defaultdict(dict))
        shown: dict[Pair, list[tuple[str, Features, str, str]]] = defaultdict(list)
        for (word, others), found in alike.items():
            for feature, form in found:
                for other, written in found:
                    if other != feature:
                        change = Change.between(form, written)
                        self.changes[feature, other][others].setdefault(change, set()).add(word)
                        shown[feature, other].append((word, others, form, written))
        self.by_similarity: dict[tuple[Pair, Features], list[tuple[int, Words]]] = {}
        self.precision = {pair: self._precision(pair, evidence) for pair, evidence in shown.items()}

    def _precision(self, pair: Pair, shown: Sequence[tuple[str, Features, str, str]]) -> float:
        """The share of right forms, of those that are written for a word by what the other words show."""
        found = [(self.changed(pair, others, form, word, least=1), written) for word, others, form, written in shown]
        right = [guess[0] == written for guess, written in found if guess is not None]
        return sum(right) / len(right) if right else 0.0

    def _levels(self, pair: Pair, others: Features) -> list[tuple[int, Words]]:
        """Changes by how many features tell their other features from these, the most similar first."""
        if (pair, others) not in self.by_similarity:
            levels: dict[int, dict[Change, set[str]]] = defaultdict(lambda: defaultdict(set))
            for context, changes in self.changes[pair].items():
                for change, words in changes.items():
                    levels[len(context ^ others) - len(context & others) + len(others)][change] |= words
            self.by_similarity[pair, others] = sorted(levels.items())
        return self.by_similarity[pair, others]

    def changed(
        self, pair: Pair, others: Features, form: str, without: str | None = None, least: int = LEAST_WORDS
    ) -> tuple[str, int] | None:
        """The form with the second feature of `pair` in the place of the first, and how different the evidence is."""
        for difference, changes in self._levels(pair, others):
            fitting = {
                change: count
                for change, words in changes.items()
                if (count := len(words - {without})) and change.applied(form) is not None
            }
            if fitting:
                best = max(fitting, key=lambda change: (fitting[change], len(change.old)))
                if fitting[best] < least or fitting[best] < SHARE * sum(fitting.values()):
                    return None
                return str(best.applied(form)), difference
        return None

    def new_rows(self) -> Iterator[tuple[int, str, str]]:
        """For each word and each combination that no row has: the number of a row, and the form and features in it."""
        for guesses in self._guesses().values():
            nearest = min(guess.difference for guess in guesses)
            # Less similar evidence is less sure: a word that has no other gets no row.
            guesses = [guess for guess in guesses if guess.difference == nearest]
            ((features, _),) = Counter(guess.features for guess in guesses).most_common(1)  # in one order
            forms: dict[str, Counter[str]] = defaultdict(Counter)
            numbers: dict[str, int] = {}
            for guess in guesses:
                word = self.rows[guess.number][0]
                forms[word][guess.form] += guess.precision
                numbers.setdefault(word, guess.number)
            for word, number in numbers.items():
                yield number, forms[word].most_common(1)[0][0], features

    def _guesses(self) -> dict[Features, list[Guess]]:
        """By new combination, what each row that differs from it in one feature says of the row's word."""
        places: dict[str, list[Pair]] = defaultdict(list)
        for pair, precision in self.precision.items():
            if precision >= PRECISION:
                places[pair[0]].append(pair)
        found: dict[Features, list[Guess]] = defaultdict(list)
        for number, ((_, form, _), parts) in enumerate(zip(self.rows, self.parts, strict=True)):
            for place in range(0, len(parts), 2):
                others = frozenset(parts[::2]) - {parts[place]}
                for pair in places[parts[place]]:
                    combination = others | {pair[1]}
                    if pair[1] in others or combination in self.seen:
                        continue
                    if (guess := self.changed(pair, others, form)) is not None:
                        features = "".join([*parts[:place], pair[1], *parts[place + 1 :]])
                        found[combination].append(Guess(number, *guess, features, self.precision[pair]))
        return found


def recombine(rows: Sequence[tuple[str, str, str]], count: int, seed: int) -> list[tuple[int, str, str]]:
    """At most `count` rows with new combinations: the number of the row each was made from, its form and features.

    Args:
        rows: (word, form, features); `;` and `+` separate the features.
        seed: of what is drawn, where there are more than `count`.

    Raises:
        DataError: no two features stand in each other's place, or none gives a new combination.
    """
    found = list(Recombiner(rows).new_rows())
    if not found:
        raise DataError(f"none of {len(rows)} rows gives a new combination of features")
    draw = random.Random(seed)
    return found if len(found) <= count else draw.sample(found, count)


__all__ = ["Change", "Recombiner", "recombine"]
