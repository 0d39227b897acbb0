"""Scores of one sentence, 0 to 1, from strings: the rewards of sequence-level training, and what GLEU averages."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import lru_cache

LONGEST = 4  # words of an n-gram


def gleu(candidate: Sequence[str], reference: Sequence[str]) -> float:
    """GLEU of two lists of words (Wu et al. 2016, section 5), 0 to 1.

    Of all n-grams of 1 to 4 words: those of both sides, over those of the side that has more. This is the smaller of
    precision and recall. Two empty sentences are the same: 1.
    """
    return _overlap(_ngrams(candidate), _ngrams(reference))


def _overlap(found: Counter, wanted: Counter) -> float:
    largest = max(found.total(), wanted.total())
    return (found & wanted).total() / largest if largest else 1.0


def _ngrams(words: Sequence[str]) -> Counter:
    places = ((size, start) for size in range(1, LONGEST + 1) for start in range(len(words) - size + 1))
    return Counter(tuple(words[start : start + size]) for size, start in places)


def sentence_metric(name: str) -> Callable[[str, str], float]:
    """(candidate, reference) -> score, 0 to 1: `gleu`, or sacrebleu's sentence `bleu` or `chrf` over 100.

    GLEU counts the words of BLEU's tokenizer 13a, so punctuation stands alone; for writing without spaces choose chrf.
    BLEU is smoothed (exponentially) and uses the orders that the sentence has.
    """
    return _METRICS[name]()


def _gleu() -> Callable[[str, str], float]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    tokenize = Tokenizer13a()
    # Each reference comes once for every candidate.
    count = lru_cache(maxsize=4096)(lambda text: _ngrams(tokenize(text).split()))
    return lambda candidate, reference: _overlap(count(candidate), count(reference))


def _bleu() -> Callable[[str, str], float]:
    from sacrebleu.metrics import BLEU

    metric = BLEU(effective_order=True)
    return lambda candidate, reference: metric.sentence_score(candidate, [reference]).score / 100


def _chrf() -> Callable[[str, str], float]:
    from sacrebleu.metrics import CHRF

    metric = CHRF()
    return lambda candidate, reference: metric.sentence_score(candidate, [reference]).score / 100


_METRICS = {"gleu": _gleu, "bleu": _bleu, "chrf": _chrf}
