"""Given translations: log-probability and attention by one forward pass."""

import pytest
import torch

from hf_rnn_seq2seq import errors
from hf_rnn_seq2seq.data.pieces import target_pieces
from hf_rnn_seq2seq.generation.scoring import forced_hypotheses, forced_hypothesis
from tests.helpers.checkpoints import SOURCES, TARGETS


def test_forced_hypothesis_equals_the_models_loss(pair) -> None:
    model, tokenizer = pair
    found = forced_hypothesis(model, tokenizer, SOURCES[0], TARGETS[0])
    labels = torch.tensor([found.token_ids])
    loss = model(input_ids=torch.tensor([found.source_ids]), labels=labels).loss.detach()
    assert found.log_probability == pytest.approx(-float(loss) * labels.numel(), rel=1e-4)
    assert target_pieces(tokenizer, found.token_ids)[-1] == "</s>"
    assert "".join(target_pieces(tokenizer, found.token_ids)[:-1]) == TARGETS[0]
    with pytest.raises(errors.ArgumentError, match="must both hold text"):
        forced_hypothesis(model, tokenizer, SOURCES[0], " ")


def test_many_forced_hypotheses_equal_each_alone(pair) -> None:
    model, tokenizer = pair
    sources, targets = SOURCES[: len(TARGETS)], list(TARGETS)
    together = forced_hypotheses(model, tokenizer, sources, targets, batch_size=4)
    for found, source, target in zip(together, sources, targets, strict=True):
        alone = forced_hypothesis(model, tokenizer, source, target)
        assert (found.text, found.token_ids, found.source_ids) == (target, alone.token_ids, alone.source_ids)
        assert found.log_probability == pytest.approx(alone.log_probability, abs=1e-4)
        torch.testing.assert_close(found.attention, alone.attention, atol=1e-5, rtol=0)
