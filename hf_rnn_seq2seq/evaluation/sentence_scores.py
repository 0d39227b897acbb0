"""Scores of one sentence, 0 to 1: rewards of sequence-level training, and what corpus GLEU averages."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

MAX_ORDER = 4  # words of the longest n-gram


def gleu(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """GLEU of two lists of words (Wu et al. 2016, section 5), 0 to 1.

    The number of n-grams of 1 to 4 words in both lists, divided by their number in the list that has more: the smaller
    of precision and recall. Two empty sentences score 1.
    """
    return _overlap(_ngrams(candidate), _ngrams(reference))


def _overlap(candidate: Counter, reference: Counter) -> float:
    largest = max(candidate.total(), reference.total())
    return (candidate & reference).total() / largest if largest else 1.0


def _ngrams(words: Sequence[str]) -> Counter:
    places = ((size, start) for size in range(1, MAX_ORDER + 1) for start in range(len(words) - size + 1))
    return Counter(tuple(words[start : start + size]) for size, start in places)


def sentence_metric(name: str) -> Callable[[str, str], float]:
    """(candidate, reference) -> score, 0 to 1: `gleu`, or sacrebleu's sentence `bleu` or `chrf` over 100.

    `sequence_error` and `symbol_error` are turned around, since a larger reward is better: 1 for an output that equals
    the reference symbol by symbol, else 0; and 1 minus the edits per symbol of the reference, at least 0.

    GLEU counts the words of BLEU's tokenizer 13a, which separates punctuation; for text without spaces choose chrf.
    BLEU is smoothed (exponentially) and uses only the n-gram orders that the sentence has.
    """
    if name == "gleu":
        return _sentence_gleu()
    if name == "sequence_error":
        return lambda candidate, reference: float(candidate.split() == reference.split())
    if name == "symbol_error":
        return _symbol_accuracy
    from sacrebleu.metrics import BLEU, CHRF

    metric = {"bleu": lambda: BLEU(effective_order=True), "chrf": CHRF}[name]()
    return lambda candidate, reference: metric.sentence_score(candidate, [reference]).score / 100


def _symbol_accuracy(candidate: str, reference: str) -> float:
    from rapidfuzz.distance import Levenshtein

    symbols = reference.split()
    return max(0.0, 1 - Levenshtein.distance(candidate.split(), symbols) / max(1, len(symbols)))


def _sentence_gleu() -> Callable[[str, str], float]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenize = Tokenizer13a()
    # Cached: the same reference is compared with every candidate.
    count = lru_cache(maxsize=4096)(lambda text: _ngrams(tokenize(text).split()))
    return lambda candidate, reference: _overlap(count(candidate), count(reference))
