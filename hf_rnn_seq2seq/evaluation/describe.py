"""A model's architecture in words, from the fields of its config."""

from collections.abc import Mapping
from typing import Any

CELLS = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "tanh RNN", "rnn_relu": "ReLU RNN"}


def attention_name(config: Mapping[str, Any]) -> str:
    """The score function of the attention, and its window unless it is global."""
    window = config.get("attention_window", "global")
    score = str(config.get("attention_type", "")).replace("_", " ")
    return score if window == "global" else f"{score}, {window.replace('_', '-')} windowed"


def _pooled(config: Mapping[str, Any]) -> str:
    """How a classifier makes one vector of a text."""
    hops = config.get("attention_hops", 1)
    how = {
        "attention": f"attention of {hops} hops" if hops > 1 else "attention",
        "max": "the maximum of each unit",
        "mean": "the mean",
        "last": "the last state of each direction",
    }[config["pooling"]]
    if config.get("sentence_token_id") is None:
        return f"Its states become the vector of the text by {how}."
    return (
        f"Its states become vectors of sentences by {how}; a second encoder and {how} over these give that of the text."
    )


def architecture(config: Mapping[str, Any]) -> str:
    """The architecture in words, from config fields alone; fields a model does not have are left out."""
    if "cell_type" not in config:
        return f"`{(config.get('architectures') or [config.get('model_type', 'unknown')])[0]}`."
    cell = CELLS.get(config["cell_type"], config["cell_type"])
    if config.get("model_type") == "rnn_handwriting":
        width = f"{config.get('decoder_layers')}-layer {cell} of width {config.get('hidden_size')}"
        window = f" It reads the text through a window of {config.get('window_components')} components."
        return (
            f"A {width} over the points of a pen; the density of the next point has {config.get('mixture_components')} "
            f"components.{window if config.get('window_components') else ''}"
        )
    directions = {"all": "bidirectional ", "first": "first layer bidirectional, ", "none": "unidirectional "}
    encoder = (
        f"{config.get('encoder_layers')}-layer {directions.get(config.get('bidirectional', ''), '')}{cell} encoder"
    )
    if foreign := config.get("encoder"):
        below = f"{'frozen ' if config.get('freeze_encoder') else ''}{foreign['model_type']} encoder"
        encoder = f"{encoder} above a {below}" if config.get("encoder_layers") else below
    if config.get("feature_token_ids"):
        encoder += " that reads the sum of the features at every step"
    if "pooling" in config:
        return f"A {encoder}. {_pooled(config)}"
    decoder = f"{config.get('decoder_layers')}-layer {cell} decoder of width {config.get('hidden_size')}"
    if config.get("skip_connections"):
        decoder += " with skip connections"
    if config.get("model_type") == "rnn_causal":
        return f"A {decoder}. It reads nothing but the text before each token."
    read = {
        "hard": "each position of the source alone, and sums over them,",
        "monotonic": "each position of the source alone, from left to right, and sums over them,",
        "sampled": "one position of the source, drawn in training,",
    }.get(config.get("attention_alignment", "soft"), "the source")
    context = {
        "initial_state": "The decoder sees the source through its initial state only.",
        "every_step": "The decoder reads one fixed vector of the source at every step.",
        "attention": f"The decoder attends to {read} with the {attention_name(config)} score, "
        + ("before" if config.get("attention_order") == "before_cell" else "after")
        + " its cell"
        + (", and feeds the attentional vector back (input feeding)." if config.get("input_feeding") else "."),
    }.get(config.get("context", ""), "")
    return f"A {encoder} and a {decoder}. {context}".rstrip()
