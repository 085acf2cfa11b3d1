"""The distributions of known density against integration and their own samples, and what the experiments compute."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import multivariate_normal, norm

from benchmarks.common.known_densities import NAMES, Arc, distribution
from benchmarks.common.resumable import resumable
from benchmarks.theory.dimension import norm_variance
from benchmarks.theory.kernels import AdaptiveKernelDensity

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", NAMES)
def test_density_integrates_to_one(name):
    # The rectangle rule is exact to rounding once its step is half the narrowest spread.
    step, reach = (0.1, 9.0) if name == "mixture" else (0.05, 3.2)
    axis = np.arange(-reach, reach, step)
    grid = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    total = np.exp(distribution(name).log_density(grid)).sum() * step**2
    assert total == pytest.approx(1, abs=1e-8)


@pytest.mark.parametrize("name", NAMES)
def test_samples_follow_the_density(name):
    """Counts in boxes against the density's integral over them, by a chi-square statistic."""
    law, n = distribution(name), 20_000
    edges = np.linspace(-6, 6, 25) if name == "mixture" else np.linspace(-2.6, 2.6, 27)
    X = law.sample(n, np.random.default_rng(1))
    counts = np.histogram2d(*X.T, bins=[edges, edges])[0]
    steps, fine = 4, edges[1] - edges[0]
    centres = edges[0] + fine / steps * (np.arange(steps * (len(edges) - 1)) + 0.5)
    points = np.stack(np.meshgrid(centres, centres, indexing="ij"), axis=-1).reshape(-1, 2)
    mass = np.exp(law.log_density(points)).reshape(len(edges) - 1, steps, -1, steps).sum((1, 3)) * (fine / steps) ** 2
    often = n * mass > 8
    statistic = ((counts - n * mass) ** 2 / (n * mass))[often].sum()
    assert often.sum() > 40
    assert abs(statistic - often.sum()) < 5 * np.sqrt(2 * often.sum())


@pytest.mark.parametrize("point", [(0.0, 0.0), (1.05, 0.1), (-0.3, -1.4), (40.0, -3.0)])
@pytest.mark.parametrize("end", [np.pi, 2 * np.pi])
def test_arc_is_its_integral(point, end):
    arc = Arc((0.0, 0.0), 1.0, 0.1, 0.0, end)
    exponent = lambda t: -((point[0] - np.cos(t)) ** 2 + (point[1] - np.sin(t)) ** 2) / 0.02  # noqa: E731
    top = max(exponent(t) for t in np.linspace(0, end, 100_001))
    peak = np.arctan2(point[1], point[0]) % (2 * np.pi)
    value = quad(
        lambda t: np.exp(exponent(t) - top), 0, end, points=[min(peak, end)], epsabs=0, epsrel=1e-12, limit=500
    )
    expected = np.log(value[0] / end / (2 * np.pi * 0.01)) + top
    assert arc.log_density([point])[0] == pytest.approx(expected, abs=1e-8 * max(1, abs(expected)))


@pytest.mark.parametrize("n_features", [1, 2, 32])
def test_mixture_in_any_dimension(n_features):
    law = distribution("mixture", n_features)
    X = law.sample(50, np.random.default_rng(0))
    assert X.shape == (50, n_features)
    expected = sum(
        weight * multivariate_normal(mean, covariance).pdf(X)
        for weight, mean, covariance in zip(law.weights, law.means, law.covariances, strict=True)
    )
    np.testing.assert_allclose(law.log_density(X), np.log(expected), rtol=1e-10)
    assert np.isclose(law.weights.sum(), 1)
    assert not np.array_equal(law.means, distribution("mixture", n_features, seed=1).means)


def test_bad_requests_are_refused():
    with pytest.raises(ValueError, match="'ring'"):
        distribution("ring")
    with pytest.raises(ValueError, match="n_features must be 2; got 3"):
        distribution("moons", 3)


@pytest.mark.parametrize("k", [4, 64])
def test_norm_of_an_isotropic_gaussian_concentrates_as_lemma_1_says(k):
    rng = np.random.default_rng(0)
    fit, test = (3 + 7 * rng.standard_normal((20_000, k)) for _ in range(2))
    assert norm_variance(fit, test) == pytest.approx(1 / (2 * k), rel=0.1)


def test_adaptive_kernels_are_their_formula():
    rng = np.random.default_rng(0)
    Z, new = rng.standard_normal((200, 3)), rng.standard_normal((5, 3))
    density = AdaptiveKernelDensity(n_neighbors=10).fit(Z)
    others = np.sort(np.linalg.norm(Z[:, None] - Z, axis=2), axis=1)
    widths = density.factor_ * others[:, 10]
    kernels = norm.pdf(np.linalg.norm(new[:, None] - Z, axis=2) / widths) / widths**density.intrinsic_dim_
    difference = density.score_samples(new) - np.log(kernels.sum(axis=1))
    np.testing.assert_allclose(difference, difference[0], rtol=1e-9)


def test_interrupted_runs_go_on(tmp_path):
    kept, called = tmp_path / "some.runs", []

    def run(name, number):
        if len(called) == 2:
            called.append(None)
            raise KeyboardInterrupt
        called.append((name, number))
        return {"value": number}

    tasks = [("a", 1), ("b", 2), ("c", 3)]
    with pytest.raises(KeyboardInterrupt):
        resumable(run, tasks, kept, n_jobs=1)
    assert [result["value"] for result in resumable(run, tasks, kept, n_jobs=1)] == [1, 2, 3]
    assert called == [("a", 1), ("b", 2), None, ("c", 3)]


@pytest.mark.slow
@pytest.mark.parametrize("script", ["known_density", "dimension"])
def test_quick_run(script, tmp_path):
    out, figure = tmp_path / "out.json", tmp_path / "figure.png"
    command = [
        sys.executable,
        "-m",
        f"benchmarks.theory.{script}",
        "--quick",
        "--n-jobs",
        "1",
        "--out",
        out,
        "--figure",
        figure,
    ]
    subprocess.run(command, check=True, timeout=600, cwd=ROOT)
    results = json.loads(out.read_text())
    assert results["stamp"]["seeds"] == 2
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert not out.with_suffix(".runs").exists()
