"""The decoder: padding keeps the state, and the fused path runs for every configuration that it covers."""

from typing import Any

import pytest
import torch
from torch import Tensor

from hf_rnn_seq2seq import ConfigError, RnnSeq2SeqConfig, RnnSeq2SeqForConditionalGeneration
from hf_rnn_seq2seq.model.presets import PRESETS
from tests.helpers.models import SOURCES, decoder_inputs, mask, pad, tiny_config, tiny_model
from tests.helpers.paper_systems import SIZES

Model = RnnSeq2SeqForConditionalGeneration
BEFORE = {"attention_order": "before_cell", "attention_type": "additive"}
KINDS: dict[str, dict[str, Any]] = {
    "fed": {},
    "fed, two layers": {"decoder_layers": 2},
    "fed context": {"readout": "linear"},
    "not fed": {"input_feeding": False, "decoder_layers": 2},
    "before": BEFORE | {"decoder_layers": 2, "readout_state": "previous"},
    "bottom": BEFORE | {"decoder_layers": 3, "attention_layer": "bottom", "context_layers": "all"},
    "conditional": BEFORE | {"cell_type": "gru", "decoder_transition_depth": 2},
    "coverage": {"attention_type": "additive", "coverage": "gru", "input_feeding": False},
    "gate, entmax": BEFORE | {"context_gate": "both", "attention_normalization": "entmax"},
    "every step, previous": {"context": "every_step", "readout_state": "previous"},
    "initial state": {"context": "initial_state", "decoder_layers": 2},
    "skips": {"skip_connections": True, "decoder_layers": 3},
    "skips, previous": BEFORE | {"skip_connections": True, "decoder_layers": 2, "readout_state": "previous"},
    "local_m": {"attention_window": "local_m", "attention_window_size": 1, "input_feeding": False},
    "local_p, fed": {"attention_window": "local_p", "attention_window_size": 2},
}


def read(model: Model, words: Tensor, **rest: Any) -> Any:
    inputs = {"input_ids": pad(SOURCES), "attention_mask": mask(SOURCES)}
    return model(**inputs, decoder_input_ids=words, output_hidden_states=True, output_attentions=True, **rest)


@pytest.mark.parametrize("kind", KINDS)
def test_a_padded_position_keeps_the_state(kind: str) -> None:
    """At any place: scores, attention and final state of the real words are those of the sentence without padding."""
    model = tiny_model(**KINDS[kind])
    words = torch.tensor([[1, 5, 6, 7], [1, 9, 3, 3], [1, 4, 4, 8]])
    whole = read(model, words)
    spread, allowed = torch.full((3, 7), 0), torch.zeros(3, 7, dtype=torch.long)
    places = [[3, 4, 5, 6], [0, 2, 3, 6], [0, 1, 2, 3]]
    for row, real in enumerate(places):
        spread[row, real], allowed[row, real] = words[row], 1
    actual = read(model, spread, decoder_attention_mask=allowed)
    for row, real in enumerate(places):
        torch.testing.assert_close(actual.logits[row, real], whole.logits[row])
        if whole.cross_attentions:
            torch.testing.assert_close(actual.cross_attentions[0][row][:, real], whole.cross_attentions[0][row])
        for here, there in zip(actual.decoder_hidden_states, whole.decoder_hidden_states, strict=True):
            torch.testing.assert_close(here[row, real], there[row])
    torch.testing.assert_close(actual.cache.states, whole.cache.states)
    assert torch.equal(actual.cache.state.position, torch.full((3,), 4))


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_last_columns_of_a_longer_mask_count(kind: str) -> None:
    """`generate()` passes the mask of the whole prompt with each new word."""
    model = tiny_model(**KINDS[kind])
    words = pad(decoder_inputs())
    actual = read(model, words, decoder_attention_mask=torch.ones(3, 5).long())
    longer = torch.cat([torch.zeros(3, 4), torch.ones(3, 5)], 1).long()
    torch.testing.assert_close(read(model, words, decoder_attention_mask=longer).logits, actual.logits)


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_states_are_the_word_vectors_and_each_layer(kind: str) -> None:
    model = tiny_model(**KINDS[kind])
    actual = read(model, pad(decoder_inputs()))
    vectors, *layers = actual.decoder_hidden_states
    torch.testing.assert_close(vectors, model.get_decoder().embed_tokens(pad(decoder_inputs())))
    assert [tuple(states.shape) for states in layers] == [(3, 5, 4)] * model.config.decoder_layers
    for number, states in enumerate(layers):
        torch.testing.assert_close(states[:, -1], actual.cache.state.layers[number][0])


