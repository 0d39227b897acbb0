"""BLEU and length of the translations, grouped by the length of the source."""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_rnn_seq2seq.data.pieces import is_unspaced_script
from hf_rnn_seq2seq.errors import ArgumentError
from hf_rnn_seq2seq.evaluation.scores import nearest, reference_streams

_LAST = 50  # the length in words from which on all sources are in one bin


@dataclass(frozen=True)
class LengthBin:
    """Sentences whose source has `low` to `high` words, both included."""

    low: int
    high: int
    sentences: int
    bleu: float
    length_ratio: float  # words of the hypotheses / words of the references


def score_by_length(
    sources: Sequence[str],
    hypotheses: Sequence[str],
    references: Sequence[str] | Sequence[Sequence[str]],
    *,
    width: int = 5,
) -> list[LengthBin]:
    """BLEU and length ratio of sentences grouped by source length in words (Cho et al. 2014; Bahdanau et al. 2014).

    Bins are 1 to `width` words, and so on; sources of more than 50 words share one bin. Empty bins are left out. In a
    script without spaces characters are counted. Of several references BLEU reads all, the ratio the nearest.
    """
    from sacrebleu.metrics import BLEU

    if not len(sources) == len(hypotheses) == len(references) or not sources:
        raise ArgumentError(f"{len(sources)} sources, {len(hypotheses)} hypotheses, {len(references)} references")
    if not 1 <= width <= _LAST:
        raise ArgumentError(f"width={width}: must be from 1 to {_LAST} words")
    groups: dict[int, list[int]] = {}
    for index, source in enumerate(sources):
        length = max(_units(source), 1)
        groups.setdefault(min((length - 1) // width, _LAST // width), []).append(index)
    bins = []
    for group, members in sorted(groups.items()):
        texts = [hypotheses[index] for index in members]
        rows = [[row] if isinstance(row := references[index], str) else row for index in members]
        # `force` suppresses the warning about tokenized text for each bin.
        bleu = BLEU(effective_order=True, force=True).corpus_score(texts, reference_streams(rows))
        ratio = sum(map(_units, texts)) / max(sum(map(_units, nearest(texts, rows))), 1)
        longest = max(_units(sources[index]) for index in members)
        high = (group + 1) * width if group < _LAST // width else max(longest, (group + 1) * width)
        bins.append(LengthBin(group * width + 1, high, len(members), bleu.score, ratio))
    return bins


def _units(text: str) -> int:
    words = text.split()
    return sum(map(len, words)) if any(map(is_unspaced_script, text)) else len(words)
