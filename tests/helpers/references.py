"""The papers' equations restated slowly: one row, one position, one matrix-vector product at a time.

No batches, no padding, no caches. A sentence is a list of vectors, a state a tuple of vectors ((h, c) for the LSTM,
(h,) for the others). `weights` maps the names of a model's parameters to its tensors, so gradients can be compared.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from hf_rnn_seq2seq import RnnSeq2SeqConfig
from tests.helpers import attention_references

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


def normalize(weights: Weights, name: str, vector: Tensor, block: slice | None = None) -> Tensor:
    """Ba 2016, equation 4, over `vector` alone; unchanged where the cell has no normalization of that name."""
    if f"{name}.weight" not in weights:
        return vector
    gain, bias = weights[f"{name}.weight"], weights[f"{name}.bias"]
    if block is not None:
        gain, bias = gain[block], bias[block]
    mean = vector.sum() / len(vector)
    variance = ((vector - mean) ** 2).sum() / len(vector)
    return gain * (vector - mean) / torch.sqrt(variance + 1e-5) + bias


def lstm(weights: Weights, x: Tensor, product: Tensor, state: State) -> State:
    """Hochreiter and Schmidhuber 1997 with the forget gate of Gers 2000; normalized: Ba 2016, equations 20 to 22."""
    size = len(state[0])
    gates = x + normalize(weights, "norm_hidden", product)
    write, forget, new, show = (gates[i * size : (i + 1) * size] for i in range(4))
    memory = torch.sigmoid(forget) * state[1] + torch.sigmoid(write) * torch.tanh(new)
    return torch.sigmoid(show) * torch.tanh(normalize(weights, "norm_cell", memory)), memory


def gru(weights: Weights, x: Tensor, matrix: Tensor, bias: Tensor, seen: Tensor, before: Tensor, reset: str) -> State:
    """Cho 2014, equations 5 to 8 (z keeps the old state), the reset gate before or after the recurrent product.

    Normalized as Ba 2016, equations 26 to 29: the two gates together, the candidate by itself.
    """
    size = len(before)
    gates, candidate = slice(0, 2 * size), slice(2 * size, 3 * size)
    product = normalize(weights, "norm_hidden", matrix[gates] @ seen + bias[gates], gates)
    r = torch.sigmoid(x[:size] + product[:size])
    z = torch.sigmoid(x[size : 2 * size] + product[size:])
    read = r * seen if reset == "before" else seen
    new = normalize(weights, "norm_hidden", matrix[candidate] @ read + bias[candidate], candidate)
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
    total = x + normalize(weights, "norm_hidden", matrix @ seen + bias)
    return (torch.tanh(total) if config.cell_type == "rnn_tanh" else torch.clamp(total, min=0),)


def normalize_input(config: RnnSeq2SeqConfig, weights: Weights, x: Tensor) -> Tensor:
    """The input's product: normalized whole, but for the GRU's gates and candidate, each by themselves."""
    if config.cell_type != "gru":
        return normalize(weights, "norm_input", x)
    size = 2 * len(x) // 3
    return torch.cat([normalize(weights, "norm_input", x[block], block) for block in (slice(size), slice(size, None))])


def first_cell(
    config: RnnSeq2SeqConfig, weights: Weights, vector: Tensor, state: State, keep: Tensor | None = None
) -> State:
    """The cell of a layer that reads the layer below."""
    x = normalize_input(config, weights, weights["kernel.weight_ih_l0"] @ vector + weights["kernel.bias_ih_l0"])
    return cell(config, weights, x, weights["kernel.weight_hh_l0"], weights["kernel.bias_hh_l0"], state, keep)


def later_cells(config: RnnSeq2SeqConfig, weights: Weights, state: State, context: Tensor | None = None) -> State:
    """Deep transition, Miceli Barone 2017, section 2.3.1: h(t, k) = cell_k(0, h(t, k-1)).

    In the conditional GRU (section 2.1) the second cell reads the context: s(t) = cell_2(c(t), s'(t)).
    """
    number = 0
    while f"transitions.{number}.bias" in weights:
        own = under(weights, f"transitions.{number}")
        x = own["bias"]
        if number == 0 and context is not None:
            x = normalize_input(config, own, own["below.weight"] @ context + x)
        state = cell(config, own, x, own["recurrent.weight"], own["recurrent.bias"], state)
        number += 1
    return state


def zone_out(config: RnnSeq2SeqConfig, before: State, after: State, still: State | None = None) -> State:
    """Krueger 2016, equations 3 and 4: d h(t-1) + (1 - d) h(t), with d = `still` (0 or 1 a unit), or expected."""
    if still is None:
        rates = [config.zoneout, config.zoneout if config.zoneout_cell is None else config.zoneout_cell]
        still = tuple(torch.full_like(part, rate) for part, rate in zip(before, rates, strict=False))
    return tuple(d * old + (1 - d) * new for d, old, new in zip(still, before, after, strict=True))


def position(
    config: RnnSeq2SeqConfig,
    weights: Weights,
    vector: Tensor,
    state: State,
    keep: Tensor | None = None,
    still: State | None = None,
) -> State:
    """One position of one layer."""
    after = later_cells(config, weights, first_cell(config, weights, vector, state, keep))
    return zone_out(config, state, after, still)


def layer(
    config: RnnSeq2SeqConfig,
    weights: Weights,
    vectors: list[Tensor],
    state: State,
    keep: Tensor | None = None,
    still: list[State] | None = None,
) -> list[State]:
    """The state after each position; `still` has 1 for each unit that keeps its state there."""
    states = []
    for time, vector in enumerate(vectors):
        state = position(config, weights, vector, state, keep, None if still is None else still[time])
        states.append(state)
    return states


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


def score(
    config: RnnSeq2SeqConfig,
    weights: Weights,
    query: Tensor,
    key: Tensor,
    place: int,
    number: int,
    covered: Tensor | None = None,
) -> Tensor:
    """How well `query` fits the encoder state `key` at source position `place`, for head `number`.

    `covered` is what is remembered of that word: See 2017, equation 11; Tu 2016, section 3.2.
    """
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
        inner = weights["query.weight"] @ query + weights["key.weight"] @ key + weights["key.bias"]
        if covered is not None:
            inner = inner + weights["coverage.project.weight"] @ covered
        inner = torch.tanh(inner)
        v = weights["energy.weight"][0]
        if kind == "normed_additive":  # Salimans and Kingma 2016, equation 2
            v = weights["gain"][0] * v / torch.sqrt((v**2).sum())
        return v @ inner
    query_weight, key_weight = (head(weights[f"{name}.weight"], number, config) for name in ("query", "key"))
    if kind == "multi_head":  # Vaswani 2017, section 3.2.2
        return (query_weight @ query) @ (key_weight @ key) / math.sqrt(len(query_weight))
    return weights["energy.weight"][number] @ torch.tanh(
        query_weight @ query + key_weight @ key
    )  # Chen 2018, section 4.1


def align(config: RnnSeq2SeqConfig, weights: Weights, scores: list[Tensor], number: int) -> list[Tensor]:
    """Scores -> weights of head `number`."""
    if config.attention_normalization == "softmax":
        return softmax(scores)
    return attention_references.entmax(scores, attention_references.alpha_of(config, weights, number))


def attend(
    config: RnnSeq2SeqConfig,
    weights: Weights,
    query: Tensor,
    states: list[Tensor],
    time: int,
    covered: list[Tensor] | None = None,
) -> tuple[Tensor, list[list[Tensor]]]:
    """The context, and the weights of each head; windows as in Luong 2015, section 3.2."""
    places = list(range(len(states)))
    center = torch.tensor(float(time), dtype=query.dtype)
    if config.attention_window == "local_p":  # equation 9
        hidden = torch.tanh(weights["position_hidden.weight"] @ query)
        center = len(states) * torch.sigmoid(weights["position_score.weight"][0] @ hidden)
    if config.attention_window != "global":
        places = [place for place in places if abs(place - center.item()) <= config.attention_window_size]
    contexts, attentions = [], []
    for number in range(config.num_attention_heads):
        known = covered or [None] * len(states)
        scores = [score(config, weights, query, states[place], place, number, known[place]) for place in places]
        shares = align(config, weights, scores, number)
        if config.attention_window == "local_p":  # equation 10
            deviation = config.attention_window_size / 2
            gaussian = [torch.exp(-((place - center) ** 2) / (2 * deviation**2)) for place in places]
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


def cross_entropy(logits: list[Tensor], labels: list[int], smoothing: float = 0.0) -> Tensor:
    """Sum over positions in nats; smoothed labels give each of the V words smoothing / V (Szegedy 2015, section 7)."""
    total = 0.0
    for scores, label in zip(logits, labels, strict=True):
        log_probabilities = [torch.log(share) for share in softmax(list(scores))]
        total = total - (1 - smoothing) * log_probabilities[label]
        total = total - smoothing * sum(log_probabilities) / len(log_probabilities)
    return total
