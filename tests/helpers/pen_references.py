"""Graves 2013, sections 4 and 5, restated slowly: one point, one component, one character at a time.

Equation numbers are those of the paper (arXiv 1308.0850), and were read in it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Component = tuple[float, float, float, float, float, float]
"""The outputs of one component: p, m_1, m_2, s_1, s_2, r, whose functions are pi, mu, sigma and rho."""


def normal(x: Sequence[float], component: Component) -> float:
    """N(x | mu, sigma, rho), equations 20 to 22, 24 and 25."""
    _, m1, m2, s1, s2, r = component
    sigma1, sigma2, rho = math.exp(s1), math.exp(s2), math.tanh(r)
    z = (x[0] - m1) ** 2 / sigma1**2 + (x[1] - m2) ** 2 / sigma2**2
    z -= 2 * rho * (x[0] - m1) * (x[1] - m2) / (sigma1 * sigma2)
    return math.exp(-z / (2 * (1 - rho**2))) / (2 * math.pi * sigma1 * sigma2 * math.sqrt(1 - rho**2))


def shares(components: Sequence[Component]) -> list[float]:
    """pi, equation 19."""
    powers = [math.exp(component[0]) for component in components]
    return [power / sum(powers) for power in powers]


def density(x: Sequence[float], end: float, components: Sequence[Component]) -> float:
    """Pr(x), equations 18 and 23; `end` is the output whose function is e_t."""
    e = 1 / (1 + math.exp(end))
    plane = sum(share * normal(x, component) for share, component in zip(shares(components), components, strict=True))
    return plane * (e if x[2] == 1 else 1 - e)


def loss_gradient(x: Sequence[float], end: float, components: Sequence[Component]) -> tuple[float, list[list[float]]]:
    """Derivatives of -log Pr(x) by the outputs: of `end` (equation 27), and of each component (equations 28 to 37)."""
    weighted = [share * normal(x, each) for share, each in zip(shares(components), components, strict=True)]
    of_components = []
    for share, own, (_, m1, m2, s1, s2, r) in zip(shares(components), weighted, components, strict=True):
        gamma = own / sum(weighted)
        sigma1, sigma2, rho = math.exp(s1), math.exp(s2), math.tanh(r)
        a, b = (x[0] - m1) / sigma1, (x[1] - m2) / sigma2
        c, z = 1 / (1 - rho**2), a**2 + b**2 - 2 * rho * a * b
        log_normal = [c / sigma1 * (a - rho * b), c / sigma2 * (b - rho * a)]
        log_normal += [c * a * (a - rho * b) - 1, c * b * (b - rho * a) - 1]
        log_normal += [a * b + rho * (1 - c * z)]
        of_components.append([share - gamma, *(-gamma * part for part in log_normal)])
    return x[2] - 1 / (1 + math.exp(end)), of_components


def window(
    parameters: Tensor, before: Sequence[Tensor], characters: Sequence[Tensor]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """w_t, phi(t, u) of each character, and kappa_t of each component: equations 46, 47 and 49 to 51.

    Args:
        parameters: (3 K,), the outputs a, b and k of equation 48.
        before: kappa_{t-1}.
        characters: c_u.
    """
    count = len(before)
    after = [before[k] + torch.exp(parameters[2 * count + k]) for k in range(count)]
    weights = []
    for u in range(1, len(characters) + 1):
        phi = parameters.new_zeros(())
        for k in range(count):
            width = torch.exp(parameters[count + k])
            phi = phi + torch.exp(parameters[k]) * torch.exp(-width * (after[k] - u) ** 2)
        weights.append(phi)
    read = sum(phi * character for phi, character in zip(weights, characters, strict=True))
    return read, weights, after


def window_gradient(
    parameters: Tensor, before: Sequence[float], characters: Tensor, of_read: Tensor
) -> tuple[list[float], list[float], list[float]]:
    """Derivatives by a, b and k of one last step, from those by w_t: equations 56 to 60."""
    count = len(before)
    a, b, k = (parameters[number * count : (number + 1) * count].tolist() for number in range(3))
    kappa = [old + math.exp(step) for old, step in zip(before, k, strict=True)]
    by_a, by_b, by_k = [], [], []
    for j in range(count):
        numbers = range(1, len(characters) + 1)
        epsilon = [
            math.exp(a[j] - math.exp(b[j]) * (kappa[j] - u) ** 2) * float(of_read @ characters[u - 1]) for u in numbers
        ]
        by_a.append(sum(epsilon))
        by_b.append(-math.exp(b[j]) * sum(e * (kappa[j] - u) ** 2 for e, u in zip(epsilon, numbers, strict=True)))
        slope = 2 * math.exp(b[j]) * sum(e * (u - kappa[j]) for e, u in zip(epsilon, numbers, strict=True))
        by_k.append(math.exp(k[j]) * slope)
    return by_a, by_b, by_k
