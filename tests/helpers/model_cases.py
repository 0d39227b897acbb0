"""Configurations that the model's tests go through, two layers a side."""

from typing import Any

MAXOUT = {"readout": "maxout", "readout_size": 3}
BEFORE = {"attention_order": "before_cell", "attention_type": "additive"}
COPY = {"copy_mechanism": True}

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
    "zoneout": {"zoneout": 0.2, "zoneout_cell": 0.5},
    "zoneout, gru, no feeding": {"zoneout": 0.3, "cell_type": "gru", "input_feeding": False},
    "zoneout, conditional gru": BEFORE
    | {"zoneout": 0.3, "cell_type": "gru", "decoder_transition_depth": 2, "attention_layer": "bottom"},
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
    "skips": {"skip_connections": True, "decoder_layers": 3, "input_feeding": False},
    "skips, fed": {"skip_connections": True},
    "skips, one layer": {"skip_connections": True, "decoder_layers": 1},
    "skips, no attention, residual": {"skip_connections": True, "residual_start": 2, "context": "initial_state"},
    "skips, before, all layers, previous": BEFORE
    | {"skip_connections": True, "decoder_layers": 3, "context_layers": "all", "readout_state": "previous"},
    "skips, bottom, fed context, to all layers": {
        "skip_connections": True,
        "decoder_layers": 3,
        "attention_layer": "bottom",
        "context_layers": "all",
        "cell_type": "gru",
    },
    "skips, gate": {"skip_connections": True, "context_gate": "both", "input_feeding": False},
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
    "window": {"attention_type": "window", "window_components": 2},
    "window, bottom, fed context, to all layers": {
        "attention_type": "window",
        "window_components": 3,
        "attention_layer": "bottom",
        "context_layers": "all",
        "decoder_layers": 3,
        "skip_connections": True,
        "readout": "linear",
        "readout_context": False,
    },
    "window, before": {"attention_type": "window", "attention_order": "before_cell"},
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
    "sparsemax": {"attention_normalization": "sparsemax"},
    "entmax, before": BEFORE | {"attention_normalization": "entmax"},
    "entmax 1.2, no feeding": {"attention_normalization": "entmax", "entmax_alpha": 1.2, "input_feeding": False},
    "entmax learned, 2 heads, local_p": {
        "attention_normalization": "entmax",
        "entmax_learned": True,
        "attention_type": "multi_head",
        "num_attention_heads": 2,
        "attention_window": "local_p",
        "attention_window_size": 2,
    },
    "coverage sum": {"attention_type": "additive", "coverage": "sum"},
    "coverage sum, no feeding, bottom": {
        "attention_type": "normed_additive",
        "coverage": "sum",
        "input_feeding": False,
        "attention_layer": "bottom",
    },
    "coverage sum, sparsemax, local_m": {
        "attention_type": "additive",
        "coverage": "sum",
        "attention_normalization": "sparsemax",
        "attention_window": "local_m",
        "attention_window_size": 2,
    },
    "coverage gru, before": BEFORE | MAXOUT | {"coverage": "gru", "coverage_size": 3},
    "coverage gru, conditional": BEFORE
    | {"cell_type": "gru", "decoder_transition_depth": 2, "attention_layer": "bottom", "coverage": "gru"},
    **{f"gate {kind}, before": BEFORE | {"context_gate": kind} for kind in ("source", "target", "both")},
    **{
        f"gate {cell}, bottom": BEFORE | {"context_gate": "both", "cell_type": cell, "attention_layer": "bottom"}
        for cell in ("gru", "rnn_tanh")
    },
    **{f"gate {kind}, after": {"context_gate": kind} for kind in ("source", "target", "both")},
    "scalar gate, before": BEFORE | {"context_gate": "scalar", "readout_embedding": True},
    "scalar gate, conditional": BEFORE
    | {"context_gate": "scalar", "cell_type": "gru", "decoder_transition_depth": 2, "attention_layer": "bottom"},
    "scalar gate, bottom, to all layers": BEFORE
    | {"context_gate": "scalar", "attention_layer": "bottom", "context_layers": "all"},
    "scalar gate, after, fed": {"context_gate": "scalar", "attention_layer": "bottom"},
    "scalar gate, no feeding": {"context_gate": "scalar", "input_feeding": False},
    "gate, maxout, no feeding": MAXOUT | {"context_gate": "both", "input_feeding": False},
    "gate, fed context, with word": {
        "context_gate": "target",
        "attention_layer": "bottom",
        "readout_embedding": True,
        "readout": "linear",
        "readout_size": 3,
    },
    "features": {"feature_token_ids": [7, 4, 12]},
    "features, no feeding, mean": {"feature_token_ids": [7, 4], "input_feeding": False, "bridge": "mean"},
    "features, reversed, first state": {
        "feature_token_ids": [3, 9],
        "bidirectional": "none",
        "reverse_source": True,
        "context": "initial_state",
    },
    "features, every step, projected": {"feature_token_ids": [6], "context": "every_step", "context_size": 3},
    "copying": COPY,
    "copying, two heads": COPY | {"attention_type": "multi_head", "num_attention_heads": 2},
    "copying, no feeding": COPY | {"input_feeding": False},
    "copying, before, all tied": COPY
    | BEFORE
    | {"share_encoder_decoder_embeddings": True, "tie_word_embeddings": True, "readout_size": 5},
    "copying, bottom, fed context": COPY | {"attention_layer": "bottom", "residual_start": 2, "readout": "linear"},
    "copying, features, all tied": COPY | {"feature_token_ids": [3, 9], "share_encoder_decoder_embeddings": True},
    "copying, local_p": COPY | {"attention_window": "local_p", "attention_window_size": 2},
    "copying, no word in the window": COPY | {"attention_window": "local_m", "attention_window_size": 1},
}

TWO_LAYERS = {"encoder_layers": 2, "decoder_layers": 2}