PATHS = {
    "scan": [
        {},
        {"cell_type": "gru"},
        {"cell_type": "gru", "gru_reset": "before"},
        BEFORE,
        {"readout": "linear"},
        {"readout_embedding": True},
        {"decoder_layers": 2},
        {"decoder_layers": 3, "attention_layer": "bottom", "layer_norm": False},
        {"attention_type": "scaled_dot"},
        {"attention_type": "normed_additive"},
        {"attention_type": "multi_head", "num_attention_heads": 2},
        {"attention_type": "window"},
        {"recurrent_dropout": 0.2, "dropout": 0.1, "variational_dropout": True, "weight_drop": 0.2},
        {"coverage_loss": 1.0, "guided_alignment_weight": 1.0},
        BEFORE | {"skip_connections": True, "decoder_layers": 2},
        {"skip_connections": True, "decoder_layers": 2, "readout": "linear"},
        {"skip_connections": True},
    ],
    "at once": [
        {"input_feeding": False},
        {"input_feeding": False, "attention_normalization": "entmax", "context_gate": "source"},
        {"context": "initial_state", "decoder_layers": 4},
        {"context": "every_step"},
        {"context": "initial_state", "skip_connections": True, "decoder_layers": 3},
    ],
    "loop": [
        {"cell_type": "rnn_tanh"},
        {"layer_norm": True},
        {"decoder_transition_depth": 2},
        {"zoneout": 0.1},
        {"skip_connections": True, "decoder_layers": 2},
        {"attention_type": "multi_head_additive"},
        {"attention_window": "local_p"},
        {"attention_normalization": "sparsemax"},
        {"attention_type": "additive", "coverage": "sum", "input_feeding": False},
        {"context_gate": "both"},
        {"decoder_recurrence": "loop"},
    ],
}


@pytest.mark.parametrize(
    ("path", "options"), [(path, options) for path, all_ in PATHS.items() for options in all_], ids=str
)
def test_which_path_runs(path: str, options: dict[str, Any]) -> None:
    """`recurrence_path` also gives the reason for the loop."""
    decoder = tiny_model(**options).get_decoder()
    assert decoder.train().recurrence_path == decoder.eval().recurrence_path
    assert decoder.recurrence_path.split(":")[0] == path
    if path == "loop":
        assert len(decoder.recurrence_path) > len("loop: ")
    if path == "loop" and "decoder_recurrence" not in options:
        forced = Model(tiny_config(**options, decoder_recurrence="scan"))
        with pytest.raises(ConfigError, match="decoder_recurrence='scan': the scan does not cover this model"):
            forced(input_ids=pad(SOURCES), decoder_input_ids=pad(decoder_inputs()))


SLOW = {"rnmt_plus2018", "bideep2017", "xu2015"}


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_presets_take_the_fast_paths(name: str) -> None:
    """Of the published decoders only those with layer norm, deep transitions or a gate run in the time loop."""
    sizes = {"vocab_size": 11, "embedding_size": 5, "hidden_size": 4, **SIZES[name]}
    config = RnnSeq2SeqConfig.from_preset(name, **sizes)
    path = RnnSeq2SeqForConditionalGeneration(config).get_decoder().recurrence_path
    assert path.startswith("loop") == (name in SLOW), path
