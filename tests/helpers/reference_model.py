"""The papers' encoders, bridges and decoders restated slowly, on top of `references`."""

from typing import NamedTuple

import torch
from torch import Tensor

from hf_rnn_seq2seq import RnnSeq2SeqConfig
from tests.helpers.attention_references import cover, gate_factors, scalar_gate, uncovered
from tests.helpers.pen_references import window
from tests.helpers.references import (
    State,
    Weights,
    affine,
    attend,
    cell,
    first_cell,
    later_cells,
    layer,
    position,
    under,
    zone_out,
)


class Source(NamedTuple):
    """The outputs of an encoder for one sentence."""

    states: list[Tensor]
    hidden: list[list[Tensor]]  # word vectors, then each layer's states
    ends: list[list[State]]  # per layer, per direction


def encode(config: RnnSeq2SeqConfig, weights: Weights, vectors: list[Tensor]) -> Source:
    """Schuster and Paliwal 1997 in every two-way layer; Sutskever 2014, section 3.3 (reversal); GNMT, section 3.1.

    Alternating stacks: Miceli Barone 2017, section 2.2.1: one starts forward, one backward, each turns at every layer.
    """
    below = vectors[::-1] if config.reverse_source else vectors
    hidden, ends = [below], []
    for number in range(1, config.encoder_layers + 1):
        own = under(weights, f"layers.{number - 1}")
        width = config.encoder_hidden_size
        zero = (vectors[0].new_zeros(width),) * (2 if config.cell_type == "lstm" else 1)
        # Each direction: its weights, what it reads, and whether it reads backwards.
        directions = [("forward_layer", below, False)]
        if config.bidirectional == "all" or (config.bidirectional == "first" and number == 1):
            directions.append(("backward_layer", below, True))
        if config.bidirectional == "alternating":
            stacks = [[h[:width] for h in below], [h[width:] for h in below]] if number > 1 else [below, below]
            turned = number % 2 == 0
            directions = [("forward_layer", stacks[0], turned), ("backward_layer", stacks[1], not turned)]
        states, finals = [], []
        for name, read, backwards in directions:
            run = layer(config, under(own, name), read[::-1] if backwards else read, zero)
            finals.append(run[-1])
            states.append([state[0] for state in (run[::-1] if backwards else run)])
        states = [torch.cat(both) for both in zip(*states, strict=True)]
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
        if config.encoder_layers > config.decoder_layers:
            ends = source.ends[number - config.decoder_layers]  # counted from the top
        else:
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


class Target(NamedTuple):
    """The outputs of a decoder for one sentence."""

    readouts: list[Tensor]
    hidden: list[list[Tensor]]  # word vectors, then each layer's states
    weights: list[list[list[Tensor]]]  # per position, per head
    ends: list[State]  # per layer
    feed: Tensor | None
    contexts: list[Tensor | None]


def read_out(config: RnnSeq2SeqConfig, weights: Weights, state: Tensor, context: Tensor | None, word: Tensor) -> Tensor:
    """Luong 2015, equation 5 (`tanh`); Bahdanau 2014, appendix A.2.2 (`maxout`: the larger of each pair)."""
    reads_context = context is not None and config.readout_context and "gate.word.weight" not in weights
    joined = torch.cat([state] + [context] * reads_context + [word] * config.readout_embedding)
    if "project.weight" not in weights:
        return joined
    units = affine(weights, "project", joined)
    if "gate.word.weight" in weights:  # Tu 2017, with the readout for f
        target, source = gate_factors(config, under(weights, "gate"), word, state, context)
        units = target * units + source * affine(weights, "project_context", context)
    if config.readout == "tanh":
        return torch.tanh(units)
    if config.readout == "maxout":
        return torch.stack([max(units[i], units[i + 1], key=Tensor.item) for i in range(0, len(units), 2)])
    return units


def gated_cell(
    config: RnnSeq2SeqConfig, weights: Weights, gate: Weights, word: Tensor, context: Tensor, state: State
) -> State:
    """t = f(a (W e + U t) + b C s), in each gate of the cell (Tu 2017, section 3)."""
    target, source = gate_factors(config, gate, word, state[0], context)
    matrix, bias = weights["kernel.weight_hh_l0"], weights["kernel.bias_hh_l0"]
    blocks = len(bias) // len(target)
    target, source = torch.cat([target] * blocks), torch.cat([source] * blocks)
    below, extra = weights["kernel.weight_ih_l0"].split([len(word), len(context)], 1)
    x = target * (below @ word + weights["kernel.bias_ih_l0"]) + source * (extra @ context)
    return cell(config, weights, x, target[:, None] * matrix, target * bias, state)


