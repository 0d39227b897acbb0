"""Sparse weights, coverage, context gates and losses of the attention, restated slowly: position by position."""

from collections.abc import Mapping

import torch
from torch import Tensor

from hf_rnn_seq2seq import RnnSeq2SeqConfig

Weights = Mapping[str, Tensor]


def entmax(scores: list[Tensor], alpha: Tensor | float) -> list[Tensor]:
    """p_i = [(alpha - 1) z_i - tau]_+ ^ (1 / (alpha - 1)), the tau for which they sum to 1 (Peters 2019, section 3).

    alpha = 2: sparsemax (Martins and Astudillo 2016, equation 2). tau is searched for in plain numbers; the derivative
    is that of the equation sum(p) = 1, by one step of Newton.
    """
    if not scores:
        return []
    alpha = torch.as_tensor(alpha, dtype=torch.float64)
    power, scaled = 1 / (alpha - 1), [(alpha - 1) * score for score in scores]
    numbers, exponent = [value.item() for value in scaled], power.item()
    low, high = max(numbers) - 1, max(numbers)
    for _ in range(200):
        middle = (low + high) / 2
        total = sum((number - middle) ** exponent for number in numbers if number > middle)
        low, high = (middle, high) if total > 1 else (low, middle)
    inside = [number > high for number in numbers]
    excess = sum((value - high) ** power for value, kept in zip(scaled, inside, strict=True) if kept) - 1
    slope = sum(exponent * (number - high) ** (exponent - 1) for number in numbers if number > high)
    tau = high + excess / slope
    zero = torch.zeros((), dtype=torch.float64)
    return [(value - tau) ** power if kept else zero for value, kept in zip(scaled, inside, strict=True)]


def alpha_of(config: RnnSeq2SeqConfig, weights: Weights, number: int) -> Tensor | float:
    """2 for sparsemax; 1 + sigmoid(a) of head `number` where it is learned (Correia 2019, section 3)."""
    if config.attention_normalization == "sparsemax":
        return 2.0
    return 1 + torch.sigmoid(weights["sparse.free"][number]) if config.entmax_learned else config.entmax_alpha


def uncovered(config: RnnSeq2SeqConfig, states: list[Tensor]) -> list[Tensor] | None:
    """Of each source word, before the first position."""
    if config.coverage == "none":
        return None
    return [states[0].new_zeros(1 if config.coverage == "sum" else config.coverage_size) for _ in states]


def cover(
    config: RnnSeq2SeqConfig,
    weights: Weights,
    covered: list[Tensor],
    shares: list[Tensor],
    query: Tensor,
    states: list[Tensor],
) -> list[Tensor]:
    """After a position: See 2017, equation 10; Tu 2016, section 3.1.2, with f a GRU."""
    if config.coverage == "sum":
        return [before + share for before, share in zip(covered, shares, strict=True)]
    after = []
    for before, share, state in zip(covered, shares, states, strict=True):
        read = torch.cat([share.view(1), state, query])
        x = weights["coverage.read.weight"] @ read + weights["coverage.read.bias"]
        h = weights["coverage.recurrent.weight"] @ before + weights["coverage.recurrent.bias"]
        size = len(before)
        r, z = torch.sigmoid(x[:size] + h[:size]), torch.sigmoid(x[size : 2 * size] + h[size : 2 * size])
        new = torch.tanh(x[2 * size :] + r * h[2 * size :])
        after.append((1 - z) * new + z * before)
    return after


def gate_factors(
    config: RnnSeq2SeqConfig, weights: Weights, word: Tensor, state: Tensor, context: Tensor
) -> tuple[Tensor, Tensor]:
    """What multiplies the target's part and the source's (Tu 2017, section 3)."""
    total = weights["word.weight"] @ word + weights["word.bias"]
    z = torch.sigmoid(total + weights["state.weight"] @ state + weights["context.weight"] @ context)
    one = torch.ones_like(z)
    return {"source": (one, z), "target": (z, one), "both": (one - z, z)}[config.context_gate]


def scalar_gate(weights: Weights, query: Tensor, context: Tensor) -> Tensor:
    """The context of Xu 2015, section 4.2.1: beta, a number, times what the attention read."""
    beta = torch.sigmoid(torch.dot(weights["project.weight"][0], query) + weights["project.bias"][0])
    return torch.stack([beta * value for value in context])


def doubly_stochastic_loss(shares: list[Tensor]) -> Tensor:
    """Of one sentence, a vector of weights for each position (Xu 2015, equation 14)."""
    total = shares[0].new_zeros(())
    for place in range(len(shares[0])):
        received = shares[0].new_zeros(())
        for share in shares:
            received = received + share[place]
        total = total + (1 - received) ** 2
    return total


def coverage_loss(shares: list[Tensor]) -> Tensor:
    """Of one sentence, a vector of weights for each position (See 2017, equation 12)."""
    total = shares[0].new_zeros(())
    for time, share in enumerate(shares):
        for place, weight in enumerate(share):
            seen = sum((before[place] for before in shares[:time]), shares[0].new_zeros(()))
            total = total + min(weight, seen, key=Tensor.item)
    return total


def guided_alignment_loss(shares: list[Tensor], alignment: list[list[float]]) -> Tensor:
    """Of one sentence: the cross entropy between an alignment, made to sum to 1, and the weights (Chen 2016)."""
    total = shares[0].new_zeros(())
    for share, given in zip(shares, alignment, strict=True):
        for weight, part in zip(share, given, strict=True):
            if part:
                total = total - part / sum(given) * torch.log(weight)
    return total


def entropy(shares: list[Tensor]) -> Tensor:
    """-sum p log p over all positions of a sentence, in nats."""
    total = shares[0].new_zeros(())
    for share in shares:
        for weight in share:
            total = total - weight * torch.log(weight) if weight > 0 else total
    return total
