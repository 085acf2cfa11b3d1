"""Losses against closed forms and slow float64 loops."""

import math

import pytest
import torch
from torch import Tensor

from skjepa.encoders.isotropy import epps_pulley, unit_directions
from skjepa.pretraining.losses import info_nce, invariance, sigreg, vicreg


def exact_epps_pulley(x: Tensor) -> float:
    """The integral over the whole line in closed form, by Gaussian characteristic functions."""
    n = len(x)
    pairs = math.sqrt(2 * math.pi) * torch.exp(-((x[:, None] - x[None, :]) ** 2) / 2).sum() / n**2
    cross = math.sqrt(math.pi) * torch.exp(-(x**2) / 4).mean()
    return (n * (pairs - 2 * cross + math.sqrt(2 * math.pi / 3))).item()


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (0.3, 0.0), (1.5, 1.0), (0.0, 0.0)])
def test_epps_pulley_is_its_closed_form(rng, scale, shift):
    x = scale * torch.randn(40, dtype=torch.float64, generator=rng) + shift
    assert epps_pulley(x).item() == pytest.approx(exact_epps_pulley(x), abs=1e-4)


def test_epps_pulley_keeps_trailing_axes(rng):
    x = torch.randn(30, 3, 2, dtype=torch.float64, generator=rng)
    together = epps_pulley(x)
    assert together.shape == (3, 2)
    torch.testing.assert_close(together[2, 1], epps_pulley(x[:, 2, 1]))


def test_sigreg_prefers_the_isotropic_gaussian(rng):
    z = torch.randn(500, 8, generator=rng)
    directions = unit_directions(8, 64, rng)
    torch.testing.assert_close(directions.norm(dim=0), torch.ones(64))
    gaussian = sigreg(z, directions)
    assert gaussian < 2
    uniform_sphere = z / z.norm(dim=1, keepdim=True)
    one_direction = z[:, :1].expand(-1, 8)
    for other in (uniform_sphere, one_direction, torch.zeros_like(z), 2 * z, z + 1):
        assert sigreg(other, directions) > 5 * gaussian


@pytest.mark.parametrize("n", [20, 200])
def test_epps_pulley_of_gaussian_samples_does_not_grow_with_their_number(rng, n):
    # E |phi_N - phi|^2 = (1 - phi^2) / N, so the expectation is the integral of (1 - phi^2) phi, whatever N.
    expected = math.sqrt(2 * math.pi) - math.sqrt(2 * math.pi / 3)
    assert epps_pulley(torch.randn(n, 2000, generator=rng)).mean().item() == pytest.approx(expected, rel=0.1)


def test_sigreg_gradient_restores_scale(rng):
    z = torch.randn(400, 6, generator=rng)
    directions = unit_directions(6, 64, rng)
    for scale, sign in ((0.5, -1), (1.5, 1)):
        factor = torch.tensor(scale, requires_grad=True)
        sigreg(factor * z, directions).backward()
        assert torch.sign(factor.grad) == sign


def test_invariance_is_the_variance_over_views(rng):
    views = torch.randn(3, 5, 4, dtype=torch.float64, generator=rng)
    torch.testing.assert_close(invariance(views), views.var(0, correction=0).mean())
    assert invariance(views[:1].expand(4, -1, -1)) == 0


def test_vicreg_matches_loops(rng):
    first, second = torch.randn(2, 7, 3, dtype=torch.float64, generator=rng) / 2
    expected = 25 * sum((first[i, j] - second[i, j]) ** 2 for i in range(7) for j in range(3)) / 21
    for z in (first, second):
        mean = [sum(z[:, j]) / 7 for j in range(3)]
        for j in range(3):
            for m in range(3):
                c = sum((z[i, j] - mean[j]) * (z[i, m] - mean[m]) for i in range(7)) / 6
                if j == m:
                    expected += 25 * max(0.0, 1 - math.sqrt(c + 1e-4)) / 3 / 2
                else:
                    expected += c**2 / 3
    torch.testing.assert_close(vicreg(first, second), expected)


def test_info_nce_matches_loops(rng):
    first, second = torch.randn(2, 5, 3, dtype=torch.float64, generator=rng)
    z = [row / row.norm() for row in (*first, *second)]
    terms = []
    for i in range(10):
        logits = {j: (z[i] @ z[j]).item() / 0.3 for j in range(10) if j != i}
        terms.append(math.log(sum(math.exp(v) for v in logits.values())) - logits[(i + 5) % 10])
    assert info_nce(first, second, temperature=0.3).item() == pytest.approx(sum(terms) / 10)


def test_info_nce_closed_forms():
    same = torch.ones(8, 4)
    assert info_nce(same, same).item() == pytest.approx(math.log(15))
    apart = torch.eye(8)
    # Partner at cosine 1, fourteen strangers at cosine 0.
    assert info_nce(apart, apart, temperature=0.5).item() == pytest.approx(math.log(1 + 14 * math.exp(-2)))


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