def decode(
    config: RnnSeq2SeqConfig,
    weights: Weights,
    source: list[Tensor],
    states: list[State],
    summary: Tensor | None,
    words: list[Tensor],
) -> Target:
    """One target sentence. Before the cell: Bahdanau 2014, appendix A.2.2; after: Luong 2015, sections 3.1 and 3.3.

    Before the cell, with several cells a position, between the first two: Miceli Barone 2017, section 2.1. Skip
    connections: Graves 2013, equations 1 to 3: every layer above the first reads the word too, the output every layer.
    """
    attends, before = config.context == "attention", config.attention_order == "before_cell"
    between = attends and before and config.decoder_transition_depth > 1
    asking = 0 if attends and config.attention_layer == "bottom" else config.decoder_layers - 1
    feeds_readout = config.readout == "tanh" and asking == config.decoder_layers - 1
    feed = None
    if config.input_feeding:
        feed = words[0].new_zeros(config.readout_size if feeds_readout else config.context_width)
    readouts, hidden, attentions, contexts = [], [[] for _ in range(config.decoder_layers + 1)], [], []
    asked, covered = under(weights, "attention"), uncovered(config, source) if attends else None

    centers = [words[0].new_zeros(())] * (
        config.window_components if attends and config.attention_type == "window" else 0
    )

    def ask(query: Tensor, time: int) -> tuple[Tensor, list[list[Tensor]]]:
        nonlocal covered, centers
        if config.attention_type == "window":
            parameters = affine(asked, "window_over_source.project", query) + asked["window_over_source.bias"]
            context, phi, centers = window(parameters, centers, source)
            return context, [phi]
        context, shares = attend(config, asked, query, source, time, covered)
        if config.context_gate == "scalar":
            context = scalar_gate(under(weights, "scalar_gate"), query, context)
        covered = covered and cover(config, asked, covered, shares[0], query, source)
        return context, shares

    for time, word in enumerate(words):
        context = summary
        if attends and before and not between:
            context, shares = ask(states[asking][0], time)
        started, after, below = states, [], word
        hidden[0].append(word)
        for number in range(config.decoder_layers):
            reads = [below, word] if config.skip_connections and number > 0 else [below]
            if number == 0 and feed is not None:
                reads.append(feed)
            elif context is not None and (number == 0 or config.context_layers == "all"):
                reads.append(context)
            own = under(weights, f"layers.{number}")
            if number == 0 and "context_gate.word.weight" in weights:
                state = gated_cell(config, own, under(weights, "context_gate"), below, context, states[number])
                state = zone_out(config, states[number], state)
            elif between and number == 0:
                state = first_cell(config, own, torch.cat(reads), states[number])
                context, shares = ask(state[0], time)
                state = zone_out(config, states[number], later_cells(config, own, state, context))
            else:
                state = position(config, own, torch.cat(reads), states[number])
            after.append(state)
            residual = config.residual_start is not None and number + 1 >= config.residual_start
            below = state[0] + below if residual else state[0]
            hidden[number + 1].append(below)
            if attends and not before and number == asking:
                context, shares = ask(below, time)
        states = after
        tops = [state[0] for state in started] if config.readout_state == "previous" else [h[-1] for h in hidden[1:]]
        read = torch.cat(tops) if config.skip_connections else tops[-1]
        readouts.append(read_out(config, under(weights, "readout"), read, context, word))
        if feed is not None:
            feed = readouts[-1] if feeds_readout else context
        if attends:
            attentions.append(shares)
        contexts.append(context)
    return Target(readouts, hidden, attentions, states, feed, contexts)


def copy_words(
    config: RnnSeq2SeqConfig, weights: Weights, target: Target, logits: list[Tensor], source: list[int]
) -> list[Tensor]:
    """log P(w) (See 2017, equations 8 and 9); weights that do not sum to 1 (a Gaussian window) are made to."""
    written = []
    for time, scores in enumerate(logits):
        read = [target.contexts[time], target.hidden[-1][time], target.hidden[0][time]]
        generates = torch.sigmoid(affine(weights, "model.decoder.copy_gate.project", torch.cat(read)))[0]
        heads = [torch.stack(head) for head in target.weights[time]]
        attention = sum(heads) / len(heads)
        total = attention.sum()
        if total == 0:
            generates = generates * 0 + 1
        powers = torch.exp(scores)
        shares = []
        for word in range(config.vocab_size):
            share = generates * powers[word] / powers.sum()
            for place, source_word in enumerate(source):
                if source_word == word and total > 0:
                    share = share + (1 - generates) * attention[place] / total
            shares.append(torch.log(share))
        written.append(torch.stack(shares))
    return written


class Sentence(NamedTuple):
    """One pair, read by the whole model."""

    source: Source
    target: Target
    logits: list[Tensor]


def words_and_features(config: RnnSeq2SeqConfig, source: list[int]) -> tuple[list[int], list[int]]:
    """What the encoder reads one after the other, and what it adds up."""
    known = config.feature_token_ids or []
    return [word for word in source if word not in known], [word for word in source if word in known]


def translate(config: RnnSeq2SeqConfig, weights: Weights, source: list[int], target: list[int]) -> Sentence:
    """`target` is what the decoder reads: the start token, then words.

    With features x_i = [e(w_i); sum_f e(f)] for each word that is none (for a language Peters and Martins 2020, 2.4).
    """
    table = weights["model.encoder.embed_tokens.weight"]
    source, features = words_and_features(config, source)
    vectors = [table[word] for word in source]
    if config.feature_token_ids is not None:
        total = sum((table[feature] for feature in features), torch.zeros_like(table[0]))
        vectors = [torch.cat([vector, total]) for vector in vectors]
    read = encode(config, under(weights, "model.encoder"), vectors)
    starts, summary = bridge(config, under(weights, "model.bridge"), read)
    words = [weights["model.decoder.embed_tokens.weight"][word] for word in target]
    if config.embedding_activation == "relu":
        words = [torch.clamp(word, min=0) for word in words]
    written = decode(config, under(weights, "model.decoder"), read.states, starts, summary, words)
    logits = [affine(weights, "lm_head", readout) for readout in written.readouts]
    if config.copy_mechanism:
        logits = copy_words(config, weights, written, logits, source)
    return Sentence(read, written, logits)
