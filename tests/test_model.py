"""The whole model equals the papers' equations: outputs, final states, loss and every gradient, in float64."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers.modeling_outputs import Seq2SeqLMOutput

from hf_rnn_seq2seq import RnnSeq2SeqForConditionalGeneration
from tests import reference_model
from tests.models import SOURCES, TARGETS, decoder_inputs, mask, pad, tiny_model

MAXOUT = {"readout": "maxout", "readout_size": 3}
BEFORE = {"attention_order": "before_cell", "attention_type": "additive"}

# One option at a time on two layers a side, then the systems of the literature in which they meet.
CASES: dict[str, dict[str, Any]] = {
    **{f"cell {cell}": {"cell_type": cell} for cell in ("lstm", "gru", "rnn_tanh", "rnn_relu")},
    **{f"layer norm {cell}": {"cell_type": cell, "layer_norm": True} for cell in ("lstm", "gru", "rnn_tanh")},
    "gru reset before": {"cell_type": "gru", "gru_reset": "before"},
    "gru reset before, layer norm": {"cell_type": "gru", "gru_reset": "before", "layer_norm": True},
    **{
        f"transition {cell}": {"cell_type": cell, "encoder_transition_depth": 3, "decoder_transition_depth": 2}
        for cell in ("lstm", "gru", "rnn_relu")
    },
    "transition, layer norm": {
        "cell_type": "gru",
        "layer_norm": True,
        "encoder_transition_depth": 2,
        "decoder_transition_depth": 3,
    },
    "transition, reset before": {"cell_type": "gru", "gru_reset": "before", "encoder_transition_depth": 2},
    "conditional gru": BEFORE
    | {"cell_type": "gru", "decoder_transition_depth": 2, "attention_layer": "bottom", "context_layers": "all"},
    "upper transition": {"decoder_transition_depth": 1, "decoder_upper_transition_depth": 2},
    "alternating": {"bidirectional": "alternating", "encoder_layers": 3},
    "alternating, residual": {"bidirectional": "alternating", "residual_start": 2},
    "readout without context": {"readout_context": False, "attention_layer": "bottom"},
    "one layer": {"encoder_layers": 1, "decoder_layers": 1},
    "deeper encoder": {"encoder_layers": 3, "decoder_layers": 1},
    "deeper decoder": {"encoder_layers": 1, "decoder_layers": 3},
    "one-way": {"bidirectional": "none"},
    "first layer two-way": {"bidirectional": "first", "encoder_layers": 3},
    "wide encoder": {"encoder_hidden_size": 3},
    "residual": {"residual_start": 2},
    "residual from 3": {"residual_start": 3, "encoder_layers": 3, "decoder_layers": 3},
    "residual, no attention": {"residual_start": 2, "context": "initial_state"},
    "reversed source": {"reverse_source": True, "bidirectional": "none"},
    "initial state": {"context": "initial_state"},
    "every step": {"context": "every_step"},
    "every step, all layers": {"context": "every_step", "context_layers": "all"},
    "every step, projected": {"context": "every_step", "context_size": 3},
    "no feeding": {"input_feeding": False},
    "no feeding, bottom": {"input_feeding": False, "attention_layer": "bottom", "context_layers": "all"},
    "bottom": {"attention_layer": "bottom"},
    "bottom, all": {"attention_layer": "bottom", "context_layers": "all"},
    "bottom, residual": {"attention_layer": "bottom", "residual_start": 2},
    "before": BEFORE,
    "before, all": BEFORE | {"context_layers": "all"},
    "before, bottom": BEFORE | {"attention_layer": "bottom"},
    "before, bottom, all": BEFORE | {"attention_layer": "bottom", "context_layers": "all"},
    "before, previous": BEFORE | MAXOUT | {"readout_state": "previous"},
    "before, bottom, previous": BEFORE | {"attention_layer": "bottom", "readout_state": "previous"},
    "before, residual": BEFORE | {"residual_start": 2},
    "fed context, linear": {"readout": "linear"},
    "fed context, maxout": MAXOUT,
    "initial state, previous": {"context": "initial_state", "readout_state": "previous"},
    **{f"bridge {name}": {"bridge": name} for name in ("zero", "copy", "mean", "dense", "backward_tanh")},
    **{f"bridge {name}, gru": {"bridge": name, "cell_type": "gru"} for name in ("mean", "dense", "backward_tanh")},
    "bridge copy, wide": {"bridge": "copy", "bidirectional": "none"},
    "readout linear": {"readout": "linear", "input_feeding": False},
    "readout linear, projected": {"readout": "linear", "readout_size": 3},
    "readout tanh, narrow": {"readout_size": 3},
    "readout maxout": MAXOUT | {"input_feeding": False},
    "readout with word": {"readout_embedding": True},
    "maxout without word": MAXOUT | {"readout_embedding": False},
    "no output bias": {"output_bias": False},
    "relu word vectors": {"embedding_activation": "relu"},
    "tied output": {"tie_word_embeddings": True, "readout_size": 5},
    "shared tables": {"share_encoder_decoder_embeddings": True},
    "all tied": {"share_encoder_decoder_embeddings": True, "tie_word_embeddings": True, "readout_size": 5},
    **{
        f"score {name}": {"attention_type": name}
        for name in ("additive", "dot", "general", "normed_additive", "scaled_dot")
    },
    "score location": {"attention_type": "location", "max_source_positions": 7},
    "score additive, narrow": {"attention_type": "additive", "attention_size": 3},
    **{
        f"{name}, {heads} heads": {"attention_type": name, "num_attention_heads": heads, "attention_size": 6}
        for name in ("multi_head", "multi_head_additive")
        for heads in (1, 3)
    },
    "multi head before": {
        "attention_type": "multi_head",
        "num_attention_heads": 2,
        "attention_order": "before_cell",
    },
    **{
        f"{window} {order}": {"attention_window": window, "attention_window_size": 2, "attention_order": order}
        for window in ("local_m", "local_p")
        for order in ("after_cell", "before_cell")
    },
    "local_p, no feeding": {"attention_window": "local_p", "attention_window_size": 1, "input_feeding": False},
    "local_m, location": {
        "attention_window": "local_m",
        "attention_window_size": 3,
        "attention_type": "location",
        "max_source_positions": 6,
    },
    "local_p, heads": {
        "attention_window": "local_p",
        "attention_window_size": 2,
        "attention_type": "multi_head",
        "num_attention_heads": 2,
    },
    "Sutskever": {
        "context": "initial_state",
        "bidirectional": "none",
        "reverse_source": True,
        "bridge": "copy",
        "readout": "linear",
        "encoder_layers": 3,
        "decoder_layers": 3,
    },
    "Cho": MAXOUT
    | {
        "cell_type": "gru",
        "gru_reset": "before",
        "context": "every_step",
        "context_size": 3,
        "bidirectional": "none",
        "encoder_layers": 1,
        "decoder_layers": 1,
    },
    "Bahdanau": BEFORE
    | MAXOUT
    | {
        "cell_type": "gru",
        "gru_reset": "before",
        "bridge": "backward_tanh",
        "readout_state": "previous",
        "encoder_layers": 1,
        "decoder_layers": 1,
    },
    "Luong": {"bidirectional": "none", "bridge": "copy", "attention_window": "local_p", "attention_window_size": 2},
    "GNMT": BEFORE
    | {
        "attention_type": "normed_additive",
        "attention_layer": "bottom",
        "context_layers": "all",
        "bidirectional": "first",
        "residual_start": 3,
        "encoder_layers": 4,
        "decoder_layers": 4,
        "readout": "linear",
        "bridge": "zero",
    },
    "BiDeep": BEFORE
    | {
        "cell_type": "gru",
        "layer_norm": True,
        "bidirectional": "alternating",
        "encoder_transition_depth": 2,
        "decoder_transition_depth": 3,
        "decoder_upper_transition_depth": 2,
        "attention_layer": "bottom",
        "context_layers": "all",
        "bridge": "mean",
        "readout_embedding": True,
    },
    "RNMT+": BEFORE
    | {
        "attention_type": "multi_head_additive",
        "num_attention_heads": 2,
        "layer_norm": True,
        "attention_layer": "bottom",
        "context_layers": "all",
        "residual_start": 3,
        "encoder_layers": 3,
        "decoder_layers": 3,
        "readout": "linear",
    },
}
TWO_LAYERS = {"encoder_layers": 2, "decoder_layers": 2}
SOURCE_LENGTHS, TARGET_LENGTHS = [list(map(len, side)) for side in (SOURCES, TARGETS)]


def reference(model: RnnSeq2SeqForConditionalGeneration) -> list[reference_model.Sentence]:
    """Every pair of the batch, read alone."""
    weights = model.state_dict(keep_vars=True)
    pairs = zip(SOURCES, decoder_inputs(), strict=True)
    return [reference_model.translate(model.config, weights, source, target) for source, target in pairs]


def objective(logits: list[Tensor], states: list[Tensor]) -> Tensor:
    """A number that depends on every logit and every final state, each with its own share."""
    flat = torch.cat([tensor.flatten() for tensor in [*logits, *states]])
    return (torch.sin(torch.arange(len(flat), dtype=flat.dtype)) * flat).sum()


def gradients(model: torch.nn.Module, value: Tensor) -> dict[str, Tensor]:
    """Of every parameter; zeros where `value` does not depend on it."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(value, parameters, allow_unused=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for name, parameter, gradient in zip(names, parameters, found, strict=True)
    }


