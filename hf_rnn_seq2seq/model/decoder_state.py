"""The records of the decoder: what it reads, its state between two positions, and what a pass over positions returns.

Axes: batch, source, target, heads, hidden; tensors are batch first unless a comment states another order.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .dropout import State
from .recurrence import StepWeights


class Memory(NamedTuple):
    """What the decoder reads of a source, projected once per sentence."""

    keys: Tensor | None  # as `Attention.project_keys` returns them
    values: Tensor | None  # as `Attention.project_values` returns them
    mask: Tensor | None  # bool (batch, source)
    summary: Tensor | None  # (batch, context), the fixed vector of `context="every_step"`
    source_ids: Tensor | None = None  # (batch, source), the words that a copying output layer copies


class DecoderState(NamedTuple):
    """The decoder between two positions."""

    layers: tuple[State, ...]  # per layer (h, c) or (h,), each (batch, hidden)
    feed: Tensor | None  # (batch, feed), the attentional vector (or the context) of the last step
    position: Tensor  # (batch,), number of target positions read
    attention: Tensor | None  # what the attention carries from step to step (coverage)

    def tensors(self) -> tuple[Tensor, ...]:
        """The flat sequence of all tensors."""
        optional = [tensor for tensor in (self.feed, self.position, self.attention) if tensor is not None]
        return tuple(tensor for layer in self.layers for tensor in layer) + tuple(optional)

    def map(self, function: Callable[[Tensor], Tensor]) -> "DecoderState":
        """The same structure with `function` applied to every tensor."""
        optional = (None if t is None else function(t) for t in (self.feed, self.position, self.attention))
        return DecoderState(tuple(tuple(function(t) for t in layer) for layer in self.layers), *optional)


def hold_at_padding(padding: Tensor, before: DecoderState, after: DecoderState) -> DecoderState:
    """`before` in rows where `padding`, bool (batch, 1), is True; `after` in the others."""
    pairs = iter(zip(before.tensors(), after.tensors(), strict=True))

    def choose(_: Tensor) -> Tensor:
        old, new = next(pairs)
        return torch.where(padding.view(-1, *[1] * (new.dim() - 1)), old, new)

    return after.map(choose)


class LoopConstants(NamedTuple):
    """Weights and masks of one pass over time, made once before the loop; one entry per attended layer."""

    weights: list[StepWeights | None]  # None if the layer is called
    recurrent_masks: list[Tensor | None]  # (batch, hidden), recurrent dropout
    input_masks: list[Tensor | None]  # (target or 1, batch, hidden), dropout of the layer below's output
    zoneout_masks: list[list[State | None]]  # per position, from `RecurrentLayer.zoneout_masks`

    def at(self, time: int) -> "LoopConstants":
        """The constants at one position: input masks (batch, hidden), and the zoneout masks of this position."""
        inputs = [mask if mask is None else mask[time if len(mask) > 1 else 0] for mask in self.input_masks]
        return self._replace(input_masks=inputs, zoneout_masks=[masks[time] for masks in self.zoneout_masks])


class Step(NamedTuple):
    """One position of the attended layers; tensors are (batch, ...)."""

    states: tuple[State, ...]
    outputs: tuple[Tensor, ...]
    context: Tensor
    weights: Tensor
    attention_state: Tensor | None


class Attended(NamedTuple):
    """All positions of the attended layers (of every layer if there is no attention)."""

    states: tuple[State, ...]  # after the last position
    outputs: tuple[Tensor, ...]  # (batch, target, hidden) per layer
    context: Tensor | None  # (batch, target, context)
    weights: Tensor | None  # (batch, heads, target, source)
    attention_state: Tensor | None
    readout: Tensor | None  # (batch, target, readout), if the loop computes it
    feed: Tensor | None  # (batch, feed)


class DecoderTrace(NamedTuple):
    """The result of a pass over target positions."""

    readout: Tensor  # (batch, target, readout), what the output layer reads
    state: DecoderState  # after the last position
    hidden_states: tuple[Tensor, ...]  # word vectors, then each layer's outputs
    weights: Tensor | None  # (batch, heads, target, source)
    snapshots: list[DecoderState] | None  # the state before each position, if recorded
    gate: Tensor | None  # (batch, target), log-odds of generating a word instead of copying one


__all__ = ["Attended", "DecoderState", "DecoderTrace", "LoopConstants", "Memory", "Step", "hold_at_padding"]
