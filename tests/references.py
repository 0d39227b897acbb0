"""The papers' equations restated slowly: one row, one position, one matrix-vector product at a time.

No batches, no padding, no caches. A sentence is a list of vectors, a state a tuple of vectors ((h, c) for the LSTM,
(h,) for the others). `weights` maps the names of a model's parameters to its tensors, so gradients can be compared.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hf_rnn_seq2seq import RnnSeq2SeqConfig

Weights = Mapping[str, Tensor]
State = tuple[Tensor, ...]
HEADED = ("multi_head", "multi_head_additive")


def under(weights: Weights, prefix: str) -> dict[str, Tensor]:
    """The weights below one module, with its name taken off."""
    return {name.removeprefix(prefix + "."): value for name, value in weights.items() if name.startswith(prefix + ".")}


def affine(weights: Weights, name: str, vector: Tensor) -> Tensor:
    """W x + b, and W x where there is no b."""
    product = weights[f"{name}.weight"] @ vector
    return product + weights[f"{name}.bias"] if f"{name}.bias" in weights else product


# ------------------------------------------------------------------------------------------------ cells


def normalise(weights: Weights, name: str, vector: Tensor, block: slice | None = None) -> Tensor:
    """Ba 2016, equation 4, over `vector` alone; unchanged where the cell has no normalisation of that name."""
    if f"{name}.weight" not in weights:
        return vector
    gain, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    if block is not None:
        gain, bias = gain[block], bias[block]
    mean = vector.sum() / len(vector)
    variance = ((vector - mean) ** 2).sum() / len(vector)
    return gain * (vector - mean) / torch.sqrt(variance + 1e-5) + bias


def lstm(weights: Weights, x: Tensor, product: Tensor, state: State) -> State:
    """Hochreiter and Schmidhuber 1997 with the forget gate of Gers 2000; normalised: Ba 2016, equations 20 to 22."""
    size = len(state[0])
    gates = x + normalise(weights, "norm_hidden", product)
    write, forget, new, show = (gates[i * size : (i + 1) * size] for i in range(4))
    memory = torch.sigmoid(forget) * state[1] + torch.sigmoid(write) * torch.tanh(new)
    return torch.sigmoid(show) * torch.tanh(normalise(weights, "norm_cell", memory)), memory


def gru(weights: Weights, x: Tensor, matrix: Tensor, bias: Tensor, seen: Tensor, before: Tensor, reset: str) -> State:
    """Cho 2014, equations 5 to 8 (z keeps the old state), the reset gate before or after the recurrent product.

    Normalised as Ba 2016, equations 26 to 29: the two gates together, the candidate by itself.
    """
    size = len(before)
    gates, candidate = slice(0, 2 * size), slice(2 * size, 3 * size)
    product = normalise(weights, "norm_hidden", matrix[gates] @ seen + bias[gates], gates)
    r = torch.sigmoid(x[:size] + product[:size])
    z = torch.sigmoid(x[size : 2 * size] + product[size:])
    read = r * seen if reset == "before" else seen
    new = normalise(weights, "norm_hidden", matrix[candidate] @ read + bias[candidate], candidate)
    new = torch.tanh(x[candidate] + (r * new if reset == "after" else new))
    return (z * before + (1 - z) * new,)


def cell(
    config: RnnSeq2SeqConfig,
    weights: Weights,
    x: Tensor,
    matrix: Tensor,
    bias: Tensor,
    state: State,
    keep: Tensor | None = None,
) -> State:
    """One cell; `x` is the input's product with its weights, `keep` multiplies what the products read of h(t-1)."""
    seen = state[0] if keep is None else state[0] * keep
    if config.cell_type == "lstm":
        return lstm(weights, x, matrix @ seen + bias, state)
    if config.cell_type == "gru":
        return gru(weights, x, matrix, bias, seen, state[0], config.gru_reset)
    total = x + normalise(weights, "norm_hidden", matrix @ seen + bias)
    return (torch.tanh(total) if config.cell_type == "rnn_tanh" else torch.clamp(total, min=0),)