def rows(tensor: Tensor, lengths: list[int]) -> list[Tensor]:
    """Each row's real positions."""
    return [row[:length] for row, length in zip(tensor, lengths, strict=True)]


@pytest.mark.parametrize("case", CASES)
def test_model_equals_the_equations(case: str) -> None:
    model = tiny_model(**(TWO_LAYERS | CASES[case]))
    wanted = reference(model)
    wanted_logits = [torch.stack(sentence.logits) for sentence in wanted]
    wanted_gradients = gradients(model, objective(wanted_logits, reference_ends(wanted)))
    # Training takes the fused path where there is one; without dropout it is the same function.
    for training in (False, True):
        model.train(training)
        told = model(
            input_ids=pad(SOURCES),
            attention_mask=mask(SOURCES),
            decoder_input_ids=pad(decoder_inputs()),
            decoder_attention_mask=mask(TARGETS),
            output_attentions=True,
            output_hidden_states=True,
            use_cache=True,
        )
        logits, ends = rows(told.logits, TARGET_LENGTHS), final_states(told)
        torch.testing.assert_close(logits, wanted_logits)
        torch.testing.assert_close(ends, reference_ends(wanted))
        check_hidden_states(told, wanted)
        check_weights(told, wanted)
        torch.testing.assert_close(gradients(model, objective(logits, ends)), wanted_gradients)


