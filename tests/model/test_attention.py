"""Scores, windows and masks, by the equation; test_model.py tests them in the whole model."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hf_rnn_seq2seq import register_attention
from hf_rnn_seq2seq.model.attention import Attention, GeneralAttention, build_attention, masked_softmax
from hf_rnn_seq2seq.model.config_checks import ConfigError
from tests.helpers import references
from tests.helpers.models import batch, randomize, tiny_config, tiny_model

MASK = torch.tensor([[1, 1, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1], [0, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1]]).bool()
KINDS: dict[str, dict[str, Any]] = {
    **{name: {"attention_type": name} for name in ("additive", "normed_additive", "dot", "scaled_dot", "general")},
    "location": {"attention_type": "location", "max_source_positions": 6},
    "multi_head": {"attention_type": "multi_head", "num_attention_heads": 2},
    "multi_head_additive": {"attention_type": "multi_head_additive", "num_attention_heads": 2},
}
WINDOWS = {
    "global": {},
    "local_m": {"attention_window": "local_m", "attention_window_size": 1},
    "local_p": {"attention_window": "local_p", "attention_window_size": 2},
}


def build(**options: Any) -> tuple[Any, Attention, Tensor, Tensor, Tensor]:
    """A config, its attention, queries (batch, 3, hidden), states (batch, 6, states), positions of the queries."""
    config = tiny_config(**options)
    attention = build_attention(config).double()
    randomize(attention, deviation=1.0)
    generator = torch.Generator().manual_seed(2)
    query = torch.randn(4, 3, config.hidden_size, generator=generator, dtype=torch.float64, requires_grad=True)
    states = torch.randn(4, 6, config.encoder_output_size, generator=generator, dtype=torch.float64, requires_grad=True)
    return config, attention, query, states, torch.tensor([[0, 1, 2], [2, 3, 4], [1, 2, 3], [7, 8, 9]])


def ask(attention: Attention, query: Tensor, states: Tensor, positions: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    keys, values = attention.project_keys(states), attention.project_values(states)
    context, weights, state = attention(query, keys, values, mask, positions)
    assert state is None
    return context, weights


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("kind", KINDS)
def test_contexts_weights_and_gradients(kind: str, window: str) -> None:
    """With padding at the ends and between the words, and windows that contain no source word."""
    config, attention, query, states, positions = build(**KINDS[kind], **WINDOWS[window])
    context, weights = ask(attention, query, states, positions, MASK)
    assert context.shape == (4, 3, config.context_width)
    assert weights.shape == (4, config.num_attention_heads, 3, 6)
    own, expected, found = attention.state_dict(keep_vars=True), [], []
    for row in range(4):
        real = [state for state, allowed in zip(states[row], MASK[row], strict=True) if allowed]
        assert not weights[row, ..., ~MASK[row]].any()
        for step in range(3):
            alone, shares = references.attend(config, own, query[row, step], real, int(positions[row, step]))
            expected += [alone, torch.stack([torch.stack(head) for head in shares])]
            found += [context[row, step], weights[row, :, step, MASK[row]]]
    torch.testing.assert_close(found, expected)
    read = [*attention.parameters(), query, states]
    gradients = []
    for tensors in (found, expected):
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        value = (flat * torch.arange(len(flat), dtype=flat.dtype).cos()).sum()
        gradients.append(torch.autograd.grad(value, read, allow_unused=True, materialize_grads=True))
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("window", ["global", "local_p"])
def test_a_row_without_allowed_words_has_zero_weights(kind: str, window: str) -> None:
    _, attention, query, states, positions = build(**KINDS[kind], **WINDOWS[window])
    mask = MASK.clone()
    mask[1] = False
    context, weights = ask(attention, query, states, positions, mask)
    assert not weights[1].any() and not context[1].any()
    context.sum().backward()
    assert states.grad.isfinite().all() and not states.grad[1].any()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in attention.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_masked_softmax_is_exact(dtype: torch.dtype) -> None:
    scores = torch.tensor([[9.0, 1.0, 5.0, 60000.0]], dtype=dtype)
    weights = masked_softmax(scores, torch.tensor([[True, True, True, False]]))
    assert weights[0, 3] == 0 and abs(float(weights.sum()) - 1) < 0.01
    assert abs(float(weights[0, 0]) - 1 / (1 + math.exp(-8) + math.exp(-4))) < 0.01
    # However low the scores, what is masked is not looked at.
    low = masked_softmax(torch.full((1, 2), -60000.0, dtype=dtype), torch.tensor([[True, False]]))
    assert low.tolist() == [[1.0, 0.0]]
    assert masked_softmax(scores, torch.zeros(1, 4, dtype=torch.bool)).tolist() == [[0.0] * 4]


def test_local_weights_are_not_renormalized() -> None:
    """Luong 2015, equation 10: the Gaussian comes after the softmax."""
    _, attention, query, states, positions = build(**WINDOWS["local_p"])
    _, weights = ask(attention, query, states, positions, MASK)
    assert (weights.sum(-1) < 0.999).any() and (weights.sum(-1) <= 1).all()


def test_local_m_is_centered_on_its_position() -> None:
    _, attention, query, states, positions = build(**WINDOWS["local_m"])
    _, weights = ask(attention, query, states, positions, MASK)
    looked = [[weights[row, 0, step].nonzero().flatten().tolist() for step in range(3)] for row in range(4)]
    assert looked == [
        [[0, 1], [0, 1, 2], [1, 2, 3]],
        [[3, 4, 5], [4, 5], [5]],  # the words stand from 2 on
        [[1, 2, 4], [2, 4, 5], [4, 5]],  # with a hole at 3
        [[], [], []],  # after the end of the source
    ]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_windows_have_exact_positions_in_16_bits(dtype: torch.dtype) -> None:
    """A 16-bit type cannot hold every position of a long source."""
    attention = build_attention(tiny_config(**WINDOWS["local_m"])).to(dtype)
    states, query = torch.ones(1, 3000, 4, dtype=dtype), torch.ones(1, 1, 4, dtype=dtype)
    mask, place = torch.ones(1, 3000, dtype=torch.bool), torch.tensor([[2051]])
    _, weights = ask(attention, query, states, place, mask)
    assert weights.dtype == dtype and weights[0, 0, 0].nonzero().flatten().tolist() == [2050, 2051, 2052]


def test_a_score_that_reads_positions_gets_them() -> None:
    class Nearest(Attention):
        def score(self, query: Tensor, keys: Tensor, source_positions: Tensor | None) -> Tensor:
            self.handed = source_positions
            return keys.new_zeros(keys.shape[0], 1, query.shape[1], keys.shape[1])

    class Reader(Nearest):
        reads_positions = True

    _, _, query, states, positions = build()
    for kind, handed in ((Nearest, None), (Reader, MASK.long().cumsum(1) - 1)):
        attention = kind(tiny_config())
        ask(attention, query, states, positions, MASK)
        assert attention.handed is handed or torch.equal(attention.handed, handed)


def test_a_source_longer_than_max_source_positions_is_refused() -> None:
    _, attention, query, states, positions = build(attention_type="location", max_source_positions=5)
    with pytest.raises(ValueError, match="source of 6 positions: .*max_source_positions=5"):
        ask(attention, query, states, positions, MASK)


class Restless(GeneralAttention):
    """Lowers the scores of source words that it has read: its state is the sum of its weights."""

    carries = True

    def start(self, keys: Tensor, source_mask: Tensor) -> Tensor:
        return keys.new_zeros(source_mask.shape)

    def forward(self, query, keys, values, source_mask, positions, state=None):
        scores = self.score(query, keys, None) - 3 * state[:, None, None]
        weights = masked_softmax(scores, source_mask[:, None, None])
        return self.context(weights, values), weights, state + weights[:, 0, 0]


@pytest.mark.parametrize("feeding", [True, False])
def test_the_state_of_a_custom_attention_is_used_on_every_path(feeding: bool) -> None:
    """Through the loop, the cache, the beams and the search."""
    register_attention("restless", Restless)
    model = tiny_model(attention_type="restless", input_feeding=feeding, deviation=1.2).requires_grad_(False)
    assert model.get_decoder().recurrence_path.startswith("loop: attention_type='restless': ")
    given = {name: batch()[name] for name in ("input_ids", "attention_mask")}
    for beams in (1, 3):
        expected = model.generate(**given, num_beams=beams, max_new_tokens=6, use_cache=False)
        assert expected.shape[1] > 4
        assert torch.equal(model.generate(**given, num_beams=beams, max_new_tokens=6), expected)
        assert torch.equal(model.search(**given, num_beams=beams, max_new_tokens=6), expected)
    actual = model(**batch(), output_attentions=True).cross_attentions[0]
    with torch.no_grad():
        monotonous = tiny_model(input_feeding=feeding, deviation=1.2)(**batch(), output_attentions=True)
    assert (actual[:, 0, :3].sum(1).amax(1) < monotonous.cross_attentions[0][:, 0, :3].sum(1).amax(1)).any()


def test_a_score_must_be_defined_and_registered() -> None:
    config = tiny_config()
    with pytest.raises(TypeError, match=r"Attention must define score\(query, keys, source_positions\)"):
        Attention(config).score(torch.zeros(1), torch.zeros(1), torch.zeros(1))
    config.attention_type = "unheard_of"
    with pytest.raises(ConfigError, match=r"attention_type='unheard_of': must be one of .*register_attention"):
        build_attention(config)