def position(
    config: RnnSeq2SeqConfig, weights: Weights, vector: Tensor, state: State, keep: Tensor | None = None
) -> State:
    """One position of one layer: the cell, then the cells of the deep transition, which read no input.

    Miceli Barone 2017, section 2.3.1: h(t, 1) = cell_1(x(t), h(t-1, L)); h(t, k) = cell_k(0, h(t, k-1)).
    """
    x = weights["kernel.weight_ih_l0"] @ vector + weights["kernel.bias_ih_l0"]
    if config.cell_type == "gru":
        size = 2 * len(state[0])
        gates, candidate = slice(0, size), slice(size, None)
        x = torch.cat([normalise(weights, "norm_input", x[block], block) for block in (gates, candidate)])
    else:
        x = normalise(weights, "norm_input", x)
    state = cell(config, weights, x, weights["kernel.weight_hh_l0"], weights["kernel.bias_hh_l0"], state, keep)
    number = 0
    while f"transitions.{number}.bias" in weights:
        own = under(weights, f"transitions.{number}")
        state = cell(config, own, own["bias"], own["recurrent.weight"], own["recurrent.bias"], state)
        number += 1
    return state


def layer(
    config: RnnSeq2SeqConfig, weights: Weights, vectors: list[Tensor], state: State, keep: Tensor | None = None
) -> list[State]:
    """The state after each position."""
    states = []
    for vector in vectors:
        state = position(config, weights, vector, state, keep)
        states.append(state)
    return states


# ------------------------------------------------------------------------------------------------ encoder and bridge


class Source(NamedTuple):
    """What an encoder leaves of one sentence."""

    states: list[Tensor]
    hidden: list[list[Tensor]]  # word vectors, then each layer's states
    ends: list[list[State]]  # per layer, per direction


def encode(config: RnnSeq2SeqConfig, weights: Weights, vectors: list[Tensor]) -> Source:
    """Schuster and Paliwal 1997 in every two-way layer; Sutskever 2014, section 3.3 (reversal); GNMT, section 3.1."""
    below = vectors[::-1] if config.reverse_source else vectors
    hidden, ends = [below], []
    for number in range(1, config.encoder_layers + 1):
        own = under(weights, f"layers.{number - 1}")
        width = config.encoder_hidden_size
        zero = (vectors[0].new_zeros(width),) * (2 if config.cell_type == "lstm" else 1)
        onward = layer(config, under(own, "forward_layer"), below, zero)
        states, finals = [state[0] for state in onward], [onward[-1]]
        if config.bidirectional == "all" or (config.bidirectional == "first" and number == 1):
            backward = layer(config, under(own, "backward_layer"), below[::-1], zero)
            states = [torch.cat([h, state[0]]) for h, state in zip(states, backward[::-1], strict=True)]
            finals.append(backward[-1])
        if config.residual_start is not None and number >= config.residual_start:
            states = [h + x for h, x in zip(states, below, strict=True)]
        below = states
        hidden.append(below)
        ends.append(finals)
    if config.reverse_source:
        hidden = [states[::-1] for states in hidden]
    return Source(hidden[-1], hidden, ends)


def bridge(config: RnnSeq2SeqConfig, weights: Weights, source: Source) -> tuple[list[State], Tensor | None]:
    """The decoder's first states, and c of Cho 2014 (appendix A: c = tanh(V h), h'(0) = tanh(V' c))."""
    tensors = 2 if config.cell_type == "lstm" else 1
    summary = None
    if config.context == "every_step":
        summary = torch.cat([end[0] for end in source.ends[-1]])
        if config.context_size is not None:
            summary = torch.tanh(affine(weights, "summary", summary))
    starts = []
    for number in range(config.decoder_layers):
        ends = source.ends[min(number, config.encoder_layers - 1)]
        state = []
        for part in range(tensors):
            final = torch.cat([end[part] for end in ends])
            if config.bridge == "zero":
                state.append(final.new_zeros(config.hidden_size))
                continue
            if config.bridge == "copy":
                state.append(final)
                continue
            if config.bridge == "mean":
                read = sum(source.states) / len(source.states)
            elif config.bridge == "backward_tanh":
                read = source.ends[-1][1][part]
            else:
                read = summary if config.context_size is not None else final
            state.append(torch.tanh(affine(weights, f"projections.{number}.{part}", read)))
        starts.append(tuple(state))
    return starts, summary


