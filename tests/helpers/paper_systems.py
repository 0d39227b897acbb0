"""Each preset's paper restated by itself: one sentence, one position at a time, no switches of a configuration.

A function takes a model's weights by name, the words of a source and the words the decoder reads, and returns the
scores of each position, as its paper's equations give them. Sizes are read off the weights.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from hf_rnn_seq2seq.model.presets import PRESETS

Weights = Mapping[str, Tensor]
System = Callable[[Weights, list[int], list[int]], list[Tensor]]


def times(w: Weights, name: str, vector: Tensor) -> Tensor:
    """W x, plus b where there is one."""
    product = w[f"{name}.weight"] @ vector
    return product + w[f"{name}.bias"] if f"{name}.bias" in w else product


def normed(w: Weights, name: str, x: Tensor, rows: slice = slice(None)) -> Tensor:
    """Ba 2016, equation 4."""
    centred = x - x.mean()
    return w[f"{name}.weight"][rows] * centred / (centred.pow(2).mean() + 1e-5).sqrt() + w[f"{name}.bias"][rows]


def products(w: Weights, cell: str, x: Tensor, h: Tensor) -> tuple[Tensor, Tensor]:
    """The two products of a recurrent layer's cell."""
    kernel = f"{cell}.kernel"
    below = w[f"{kernel}.weight_ih_l0"] @ x + w[f"{kernel}.bias_ih_l0"]
    return below, w[f"{kernel}.weight_hh_l0"] @ h + w[f"{kernel}.bias_hh_l0"]


def lstm(w: Weights, cell: str, x: Tensor, h: Tensor, c: Tensor, layer_norm: bool = False) -> tuple[Tensor, Tensor]:
    """Sutskever 2014 refers to Graves 2013; here without peepholes. Normalized: Ba 2016, equations 20 to 22."""
    below, recurrent = products(w, cell, x, h)
    if layer_norm:
        below, recurrent = normed(w, f"{cell}.norm_input", below), normed(w, f"{cell}.norm_hidden", recurrent)
    i, f, g, o = (below + recurrent).chunk(4)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(normed(w, f"{cell}.norm_cell", c) if layer_norm else c), c


def gru_reset_first(w: Weights, cell: str, x: Tensor, h: Tensor) -> Tensor:
    """Cho 2014, equations 5 to 8."""
    kernel, size = f"{cell}.kernel", len(h)
    below = w[f"{kernel}.weight_ih_l0"] @ x + w[f"{kernel}.bias_ih_l0"]
    u, b = w[f"{kernel}.weight_hh_l0"], w[f"{kernel}.bias_hh_l0"]
    r = torch.sigmoid(below[:size] + u[:size] @ h + b[:size])
    z = torch.sigmoid(below[size : 2 * size] + u[size : 2 * size] @ h + b[size : 2 * size])
    candidate = torch.tanh(below[2 * size :] + u[2 * size :] @ (r * h) + b[2 * size :])
    return z * h + (1 - z) * candidate


def gru_gates(below: Tensor, recurrent: Tensor, h: Tensor) -> Tensor:
    """The GRU of the tutorial and of Nematus: the reset gate acts after the recurrent product."""
    (r, z, n), (r_h, z_h, n_h) = below.chunk(3), recurrent.chunk(3)
    z = torch.sigmoid(z + z_h)
    return z * h + (1 - z) * torch.tanh(n + torch.sigmoid(r + r_h) * n_h)


def gru(w: Weights, cell: str, x: Tensor, h: Tensor) -> Tensor:
    return gru_gates(*products(w, cell, x, h), h)


def states_of(w: Weights, cell: str, inputs: list[Tensor], step: Callable) -> list[Tensor]:
    """A GRU over a sentence, from zeros."""
    h = inputs[0].new_zeros(w[f"{cell}.kernel.weight_hh_l0"].shape[1])
    states = []
    for x in inputs:
        h = step(w, cell, x, h)
        states.append(h)
    return states


