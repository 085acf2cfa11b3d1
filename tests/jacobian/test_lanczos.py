from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import IMAGE_MODELS, dense_jacobian, linear, matrix_of_spectrum, mlp

from skjepa.jacobian.lanczos import lanczos_log_volume
from skjepa.jacobian.volume import log_volume

SHAPES = [(12, 4), (3, 9), (4, 4)]


def damped(J: torch.Tensor, damping: float) -> torch.Tensor:
    """The quantity itself from dense float64 Jacobians, (B,)."""
    return 0.5 * torch.log(torch.linalg.svdvals(J) ** 2 + damping**2).sum(1)


def inputs(n_inputs: int, n: int = 3) -> torch.Tensor:
    return torch.randn(n, n_inputs, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("n_inputs", "n_components"), SHAPES)
@pytest.mark.parametrize("damping", [1e-3, 1.0])
def test_unbiased_over_probes(n_inputs, n_components, damping):
    """The mean over ALL vectors of signs is the trace itself: no statistics are needed."""
    model, x = mlp(n_inputs, n_components).double(), inputs(n_inputs)
    size = min(n_inputs, n_components)
    probes = torch.tensor(list(product([-1.0, 1.0], repeat=size)))
    estimates = lanczos_log_volume(model, x, damping=damping, n_steps=size, probes=probes)
    expected = damped(dense_jacobian(model, x), damping)
    torch.testing.assert_close(estimates.mean(1), expected, rtol=0, atol=1e-9)
    assert estimates.std(1).min() > 1e-3  # one probe alone is an estimate


def test_random_probes_average_to_it():
    model, x = mlp(12, 8).double(), inputs(12)
    estimates = lanczos_log_volume(model, x, damping=0.1, n_probes=60, n_steps=8)
    error = estimates.mean(1) - damped(dense_jacobian(model, x), 0.1)
    assert (error.abs() < 4 * estimates.std(1) / np.sqrt(60)).all()


def test_fewer_steps_converge_geometrically():
    """Steps short of R leave a quadrature error, the same whatever the number of probes."""
    sigma = np.geomspace(1, 1e-2, 24)
    A, x = matrix_of_spectrum(sigma, 40), torch.zeros(1, 40, dtype=torch.float64)
    full = lanczos_log_volume(linear(A), x, damping=0.1, n_probes=3, n_steps=24)
    errors = [
        float((lanczos_log_volume(linear(A), x, damping=0.1, n_probes=3, n_steps=n) - full).abs().max())
        for n in (2, 4, 8, 16)
    ]
    assert errors[0] > errors[1] > errors[2] > errors[3]
    assert errors[3] < 1e-4 * errors[0]


@settings(max_examples=15)
@given(st.integers(1, 4), st.integers(1, 4), st.floats(1e-4, 1e2), st.integers(0, 99))
def test_bounds_by_the_clipped_sum(k, d, damping, seed):
    """Not the clipped sum with that floor, but between it and R log(2) / 2 more."""
    sigma = np.random.default_rng(seed).lognormal(sigma=3, size=min(k, d))
    A = matrix_of_spectrum(sigma, max(k, d))
    A = A if k <= d else A.T.contiguous()
    size = min(k, d)
    probes = torch.tensor(list(product([-1.0, 1.0], repeat=size)))
    value = float(
        lanczos_log_volume(
            linear(A), torch.zeros(1, A.shape[1], dtype=torch.float64), damping=damping, n_steps=size, probes=probes
        ).mean()
    )
    clipped = float(log_volume(np.sort(sigma)[::-1], floor=damping))
    assert clipped - 1e-6 <= value <= clipped + size * np.log(2) / 2 + 1e-6


@pytest.mark.parametrize("name", IMAGE_MODELS)
def test_image_models(name):
    model = IMAGE_MODELS[name](4).double().eval()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    probes = torch.tensor(list(product([-1.0, 1.0], repeat=4)))
    estimates = lanczos_log_volume(model, x, damping=0.01, n_steps=4, probes=probes)
    torch.testing.assert_close(estimates.mean(1), damped(dense_jacobian(model, x), 0.01), rtol=0, atol=1e-8)


def test_an_exhausted_krylov_space_ends_early():
    """One distinct singular value: a single step is exact, and further ones change nothing."""
    A, x = matrix_of_spectrum([2.0, 2.0, 2.0], 5), torch.zeros(2, 5, dtype=torch.float64)
    estimates = lanczos_log_volume(linear(A), x, damping=0.5, n_probes=3, n_steps=3)
    torch.testing.assert_close(estimates, torch.full_like(estimates, 1.5 * np.log(4.25)))


def test_batches_and_seeds():
    model, x = mlp().double(), inputs(12, n=5)
    whole = lanczos_log_volume(model, x, damping=0.1, n_probes=2, n_steps=3, seed=4)
    parts = [lanczos_log_volume(model, part, damping=0.1, n_probes=2, n_steps=3, seed=4) for part in x.split(2)]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-10, atol=1e-10)
    assert (lanczos_log_volume(model, x, damping=0.1, n_probes=2, n_steps=3, seed=5) - whole).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"damping": 0.0}, "damping must lie in"),
        ({"damping": 0.1, "n_steps": 0}, "n_steps must be at least 1"),
        ({"damping": 0.1, "n_probes": 0}, "n_probes must be at least 1"),
        ({"damping": 0.1, "probes": torch.ones(2, 3)}, r"probes must be of shape \(n_probes, 6\); got \(2, 3\)"),
    ],
)
def test_refused(options, message):
    with pytest.raises(ValueError, match=message):
        lanczos_log_volume(mlp().double(), inputs(12), **options)
