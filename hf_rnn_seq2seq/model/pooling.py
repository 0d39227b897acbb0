"""From the states of a sequence to one vector: attention with one or several hops, the maximum, the mean, or the last states.

Axes: batch (sentences or documents), source (words or sentences), hops, width. Masks are True at what is read. A row of
which nothing is read has the vector 0.
"""

import torch
from torch import Tensor, nn

from .matmul import Linear


class AttentionPooling(nn.Module):
    """Weighted averages of the states, one for each hop.

    A = softmax(W_2 tanh(W_1 H + b));  M = A H (Lin 2017, equations 6 and 7; with one hop, equation 5). With one hop it is
    the attention of Yang 2016, equations 5 to 7 over words and 8 to 10 over sentences: u_t = tanh(W h_t + b),
    a_t = softmax(u_t . u), s = sum_t a_t h_t; the only row of W_2 is their context vector u. (The numbers of these
    equations were not checked against the papers; neither was that Lin 2017 has no b.)

    Args:
        width: of the states.
        size: of the hidden layer, d_a of Lin 2017.
        hops: r of Lin 2017.
    """

    def __init__(self, width: int, size: int, hops: int) -> None:
        super().__init__()
        self.project = Linear(width, size)
        self.context = Linear(size, hops, bias=False)

    def forward(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """The averages (batch, hops x width), and the weights (batch, hops, source), exactly zero where `mask` is False.

        Args:
            states: (batch, source, width).
            mask: bool (batch, source).
        """
        scores = self.context(torch.tanh(self.project(states))).transpose(1, 2)
        hidden = ~mask.unsqueeze(1)
        weights = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(-1).masked_fill(hidden, 0.0)
        return (weights @ states).flatten(1), weights


def pool(kind: str, states: Tensor, mask: Tensor, ends: Tensor | None) -> Tensor:
    """One vector without parameters, (batch, width).

    Args:
        kind: `max`, `mean`, or `last`: of each direction the state after its last word.
        states: (batch, source, width).
        mask: bool (batch, source).
        ends: (batch, width), for `last`.
    """
    if kind == "last":
        return ends
    count = mask.sum(1, keepdim=True)
    if kind == "mean":
        return states.masked_fill(~mask.unsqueeze(-1), 0.0).sum(1) / count.clamp(min=1)
    highest = states.masked_fill(~mask.unsqueeze(-1), torch.finfo(states.dtype).min).amax(1)
    return highest.masked_fill(count == 0, 0.0)


def hop_penalty(weights: Tensor, mask: Tensor) -> Tensor:
    """||A A^T - I||^2, the squared Frobenius norm (Lin 2017, equation 8), averaged over the rows that read anything, ().

    0 if each hop reads one position of its own; hops x (hops - 1) if all read the same one.

    Args:
        weights: (batch, hops, source), A.
        mask: bool (batch, source).
    """
    excess = weights @ weights.transpose(1, 2) - torch.eye(weights.shape[1], dtype=weights.dtype, device=weights.device)
    rows = mask.any(1)
    return (excess.square().sum((1, 2)) * rows).sum() / rows.sum().clamp(min=1)