def final_states(told: Seq2SeqLMOutput) -> list[Tensor]:
    """Every tensor of the decoder's last state."""
    state = told.past_key_values.state
    return [tensor for layer in state.layers for tensor in layer] + [state.feed] * (state.feed is not None)


def reference_ends(wanted: list[reference_model.Sentence]) -> list[Tensor]:
    """The same of the reference, its rows put side by side."""
    ends = [sentence.target.ends for sentence in wanted]
    states = [
        torch.stack([row[layer][part] for row in ends])
        for layer in range(len(ends[0]))
        for part in range(len(ends[0][0]))
    ]
    fed = [sentence.target.feed for sentence in wanted]
    return states if fed[0] is None else [*states, torch.stack(fed)]


def check_hidden_states(told: Seq2SeqLMOutput, wanted: list[reference_model.Sentence]) -> None:
    """Word vectors and each layer's states, on both sides."""
    for number, states in enumerate(told.decoder_hidden_states):
        alone = [torch.stack(sentence.target.hidden[number]) for sentence in wanted]
        torch.testing.assert_close(rows(states, TARGET_LENGTHS), alone)
    for number, states in enumerate(told.encoder_hidden_states):
        alone = [torch.stack(sentence.source.hidden[number]) for sentence in wanted]
        torch.testing.assert_close(rows(states, SOURCE_LENGTHS), alone)


def check_weights(told: Seq2SeqLMOutput, wanted: list[reference_model.Sentence]) -> None:
    """Attention weights (batch, heads, target, source), exactly zero at padding."""
    if not wanted[0].target.weights:
        assert told.cross_attentions is None
        return
    (weights,) = told.cross_attentions
    for row, sentence in enumerate(wanted):
        heads = [torch.stack([torch.stack(head) for head in step]) for step in sentence.target.weights]
        found = weights[row, :, : TARGET_LENGTHS[row]]
        torch.testing.assert_close(found[..., : SOURCE_LENGTHS[row]], torch.stack(heads, 1))
        assert not found[..., SOURCE_LENGTHS[row] :].any()