def memories_of(w: Weights, cell: str, inputs: list[Tensor], layer_norm: bool = False) -> list[tuple[Tensor, Tensor]]:
    """An LSTM over a sentence, from zeros."""
    h = c = inputs[0].new_zeros(w[f"{cell}.kernel.weight_hh_l0"].shape[1])
    states = []
    for x in inputs:
        h, c = lstm(w, cell, x, h, c, layer_norm)
        states.append((h, c))
    return states


def words_of(w: Weights, side: str, words: list[int]) -> list[Tensor]:
    return [w[f"model.{side}.embed_tokens.weight"][word] for word in words]


def shares(scores: list[Tensor]) -> list[Tensor]:
    return list(torch.stack(scores).softmax(0))


def weighted(weights: list[Tensor], values: list[Tensor]) -> Tensor:
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def additive(w: Weights, query: Tensor, states: list[Tensor]) -> Tensor:
    """Bahdanau 2014, appendix A.1.2; GNMT, equation 4: v . tanh(W s + U h), softmax, weighted sum."""
    name = "model.decoder.attention"
    query_part = times(w, f"{name}.query", query)
    scores = [w[f"{name}.energy.weight"][0] @ torch.tanh(query_part + times(w, f"{name}.key", h)) for h in states]
    return weighted(shares(scores), states)


