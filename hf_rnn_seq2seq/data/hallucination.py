"""Data hallucination: words and forms with a stem of random letters (Anastasopoulos and Neubig 2019, 1908.05838).

Few pairs of a word and its form do not teach that a stem stays as it is. So letters that both share are replaced by
random ones, the same in both, and what differs is kept: `walk walked` -> `wodk wodked`. As in the program of the paper
a stem is a run of at least three shared letters, half of its letters are replaced, and of a run of more than five the
first and the last are not. The runs are the matching blocks of `difflib`; the paper's are found by a model of
alignment.
"""

import random
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher

from hf_rnn_seq2seq.errors import DataError

SHORTEST_STEM, LONGEST_WHOLE_STEM, SHARE = 3, 5, 0.5


def stems(source: str, target: str) -> list[tuple[int, int, int]]:
    """Start in the source, start in the target, and length, of each run that may be replaced and holds a letter."""
    runs = SequenceMatcher(None, source, target, autojunk=False).get_matching_blocks()
    found = [tuple(run) for run in runs if run.size >= SHORTEST_STEM]
    found = [(i + 1, j + 1, size - 2) if size > LONGEST_WHOLE_STEM else (i, j, size) for i, j, size in found]
    return [(i, j, size) for i, j, size in found if any(map(str.isalpha, source[i : i + size]))]


def hallucinate(pairs: Sequence[tuple[str, str]], count: int, seed: int) -> Iterator[tuple[int, str, str]]:
    """`count` pairs with random stems: the number of the pair that each was made from, source and target.

    All pairs with a stem are used in turn, in random order. Letters are drawn from those of the pairs, each as likely.

    Raises:
        DataError: no pair has a stem.
    """
    letters = sorted({letter for pair in pairs for text in pair for letter in text if letter.isalpha()})
    usable = [(number, found) for number, pair in enumerate(pairs) if (found := stems(*pair))]
    if not usable or len(letters) < 2:
        raise DataError(f"none of {len(pairs)} rows shares {SHORTEST_STEM} letters in a row between source and target")
    draw = random.Random(seed)
    for turn in range(count):
        if turn % len(usable) == 0:
            draw.shuffle(usable)
        number, found = usable[turn % len(usable)]
        source, target = map(list, pairs[number])
        while (source, target) == tuple(map(list, pairs[number])):  # a copy of the pair would say nothing new
            for i, j, size in found:
                for step in range(size):
                    if source[i + step].isalpha() and draw.random() < SHARE:
                        source[i + step] = target[j + step] = draw.choice(letters)
        yield number, "".join(source), "".join(target)


__all__ = ["hallucinate", "stems"]
