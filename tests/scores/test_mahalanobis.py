"""Shrunk Mahalanobis distances against scikit-learn's, and left-out values against refits."""

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from skjepa.scores.mahalanobis import ShrunkMahalanobis


def rows(n, p, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, p)) @ rng.normal(size=(p, p)) * np.geomspace(1, 0.01, p) + 3


@pytest.mark.parametrize(("n", "p"), [(200, 5), (60, 60), (30, 120)])
def test_is_the_distance_of_ledoit_and_wolf(n, p):
    X, new = rows(n, p), rows(40, p, seed=1)
    fitted, known = ShrunkMahalanobis().fit(X), LedoitWolf().fit(X)
    np.testing.assert_allclose(fitted.distances(new), known.mahalanobis(new), rtol=1e-6)


@pytest.mark.parametrize(("n", "p"), [(150, 5), (40, 100)])
def test_left_out_values_are_those_of_refits(n, p):
    X = rows(n, p)
    fitted = ShrunkMahalanobis().fit(X)
    refits = [ShrunkMahalanobis().fit(np.delete(X, i, axis=0)).distances(X[i : i + 1])[0] for i in range(n)]
    assert np.corrcoef(fitted.fit_distances_, refits)[0, 1] > 0.999
    np.testing.assert_allclose(np.median(fitted.fit_distances_), np.median(refits), rtol=0.02)
    assert (fitted.fit_distances_ > fitted.distances(X)).all()


def test_is_exact_at_the_same_shrinkage():
    X = rows(25, 4)
    fitted = ShrunkMahalanobis().fit(X)
    n, i = len(X), 3
    rest = np.delete(X, i, axis=0)
    mean = rest.mean(axis=0)
    whole = LedoitWolf().fit(X)
    # The covariance less what this sample brought to it, at the shrinkage and the target of the whole.
    d = X[i] - X.mean(axis=0)
    sample = (X - X.mean(axis=0)).T @ (X - X.mean(axis=0)) / n - n / (n - 1) * np.outer(d, d) / n
    covariance = (1 - whole.shrinkage_) * sample + whole.shrinkage_ * np.trace(np.cov(X.T, bias=True)) / 4 * np.eye(4)
    expected = (X[i] - mean) @ np.linalg.solve(covariance, X[i] - mean)
    np.testing.assert_allclose(fitted.fit_distances_[i], expected, rtol=1e-9)


@pytest.mark.parametrize("X", [np.zeros((5, 3)), np.zeros((3, 5)), np.ones((4, 1)), np.tile([1.0, 2.0], (6, 1))])
def test_copies_of_one_row(X):
    fitted = ShrunkMahalanobis().fit(X)
    assert np.isfinite(fitted.fit_distances_).all()
    assert fitted.distances(X + 1)[0] > fitted.distances(X)[0]


def test_of_two_samples_the_rest_of_space_is_not_infinitely_odd():
    fitted = ShrunkMahalanobis().fit(rows(2, 7))
    assert fitted.distances(rows(2, 7) + 1).max() < 1e6


def test_of_many_dimensions_the_largest_are_kept_and_the_rest_counts_as_one(monkeypatch):
    X, new = rows(200, 30), rows(50, 30, seed=1)
    whole = ShrunkMahalanobis().fit(X).distances(new)
    monkeypatch.setattr("skjepa.scores.mahalanobis.MAX_AXES", 20)
    fitted = ShrunkMahalanobis().fit(X)
    assert fitted.axes_.shape == (30, 20)
    assert np.corrcoef(fitted.distances(new), whole)[0, 1] > 0.99
    covariance = np.linalg.eigvalsh(LedoitWolf().fit(X).covariance_)
    np.testing.assert_allclose(1 / fitted.other_precision_, covariance[:10].mean(), rtol=1e-6)