# ------------------------------------------------------------------------------------------------ attention


def softmax(scores: list[Tensor]) -> list[Tensor]:
    """exp(s) over the sum of exp(s)."""
    highest = max((score.item() for score in scores), default=0.0)
    powers = [torch.exp(score - highest) for score in scores]
    return [power / sum(powers) for power in powers]


def head(matrix: Tensor, number: int, config: RnnSeq2SeqConfig) -> Tensor:
    """The rows of a projection that belong to head `number`."""
    size = config.attention_size // config.num_attention_heads
    return matrix[number * size : (number + 1) * size]


def score(config: RnnSeq2SeqConfig, weights: Weights, query: Tensor, key: Tensor, place: int, number: int) -> Tensor:
    """How well `query` fits the encoder state `key` at source position `place`, for head `number`."""
    kind = config.attention_type
    if kind == "dot":  # Luong 2015, equation 7
        return query @ key
    if kind == "scaled_dot":  # Vaswani 2017, section 3.2.1
        return query @ key / math.sqrt(config.hidden_size)
    if kind == "general":  # Luong 2015, equation 7
        return query @ (weights["key.weight"] @ key)
    if kind == "location":  # Luong 2015, equation 8
        return weights["location.weight"][place] @ query
    if kind in ("additive", "normed_additive"):  # Bahdanau 2014, appendix A.1.2
        inner = torch.tanh(weights["query.weight"] @ query + weights["key.weight"] @ key + weights["key.bias"])
        v = weights["energy.weight"][0]
        if kind == "normed_additive":  # Salimans and Kingma 2016, equation 2
            v = weights["gain"][0] * v / torch.sqrt((v**2).sum())
        return v @ inner
    asked, offered = (head(weights[f"{name}.weight"], number, config) for name in ("query", "key"))
    if kind == "multi_head":  # Vaswani 2017, section 3.2.2
        return (asked @ query) @ (offered @ key) / math.sqrt(len(asked))
    return weights["energy.weight"][number] @ torch.tanh(asked @ query + offered @ key)  # Chen 2018, section 4.1


def attend(
    config: RnnSeq2SeqConfig, weights: Weights, query: Tensor, states: list[Tensor], time: int
) -> tuple[Tensor, list[list[Tensor]]]:
    """The context, and the weights of each head; windows as in Luong 2015, section 3.2."""
    places = list(range(len(states)))
    centre = torch.tensor(float(time), dtype=query.dtype)
    if config.attention_window == "local_p":  # equation 9
        hidden = torch.tanh(weights["position_hidden.weight"] @ query)
        centre = len(states) * torch.sigmoid(weights["position_score.weight"][0] @ hidden)
    if config.attention_window != "global":
        places = [place for place in places if abs(place - centre.item()) <= config.attention_window_size]
    contexts, attentions = [], []
    for number in range(config.num_attention_heads):
        shares = softmax([score(config, weights, query, states[place], place, number) for place in places])
        if config.attention_window == "local_p":  # equation 10
            deviation = config.attention_window_size / 2
            gaussian = [torch.exp(-((place - centre) ** 2) / (2 * deviation**2)) for place in places]
            shares = [share * factor for share, factor in zip(shares, gaussian, strict=True)]
        attention = [query.new_zeros(())] * len(states)
        for place, share in zip(places, shares, strict=True):
            attention[place] = share
        values = states
        if config.attention_type in HEADED:
            values = [head(weights["value.weight"], number, config) @ state for state in states]
        contexts.append(sum(share * value for share, value in zip(attention, values, strict=True)))
        attentions.append(attention)
    context = torch.cat(contexts)
    return affine(weights, "output", context) if config.attention_type in HEADED else context, attentions


# ------------------------------------------------------------------------------------------------ decoder


class Target(NamedTuple):
    """What a decoder leaves of one sentence."""

    readouts: list[Tensor]
    hidden: list[list[Tensor]]  # word vectors, then each layer's states
    weights: list[list[list[Tensor]]]  # per position, per head
    ends: list[State]  # per layer
    feed: Tensor | None


