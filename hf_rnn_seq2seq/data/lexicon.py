"""Pronunciation lexicons: the formats that speech programs read and write.

| format | a line |
| --- | --- |
| `cmudict` | `WORD  P H`, further pronunciations as `WORD(2)  P H`; `;;;` begins a comment |
| `kaldi` | `word p h` (Kaldi's `lexicon.txt`) |
| `kaldi_probabilities` | `word 0.8 p h` (Kaldi's `lexiconp.txt`) |
| `mfa` | word, tab, perhaps probabilities between tabs, and phones (Montreal Forced Aligner) |
| `ipa` | word, tab, phones between spaces (WikiPron, SIGMORPHON) |
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

LEXICONS = ("cmudict", "kaldi", "kaldi_probabilities", "mfa", "ipa")
_NUMBER = re.compile(r"(\d+\.?|\d*\.\d+)([eE][+-]?\d+)?")


class Entry(NamedTuple):
    """A word, one of its pronunciations (phones between single spaces), and its probability (None: not given)."""

    word: str
    phones: str
    probability: float | None = None


def parse_entry(line: str, kind: str) -> Entry | None:
    """The entry of a line; None for a comment or an empty line. What is missing of it is empty."""
    if not line.strip() or (kind == "cmudict" and line.startswith(";;;")):
        return None
    probability = None
    if kind in ("mfa", "ipa"):
        word, *rest = line.split("\t")
        numbers = [field for field in rest[:-1] if kind == "mfa" and _NUMBER.fullmatch(field.strip())]
        phones = " ".join(rest[len(numbers) :]) if kind == "mfa" or len(rest) == 1 else ""
        probability = float(numbers[0]) if numbers else None
    else:
        # CMUdict has a tab, two spaces or one after the word, by its release; Kaldi takes any white space.
        gap = next((gap for gap in ("\t", "  ") if gap in line.strip()), " +") if kind == "cmudict" else r"[ \t]+"
        word, phones = [*re.split(gap, line.strip(), maxsplit=1), ""][:2]
        if kind == "cmudict":
            word, phones = re.sub(r"\(\d+\)$", "", word), phones.partition(" #")[0]
        if kind == "kaldi_probabilities":
            number, others = [*phones.split(maxsplit=1), "", ""][:2]
            if _NUMBER.fullmatch(number):
                probability, phones = float(number), others
    return Entry(word.strip(), " ".join(phones.split()), probability)


def format_entries(word: str, found: Sequence[tuple[str, float]], kind: str) -> Iterator[str]:
    """The lines of a word with its pronunciations and their probabilities, the most probable first."""
    best = max((probability for _, probability in found), default=1.0) or 1.0
    for number, (phones, probability) in enumerate(found, start=1):
        if kind == "cmudict":
            yield f"{word}({number})  {phones}" if number > 1 else f"{word}  {phones}"
        elif kind == "kaldi":
            yield f"{word} {phones}"
        elif kind == "kaldi_probabilities":  # Kaldi's probabilities are relative to the best, and none is 0
            yield f"{word} {max(probability / best, 1e-4):.4f} {phones}"
        elif kind == "mfa":
            yield f"{word}\t{max(probability / best, 0.01):.2f}\t{phones}"
        else:
            yield f"{word}\t{phones}"


def looked_up(lexicon: Mapping[str, Sequence[Entry]], word: str) -> list[tuple[str, float]]:
    """Pronunciations of a word and their probabilities, which sum to 1; empty where the lexicon lacks the word.

    The word is looked up as written, then in lower and in upper case. Without probabilities all are equal.
    """
    entries = next((lexicon[form] for form in map(_key, (word, word.lower(), word.upper())) if form in lexicon), [])
    weights = [1.0 if entry.probability is None else entry.probability for entry in entries]
    if not sum(weights):
        weights = [1.0] * len(entries)
    shares: dict[str, float] = {}
    for entry, weight in zip(entries, weights, strict=True):
        # A line that stands twice says nothing more, unless it gives a part of the probability.
        shares[entry.phones] = weight + (shares.get(entry.phones, 0.0) if entry.probability is not None else 0.0)
    total = sum(shares.values())
    return [(phones, share / total) for phones, share in shares.items()]


def read_lexicon(lines: Iterable[str], kind: str) -> dict[str, list[Entry]]:
    """The pronunciations of each word, in the order of the lines; without words that lack one."""
    found: dict[str, list[Entry]] = {}
    for line in lines:
        entry = parse_entry(line, kind)
        if entry is not None and entry.word and entry.phones:
            found.setdefault(_key(entry.word), []).append(entry)
    return found


def _key(word: str) -> str:
    """A word in composed form, in which lexicons and texts may differ."""
    return unicodedata.normalize("NFC", word)
