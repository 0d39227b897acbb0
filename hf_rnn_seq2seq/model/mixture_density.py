"""Mixture density output (Graves 2013, section 4.1): the next point of a pen as a distribution over the plane.

A point x = (x_1, x_2, x_3) has an offset and a bit, 1 where the stroke ends. Of the outputs (e, {p, m, s, r}_j) of a linear
layer (equation 17), j = 1, ..., M:

    e_t = 1 / (1 + exp(e))     pi_j = softmax(p)_j     mu_j = m_j     sigma_j = exp(s_j)     rho_j = tanh(r_j)     (18 to 22)
    Pr(x) = sum_j pi_j N(x_1, x_2 | mu_j, sigma_j, rho_j) x (e_t if x_3 = 1, else 1 - e_t)                         (23)

All is computed by logarithms, in float32 at least. Where the paper clips gradients, because a component that closes in on
one point has an infinite density, the exponents are bounded here: e^-5 <= sigma <= e^5 and |rho| <= tanh 4.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .matmul import Linear, without_autocast

LOWEST_DEVIATION, HIGHEST_DEVIATION = -5.0, 5.0  # of the logarithm of sigma
STRONGEST_CORRELATION = 4.0  # of the inverse hyperbolic tangent of rho


class Mixture(NamedTuple):
    """The outputs at some positions, before their functions; (..., components) each."""

    end: Tensor  # (...): -log-odds of the end of a stroke, as in equation 18
    weight: Tensor
    mean: Tensor  # (..., components, 2)
    deviation: Tensor  # (..., components, 2), within its bounds
    correlation: Tensor  # within its bounds

    def log_density(self, points: Tensor) -> Tensor:
        """log Pr of points (..., 3), in nats: (...), the negative of a term of equation 26."""
        end = F.logsigmoid(torch.where(points[..., 2] > 0.5, -self.end, self.end))
        return self.log_density_of_offset(points[..., :2]) + end

    def log_density_of_offset(self, offsets: Tensor) -> Tensor:
        """log sum_j pi_j N_j of offsets (..., 2): (...).

        With z_i = (x_i - mu_i) / sigma_i, Z / (1 - rho^2) of equations 24 and 25 is (z_1 - rho z_2)^2 / (1 - rho^2) + z_2^2.
        """
        z = (offsets.to(self.mean.dtype).unsqueeze(-2) - self.mean) * torch.exp(-self.deviation)
        first, second = z.unbind(-1)
        scale = torch.cosh(self.correlation)  # 1 / sqrt(1 - rho^2)
        distance = ((first - torch.tanh(self.correlation) * second) * scale) ** 2 + second**2
        normal = torch.log(scale) - math.log(2 * math.pi) - self.deviation.sum(-1) - distance / 2
        return torch.logsumexp(F.log_softmax(self.weight, -1) + normal, -1)

    def end_probability(self) -> Tensor:
        """e_t, (...)."""
        return torch.sigmoid(-self.end)

    def biased(self, bias: float) -> "Mixture":
        """The mixture from which a sample with a probability bias is drawn (equations 61 and 62); 0 changes nothing."""
        return self._replace(weight=self.weight * (1 + bias), deviation=self.deviation - bias)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Points drawn at random, (batch, 3), from the outputs at one position of each row."""
        weights = F.softmax(self.weight, -1)
        chosen = torch.multinomial(weights, 1, generator=generator)
        mean, deviation = (
            tensor.gather(-2, chosen.unsqueeze(-1).expand(-1, 1, 2)).squeeze(-2)
            for tensor in (self.mean, self.deviation)
        )
        rho = torch.tanh(self.correlation.gather(-1, chosen).squeeze(-1))
        first, second = torch.randn(mean.shape, generator=generator, dtype=mean.dtype, device=mean.device).unbind(-1)
        drawn = torch.stack([first, rho * first + torch.sqrt(1 - rho**2) * second], -1)
        luck = torch.rand(self.end.shape, generator=generator, dtype=mean.dtype, device=mean.device)
        end = (luck < self.end_probability()).to(mean.dtype)
        return torch.cat([mean + deviation.exp() * drawn, end.unsqueeze(-1)], -1)


class MixtureDensity(nn.Module):
    """The linear layer of equation 17: one number for the end of a stroke and six for each component.

    Args:
        width: of the vectors that it reads.
        components: M.
    """

    def __init__(self, width: int, components: int) -> None:
        super().__init__()
        self.components = components
        self.project = Linear(width, 1 + 6 * components)

    def forward(self, states: Tensor) -> Mixture:
        """(..., width) -> the mixture at each position."""
        # Under autocast too: a mean in 16 bits may be off by the deviation of a narrow component.
        with without_autocast(states):
            outputs = self.project(states.to(self.project.weight.dtype))
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        count = self.components
        end, weight, mean, deviation, correlation = outputs.split([1, count, 2 * count, 2 * count, count], -1)
        return Mixture(
            end.squeeze(-1),
            weight,
            mean.unflatten(-1, (count, 2)),
            deviation.unflatten(-1, (count, 2)).clamp(LOWEST_DEVIATION, HIGHEST_DEVIATION),
            correlation.clamp(-STRONGEST_CORRELATION, STRONGEST_CORRELATION),
        )