def read_out(config: RnnSeq2SeqConfig, weights: Weights, state: Tensor, context: Tensor | None, word: Tensor) -> Tensor:
    """Luong 2015, equation 5 (`tanh`); Bahdanau 2014, appendix A.2.2 (`maxout`: the larger of each pair)."""
    joined = torch.cat([state] + [context] * (context is not None) + [word] * config.readout_embedding)
    if "project.weight" not in weights:
        return joined
    units = affine(weights, "project", joined)
    if config.readout == "tanh":
        return torch.tanh(units)
    if config.readout == "maxout":
        return torch.stack([max(units[i], units[i + 1], key=Tensor.item) for i in range(0, len(units), 2)])
    return units


def decode(
    config: RnnSeq2SeqConfig,
    weights: Weights,
    source: list[Tensor],
    states: list[State],
    summary: Tensor | None,
    words: list[Tensor],
) -> Target:
    """One target sentence. Before the cell: Bahdanau 2014, appendix A.2.2; after: Luong 2015, sections 3.1 and 3.3."""
    attends, before = config.context == "attention", config.attention_order == "before_cell"
    asking = 0 if config.attention_layer == "bottom" else config.decoder_layers - 1
    feeds_readout = config.readout == "tanh" and asking == config.decoder_layers - 1
    feed = None
    if config.input_feeding:
        feed = words[0].new_zeros(config.readout_size if feeds_readout else config.context_width)
    readouts, hidden, attentions = [], [[] for _ in range(config.decoder_layers + 1)], []
    for time, word in enumerate(words):
        context = summary
        if attends and before:
            context, shares = attend(config, under(weights, "attention"), states[asking][0], source, time)
        started, after, below = states, [], word
        hidden[0].append(word)
        for number in range(config.decoder_layers):
            reads = [below]
            if number == 0 and feed is not None:
                reads.append(feed)
            elif context is not None and (number == 0 or config.context_layers == "all"):
                reads.append(context)
            state = position(config, under(weights, f"layers.{number}"), torch.cat(reads), states[number])
            after.append(state)
            residual = config.residual_start is not None and number + 1 >= config.residual_start
            below = state[0] + below if residual else state[0]
            hidden[number + 1].append(below)
            if attends and not before and number == asking:
                context, shares = attend(config, under(weights, "attention"), below, source, time)
        states = after
        read = started[-1][0] if config.readout_state == "previous" else below
        readouts.append(read_out(config, under(weights, "readout"), read, context, word))
        if feed is not None:
            feed = readouts[-1] if feeds_readout else context
        if attends:
            attentions.append(shares)
    return Target(readouts, hidden, attentions, states, feed)


# ------------------------------------------------------------------------------------------------ the whole


class Sentence(NamedTuple):
    """One pair, read by the whole model."""

    source: Source
    target: Target
    logits: list[Tensor]


def translate(config: RnnSeq2SeqConfig, weights: Weights, source: list[int], target: list[int]) -> Sentence:
    """`target` is what the decoder reads: the start token, then words."""
    table = weights["model.encoder.embed_tokens.weight"]
    read = encode(config, under(weights, "model.encoder"), [table[word] for word in source])
    starts, summary = bridge(config, under(weights, "model.bridge"), read)
    words = [weights["model.decoder.embed_tokens.weight"][word] for word in target]
    if config.embedding_activation == "relu":
        words = [torch.clamp(word, min=0) for word in words]
    written = decode(config, under(weights, "model.decoder"), read.states, starts, summary, words)
    return Sentence(read, written, [affine(weights, "lm_head", readout) for readout in written.readouts])


def cross_entropy(logits: list[Tensor], labels: list[int], smoothing: float = 0.0) -> Tensor:
    """Sum over positions in nats; smoothed labels give each of the V words smoothing / V (Szegedy 2015, section 7)."""
    total = 0.0
    for scores, label in zip(logits, labels, strict=True):
        log_probabilities = [torch.log(share) for share in softmax(list(scores))]
        total = total - (1 - smoothing) * log_probabilities[label]
        total = total - smoothing * sum(log_probabilities) / len(log_probabilities)
    return total
