"""`partial_fit`: the same as `fit` on all parts together, against plain NumPy; what it refuses, it names."""

from dataclasses import replace

import numpy as np
import pytest

from skjepa import JEPAScoreDetector, KNNDetector, MahalanobisDetector, extract, load_encoder
from skjepa.scores.moments import drawn_rows, joined_moments, moments_of


def table(n=400, d=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * np.logspace(-3, 4, d) + np.logspace(1, -2, d)


def parts_of(X, *sizes):
    return np.split(X, np.cumsum(sizes))


@pytest.mark.parametrize("options", [{}, {"normalize": True}, {"contamination": 0.03}])
@pytest.mark.parametrize("kind", [MahalanobisDetector, KNNDetector])
def test_equal_to_fit_on_the_union(kind, options):
    X, new = table(), table(seed=1)
    grown = kind(**options)
    for part in parts_of(X, 40, 1, 200):
        assert grown.partial_fit(part) is grown
    whole = kind(**options).fit(X)
    np.testing.assert_allclose(grown.score_samples(new), whole.score_samples(new), rtol=1e-8)
    np.testing.assert_allclose(grown.offset_, whole.offset_, rtol=1e-8)
    assert (grown.predict(new) == whole.predict(new)).all()
    assert grown.n_samples_fit_ == whole.n_samples_fit_ == len(X)


def test_moments_against_all_rows():
    X = table(seed=2)
    first, second, third = (moments_of(part) for part in parts_of(X, 100, 250))
    for found in (
        joined_moments(joined_moments(first, second), third),
        joined_moments(third, joined_moments(second, first)),
    ):
        assert found["n"] == len(X)
        np.testing.assert_allclose(found["mean"], X.mean(axis=0), rtol=1e-12)
        scale = X.std(axis=0)
        np.testing.assert_allclose(found["scatter"] / np.outer(scale, scale) / len(X), np.corrcoef(X.T), atol=1e-10)
        np.testing.assert_array_equal(found["largest"], np.abs(X).max(axis=0))


def test_columns_that_do_not_vary():
    X = np.hstack([table(), np.full((400, 1), 3.3), np.zeros((400, 1))])
    grown = MahalanobisDetector()
    for part in parts_of(X, 150):
        grown.partial_fit(part)
    whole = MahalanobisDetector().fit(X)
    np.testing.assert_allclose(grown.score_samples(X), whole.score_samples(X), rtol=1e-6)
    odd = X[:1] + np.array([0, 0, 0, 0, 0, 1, 0])
    assert grown.score_samples(odd) < grown.score_samples(X).min()


def test_each_row_is_kept_as_often():
    """Of 1,000 rows 50, over 400 seeds: the binomial law of each tenth of the rows at 99.99 %."""
    counts = np.zeros(10)
    for seed in range(400):
        kept = None
        for begin, end in ((0, 30), (30, 700), (700, 1000)):
            kept = drawn_rows(kept, np.arange(begin, end, dtype=float)[:, None], seed, begin, 50)
        assert len(np.unique(kept["rows"])) == 50
        counts += np.bincount((kept["rows"][:, 0] // 100).astype(int), minlength=10)
    assert abs(counts - 2000).max() < 3.9 * np.sqrt(400 * 50 * 0.1 * 0.9)


def test_a_threshold_of_kept_rows_is_near_that_of_all(monkeypatch):
    monkeypatch.setattr("skjepa.detectors.baselines._MOST_KEPT", 300)
    X = np.random.default_rng(0).normal(size=(3000, 3))
    grown = MahalanobisDetector()
    for part in np.split(X, 10):
        grown.partial_fit(part)
    assert len(grown._grown["kept"]["rows"]) == 300
    assert abs((grown.predict(X) == -1).mean() - 0.1) < 0.06


def test_calibration_comes_after_and_goes_with_the_next_part():
    X = table()
    detector = MahalanobisDetector().partial_fit(X[:200])
    detector.calibrate(X[200:300], target_fpr=0.05)
    assert detector.p_values(X[300:]).min() > 0
    detector.partial_fit(X[300:])
    with pytest.raises(ValueError, match="calibrate"):
        detector.p_values(X[:3])


def test_saved_and_gone_on_with(tmp_path):
    X, new = table(), table(seed=3)
    for kind in (MahalanobisDetector, KNNDetector):
        half = kind().partial_fit(X[:200])
        half.save(tmp_path / kind.__name__)
        again = kind.load(tmp_path / kind.__name__).partial_fit(X[200:])
        np.testing.assert_array_equal(again.score_samples(new), half.partial_fit(X[200:]).score_samples(new))
        assert again.offset_ == half.offset_


def test_layers_of_extractions():
    images = np.random.default_rng(0).integers(0, 256, size=(24, 32, 32, 3), dtype=np.uint8)
    found = extract(load_encoder("bundled"), images, method="forward")
    layers = {name: rows[:, :4] for name, rows in found.layers.items()}
    few = replace(found, layers=layers, embeddings=found.embeddings[:, :4])
    grown, whole = MahalanobisDetector(layer="sum"), MahalanobisDetector(layer="sum").fit(few)
    grown.partial_fit(few[:14]).partial_fit(few[14:])
    np.testing.assert_allclose(grown.score_samples(few), whole.score_samples(few), rtol=1e-8)


def test_what_is_refused_is_named():
    X = table()
    with pytest.raises(ValueError, match="relative=True"):
        MahalanobisDetector(relative=True).partial_fit(X)
    few, held_out = MahalanobisDetector().fit(X[:7]), MahalanobisDetector(calibration=0.3).fit(X)
    for without_sums in (few, held_out.set_params(calibration=None)):
        with pytest.raises(ValueError, match="no sums"):
            without_sums.partial_fit(X)
    with pytest.raises(ValueError, match="10 the covariance is shrunk"):
        MahalanobisDetector().partial_fit(X[:6])
    for kind in (MahalanobisDetector, KNNDetector):
        with pytest.raises(ValueError, match="holds no samples out"):
            kind(calibration=0.3).partial_fit(X)
        grown = kind().partial_fit(X[:100])
        with pytest.raises(ValueError, match="features"):
            grown.partial_fit(X[:, 1:])
        before = grown.score_samples(X)
        with pytest.raises(ValueError, match="NaN"):
            grown.partial_fit(np.full((3, 5), np.nan))
        np.testing.assert_array_equal(grown.score_samples(X), before)
        grown.fit(X[:200]).partial_fit(X[200:])
        np.testing.assert_allclose(grown.score_samples(X), kind().fit(X).score_samples(X), rtol=1e-8)
    detector = JEPAScoreDetector(method="forward")
    assert not hasattr(detector, "partial_fit")
    with pytest.raises(AttributeError, match="terms of layers"):
        detector.partial_fit(X)
