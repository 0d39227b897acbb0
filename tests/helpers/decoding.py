"""A small trained model for the tests of decoding, and slow restatements of the searches."""

import itertools
import math
import random
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
from tests.helpers.models import END, PAD

WORDS = 24  # ids 4 to 23 are words
Model = RnnSeq2SeqForConditionalGeneration


def translate_word(word: int) -> int:
    return 4 + (word * 7) % (WORDS - 4)


def sentence(generator: random.Random, longest: int = 8) -> list[int]:
    return [generator.randrange(4, WORDS) for _ in range(generator.randint(1, longest))] + [END]


def translation(source: list[int]) -> list[int]:
    """Word by word, in the opposite order."""
    return [translate_word(word) for word in reversed(source[:-1])] + [END]


def padded(rows: list[list[int]], value: int = PAD) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([row + [value] * (width - len(row)) for row in rows])


def inputs(rows: list[list[int]]) -> dict[str, Tensor]:
    ids = padded(rows)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long()}


@lru_cache
def trained(cell_type: str = "lstm", input_feeding: bool = True, steps: int = 250, seed: int = 0) -> Model:
    """A model that was trained briefly to translate word by word: certain of some words, uncertain of others."""
    torch.manual_seed(seed)
    generator = random.Random(seed)
    config = RnnSeq2SeqConfig(
        vocab_size=WORDS, embedding_size=24, hidden_size=32, cell_type=cell_type, input_feeding=input_feeding
    )
    model = RnnSeq2SeqForConditionalGeneration(config).train()
    optimizer = torch.optim.Adam(model.parameters(), 5e-3, fused=True)
    for _ in range(steps):
        rows = [sentence(generator) for _ in range(32)]
        labels = padded([translation(row) for row in rows], -100)
        model(**inputs(rows), labels=labels, skip_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval().requires_grad_(False)


def every_hypothesis(vocab_size: int, limit: int) -> Iterator[tuple[int, ...]]:
    """Every sentence that ends within `limit` tokens, and every one of `limit` tokens that does not."""
    words = [word for word in range(vocab_size) if word != END]
    for length in range(limit):
        for start in itertools.product(words, repeat=length):
            yield (*start, END)
    yield from itertools.product(words, repeat=limit)


def exhaustive(model: Model, source: list[int], limit: int) -> list[tuple[tuple[int, ...], float, Tensor]]:
    """Every hypothesis with its log-probability and attention (target, source), by passes without a cache."""
    hypotheses = list(every_hypothesis(model.config.vocab_size, limit))
    targets = padded([list(hypothesis) for hypothesis in hypotheses], -100)
    count = len(hypotheses)
    ids = torch.tensor([source]).expand(count, -1)
    output = model(input_ids=ids, labels=targets, output_attentions=True)
    chosen = output.logits.log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    totals = (chosen * (targets != -100)).sum(1).tolist()
    attention = output.cross_attentions[0].mean(1)
    return [(h, total, attention[i, : len(h)]) for i, (h, total) in enumerate(zip(hypotheses, totals, strict=True))]


def gnmt_score(total: float, attention: Tensor, alpha: float, beta: float) -> float:
    """Wu 2016, equation 14: log P / lp(Y) + cp(X; Y)."""
    penalty = (5 + len(attention)) ** alpha / (5 + 1) ** alpha
    coverage = sum(math.log(min(float(attention[:, position].sum()), 1.0)) for position in range(attention.shape[1]))
    return total / penalty + beta * coverage


def call(model: Model, rows: list[list[int]], **options: Any) -> list[list[int]]:
    """What the search produces for each row, up to the end of sentence, without the start token."""
    found = model.search(**inputs(rows), **options)
    return [strip(row) for row in found[:, 1:].tolist()]


def strip(row: list[int]) -> list[int]:
    return row[: row.index(END) + 1] if END in row else row
