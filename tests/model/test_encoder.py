"""The encoder: padding at any place, rows of any length, dropout as in the papers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_rnn_seq2seq.model.dropout import drop, drop_words
from hf_rnn_seq2seq.model.encoder import RnnEncoderOutput
from tests.helpers.models import SOURCES, mask, pad, tiny_model

KINDS: dict[str, dict[str, Any]] = {
    "lstm": {"encoder_layers": 2},
    "gru": {"encoder_layers": 2, "cell_type": "gru"},
    "relu, one-way": {"bidirectional": "none", "cell_type": "rnn_relu"},
    "reversed": {"bidirectional": "none", "reverse_source": True},
    "first": {"bidirectional": "first", "encoder_layers": 3, "residual_start": 3},
    "alternating": {"bidirectional": "alternating", "encoder_layers": 3, "cell_type": "gru"},
    "normalized": {"layer_norm": True},
    "features": {"encoder_layers": 2, "feature_token_ids": [4, 8]},
    "deep": {"encoder_transition_depth": 2, "cell_type": "gru", "gru_reset": "before"},
}


def encode(kind: str, ids: Tensor, attention_mask: Tensor | None = None) -> RnnEncoderOutput:
    encoder = tiny_model(**KINDS[kind]).get_encoder().requires_grad_(False)
    return encoder(ids, attention_mask, output_hidden_states=True)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_on_either_side_or_between_changes_nothing(kind: str) -> None:
    spread = [[5, 0, 7, 3, 0, 0, 2], [4, 6, 8, 9, 10, 2, 0], [0, 0, 0, 3, 0, 2, 0]]
    holes = torch.tensor([[int(word > 0) for word in row] for row in spread])
    given = [
        (pad(SOURCES), mask(SOURCES)),
        (pad(SOURCES, left=True), mask(SOURCES, left=True)),
        (torch.tensor(spread), holes),
        (torch.tensor(spread), None),  # by the pad token
        (torch.tensor(spread).masked_fill(holes == 0, 9), holes.bool()),  # by the mask only
    ]
    for ids, allowed in given:
        actual = encode(kind, ids, allowed)
        real = ids > 0 if allowed is None else allowed.bool()
        for feature in KINDS[kind].get("feature_token_ids", ()):
            real = real & (ids != feature)
        assert torch.equal(actual.source_mask, real)
        assert not actual.last_hidden_state[~real].any()
        for row, source in enumerate(SOURCES):
            alone = encode(kind, torch.tensor([source]))
            words = alone.source_mask[0]
            torch.testing.assert_close(actual.last_hidden_state[row][real[row]], alone.last_hidden_state[0][words])
            torch.testing.assert_close(actual.final_state[row], alone.final_state[0])
            if alone.final_cell is not None:
                torch.testing.assert_close(actual.final_cell[row], alone.final_cell[0])
            for here, there in zip(actual.hidden_states, alone.hidden_states, strict=True):
                torch.testing.assert_close(here[row][real[row]], there[0][words])


@pytest.mark.parametrize("kind", KINDS)
def test_shapes(kind: str) -> None:
    config = tiny_model(**KINDS[kind]).config
    actual = encode(kind, pad(SOURCES))
    ends = (3, config.encoder_layers, 2, config.encoder_hidden_size)
    assert actual.last_hidden_state.shape == (3, 6, config.encoder_output_size)
    assert actual.final_state.shape == ends
    assert (actual.final_cell is None) == (config.cell_type != "lstm")
    assert len(actual.hidden_states) == config.encoder_layers + 1
    assert all(len(value) == 3 for value in actual.to_tuple() if isinstance(value, Tensor))
    for layer in range(config.encoder_layers):
        one_way = config.encoder_directions(layer + 1) == 1
        assert actual.final_state[:, layer, 1].any() != one_way


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_row_gives_zeros_and_changes_no_other_row(kind: str) -> None:
    actual = encode(kind, pad([[], *SOURCES]))
    assert not actual.last_hidden_state[0].any() and not actual.final_state[0].any() and not actual.source_mask[0].any()
    torch.testing.assert_close(actual.last_hidden_state[1:], encode(kind, pad(SOURCES)).last_hidden_state)


def test_an_empty_source_gives_finite_gradients() -> None:
    for options in ({}, {"bridge": "mean"}, {"context": "every_step"}, {"attention_window": "local_p"}):
        model = tiny_model(**options)
        loss = model(input_ids=pad([[], [4, 2]]), labels=torch.tensor([[5, 2], [6, 2]])).loss
        loss.backward()
        assert loss.isfinite()
        assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


def test_word_vectors_in_place_of_words() -> None:
    encoder = tiny_model().get_encoder()
    vectors = encoder.get_input_embeddings()(pad(SOURCES))
    actual = encoder(inputs_embeds=vectors, attention_mask=mask(SOURCES))
    torch.testing.assert_close(actual.to_tuple(), encoder(pad(SOURCES)).to_tuple())
    assert encoder(inputs_embeds=vectors).source_mask.all()  # without a mask every vector is a word


def test_features_have_no_order_and_no_place() -> None:
    """Among the words or before them, in any order: the states of the words are the same, to the last bit."""
    model = tiny_model(feature_token_ids=[4, 8, 9]).requires_grad_(False)
    expected = model.get_encoder()(torch.tensor([[4, 8, 5, 7, 2]])).last_hidden_state[0, 2:]
    for source in ([8, 4, 5, 7, 2], [5, 8, 7, 4, 2], [5, 7, 2, 8, 4]):
        actual = model.get_encoder()(torch.tensor([source]))
        assert torch.equal(actual.last_hidden_state[actual.source_mask], expected)
    other = model.get_encoder()(torch.tensor([[9, 8, 5, 7, 2]])).last_hidden_state[0, 2:]
    assert not torch.isclose(other, expected).any()
    with pytest.raises(ValueError, match="inputs_embeds: feature_token_ids are found in input_ids; give these alone"):
        model.get_encoder()(inputs_embeds=torch.zeros(1, 3, 5))


def test_a_config_without_a_pad_token_reads_every_word() -> None:
    actual = tiny_model(pad_token_id=None).get_encoder()(pad(SOURCES))
    assert actual.source_mask.all() and actual.last_hidden_state[2, -1].any()


@pytest.mark.parametrize("function", [drop, drop_words], ids=["drop", "drop_words"])
def test_no_dropout_in_evaluation_or_at_probability_zero(function: Any) -> None:
    states = torch.randn(2, 3, 4)
    rest = (True,) if function is drop else ()
    assert function(states, 0.5, False, *rest) is states
    assert function(states, 0.0, True, *rest) is states


def test_dropout_by_unit_by_word_and_variational() -> None:
    torch.manual_seed(0)
    ones = torch.ones(40, 30, 20)
    kept = 1 / 0.7
    for dropped, alike in (
        (drop(ones, 0.3, True, False), None),
        (drop(ones, 0.3, True, True), 1),
        (drop_words(ones, 0.3, True), 2),
    ):
        assert set(dropped.unique().tolist()) == {0.0, torch.tensor(kept).item()}
        assert abs(float(dropped.mean()) - 1) < 0.05
        for axis in range(3):
            same = bool((dropped == dropped.select(axis, 0).unsqueeze(axis)).all())
            assert same == (axis == alike), (alike, axis)


def dropped_between_layers(side: str, **options: Any) -> Tensor:
    """The units that the second layer reads if all states are 1, from its output: (batch, time, hidden)."""
    model = tiny_model(
        cell_type="rnn_relu",
        bidirectional="none",
        encoder_layers=2,
        decoder_layers=2,
        hidden_size=12,
        dropout=0.4,
        bridge="zero",
        **options,
    ).train()
    part = model.get_encoder() if side == "encoder" else model.get_decoder()
    layers = [getattr(layer, "forward_layer", layer) for layer in part.layers]
    with torch.no_grad():
        for number, layer in enumerate(layers):
            for parameter in layer.parameters():
                parameter.zero_()
            if number == 0:
                layer.kernel.bias_ih_l0.fill_(1.0)  # writes ones, whatever it reads
            else:
                layer.kernel.weight_ih_l0[:, :12] = torch.eye(12)  # shows what it reads
    torch.manual_seed(0)
    words = torch.randint(3, 10, (6, 9))
    actual = model(input_ids=words, decoder_input_ids=words, output_hidden_states=True)
    return (actual.encoder_hidden_states if side == "encoder" else actual.decoder_hidden_states)[2]


@pytest.mark.parametrize("variational", [False, True])
@pytest.mark.parametrize(
    ("side", "options"),
    [
        ("encoder", {}),
        ("decoder", {}),  # all layers in the time loop
        ("decoder", {"input_feeding": False}),  # none
        ("decoder", {"attention_layer": "bottom"}),  # the first
        ("decoder", {"context": "initial_state"}),
    ],
    ids=str,
)
def test_dropout_between_layers(side: str, options: dict[str, Any], variational: bool) -> None:
    """Variational: one mask for all positions of a sentence; else one mask for each position."""
    shown = dropped_between_layers(side, variational_dropout=variational, **options)
    torch.testing.assert_close(shown.unique().tolist(), [0.0, 1 / 0.6])
    assert bool((shown == shown[:, :1]).all()) == variational
    assert len(shown[:, 0].unique(dim=0)) > 1  # each sentence has its own


def test_word_dropout_and_dropout_act_on_word_vectors() -> None:
    for option in ("word_dropout", "dropout"):
        model = tiny_model(**{option: 0.5}, embedding_size=40).train()
        words = torch.randint(3, 10, (8, 9))
        actual = model(input_ids=words, decoder_input_ids=words, output_hidden_states=True)
        for vectors in (actual.encoder_hidden_states[0], actual.decoder_hidden_states[0]):
            whole_words = (vectors == 0).all(-1)
            assert whole_words.any() == (option == "word_dropout")
            assert ((vectors == 0).any(-1) & ~whole_words).any() == (option == "dropout")


@pytest.mark.parametrize("variational", [False, True])
def test_dropout_acts_on_the_readout(variational: bool) -> None:
    model = tiny_model(dropout=0.5, variational_dropout=variational, output_bias=False, readout_size=11).train()
    with torch.no_grad():
        model.lm_head.weight.copy_(torch.eye(11))  # the logits are the readout
    torch.manual_seed(0)
    words = torch.randint(3, 10, (80, 9))
    dropped = model(input_ids=words, decoder_input_ids=words).logits == 0
    assert 0.4 < dropped.double().mean() < 0.6
    assert bool((dropped == dropped[:, :1]).all()) == variational
