"""Directions that tell most of the log-volume: found where one does, orthonormal, repeatable."""

import numpy as np
import pytest

import skjepa.jacobian.direction_search
from skjepa.jacobian.direction_search import telling_directions
from skjepa.jacobian.directions import random_directions

K, N = 6, 120


@pytest.fixture(scope="module")
def turned():
    """J J^T of samples in which one hidden direction alone varies, the volume with it."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(K, K)))[0]
    spectra = np.exp(np.column_stack([rng.normal(size=(N, 1)), 0.01 * rng.normal(size=(N, K - 1))]))
    return basis, np.einsum("ij,nj,kj->nik", basis, spectra, basis), 0.5 * np.log(spectra).sum(axis=1)


def learn(turned, **options):
    _, grams, volumes = turned
    start = random_directions(K, 2, seed=1).components
    return telling_directions(grams, np.zeros((N, K)), volumes, start, floor=1e-6, **options)


def test_the_direction_that_tells_is_found(turned):
    U = learn(turned)
    assert np.linalg.norm(U.T @ turned[0][:, 0]) > 0.99
    assert np.linalg.norm(random_directions(K, 2, seed=1).components.T @ turned[0][:, 0]) < 0.9


def test_orthonormal_and_repeatable(turned, monkeypatch):
    monkeypatch.setattr(skjepa.jacobian.direction_search, "N_STEPS", 5)
    U = learn(turned)
    np.testing.assert_allclose(U.T @ U, np.eye(2), atol=1e-6)
    np.testing.assert_array_equal(U, learn(turned))
    assert np.abs(U - learn(turned, seed=1)).max() > 1e-6


def test_what_does_not_vary_teaches_nothing(turned, monkeypatch):
    """Equal volumes, equal spectra: finite, and the directions that were given."""
    monkeypatch.setattr(skjepa.jacobian.direction_search, "N_STEPS", 5)
    start = random_directions(K, 2, seed=1).components
    grams = np.tile(np.eye(K), (N, 1, 1))
    U = telling_directions(grams, np.zeros((N, K)), np.zeros(N), start, floor=1e-6)
    np.testing.assert_allclose(U @ U.T, start @ start.T, atol=1e-5)
