"""The search gives the tokens of `generate()` on real sentences: two hundred in every run, a thousand in the long one.

The sentences are Tatoeba's, read by a tokenizer trained on them, and the models have learned something from them, so
that scores lie as close as they do in real models, and sentences end at all lengths.
"""

import copy
import gzip
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.decoding import Batch, Decoding, read_sentences
from torch.nn.utils.rnn import pad_sequence

from hf_rnn_seq2seq import RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.data.tokenizer import build_tokenizer
from hf_rnn_seq2seq.generation.batches import until_end
from hf_rnn_seq2seq.model.fused_step import FusedStep, build_step
from tests.helpers.models import END

COUNT = 1000
Model = RnnSeq2SeqForConditionalGeneration


@lru_cache
def pairs(folder: Path, split: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """`COUNT` sources and targets of every length; the files have the short ones first."""
    with gzip.open(folder / "tatoeba-fra-eng" / f"{split}.tsv.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").split("\t") for line in file][1:]
    chosen = rows[:: len(rows) // COUNT][:COUNT]
    return tuple(row[0] for row in chosen), tuple(row[1] for row in chosen)


@lru_cache
def tokenizer(folder: Path) -> Any:
    return build_tokenizer(*pairs(folder, "train"), vocab_size=1000)


def new_model(folder: Path, cell_type: str, input_feeding: bool, **options: Any) -> Model:
    torch.manual_seed(0)
    options |= {"vocab_size": len(tokenizer(folder)), "embedding_size": 48, "hidden_size": 64}
    return Model(RnnSeq2SeqConfig(cell_type=cell_type, input_feeding=input_feeding, **options))


@lru_cache
def learner(folder: Path, cell_type: str, input_feeding: bool, steps: int) -> Model:
    """A small model that has seen a thousand pairs a few times."""
    model, words = new_model(folder, cell_type, input_feeding).train(), tokenizer(folder)
    sources, targets = (list(side) for side in pairs(folder, "train"))
    sources, targets = words(sources)["input_ids"], words(text_target=targets)["input_ids"]
    optimizer = torch.optim.Adam(model.parameters(), 6e-3, fused=True)
    for _ in range(steps):
        rows = torch.randint(COUNT - 64, (1,)) + torch.randint(64, (32,))  # of similar length
        ids = pad_sequence([torch.tensor(sources[row]) for row in rows], True, 0)
        labels = pad_sequence([torch.tensor(targets[row]) for row in rows], True, -100)
        model(input_ids=ids, labels=labels, skip_logits=True).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval().requires_grad_(False)


def decoded(decode: Callable[..., Any], batches: list[Batch], beams: int) -> dict[int, list[int]]:
    """The tokens of each sentence, its end included."""
    decoding = Decoding(decode, batches, {"max_new_tokens": 20, "num_beams": beams})
    decoding()
    return {index: until_end(row, END) for index, row in decoding.hypotheses.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("count", "steps"), [(200, 150), pytest.param(COUNT, 400, marks=pytest.mark.long)])
@pytest.mark.parametrize("beams", [1, 5], ids=["greedy", "beam 5"])
@pytest.mark.parametrize(
    ("cell_type", "input_feeding"),
    [
        ("lstm", True),
        *(pytest.param(*kind, marks=pytest.mark.long) for kind in (("gru", False), ("lstm", False), ("gru", True))),
    ],
)
def test_real_sentences(
    shared_data: Path, cell_type: str, input_feeding: bool, beams: int, count: int, steps: int
) -> None:
    """In float32, sorted by length and in the order of the file.

    Where two words are as likely to seven digits, processors may round them into either order: one sentence may differ,
    if none does with more digits.
    """
    model, texts = learner(shared_data, cell_type, input_feeding, steps), pairs(shared_data, "test")[0]
    texts = texts[:: COUNT // count]
    assert type(build_step(model)) is FusedStep and len(texts) == count
    sentences = read_sentences(model, tokenizer(shared_data), texts, 250)
    expected = decoded(model.generate, sentences.by_length, beams)
    assert len(expected) == count
    lengths, different = {len(row) for row in expected.values()}, {tuple(row) for row in expected.values()}
    assert len(lengths) > 4 and len(different) > count // 12
    for batches in (sentences.by_length, sentences.plain):
        found = decoded(model.search, batches, beams)
        different = [number for number in expected if expected[number] != found[number]]
        assert len(different) <= 1
        if different:
            wide = copy.deepcopy(model).double()
            assert decoded(wide.search, batches, beams) == decoded(wide.generate, batches, beams)


@pytest.mark.thinned(3)
@pytest.mark.parametrize("input_feeding", [True, False], ids=["feeding", "no feeding"])
@pytest.mark.parametrize("cell_type", ["lstm", "gru"])
def test_models_that_magnify_rounding_agree_with_more_digits(
    shared_data: Path, cell_type: str, input_feeding: bool
) -> None:
    """Large random weights double a difference in the seventh digit at each step: float32 differs from itself there."""
    model = new_model(shared_data, cell_type, input_feeding, initializer_range=0.6).double().eval()
    sentences = read_sentences(model, tokenizer(shared_data), pairs(shared_data, "test")[0], 500)
    with torch.no_grad():  # no word is likely: the end becomes the likeliest one time in ten
        _, ids, mask = sentences.plain[0]
        call = {"max_new_tokens": 20, "eos_token_id": None, "return_dict_in_generate": True, "output_logits": True}
        logits = torch.stack(model.generate(input_ids=ids, attention_mask=mask, **call).logits, 1)
        model.lm_head.bias[END] += (logits.amax(-1) - logits[..., END]).quantile(0.1)
    expected = decoded(model.generate, sentences.by_length, 1)
    assert len({tuple(row) for row in expected.values()}) > 300
    assert decoded(model.search, sentences.by_length, 1) == expected
