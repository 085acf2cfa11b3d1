import numpy as np
import pytest
from scipy.spatial.distance import cdist
from scipy.stats import multivariate_normal, spearmanr
from sklearn.base import clone
from sklearn.neighbors import KernelDensity

from skjepa.scores.densities import (
    ConditionalDensity,
    DirectionDensity,
    GaussianDensity,
    KNNDensity,
    NearestRows,
    SpectrumDensity,
    out_of_fold_scores,
)


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
    """Twice the spacing is d log 2 nats less, with d of the data."""
    Z, scale = gaussian(2000, 4), 2.0
    near, far = KNNDensity().fit(Z), KNNDensity().fit(scale * Z)
    drop = near.score_samples(Z) - far.score_samples(scale * Z)
    np.testing.assert_allclose(drop, near.intrinsic_dim_ * np.log(scale), rtol=1e-6)


def test_kernels_follow_a_density_better_than_a_distance_to_neighbours():
    Z, new = gaussian(1000, 2), gaussian(1000, 2, seed=1)
    truth = -np.sum(new**2, axis=1)
    tenth = NearestRows(Z, 10).distances(new)[:, -1]
    reached = spearmanr(KNNDensity().fit(Z).score_samples(new), truth).statistic
    assert reached > spearmanr(-tenth, truth).statistic + 0.01


def test_kernels_are_students_t_as_wide_as_samples_are_sparse():
    Z, new = gaussian(60), gaussian(5, seed=1)
    density = KNNDensity(10).fit(Z)
    widths = density.factor_ * np.sort(cdist(Z, Z), axis=1)[:, 10]
    d = density.intrinsic_dim_
    nearest = np.argsort(cdist(new, Z), axis=1)[:, :59]  # one fewer than there are: a fit sample has no more
    ratio = np.take_along_axis(cdist(new, Z) / widths, nearest, axis=1)
    kernels = (1 + ratio**2 / 3) ** (-(3 + d) / 2) / widths[nearest] ** d
    np.testing.assert_allclose(density.score_samples(new), np.log(kernels.sum(axis=1)), rtol=1e-9)


def test_far_away_a_density_falls_by_the_logarithm_of_the_distance():
    density, direction = KNNDensity().fit(gaussian(500)), np.ones((1, 3))
    fall = density.score_samples(1e4 * direction) - density.score_samples(1e5 * direction)
    assert fall[0] == pytest.approx((3 + density.intrinsic_dim_) * np.log(10), rel=1e-3)


def test_duplicates_do_not_reach_infinity():
    Z = np.repeat(gaussian(30), 20, axis=0)
    assert np.isfinite(KNNDensity().fit(Z).score_samples(Z)).all()
    assert np.isfinite(KNNDensity().fit(np.zeros((30, 3))).score_samples(np.zeros((2, 3)))).all()
    assert np.isfinite(GaussianDensity().fit(np.zeros((30, 3))).score_samples(np.zeros((2, 3)))).all()


def test_out_of_fold_scores_do_not_flatter():
    Z = gaussian(200, 10)
    narrow = KernelDensity(bandwidth=0.5)
    in_sample = clone(narrow).fit(Z).score_samples(Z)
    fresh = clone(narrow).fit(Z).score_samples(gaussian(200, 10, seed=1))
    held_out = out_of_fold_scores(narrow, Z)
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


def test_spectrum_density_is_of_what_embeddings_do_not_tell():
    Z, noise = gaussian(600), 0.1 * gaussian(600, 4, seed=1)
    slope = np.random.default_rng(2).normal(size=(3, 4))
    model = SpectrumDensity().fit(Z, 2 + Z @ slope + noise)
    new, odd = gaussian(200, seed=3), gaussian(200, seed=4)
    spectra = 2 + new @ slope + 0.1 * gaussian(200, 4, seed=5)
    expected = KNNDensity().fit(noise).score_samples(0.1 * gaussian(200, 4, seed=5))
    assert spearmanr(model.score_samples(new, spectra), expected).statistic > 0.95
    assert np.median(model.score_samples(odd, spectra)) < np.quantile(model.score_samples(new, spectra), 0.01)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_a_handful_of_spectra_is_compared_with_its_mean(n):
    model = SpectrumDensity().fit(gaussian(n), gaussian(n, 4, seed=1))
    assert (model.coef_ == 0).all()
    assert np.isfinite(model.score_samples(gaussian(5), gaussian(5, 4))).all()


@pytest.mark.parametrize("n", [8, 60])
def test_a_single_singular_value_scores_any_number_of_samples(n):
    model = SpectrumDensity().fit(gaussian(n), gaussian(n, 1, seed=1))
    assert model.coef_.shape == (3, 1)
    assert model.score_samples(gaussian(5), gaussian(5, 1, seed=2)).shape == (5,)


def test_direction_density_is_of_unit_vectors_whatever_their_length():
    Z, lengths = gaussian(500, 4), np.random.default_rng(1).uniform(0.1, 10, size=(500, 1))
    model = DirectionDensity().fit(Z * lengths)
    unit = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    np.testing.assert_allclose(model.score_samples(Z), GaussianDensity().fit(unit).score_samples(unit))
    assert np.isfinite(model.score_samples(np.zeros((1, 4)))).all()


@pytest.mark.parametrize("Z", [np.zeros((20, 3)), np.ones((20, 3)), gaussian(20, 1), gaussian(2)])
def test_direction_density_of_next_to_nothing_is_finite(Z):
    assert np.isfinite(DirectionDensity().fit(Z).score_samples(gaussian(5, Z.shape[1], seed=1))).all()


@pytest.mark.parametrize("n", [2, 12, 300])
def test_kernels_score_a_fit_sample_without_its_own_kernel(n):
    Z = gaussian(n)
    density = KNNDensity(10).fit(Z)
    assert (density.fit_scores_ < density.score_samples(Z)).all()
    if n == 300:
        fresh = density.score_samples(gaussian(2000, seed=1))
        assert abs(np.median(density.fit_scores_) - np.median(fresh)) < 0.3
