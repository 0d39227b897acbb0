"""Training on other segmentations of the same text: BPE-dropout (Provilkov 2020) and unigram sampling (Kudo 2018).

`tokenizers` can draw segmentations too, from a generator that nobody can seed. Here (seed, epoch, id of the row) decide
them, so that a resumed run, and a run on any number of processes, trains on the same pieces. The price, in the thread
that reads ahead of the model: a sentence pair of Multi30k (31 to 37 pieces) took 0.24 ms with BPE-dropout and 0.2 to
0.4 ms (words seen before, new words) with unigram sampling, of which the tokenizer's own part is 0.1 ms.
"""

from __future__ import annotations

import json
import math
import random
import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tokenizers import Encoding, Tokenizer

from hf_rnn_seq2seq.errors import ArgumentError

# Words whose segmentations are remembered, on each side.
_REMEMBERED = 100_000


class BytePairs:
    """Byte-pair encoding of a word, each merge left out with a probability at each step (Provilkov 2020, algorithm 1).

    Args:
        model: the tokenizer's model, as its file holds it.
        dropout: probability in [0, 1]; 0 gives the usual segmentation, 1 single characters.
    """

    def __init__(self, model: Mapping[str, Any], dropout: float) -> None:
        self.ids, self.dropout = model["vocab"], dropout
        pairs = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
        self.ranks = {pair: rank for rank, pair in enumerate(pairs)}

    def draws(self, word: str, pieces: Sequence[str]) -> bool:
        """Whether `pieces`, the usual ones, can be drawn anew: not where characters are unknown or spelt in bytes."""
        return len(word) > 1 and self.segment(word, None) == list(pieces)

    def segment(self, word: str, draw: random.Random | None) -> list[str]:
        """The pieces of a word; the usual ones where nothing is drawn."""
        pieces, ranks = list(word), self.ranks
        while len(pieces) > 1:
            best, place = math.inf, 0
            for left in range(len(pieces) - 1):
                rank = ranks.get((pieces[left], pieces[left + 1]), math.inf)
                # What is drawn for a merge that would not be chosen anyway makes no difference.
                if rank < best and (draw is None or draw.random() >= self.dropout):
                    best, place = rank, left
            if best == math.inf:
                break
            pieces[place : place + 2] = [pieces[place] + pieces[place + 1]]
        return pieces


class UnigramLattice:
    """All segmentations x of one word, drawn in proportion to P(x)^alpha (Kudo 2018, section 3.2, with l = infinity).

    Forward: f(j) = log sum over pieces that end at j of exp(f(i) + alpha log P(piece)). Backward: from the end of the
    word the last piece is drawn in proportion to its term of f, then the one before it. That is exact.

    Args:
        model: the tokenizer's model, as its file holds it.
        alpha: above 0; small makes all segmentations alike, 1 draws them by their probability.
        never: names of tokens that no text is made of, such as `</s>`.
    """

    def __init__(self, model: Mapping[str, Any], alpha: float, never: set[str]) -> None:
        names = [name for name, _ in model["vocab"]]
        byte = re.compile(r"<0x[0-9A-F]{2}>" if model.get("byte_fallback") else r"(?!)")
        self.ids = {name: number for number, name in enumerate(names)}
        self.scores = {
            name: alpha * score
            for number, (name, score) in enumerate(model["vocab"])
            if name not in never and number != model.get("unk_id") and not byte.fullmatch(name)
        }
        self.longest = max(map(len, self.scores), default=1)
        self.endings = lru_cache(_REMEMBERED)(self._endings)

    def draws(self, word: str, pieces: Sequence[str]) -> bool:
        """As `BytePairs.draws`."""
        return len(word) > 1 and all(piece in self.scores for piece in pieces)

    def _endings(self, word: str) -> list[list[tuple[int, float]]]:
        """For each end the pieces there: where each begins, and the probability of it and those before it."""
        forward, endings = [0.0], [[]]
        for end in range(1, len(word) + 1):
            terms = []
            for start in range(max(0, end - self.longest), end):
                score = self.scores.get(word[start:end])
                if score is not None and forward[start] > -math.inf:
                    terms.append((start, forward[start] + score))
            largest = max((term for _, term in terms), default=-math.inf)
            total, found = 0.0, []
            for start, term in terms:
                total += math.exp(term - largest)
                found.append((start, total))
            forward.append(largest + math.log(total) if total else -math.inf)
            endings.append([(start, below / total) for start, below in found])
        return endings

    def segment(self, word: str, draw: random.Random) -> list[str]:
        """The pieces of a word."""
        endings, end, pieces = self.endings(word), len(word), []
        while end:
            mark = draw.random()
            start = next(start for start, below in endings[end] if mark < below)
            pieces.append(word[start:end])
            end = start
        return pieces[::-1]


