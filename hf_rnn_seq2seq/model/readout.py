"""From the decoder's state to the vector that the output layer reads, and the gate that balances source and target.

The context gate (Tu 2017, section 3) balances what the decoder reads of the source and what it has written:

    t_i = f(a (W e(y_{i-1}) + U t_{i-1}) + b C s_i)   with   z_i = sigmoid(W_z e(y_{i-1}) + U_z t_{i-1} + C_z s_i)
    source: a = 1, b = z      target: a = z, b = 1      both: a = 1 - z, b = z

With `before_cell` attention f is the cell, as in the paper. With `after_cell` attention f is the readout, and t is the
state that the readout reads.

The gate of Xu 2015, section 4.2.1 (`scalar`) is a number: the context is beta times what the attention read, with
beta = sigmoid(W h + b) of the attention's query h, which is h_{t-1} with `before_cell` attention.
"""

import torch
from torch import Tensor, nn

from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .departures import live_departure
from .matmul import LINEAR, Linear, linear


# The kinds of gate that act on a product, unit by unit; the other one scales the context itself.
UNIT_GATES = ("source", "target", "both")


class ScalarGate(nn.Module):
    """beta of Xu 2015, section 4.2.1: how much of the context is read."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.project = nn.Linear(config.hidden_size, 1)

    def forward(self, query: Tensor, context: Tensor) -> Tensor:
        """The query (batch, ..., hidden) and the context (batch, ..., width) -> the scaled context."""
        return torch.sigmoid(self.project(query)) * context


class ContextGate(nn.Module):
    """Factors for the target's and the source's part of a product of `units` outputs (or blocks of `units` outputs)."""

    def __init__(self, config: RnnSeq2SeqConfig, units: int, state_width: int) -> None:
        super().__init__()
        self.kind = config.context_gate
        self.word = nn.Linear(config.embedding_size, units)
        self.state = nn.Linear(state_width, units, bias=False)
        self.context = nn.Linear(config.context_width, units, bias=False)

    def forward(self, word: Tensor, state: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors (batch, ..., width) -> the two factors (batch, ..., units)."""
        gate = torch.sigmoid(self.word(word) + self.state(state) + self.context(context))
        if self.kind == "both":
            return 1 - gate, gate
        return (torch.ones_like(gate), gate) if self.kind == "source" else (gate, torch.ones_like(gate))


def gates_cell(config: RnnSeq2SeqConfig) -> bool:
    """Whether the context gate acts in the cell."""
    return config.context_gate in UNIT_GATES and config.attention_order == "before_cell"


def gates_readout(config: RnnSeq2SeqConfig) -> bool:
    """Whether the context gate acts in the readout."""
    return config.context_gate in UNIT_GATES and config.attention_order == "after_cell"


class Readout(nn.Module):
    """Reads the state, the context and, for deep output, the word vector.

    `linear` concatenates them (and projects with `readout_size`); `tanh` is the attentional vector of Luong 2015,
    equation 5; `maxout` is the deep output of Bahdanau 2014, appendix A.2.2 (pairs of units, the larger of each). With a
    context gate the context has its own projection. With skip connections the state is that of every layer, the lowest
    first (Graves 2013, equation 3).
    """

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.kind = config.readout
        self.reads_embedding = config.readout_embedding
        self.reads_context = config.readout_context and config.context_width > 0
        self.state_width, self.context_width = config.readout_state_width, config.context_width
        self.word_width = config.embedding_size
        units = (config.readout_size or 0) * (2 if self.kind == "maxout" else 1)
        gated = gates_readout(config)
        self.gate = ContextGate(config, units, self.state_width) if gated else None
        self.project_context = nn.Linear(config.context_width, units, bias=False) if gated else None
        width = config.readout_input_width - (config.context_width if gated else 0)
        self.units = units
        self.project = Linear(width, units, bias=self.kind == "maxout") if units else None

    def forward(self, state: Tensor, context: Tensor | None, embedding: Tensor) -> Tensor:
        """(batch, ..., width) each -> (batch, ..., readout)."""
        parts = [state]
        if self.reads_context and self.gate is None:
            parts.append(context)
        if self.reads_embedding:
            parts.append(embedding)
        joined = torch.cat(parts, -1) if len(parts) > 1 else state
        if self.project is None:
            return joined
        units = self.project(joined)
        if self.gate is not None:
            target, source = self.gate(embedding, state, context)
            units = target * units + source * self.project_context(context)
        return self.activate(units)

    def activate(self, units: Tensor) -> Tensor:
        """The readout (batch, ..., readout) of its products (batch, ..., units)."""
        if self.kind == "tanh":
            return torch.tanh(units)
        if self.kind == "maxout":
            return units.unflatten(-1, (-1, 2)).amax(-1)
        return units

    def target_part(self, state: Tensor, embedding: Tensor) -> Tensor:
        """What state and word add to the products: (batch, ..., units), to which `source_part` adds the rest.

        Without a context gate.
        """
        if live_departure(self.project, LINEAR):
            return self.project(self._joined(state, state.new_zeros(*state.shape[:-1], self.context_width), embedding))
        state_weight, _, word_weight = self._weights()
        units = linear(state, state_weight, self.project.bias)
        return units + linear(embedding, word_weight) if self.reads_embedding else units

    def source_part(self, context: Tensor) -> Tensor:
        """What a context (batch, ..., context) adds to the products, (batch, ..., units).

        Another module in the place of the projection (an adapter) is called, and may add a constant.
        """
        if live_departure(self.project, LINEAR):
            state, word = (context.new_zeros(*context.shape[:-1], size) for size in (self.state_width, self.word_width))
            nothing = torch.zeros_like(context[:1, :1])
            constant = self.project(self._joined(state[:1, :1], nothing, word[:1, :1]))
            return self.project(self._joined(state, context, word)) - constant
        return linear(context, self._weights()[1])

    def _joined(self, state: Tensor, context: Tensor, embedding: Tensor) -> Tensor:
        return torch.cat([state, context, embedding] if self.reads_embedding else [state, context], -1)

    def _weights(self) -> tuple[Tensor, ...]:
        """The columns of the projection that read state, context and word vector."""
        widths = (self.state_width, self.context_width, self.word_width if self.reads_embedding else 0)
        return self.project.weight.split(widths, 1)