def maxout(w: Weights, *parts: Tensor) -> Tensor:
    """Pairs of units, the larger of each."""
    units = times(w, "model.decoder.readout.project", torch.cat(parts))
    return torch.stack([torch.maximum(units[2 * j], units[2 * j + 1]) for j in range(len(units) // 2)])


# ------------------------------------------------------------------------------------------------ the papers


def sutskever2014(w: Weights, source: list[int], target: list[int]) -> list[Tensor]:
    """Section 2: p(y | v), v the last state of a deep LSTM; section 3.3: the source is read backwards."""
    below, starts = words_of(w, "encoder", source[::-1]), []
    for layer in range(2):
        memories = memories_of(w, f"model.encoder.layers.{layer}.forward_layer", below)
        below = [h for h, _ in memories]
        starts.append(memories[-1])
    scores = []
    for x in words_of(w, "decoder", target):
        for layer in range(2):
            starts[layer] = lstm(w, f"model.decoder.layers.{layer}", x, *starts[layer])
            x = starts[layer][0]
        scores.append(times(w, "lm_head", x))
    return scores


def cho2014(w: Weights, source: list[int], target: list[int]) -> list[Tensor]:
    """Appendix A.1: c = tanh(V h_N); h'_0 = tanh(V' c); c and the word before enter the gates; maxout of h', y, c."""
    states = states_of(w, "model.encoder.layers.0.forward_layer", words_of(w, "encoder", source), gru_reset_first)
    c = torch.tanh(times(w, "model.bridge.summary", states[-1]))
    h = torch.tanh(times(w, "model.bridge.projections.0.0", c))
    scores = []
    for y in words_of(w, "decoder", target):
        h = gru_reset_first(w, "model.decoder.layers.0", torch.cat([y, c]), h)
        scores.append(times(w, "lm_head", maxout(w, h, c, y)))
    return scores


def bahdanau2014(w: Weights, source: list[int], target: list[int]) -> list[Tensor]:
    """Appendix A: s_0 from the backward encoder; c_i asked by s_{i-1}; t_i reads s_{i-1}, y_{i-1} and c_i."""
    words = words_of(w, "encoder", source)
    onward = states_of(w, "model.encoder.layers.0.forward_layer", words, gru_reset_first)
    backward = states_of(w, "model.encoder.layers.0.backward_layer", words[::-1], gru_reset_first)[::-1]
    annotations = [torch.cat(both) for both in zip(onward, backward, strict=True)]
    s = torch.tanh(times(w, "model.bridge.projections.0.0", backward[0]))
    scores = []
    for y in words_of(w, "decoder", target):
        c = additive(w, s, annotations)
        scores.append(times(w, "lm_head", maxout(w, s, c, y)))
        s = gru_reset_first(w, "model.decoder.layers.0", torch.cat([y, c]), s)
    return scores


def luong2015(w: Weights, source: list[int], target: list[int], window: str = "global") -> list[Tensor]:
    """Section 3: h_t asks; h~ = tanh(W_c [c; h]), softmax(W_s h~); section 3.3: h~ enters the next step.

    Section 3.2: the window [p_t - D, p_t + D] with D = 2; local-p also weighs by a Gaussian around p_t.
    """
    below, starts = words_of(w, "encoder", source[::-1]), []
    for layer in range(2):
        memories = memories_of(w, f"model.encoder.layers.{layer}.forward_layer", below)
        below = [h for h, _ in memories]
        starts.append(memories[-1])
    encoder, name = below[::-1], "model.decoder.attention"
    tilde = torch.zeros_like(encoder[0])
    scores = []
    for t, word in enumerate(words_of(w, "decoder", target)):
        x = torch.cat([word, tilde])
        for layer in range(2):
            starts[layer] = lstm(w, f"model.decoder.layers.{layer}", x, *starts[layer])
            x = starts[layer][0]
        p = torch.tensor(float(t))
        if window == "local_p":
            inner = torch.tanh(w[f"{name}.position_hidden.weight"] @ x)
            p = len(encoder) * torch.sigmoid(w[f"{name}.position_score.weight"][0] @ inner)
        near = [s for s in range(len(encoder)) if window == "global" or abs(s - p.item()) <= 2]
        align = shares([x @ times(w, f"{name}.key", encoder[s]) for s in near]) if near else []
        if window == "local_p":
            align = [a * torch.exp(-((s - p) ** 2) / (2 * 1.0**2)) for a, s in zip(align, near, strict=True)]
        c = weighted(align, [encoder[s] for s in near]) + torch.zeros_like(x)
        tilde = torch.tanh(w["model.decoder.readout.project.weight"] @ torch.cat([x, c]))
        scores.append(w["lm_head.weight"] @ tilde)
    return scores


def gnmt2016(w: Weights, source: list[int], target: list[int]) -> list[Tensor]:
    """Section 3: bottom encoder layer in both directions, residual from the third, a_i = attention(y_{i-1}) to all."""
    below = words_of(w, "encoder", source)
    onward = memories_of(w, "model.encoder.layers.0.forward_layer", below)
    backward = memories_of(w, "model.encoder.layers.0.backward_layer", below[::-1])[::-1]
    below = [torch.cat([f[0], b[0]]) for f, b in zip(onward, backward, strict=True)]
    for layer in (1, 2, 3):
        states = [h for h, _ in memories_of(w, f"model.encoder.layers.{layer}.forward_layer", below)]
        below = [h + x for h, x in zip(states, below, strict=True)] if layer >= 2 else states
    zero = torch.zeros_like(below[0])
    state, scores = [(zero, zero)] * 4, []
    for x in words_of(w, "decoder", target):
        a = additive(w, state[0][0], below)
        for layer in range(4):
            state[layer] = lstm(w, f"model.decoder.layers.{layer}", torch.cat([x, a]), *state[layer])
            x = state[layer][0] + x if layer >= 2 else state[layer][0]
        scores.append(times(w, "lm_head", x))
    return scores


def rnmt_plus2018(w: Weights, source: list[int], target: list[int]) -> list[Tensor]:
    """Section 4.1: two-way layer-normalized encoder, residual from the third layer; 2 additive heads asked by the
    bottom decoder layer; the context goes to all layers and to the softmax."""
    below = words_of(w, "encoder", source)
    for layer in range(3):
        name = f"model.encoder.layers.{layer}"
        onward = memories_of(w, f"{name}.forward_layer", below, True)
        backward = memories_of(w, f"{name}.backward_layer", below[::-1], True)[::-1]
        states = [torch.cat([f[0], b[0]]) for f, b in zip(onward, backward, strict=True)]
        below = [h + x for h, x in zip(states, below, strict=True)] if layer == 2 else states
    name = "model.decoder.attention"
    zero = w["model.decoder.layers.0.kernel.weight_hh_l0"].new_zeros(4)
    state, scores = [(zero, zero)] * 3, []
    for x in words_of(w, "decoder", target):
        heads = []
        for head in (slice(0, 2), slice(2, 4)):
            query_part = w[f"{name}.query.weight"][head] @ state[0][0]
            v = w[f"{name}.energy.weight"][head.start // 2]
            align = shares([v @ torch.tanh(query_part + w[f"{name}.key.weight"][head] @ h) for h in below])
            heads.append(weighted(align, [w[f"{name}.value.weight"][head] @ h for h in below]))
        a = times(w, f"{name}.output", torch.cat(heads))
        for layer in range(3):
            state[layer] = lstm(w, f"model.decoder.layers.{layer}", torch.cat([x, a]), *state[layer], True)
            x = state[layer][0] + x if layer == 2 else state[layer][0]
        scores.append(times(w, "lm_head", torch.cat([x, a])))
    return scores


def bideep2017(w: Weights, source: list[int], target: list[int]) -> list[Tensor]:
    """Section 2.3: alternating stacks of deep transitions; a conditional GRU below, rGRU levels above; deep output."""

    def normed_gru(norms: str, below: Tensor | None, recurrent: Tensor, bias: Tensor, h: Tensor) -> Tensor:
        size = len(h)
        gates, new = slice(0, 2 * size), slice(2 * size, None)
        recurrent = torch.cat([normed(w, f"{norms}.norm_hidden", recurrent[part], part) for part in (gates, new)])
        if below is None:
            return gru_gates(bias, recurrent, h)
        below = below + bias
        return gru_gates(
            torch.cat([normed(w, f"{norms}.norm_input", below[part], part) for part in (gates, new)]), recurrent, h
        )

    def first(cell: str, x: Tensor, h: Tensor) -> Tensor:
        below, recurrent = products(w, cell, x, h)
        return normed_gru(cell, below, recurrent, torch.zeros_like(below), h)

    def later(cell: str, number: int, h: Tensor, context: Tensor | None = None) -> Tensor:
        name = f"{cell}.transitions.{number}"
        below = None if context is None else w[f"{name}.below.weight"] @ context
        return normed_gru(name, below, times(w, f"{name}.recurrent", h), w[f"{name}.bias"], h)

    def transition(_: Weights, cell: str, x: Tensor, h: Tensor) -> Tensor:
        return later(cell, 0, first(cell, x, h))

    words = words_of(w, "encoder", source)
    stacks = []
    for stack, name in enumerate(("forward_layer", "backward_layer")):
        below = words
        for level in range(2):
            backwards = (stack + level) % 2 == 1
            run = states_of(w, f"model.encoder.layers.{level}.{name}", below[::-1] if backwards else below, transition)
            run = run[::-1] if backwards else run
            below = [h + x for h, x in zip(run, below, strict=True)] if level else run
        stacks.append(below)
    annotations = [torch.cat(both) for both in zip(*stacks, strict=True)]
    mean = sum(annotations) / len(annotations)
    state = [torch.tanh(times(w, f"model.bridge.projections.{level}.0", mean)) for level in range(2)]
    scores = []
    for y in words_of(w, "decoder", target):
        base = "model.decoder.layers.0"
        h = first(base, y, state[0])
        c = additive(w, h, annotations)
        h = later(base, 0, h, c)
        for number in (1, 2):
            h = later(base, number, h)
        above = transition(w, "model.decoder.layers.1", torch.cat([h, c]), state[1])
        state = [h, above]
        t = torch.tanh(times(w, "model.decoder.readout.project", torch.cat([above + h, c, y])))
        scores.append(w["model.decoder.embed_tokens.weight"] @ t + w["lm_head.bias"])
    return scores


def seminar(w: Weights, source: list[int], target: list[int]) -> list[Tensor]:
    """EncoderRNN and DecoderRNN of the tutorial."""
    h = states_of(w, "model.encoder.layers.0.forward_layer", words_of(w, "encoder", source), gru)[-1]
    scores = []
    for y in words_of(w, "decoder", target):
        h = gru(w, "model.decoder.layers.0", torch.relu(y), h)
        scores.append(times(w, "lm_head", h))
    return scores


def seminar_attention(w: Weights, source: list[int], target: list[int]) -> list[Tensor]:
    """The same, with softmax(h . h_s) and tanh(W [h; c]) in front of the output layer."""
    states = states_of(w, "model.encoder.layers.0.forward_layer", words_of(w, "encoder", source), gru)
    h, scores = states[-1], []
    for y in words_of(w, "decoder", target):
        h = gru(w, "model.decoder.layers.0", torch.relu(y), h)
        c = weighted(shares([h @ s for s in states]), states)
        scores.append(times(w, "lm_head", torch.tanh(w["model.decoder.readout.project.weight"] @ torch.cat([h, c]))))
    return scores


def multi_head(w: Weights, source: list[int], target: list[int]) -> list[Tensor]:
    """Vaswani 2017, section 3.2.2, with 2 heads: Concat(softmax(Q K' / sqrt(d)) V) W_O, asked by the LSTM's state."""
    below, starts = words_of(w, "encoder", source), []
    for layer in range(2):
        name = f"model.encoder.layers.{layer}"
        onward = memories_of(w, f"{name}.forward_layer", below)
        backward = memories_of(w, f"{name}.backward_layer", below[::-1])
        below = [torch.cat([f[0], b[0]]) for f, b in zip(onward, backward[::-1], strict=True)]
        ends = [torch.cat(both) for both in zip(onward[-1], backward[-1], strict=True)]
        starts.append(
            tuple(torch.tanh(times(w, f"model.bridge.projections.{layer}.{k}", end)) for k, end in enumerate(ends))
        )
    name, scores = "model.decoder.attention", []
    for x in words_of(w, "decoder", target):
        for layer in range(2):
            starts[layer] = lstm(w, f"model.decoder.layers.{layer}", x, *starts[layer])
            x = starts[layer][0]
        heads = []
        for head in (slice(0, 2), slice(2, 4)):
            query = w[f"{name}.query.weight"][head] @ x
            align = shares([query @ (w[f"{name}.key.weight"][head] @ s) / 2**0.5 for s in below])
            heads.append(weighted(align, [w[f"{name}.value.weight"][head] @ s for s in below]))
        c = times(w, f"{name}.output", torch.cat(heads))
        scores.append(times(w, "lm_head", torch.tanh(w["model.decoder.readout.project.weight"] @ torch.cat([x, c]))))
    return scores


def plain_norm(w: Weights, name: str, x: Tensor, eps: float) -> Tensor:
    """Ba 2016, equation 4, over all units."""
    centred = x - x.mean()
    return w[f"{name}.weight"] * centred / (centred.pow(2).mean() + eps).sqrt() + w[f"{name}.bias"]


def transformer_layer(
    w: Weights, parts: dict[str, str], below: list[Tensor], activate: Callable[[Tensor], Tensor], eps: float
) -> list[Tensor]:
    """Vaswani 2017, sections 3.1, 3.2.2 and 3.3: LayerNorm(x + Sublayer(x)) of 2 heads, and of max(0, x W_1) W_2."""
    queries, keys, values = ([times(w, parts[name], x) for x in below] for name in ("query", "key", "value"))
    width = len(below[0]) // 2
    above = []
    for x, query in zip(below, queries, strict=True):
        heads = []
        for head in (slice(0, width), slice(width, 2 * width)):
            align = shares([query[head] @ key[head] / width**0.5 for key in keys])
            heads.append(weighted(align, [value[head] for value in values]))
        x = plain_norm(w, parts["norm"], x + times(w, parts["output"], torch.cat(heads)), eps)
        inner = times(w, parts["outer"], activate(times(w, parts["inner"], x)))
        above.append(plain_norm(w, parts["last_norm"], x + inner, eps))
    return above


def transformer_encoder(w: Weights, source: list[int], target: list[int]) -> list[Tensor]:
    """Section 3.4: vectors times sqrt(d), plus positions; 2 layers; an LSTM asks the states raw, from their mean."""
    base = "model.encoder.foreign.model"
    table, places = w[f"{base}.embed_tokens.weight"], w[f"{base}.embed_positions.weight"]
    states = [table[word] * table.shape[1] ** 0.5 + places[i] for i, word in enumerate(source)]
    for layer in range(2):
        name = f"{base}.layers.{layer}"
        parts = {"query": "q_proj", "key": "k_proj", "value": "v_proj", "output": "out_proj"}
        parts = {part: f"{name}.self_attn.{end}" for part, end in parts.items()}
        parts |= {"norm": f"{name}.self_attn_layer_norm", "last_norm": f"{name}.final_layer_norm"}
        parts |= {"inner": f"{name}.fc1", "outer": f"{name}.fc2"}
        states = transformer_layer(w, parts, states, torch.relu, 1e-5)
    mean = sum(states) / len(states)
    state = tuple(torch.tanh(times(w, f"model.bridge.projections.0.{k}", mean)) for k in range(2))
    name, scores = "model.decoder.attention", []
    for x in words_of(w, "decoder", target):
        state = lstm(w, "model.decoder.layers.0", x, *state)
        heads = []
        for head in (slice(0, 2), slice(2, 4)):
            query = w[f"{name}.query.weight"][head] @ state[0]
            align = shares([query @ (w[f"{name}.key.weight"][head] @ s) / 2**0.5 for s in states])
            heads.append(weighted(align, [w[f"{name}.value.weight"][head] @ s for s in states]))
        c = times(w, f"{name}.output", torch.cat(heads))
        read = torch.cat([state[0], c])
        scores.append(times(w, "lm_head", torch.tanh(w["model.decoder.readout.project.weight"] @ read)))
    return scores


def bert_encoder(w: Weights, source: list[int], target: list[int]) -> list[Tensor]:
    """Devlin 2019, section 3: words + positions + segment, normalized; GELU. A two-way LSTM reads the states; Luong's
    decoder asks it."""
    base = "model.encoder.foreign.model"
    tables = [w[f"{base}.embeddings.{kind}_embeddings.weight"] for kind in ("word", "position", "token_type")]
    sums = [tables[0][word] + tables[1][i] + tables[2][0] for i, word in enumerate(source)]
    states = [plain_norm(w, f"{base}.embeddings.LayerNorm", x, 1e-12) for x in sums]
    for layer in range(2):
        name = f"{base}.encoder.layer.{layer}"
        parts = {part: f"{name}.attention.self.{part}" for part in ("query", "key", "value")}
        parts |= {"output": f"{name}.attention.output.dense", "norm": f"{name}.attention.output.LayerNorm"}
        parts |= {"inner": f"{name}.intermediate.dense", "outer": f"{name}.output.dense"}
        parts |= {"last_norm": f"{name}.output.LayerNorm"}
        states = transformer_layer(w, parts, states, lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2, 1e-12)
    onward = memories_of(w, "model.encoder.layers.0.forward_layer", states)
    backward = memories_of(w, "model.encoder.layers.0.backward_layer", states[::-1])
    read = [torch.cat([f[0], b[0]]) for f, b in zip(onward, backward[::-1], strict=True)]
    ends = [torch.cat(both) for both in zip(onward[-1], backward[-1], strict=True)]
    state = tuple(torch.tanh(times(w, f"model.bridge.projections.0.{k}", end)) for k, end in enumerate(ends))
    tilde, scores = torch.zeros_like(state[0]), []
    for word in words_of(w, "decoder", target):
        state = lstm(w, "model.decoder.layers.0", torch.cat([word, tilde]), *state)
        align = shares([state[0] @ times(w, "model.decoder.attention.key", s) for s in read])
        both = torch.cat([state[0], weighted(align, read)])
        tilde = torch.tanh(w["model.decoder.readout.project.weight"] @ both)
        scores.append(times(w, "lm_head", tilde))
    return scores


def xu2015(w: Weights, source: list[Tensor], target: list[int]) -> list[Tensor]:
    """Section 3.1.2: h and c from the mean region; e_i = v . tanh(W a_i + U h_{t-1}); 4.2.1: z = beta sum alpha_i a_i;
    equation 7: L_o(L_e E y + L_h h + L_z z). The source is the annotations a_i."""
    mean = sum(source) / len(source)
    h, c = (torch.tanh(times(w, f"model.bridge.projections.0.{part}", mean)) for part in range(2))
    scores = []
    for y in words_of(w, "decoder", target):
        z = additive(w, h, source)
        beta = torch.sigmoid(times(w, "model.decoder.scalar_gate.project", h))
        h, c = lstm(w, "model.decoder.layers.0", torch.cat([y, beta * z]), h, c)
        scores.append(times(w, "lm_head", times(w, "model.decoder.readout.project", torch.cat([h, beta * z, y]))))
    return scores


# An encoder of transformers of 2 layers of 4 units and 2 heads.
MARIAN = {"d_model": 4, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 6}
MARIAN |= {"decoder_attention_heads": 2, "max_position_embeddings": 8}
BERT = {
    "model_type": "bert",
    "hidden_size": 4,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 6,
}
BERT |= {"max_position_embeddings": 8, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
RESNET = {"model_type": "resnet", "layer_type": "basic", "embedding_size": 3, "hidden_sizes": [4], "depths": [1]}
TRANSFORMER = PRESETS["transformer_encoder"]()["encoder"] | MARIAN | {"dropout": 0.0}

# Sizes at which the functions above are written; numbers of layers keep every mechanism of the paper in play.
SIZES: dict[str, dict[str, Any]] = {
    "sutskever2014": {"encoder_layers": 2, "decoder_layers": 2},
    "cho2014": {"encoder_hidden_size": 3, "context_size": 6, "readout_size": 3},
    "bahdanau2014": {"encoder_hidden_size": 3, "readout_size": 3},
    "luong2015": {"encoder_layers": 2, "decoder_layers": 2, "attention_window_size": 2},
    "gnmt2016": {"encoder_layers": 4, "decoder_layers": 4},
    "rnmt_plus2018": {"encoder_hidden_size": 3, "encoder_layers": 3, "decoder_layers": 3, "num_attention_heads": 2},
    "bideep2017": {"encoder_hidden_size": 3, "encoder_layers": 2, "decoder_layers": 2, "readout_size": 5},
    "seminar": {},
    "seminar_attention": {},
    "multi_head": {"num_attention_heads": 2},
    "transformer_encoder": {"num_attention_heads": 2, "encoder": TRANSFORMER},
    # Trained here, so that its gradients are compared too.
    "bert_encoder": {"encoder": BERT, "freeze_encoder": False},
    "xu2015": {"encoder": RESNET, "freeze_encoder": False, "attention_size": 3, "readout_size": 6},
}
EQUATIONS: dict[str, System] = {name: globals()[name] for name in SIZES}