class Side:
    """One language's tokenizer, a copy that no other thread switches or pads, and how its words are drawn."""

    def __init__(self, tokenizer: Any, name: str, bpe_dropout: float, alpha: float | None) -> None:
        self.backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self.backend.no_padding()
        self.backend.no_truncation()
        self.backend.encode_special_tokens = bool(tokenizer.split_special_tokens)
        model = json.loads(self.backend.to_str())["model"]
        given = f"bpe_dropout={bpe_dropout}" if alpha is None else f"subword_sampling_alpha={alpha}"
        needed, missing = ("BPE", not model.get("merges")) if alpha is None else ("Unigram", not model.get("vocab"))
        if model["type"] != needed or missing:
            what = "a BPE model without merges" if model["type"] == needed else f"a {model['type']} model"
            raise ArgumentError(f"{given}: the {name} tokenizer is {what}; needs tokenizer_algorithm {needed.lower()}")
        for option in ("continuing_subword_prefix", "end_of_word_suffix"):
            if model.get(option):
                raise ArgumentError(f"{given}: the {name} tokenizer marks its pieces ({option} {model[option]!r})")
        never = {token.content for token in self.backend.get_added_tokens_decoder().values()}
        self.words = BytePairs(model, bpe_dropout) if alpha is None else UnigramLattice(model, alpha, never)
        self.word = lru_cache(_REMEMBERED)(self._word)

    def _word(self, ids: tuple[int, ...]) -> str | None:
        """The word of which these are the usual pieces; None where it stays as it is."""
        pieces = [self.backend.id_to_token(number) for number in ids]
        word = "".join(pieces)
        return word if self.words.draws(word, pieces) else None

    def encode(self, texts: Sequence[str]) -> list[Encoding]:
        """The usual segmentation of each text, the end token included."""
        return self.backend.encode_batch(list(texts))

    def redraw(self, usual: Encoding, draw: random.Random, longest: int) -> list[int]:
        """Ids of a newly drawn segmentation, or the usual ones where that has more than `longest`."""
        ids, numbers, found, start = usual.ids, usual.word_ids, [], 0
        for stop in range(1, len(ids) + 1):
            if stop < len(ids) and numbers[stop] is not None and numbers[stop] == numbers[start]:
                continue
            pieces = tuple(ids[start:stop])
            # What the tokenizer puts around a text belongs to no word.
            word = None if numbers[start] is None else self.word(pieces)
            found += pieces if word is None else [self.words.ids[piece] for piece in self.words.segment(word, draw)]
            start = stop
        return found if len(found) <= longest else ids


class SubwordSampler:
    """Token columns of training rows, drawn anew in each epoch.

    Args:
        tokenizer: a fast tokenizer with one or two vocabularies; byte-pair for `bpe_dropout`, unigram for `alpha`.
        bpe_dropout: probability that a merge is left out; None to sample by `alpha`.
        alpha: the power of a segmentation's probability.
        seed: decides what is drawn, together with the epoch and the row's id.
        max_source_length, max_target_length: in tokens; a row that is drawn longer keeps its usual segmentation.

    Raises:
        ArgumentError: the tokenizer is of another kind.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        bpe_dropout: float = 0.0,
        alpha: float | None = None,
        seed: int,
        max_source_length: int,
        max_target_length: int,
    ) -> None:
        self.seed, self.limits = seed, (max_source_length, max_target_length)
        self.source = Side(tokenizer, "source", bpe_dropout, alpha)
        # A tokenizer of one vocabulary has no modes.
        getattr(tokenizer, "_switch_to_target_mode", str)()
        try:
            self.target = Side(tokenizer, "target", bpe_dropout, alpha)
        finally:
            getattr(tokenizer, "_switch_to_input_mode", str)()

    def columns(self, texts: Mapping[str, Sequence[Any]], epoch: int) -> dict[str, list[Any]]:
        """The columns of `token_columns.encode` for the rows' `id`, `source` and `target`, as drawn in an epoch."""
        columns: dict[str, list[Any]] = {"id": list(texts["id"]), "input_ids": [], "labels": []}
        sources, targets = self.source.encode(texts["source"]), self.target.encode(texts["target"])
        for row, source, target in zip(columns["id"], sources, targets, strict=True):
            draw = random.Random(f"{self.seed} {epoch} {row}")
            columns["input_ids"].append(self.source.redraw(source, draw, self.limits[0]))
            columns["labels"].append(self.target.redraw(target, draw, self.limits[1]))
        lengths = {"source_length": "input_ids", "target_length": "labels"}
        return columns | {name: list(map(len, columns[ids])) for name, ids in lengths.items()}


__all__ = ["BytePairs", "Side", "SubwordSampler", "UnigramLattice"]
