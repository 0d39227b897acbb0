"""Regularization by noise: dropout of layer inputs and of whole words, and zoneout of recurrent states.

Axes: batch, time, width. In evaluation dropout is off, and zoneout uses its expected value.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

State = tuple[Tensor, ...]


@contextlib.contextmanager
def without_noise(module: nn.Module) -> Iterator[None]:
    """Puts `module` in evaluation mode for the block; afterwards each part has the mode that it had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


def drop(states: Tensor, probability: float, training: bool, whole_sentence: bool) -> Tensor:
    """Dropout of (batch, time, width); with `whole_sentence` one mask for all positions (Gal and Ghahramani 2016)."""
    if not training or probability == 0:
        return states
    if not whole_sentence and states.device.type != "cpu":
        return F.dropout(states, probability)
    return states * dropout_mask(states[:, :1] if whole_sentence else states, probability)


def dropout_mask(like: Tensor, probability: float) -> Tensor:
    """The mask of inverted dropout in the shape of `like`: 0 with this probability, else 1 / (1 - probability).

    On a CPU the probability is rounded to 1 / 65,536 and a random number serves four units: a fifth of the time of torch's
    dropout.
    """
    if like.device.type != "cpu" or torch.compiler.is_compiling() or torch.jit.is_tracing():
        return F.dropout(torch.ones_like(like), probability)
    words = torch.empty(-(-like.numel() // 4), dtype=torch.int64).random_(-(2**63), None)
    drawn = words.view(torch.int16)[: like.numel()].view(like.shape)
    return (drawn >= min(round(probability * 65536), 65535) - 32768).to(like.dtype).div_(1 - probability)


def drop_words(states: Tensor, probability: float, training: bool, words: Tensor | None = None) -> Tensor:
    """Drops whole word vectors of (batch, time, width) and scales the others.

    Args:
        words: (batch, time), the ids. With them a sentence loses all occurrences of a word or none (Gal and Ghahramani
            2016, section 4.2); without them each position is drawn independently.
    """
    if not training or probability == 0:
        return states
    mask = dropout_mask(states[..., :1], probability)
    if words is not None:
        # Every occurrence gets the draw of the first one; argmax returns the first of equal values.
        first = (words.unsqueeze(2) == words.unsqueeze(1)).byte().argmax(-1)
        mask = mask.gather(1, first.unsqueeze(-1))
    return states * mask


def zoneout_masks(rates: tuple[float, ...], like: Tensor, steps: int, width: int) -> tuple[Tensor, ...]:
    """For each tensor of a state the units that keep their old value: bool (steps, batch, width)."""
    shape = (steps, like.shape[0], width)
    return tuple(torch.rand(shape, device=like.device) < rate for rate in rates)


def zone_out(rates: tuple[float, ...], before: State, after: State, masks: tuple[Tensor, ...] | None = None) -> State:
    """The state after one position, in which some units keep their old value (Krueger 2016, equations 3 and 4).

    Args:
        rates: probability that a unit keeps its value, for each tensor of the state.
        before, after: the state before the position and the one from the cell, (batch, width) each.
        masks: bool (batch, width) each, True for the old value. None, in evaluation: the expected value.
    """
    if masks is None:
        triples = zip(rates, before, after, strict=True)
        return tuple(rate * old + (1 - rate) * new if rate else new for rate, old, new in triples)
    return tuple(torch.where(mask, old, new) for mask, old, new in zip(masks, before, after, strict=True))
