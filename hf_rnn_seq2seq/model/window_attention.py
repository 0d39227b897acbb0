"""The soft window over a text (Graves 2013, section 5.1), the attention that only moves forward.

A window is a mixture of K Gaussian functions over the positions u = 1, ..., U of the source; c_u is what stands there:

    phi(t, u) = sum_k alpha_k exp(-beta_k (kappa_k - u)^2)      w_t = sum_u phi(t, u) c_u          (46, 47)
    (a, b, k) = W h_t + bias                                                                       (48)
    alpha = exp(a)      beta = exp(b)      kappa_t = kappa_{t-1} + exp(k)                          (49 to 51)

The weights phi are no distribution: they need not sum to 1. The centers kappa are the state that is carried from step to
step; they start at 0, and none ever moves back.
"""

import math

import torch
from torch import Tensor, nn

from .configuration_rnn_seq2seq import RnnSeq2SeqConfig

# Exponents of equations 49 to 51 are cut there: e^10 is far beyond any use, and an infinite one would make 0 x inf.
HIGHEST_EXPONENT = 10.0
# A new window moves by about e^-2 positions a step, so that it does not leave the source before it has learned to wait.
FIRST_STEP = -2.0


class Window(nn.Module):
    """phi(t, u) of equations 46 and 48 to 51."""

    def __init__(self, config: RnnSeq2SeqConfig) -> None:
        super().__init__()
        self.components = config.window_components
        self.project = nn.Linear(config.hidden_size, 3 * config.window_components, bias=False)
        self.bias = nn.Parameter(self.first_bias())

    def start(self, keys: Tensor) -> Tensor:
        """kappa_0 = 0, (batch, components), in float32 at least, because small steps are added up."""
        exact = torch.promote_types(keys.dtype, torch.float32)
        return torch.zeros(keys.shape[0], self.components, dtype=exact, device=keys.device)

    def first_bias(self) -> Tensor:
        """The bias of a new window, (3 x components,): the weights of the components sum to 1, and they move slowly."""
        return torch.tensor([-math.log(self.components), 0.0, FIRST_STEP]).repeat_interleave(self.components)

    def forward(self, query: Tensor, source_mask: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
        """One step.

        Args:
            query: (batch, hidden), h_t.
            source_mask: bool (batch, source), True at real words; u counts them from 1, wherever the padding is.
            center: (batch, components), kappa_{t-1}.

        Returns:
            phi (batch, source), exactly 0 at padding, in the type of `query`; and kappa_t.
        """
        sums = (self.project(query) + self.bias).to(center.dtype)
        functions, center = gaussians(sums, places(source_mask, center.dtype), center)
        return functions.sum(1).masked_fill(~source_mask, 0.0).to(query.dtype), center


def places(source_mask: Tensor, dtype: torch.dtype) -> Tensor:
    """u of each position of a source, (batch, source): the number of real words up to it."""
    return source_mask.cumsum(1).to(dtype)


def gaussians(sums: Tensor, places: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
    """The functions that equation 46 adds, (batch, components, source), and kappa_t.

    Args:
        sums: (batch, 3 x components), a, b and k of equation 48.
        places: (batch, source), u.
        center: (batch, components), kappa_{t-1}.
    """
    importance, width, step = sums.clamp(max=HIGHEST_EXPONENT).chunk(3, -1)
    center = center + step.exp()
    distance = center.unsqueeze(2) - places.unsqueeze(1)
    return (importance.unsqueeze(2) - width.exp().unsqueeze(2) * distance**2).exp(), center
