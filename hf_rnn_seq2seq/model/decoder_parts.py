"""What the decoder is made of beside its layers: the readout, and the tuples that its passes hand around."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .cache import DecoderState
from .configuration_rnn_seq2seq import RnnSeq2SeqConfig
from .context_gate import ContextGate, gates_readout
from .matmul import Linear
from .recurrence import State, StepWeights


class Readout(nn.Module):
    """What stands between the state and the vocabulary: reads state, context and, for deep output, the word vector.

    `linear` joins them (and projects with `readout_size`); `tanh` is the attentional vector of Luong 2015, equation 5;
    `maxout` is the deep output of Bahdanau 2014, appendix A.2.2 (pairs of units, the larger of each). With a context gate
    the context has a projection of its own.
    """

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.kind = config.readout
        self.reads_embedding = config.readout_embedding
        self.reads_context = config.readout_context and config.context_width > 0
        units = (config.readout_size or 0) * (2 if self.kind == "maxout" else 1)
        gated = gates_readout(config)
        self.gate = ContextGate(config, units) if gated else None
        self.project_context = nn.Linear(config.context_width, units, bias=False) if gated else None
        width = config.readout_input_width - (config.context_width if gated else 0)
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
        if self.kind == "tanh":
            return torch.tanh(units)
        if self.kind == "maxout":
            return units.unflatten(-1, (-1, 2)).amax(-1)
        return units


class DecoderTrace(NamedTuple):
    """What a pass over target positions leaves; every tensor is (batch, target, ...) unless said otherwise."""

    readout: Tensor  # (batch, target, readout), what the output layer reads
    state: DecoderState  # after the last position
    hidden_states: tuple[Tensor, ...]  # word vectors, then each layer's states
    weights: Tensor | None  # (batch, heads, target, source)
    snapshots: list[DecoderState] | None  # the state before each position, when recorded
    gate: Tensor | None  # (batch, target), log-odds of generating and not copying


class Loop(NamedTuple):
    """What a pass over time cuts and draws once, per attended layer."""

    weights: list[StepWeights]
    keep: list[Tensor | None]  # (batch, hidden), recurrent dropout
    drop: list[Tensor | None]  # (target or 1, batch, hidden), dropout of the layer below's output
    still: list[Any]  # per position (batch, hidden) masks, from `RecurrentLayer.zoneout_masks`

    def at(self, time: int) -> "Loop":
        """The same at one position: dropout (batch, hidden), and the zoneout masks of this position."""
        drop = [mask if mask is None else mask[time if len(mask) > 1 else 0] for mask in self.drop]
        return self._replace(drop=drop, still=[masks[time] for masks in self.still])


class Step(NamedTuple):
    """One position of the attended layers; tensors are (batch, ...)."""

    states: tuple[State, ...]
    outputs: tuple[Tensor, ...]
    context: Tensor
    weights: Tensor
    carried: Tensor | None


class Attended(NamedTuple):
    """All positions of the attended layers (of every layer where there is no attention)."""

    states: tuple[State, ...]  # after the last position
    outputs: tuple[Tensor, ...]  # (batch, target, hidden) per layer
    context: Tensor | None  # (batch, target, context)
    weights: Tensor | None  # (batch, heads, target, source)
    carried: Tensor | None
    readout: Tensor | None  # (batch, target, readout) where the loop computes it
    feed: Tensor | None  # (batch, feed)


def hold(held: Tensor, before: DecoderState, after: DecoderState) -> DecoderState:
    """`after` where a row's position is real, `before` where it is padding; `held` is bool (batch, 1)."""
    pairs = iter(zip(before.tensors(), after.tensors(), strict=True))

    def choose(_: Tensor) -> Tensor:
        old, new = next(pairs)
        return torch.where(held.view(-1, *[1] * (new.dim() - 1)), old, new)

    return after.map(choose)


__all__ = ["Attended", "DecoderTrace", "Loop", "Readout", "Step", "hold"]
