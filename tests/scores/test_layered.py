"""The default score: what its terms are, fit samples left out, tails, weights, trimming, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from skjepa import Extraction, JEPAScoreDetector, extract, load_encoder
from skjepa.scores.layered import LayeredScore, Tail, fit_score
from skjepa.scores.model import ScoreModel

RNG = np.random.default_rng(0)
SETTINGS = {"reference": "knn", "floor": "auto", "rank": None}


def extraction(n, *, seed=0, shift=0.0, has_spectra=True, shape=(3, 8, 8)):
    rng = np.random.default_rng(seed)
    hidden = 3 + rng.normal(size=(n, 8)) + shift * np.array([1, -1] * 4)  # statistics of layers do not lie around zero
    z = hidden @ np.random.default_rng(99).normal(size=(8, 5))
    sigma = np.exp(np.sort(rng.normal(size=(n, 1, 5)), axis=2)[..., ::-1]) if has_spectra else None
    meta = {"input_shape": list(shape), "method": "exact" if has_spectra else "forward", "n_components": 5}
    ids = np.array([f"{seed}-{i}" for i in range(n)])
    return Extraction(z, sigma, ids, meta, layers={"one": hidden.astype(np.float32)})


@pytest.fixture(scope="module")
def fit():
    return extraction(400)


class TestTail:
    def test_of_a_normal_distribution_it_is_its_own(self):
        values = norm.ppf((np.arange(20_000) + 0.5) / 20_000, loc=3, scale=2)
        np.testing.assert_allclose(Tail.learn(values).surprise(np.array([3.0, 7.0])), -norm.logsf([0, 2]), rtol=1e-3)

    def test_outliers_do_not_move_it(self):
        values = RNG.normal(size=1000)
        spoilt = np.concatenate([values, np.full(100, 1e6)])
        assert Tail.learn(spoilt).surprise(np.array([5.0]))[0] > 0.5 * Tail.learn(values).surprise(np.array([5.0]))[0]

    def test_where_nothing_varies_rounding_is_no_surprise(self):
        tail = Tail.learn(np.full(50, 2.0))
        assert tail.surprise(np.array([2.0 + 1e-9]))[0] < 0.75
        assert tail.surprise(np.array([3.0]))[0] > 100


class TestTerms:
    def test_of_images_with_and_without_passes(self, fit):
        without = ["layer one", "layer output", "direction", "neighbours"]
        volume = ["volume given embedding", "spectrum given embedding"]
        assert list(fit_score(fit, formula="joint", **SETTINGS).tails) == without + volume
        assert list(fit_score(fit.forward_only(), formula="joint", **SETTINGS).tails) == without

    def test_of_tables(self):
        model = fit_score(extraction(100, has_spectra=False, shape=(8,)), formula="joint", **SETTINGS)
        assert list(model.tails) == ["layer one", "layer output", "neighbours"]

    def test_groups_count_what_they_should(self, fit):
        weight = fit_score(fit, formula="joint", **SETTINGS).weight
        assert weight == {
            "layer one": 0.5,
            "layer output": 0.5,
            "direction": 0.25,
            "neighbours": 0.25,
            "volume given embedding": 0.0625,
            "spectrum given embedding": 0.0625,
        }

    def test_add_up_and_are_never_above_zero(self, fit):
        model, new = fit_score(fit, formula="joint", **SETTINGS), extraction(50, seed=1)
        terms = model.terms(new)
        np.testing.assert_allclose(model.score_samples(new), np.sum(list(terms.values()), axis=0))
        assert all((values <= 0).all() for values in terms.values())

    def test_fit_samples_are_scored_like_new_ones(self, fit):
        model = fit_score(fit, formula="joint", **SETTINGS)
        old, new = model.score_samples(fit), model.score_samples(extraction(2000, seed=2))
        for q in (0.05, 0.5):
            assert 0.5 * q < (new < np.quantile(old, q)).mean() < 2 * q

    def test_shifted_samples_are_odd(self, fit):
        model = fit_score(fit.forward_only(), formula="joint", **SETTINGS)
        far = model.score_samples(extraction(50, seed=3, shift=4.0).forward_only())
        assert far.max() < np.quantile(model.score_samples(fit.forward_only()), 0.01)

    def test_equal_embeddings_of_other_layers_are_not_taken_for_fit_samples(self, fit):
        forward = fit.forward_only()
        model = fit_score(forward, formula="joint", **SETTINGS)
        other = replace(forward, layers={"one": forward.layers["one"] + np.float32(5)})
        assert np.median(model.score_samples(other)) < np.quantile(model.score_samples(forward), 0.02)

    @pytest.mark.parametrize("reference", ["gaussian", "knn"])
    def test_reference_is_the_model_behind_neighbours(self, fit, reference):
        model = fit_score(fit, formula="joint", **SETTINGS | {"reference": reference})
        assert type(model.neighbours).__name__ == {"gaussian": "GaussianDensity", "knn": "NearestRows"}[reference]
        assert (model.terms(extraction(20, seed=1, shift=9))["neighbours"] < -1).all()


def test_which_score_belongs_to_an_extraction(fit):
    bare = replace(fit, layers={})
    assert isinstance(fit_score(bare, formula="joint", **SETTINGS), ScoreModel)
    assert isinstance(fit_score(bare.forward_only(), formula="joint", **SETTINGS), LayeredScore)
    for formula in ("jepa", "density"):
        with_layers, without = (fit_score(e, formula=formula, **SETTINGS).score_samples(fit) for e in (fit, bare))
        np.testing.assert_array_equal(with_layers, without)  # layers change nothing here


class TestTrim:
    def test_anomalies_among_the_fit_samples(self):
        clean, junk = extraction(300), extraction(30, seed=5, shift=3.0)
        both = Extraction.concat([clean, junk]).forward_only()
        new, odd = extraction(300, seed=6).forward_only(), extraction(300, seed=7, shift=3.0).forward_only()

        def share_behind(model):  # AUROC
            a, b = model.score_samples(new), model.score_samples(odd)
            return (b[:, None] < a).mean()

        plain, trimmed = (fit_score(both, formula="joint", trim=trim, **SETTINGS) for trim in (0.0, 0.1))
        assert share_behind(trimmed) > max(share_behind(plain) + 0.01, 0.9)
        assert len(trimmed.seen.embeddings) == 297

    def test_needs_layers(self, fit):
        with pytest.raises(ValueError, match=r"trim=0\.1 needs"):
            fit_score(replace(fit, layers={}), formula="joint", trim=0.1, **SETTINGS)

    def test_bad(self):
        with pytest.raises(ValueError, match="trim"):
            JEPAScoreDetector(trim=0.6).fit(RNG.normal(size=(30, 3)))


def test_other_layers_are_refused(fit):
    model = fit_score(fit.forward_only(), formula="joint", **SETTINGS)
    with pytest.raises(ValueError, match="no layer 'one'; it has 'two'"):
        model.score_samples(replace(fit.forward_only(), layers={"two": fit.layers["one"]}))


def test_forward_has_no_floor_and_no_rank():
    detector = JEPAScoreDetector().fit(RNG.normal(size=(60, 3)))
    assert not hasattr(detector, "floor_")
    assert not hasattr(detector, "rank_")
    assert detector.intrinsic_dim_ > 0


def test_one_channel_out_of_place_is_told_by_its_layer():
    images = np.random.default_rng(0).integers(100, 156, size=(60, 32, 32, 3), dtype=np.uint8)
    encoder = load_encoder("bundled")
    detector = JEPAScoreDetector(encoder, method="forward").fit(images)
    found = extract(encoder, images[:1], method="forward")
    odd = {name: values.copy() for name, values in found.layers.items()}
    odd["stage 2"] += 10 * odd["stage 2"].std()
    odd["stage 2"][:, ::2] *= -1
    explained = detector.explain(replace(found, layers=odd, embeddings=found.embeddings + 1e-3))
    assert explained.least_normal(0)[0] in ("layer stage 2", "layer stage 3")
    assert "is unlike normal samples" in explained.words(0)
