import numpy as np
import pytest
from scipy.stats import multivariate_normal, spearmanr
from sklearn.base import clone

from skjepa.densities import ConditionalDensity, GaussianDensity, KNNDensity, out_of_fold_scores


def gaussian(n, d=3, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d))


def test_gaussian_density_is_in_nats():
    covariance = np.array([[2.0, 0.6], [0.6, 1.0]])
    Z = np.random.default_rng(0).multivariate_normal([1.0, -2.0], covariance, size=20_000)
    exact = multivariate_normal([1.0, -2.0], covariance).logpdf(Z[:500])
    np.testing.assert_allclose(GaussianDensity().fit(Z).score_samples(Z[:500]), exact, atol=0.1)


@pytest.mark.parametrize("density", [GaussianDensity(), KNNDensity()])
def test_density_orders_new_samples(density):
    scores = density.fit(gaussian(3000)).score_samples(gaussian(500, seed=1))
    assert spearmanr(scores, -(gaussian(500, seed=1) ** 2).sum(axis=1)).statistic > 0.9


def test_intrinsic_dimension_is_of_the_data_not_of_the_space():
    plane = gaussian(2000, 2) @ np.linalg.qr(gaussian(20, 2, seed=1))[0].T
    assert KNNDensity().fit(plane).intrinsic_dim_ == pytest.approx(2, abs=0.2)
    assert KNNDensity().fit(gaussian(2000, 5)).intrinsic_dim_ == pytest.approx(5, abs=0.6)


def test_knn_density_has_the_slope_of_a_density():
    """Twice the spacing is d log 2 nats less: -d log r, with d of the data."""
    Z, scale = gaussian(2000, 4), 2.0
    near, far = KNNDensity().fit(Z), KNNDensity().fit(scale * Z)
    drop = near.score_samples(Z) - far.score_samples(scale * Z)
    np.testing.assert_allclose(drop, near.intrinsic_dim_ * np.log(scale), rtol=1e-6)


def test_duplicates_do_not_reach_infinity():
    Z = np.repeat(gaussian(30), 20, axis=0)
    assert np.isfinite(KNNDensity().fit(Z).score_samples(Z)).all()
    assert np.isfinite(KNNDensity().fit(np.zeros((30, 3))).score_samples(np.zeros((2, 3)))).all()
    assert np.isfinite(GaussianDensity().fit(np.zeros((30, 3))).score_samples(np.zeros((2, 3)))).all()


def test_out_of_fold_scores_do_not_flatter():
    Z = gaussian(200, 10)
    in_sample = clone(KNNDensity(1)).fit(Z).score_samples(Z)
    fresh = clone(KNNDensity(1)).fit(Z).score_samples(gaussian(200, 10, seed=1))
    held_out = out_of_fold_scores(KNNDensity(1), Z)
    assert np.median(in_sample) > np.median(fresh) + 5
    assert abs(np.median(held_out) - np.median(fresh)) < 2


def test_conditional_density_finds_a_volume_that_does_not_fit_its_place():
    Z = gaussian(500)
    s = 3 * Z[:, 0] + 0.1 * np.random.default_rng(1).normal(size=500)
    model = ConditionalDensity().fit(Z, s)
    fitting, misplaced = model.score_samples(Z[:50], s[:50]), model.score_samples(Z[:50], s[:50] + 1.0)
    assert fitting.min() > misplaced.max()
    assert model.scale_ == pytest.approx(0.1, rel=0.15)
    # A normal density in nats: its integral over s is one.
    grid = np.linspace(-30, 30, 60_001)
    density = np.exp(model.score_samples(np.repeat(Z[:1], len(grid), axis=0), grid))
    assert np.trapezoid(density, grid) == pytest.approx(1, abs=1e-6)
