"""Neighbours and map against scikit-learn and by hand."""

import numpy as np
import pytest

import skjepa.reporting.neighbours
from skjepa.reporting.neighbours import Surroundings


def test_nearest_by_hand_and_missing():
    around = Surroundings(np.array([[0.0, 0.0], [1.0, 0.0], [np.nan, 0.0], [5.0, 0.0]]), ["a", "b", "lost", "c"])
    new = np.array([[0.9, 0.0], [np.nan, np.nan], [9.0, 0.0]])
    assert around.nearest(new, 2) == [["b", "a"], [], ["c", "b"]]
    assert around.nearest(new, 9)[0] == ["b", "a", "c"]
    assert Surroundings(np.eye(3)).nearest(new) == [[], [], []]


def test_pca_keeps_the_plane_in_which_normal_samples_vary():
    rng = np.random.default_rng(0)
    plane = rng.normal(size=(50, 2)) * [3, 1]
    axes, _ = np.linalg.qr(rng.normal(size=(5, 5)))
    normal = plane @ axes[:2]
    given, own = Surroundings(normal).pca(np.vstack([normal[:4], np.full(5, np.nan)]))
    assert np.isnan(given[4]).all()
    np.testing.assert_allclose(given[:4], own[:4], atol=1e-12)
    distances = np.linalg.norm(plane[:, None] - plane, axis=2)
    np.testing.assert_allclose(np.linalg.norm(own[:, None] - own, axis=2), distances, atol=1e-9)


def test_one_number_an_embedding_has_a_map_too():
    given, own = Surroundings(np.arange(4.0)[:, None]).pca(np.array([[2.0]]))
    assert given.shape == (1, 2)
    assert own.shape == (4, 2)
    assert (own[:, 1] == 0).all()


def test_nothing_known_is_said():
    with pytest.raises(ValueError, match="at least 2 normal samples that can be read; got 1"):
        Surroundings(np.array([[1.0], [np.nan]]))


def test_umap_tells_clusters_apart():
    if not skjepa.reporting.neighbours.has_umap():
        pytest.skip("umap-learn is not installed")
    rng = np.random.default_rng(0)
    centres = np.repeat([[0.0] * 8, [40.0] * 8], 20, axis=0)
    normal = centres + rng.normal(size=(40, 8))
    given, own = Surroundings(normal).umap(np.vstack([normal[:1] + 0.01, np.full((1, 8), np.nan)]))
    assert np.isnan(given[1]).all()
    to_each = [np.linalg.norm(own[part] - given[0], axis=1).mean() for part in (slice(20), slice(20, 40))]
    assert to_each[0] < to_each[1]


def test_umap_missing_is_said(monkeypatch):
    monkeypatch.setattr(skjepa.reporting.neighbours, "has_umap", lambda: False)
    with pytest.raises(ImportError, match="umap-learn"):
        Surroundings(np.eye(3)).umap(np.eye(3))
