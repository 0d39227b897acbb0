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


def test_dynamic_evaluation_learns_what_it_has_scored() -> None:
    """The steps of torch's SGD on each piece, after its tokens are scored by the equations (Graves 2013, section 3)."""
    tokens = np.random.default_rng(0).integers(4, 11, 3 * surprise.DYNAMIC_PIECE + 7).astype(np.int32)
    model = tiny_lm(**GRAVES)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = surprise.dynamic_token_nats(model, tokens, start=1, learning_rate=0.5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items()), "a copy learns"
    np.testing.assert_allclose(
        surprise.dynamic_token_nats(model, tokens, start=1, learning_rate=0.0),
        token_nats(model, tokens, start=1),
        atol=1e-6,
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    read, cache, expected = [1, *tokens[:-1].tolist()], None, []
    for at in range(0, len(tokens), surprise.DYNAMIC_PIECE):
        here = slice(at, at + surprise.DYNAMIC_PIECE)
        logits = []
        for token in read[here]:  # one after the other: the gradient flows back to the start of the piece
            output = model(torch.tensor([[token]]), cache=cache, use_cache=True)
            cache = output.cache
            logits.append(output.logits[0, -1])
        labels = torch.from_numpy(tokens[here].astype(np.int64))
        loss = -torch.stack(logits).log_softmax(-1)[torch.arange(len(labels)), labels]
        expected.append(loss.detach())
        optimizer.zero_grad()
        loss.mean().backward()
        optimizer.step()
        cache.state = cache.state.map(torch.Tensor.detach)
    np.testing.assert_allclose(found, torch.cat(expected).numpy(), rtol=1e-5)
    assert not np.allclose(found, token_nats(model, tokens, start=1), rtol=1e-3)


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
