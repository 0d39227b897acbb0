"""The density of a pen's next point, against the paper's equations, integration and many draws."""

import math

import pytest
import torch
from torch import Tensor

from hf_rnn_seq2seq.model.mixture_density import (
    HIGHEST_DEVIATION,
    LOWEST_DEVIATION,
    STRONGEST_CORRELATION,
    Mixture,
    MixtureDensity,
)
from tests.helpers import pen_references

COMPONENTS = 3


def outputs(rows: int = 5, seed: int = 0) -> Tensor:
    """What the linear layer gives, (rows, 1 + 6 x components)."""
    generator = torch.Generator().manual_seed(seed)
    return 0.7 * torch.randn(rows, 1 + 6 * COMPONENTS, generator=generator, dtype=torch.float64)


def mixture_of(numbers: Tensor) -> Mixture:
    """The mixture whose outputs are `numbers`: the layer's weights are the identity."""
    layer = MixtureDensity(numbers.shape[-1], (numbers.shape[-1] - 1) // 6).to(numbers.dtype).requires_grad_(False)
    with torch.no_grad():
        layer.project.weight.copy_(torch.eye(numbers.shape[-1]))
        layer.project.bias.zero_()
    return layer(numbers)


def components(row: Tensor) -> list[pen_references.Component]:
    """The six outputs of each component, in the order of the references."""
    weight, mean, deviation, correlation = row[1:].split([COMPONENTS, 2 * COMPONENTS, 2 * COMPONENTS, COMPONENTS])
    parts = [weight[:, None], mean.view(-1, 2), deviation.view(-1, 2), correlation[:, None]]
    return [tuple(numbers) for numbers in torch.cat(parts, 1).tolist()]


POINTS = torch.tensor([[0.3, -0.8, 0], [0.0, 0.0, 1], [-2.0, 1.5, 0], [4.0, 4.0, 1], [0.1, 0.2, 0]]).double()


def test_density_is_that_of_the_equations() -> None:
    numbers = outputs()
    expected = [
        math.log(pen_references.density(point, float(row[0]), components(row)))
        for point, row in zip(POINTS.tolist(), numbers, strict=True)
    ]
    torch.testing.assert_close(mixture_of(numbers).log_density(POINTS).tolist(), expected)


def test_derivatives_are_those_of_the_equations() -> None:
    numbers = outputs().requires_grad_()
    (found,) = torch.autograd.grad(-mixture_of(numbers).log_density(POINTS).sum(), numbers)
    for point, row, gradient in zip(POINTS.tolist(), numbers.detach(), found, strict=True):
        end, each = pen_references.loss_gradient(point, float(row[0]), components(row))
        torch.testing.assert_close(float(gradient[0]), end)
        torch.testing.assert_close([list(part) for part in components(gradient)], each)


def test_density_integrates_to_one() -> None:
    """Over the plane and both values of the bit."""
    numbers = outputs(rows=1)
    places = torch.linspace(-30, 30, 1201, dtype=torch.float64)
    step = float(places[1] - places[0])
    plane = torch.cartesian_prod(places, places)
    total = 0.0
    for end in (0.0, 1.0):
        points = torch.cat([plane, torch.full((len(plane), 1), end)], 1)
        total += mixture_of(numbers).log_density(points).exp().sum().item() * step**2
    assert abs(total - 1) < 1e-5


def test_samples_have_the_distribution() -> None:
    """The means, the covariances and the share of ends of many draws."""
    numbers = outputs(rows=1, seed=3)
    mixture = mixture_of(numbers.expand(200_000, -1))
    drawn = mixture.sample(torch.Generator().manual_seed(1))
    weights, each = pen_references.shares(components(numbers[0])), components(numbers[0])
    mean = sum(w * torch.tensor(c[1:3], dtype=torch.float64) for w, c in zip(weights, each, strict=True))
    second = torch.zeros(2, 2, dtype=torch.float64)
    for w, (_, m1, m2, s1, s2, r) in zip(weights, each, strict=True):
        between = math.tanh(r) * math.exp(s1 + s2)
        covariance = torch.tensor([[math.exp(2 * s1), between], [between, math.exp(2 * s2)]], dtype=torch.float64)
        center = torch.tensor([m1, m2], dtype=torch.float64)
        second += w * (covariance + torch.outer(center, center))
    torch.testing.assert_close(drawn[:, :2].mean(0), mean, atol=0.03, rtol=0)
    torch.testing.assert_close(drawn[:, :2].T.cov(), second - torch.outer(mean, mean), atol=0.15, rtol=0)
    assert abs(float(drawn[:, 2].mean()) - 1 / (1 + math.exp(float(numbers[0, 0])))) < 0.005


def test_bias_narrows_the_samples() -> None:
    """Equations 61 and 62; without bias nothing changes, a large one leaves the mean of the likeliest component."""
    numbers = outputs(rows=1, seed=3)
    plain, bias = mixture_of(numbers), 1.5
    assert all(torch.equal(*pair) for pair in zip(plain.biased(0.0), plain, strict=True))
    changed = numbers.clone()
    changed[:, 1 : 1 + COMPONENTS] *= 1 + bias
    changed[:, 1 + 3 * COMPONENTS : 1 + 5 * COMPONENTS] -= bias
    torch.testing.assert_close(plain.biased(bias).log_density(POINTS[:1]), mixture_of(changed).log_density(POINTS[:1]))
    drawn = mixture_of(numbers.expand(100, -1)).biased(40.0).sample(torch.Generator().manual_seed(0))
    best = max(components(numbers[0]))
    torch.testing.assert_close(drawn[:, :2], torch.tensor([best[1:3]], dtype=torch.float64).expand(100, 2))


@pytest.mark.parametrize("bias", [0.0, 0.5, 1.0, 5.0])
@pytest.mark.parametrize("extreme", [1e4, -1e4])
def test_numbers_stay_finite_at_the_bounds(extreme: float, bias: float) -> None:
    """However large the outputs, density, gradient and samples are finite in float32."""
    numbers = (outputs().float() + extreme).requires_grad_()
    mixture = mixture_of(numbers)
    assert mixture.deviation.detach().unique().tolist() == [HIGHEST_DEVIATION if extreme > 0 else LOWEST_DEVIATION]
    assert mixture.correlation.detach().abs().unique().tolist() == [STRONGEST_CORRELATION]
    far = torch.tensor([[1e3, -1e3, 1.0]]).expand(5, 3)
    for points in (POINTS.float(), far):
        value = mixture.log_density(points).sum()
        (gradient,) = torch.autograd.grad(value, numbers, retain_graph=True)
        assert value.isfinite() and gradient.isfinite().all()
    assert mixture.biased(bias).sample(torch.Generator().manual_seed(0)).isfinite().all()


def test_half_precision_is_computed_in_single() -> None:
    mixture = MixtureDensity(4, 2).to(torch.bfloat16)(torch.ones(3, 4, dtype=torch.bfloat16))
    assert mixture.log_density(torch.zeros(3, 3)).dtype == torch.float32
