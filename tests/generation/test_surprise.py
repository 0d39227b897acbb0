"""The nats of a text: with the state carried over all of it, and in parts side by side."""

import math

import numpy as np
import pytest
import torch

from hf_rnn_seq2seq.data.arguments import TokenizerArguments
from hf_rnn_seq2seq.data.running_text import build_tokenizer
from hf_rnn_seq2seq.generation import surprise
from hf_rnn_seq2seq.generation.surprise import score_text, token_nats
from tests.model.test_causal import GRAVES, reference_logits, tiny_lm

TOKENS = np.random.default_rng(0).integers(4, 11, 37).astype(np.int32)


def test_nats_are_those_of_the_equations(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the pieces in which the text is read."""
    model = tiny_lm(**GRAVES)
    logs = reference_logits(model, [1, *TOKENS[:-1].tolist()]).log_softmax(-1).detach()
    expected = -logs[torch.arange(37), torch.from_numpy(TOKENS).long()].numpy()
    for piece in (1, 5, 512):
        monkeypatch.setattr(surprise, "PIECE", piece)
        np.testing.assert_allclose(token_nats(model, TOKENS, start=1), expected)


@pytest.mark.parametrize("parts", [2, 5, 36, 50])
def test_parts_side_by_side_read_what_stands_before_them(parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first part is exact; a part that has read all of the text before it is, too."""
    model = tiny_lm(**GRAVES)
    whole = token_nats(model, TOKENS, start=1)
    found = token_nats(model, TOKENS, start=1, parts=parts)
    size = -(-37 // parts)
    assert found.shape == (37,) and np.isfinite(found).all()
    np.testing.assert_allclose(found[:size], whole[:size])
    width = min(size, surprise.WARM_UP)
    for at in range(size, 37):
        begin = at // size * size
        heard = TOKENS[begin - width - 1 : at] if begin > width else np.concatenate([[1], TOKENS[:at]])
        logits = model(torch.from_numpy(heard[None].astype(np.int64))).logits[0, -1]
        np.testing.assert_allclose(found[at], -logits.log_softmax(-1)[int(TOKENS[at])].item())


def test_bits_are_nats_over_the_logarithm_of_two() -> None:
    tokenizer = build_tokenizer(["abcdefg"], TokenizerArguments(tokenizer_algorithm="letter", min_frequency=1))
    model = tiny_lm(**GRAVES)
    score = score_text(model, tokenizer, ["abca", "gg"])
    assert (score.tokens, score.characters) == (7, 6)  # the end token between the documents
    expected = token_nats(model, np.asarray([4, 5, 6, 4, 2, 10, 10], np.int32), start=1).sum()
    figures = score.figures()
    assert figures["loss"] == pytest.approx(expected / 7)
    assert figures["perplexity"] == pytest.approx(math.exp(expected / 7))
    assert figures["nats_per_character"] == pytest.approx(expected / 6)
    assert figures["bits_per_character"] == pytest.approx(expected / 6 / math.log(2))
