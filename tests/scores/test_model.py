import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.neighbors import KernelDensity

from skjepa.extraction.extraction import Extraction
from skjepa.jacobian.volume import log_volume
from skjepa.scores.densities import KNNDensity
from skjepa.scores.model import AUTO_FLOOR, JOINT_WEIGHTS, filled_share, fit_score_model, joint_weights

RNG = np.random.default_rng(0)


def extraction(n=120, k=5, r=5, seed=0, shift=0.0, volume=0.0, precision="float64"):
    """Gaussian embeddings whose log-volume follows the first coordinate; `shift` and `volume` make outliers."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=(n, k))
    base = 0.3 * z[:, :1] + volume + 0.05 * rng.normal(size=(n, r))
    sigma = -np.sort(-np.exp(base - 0.5 * np.arange(r)), axis=1)
    return Extraction(z + shift, sigma[:, None], np.arange(n).astype(str), {"precision": precision})


class Column(KernelDensity):
    """A density of the wrong shape."""

    def score_samples(self, X):
        return super().score_samples(X)[:, None]


def fit(data=None, **options):
    defaults = {"formula": "joint", "reference": "knn", "floor": "auto", "rank": None}
    return fit_score_model(extraction() if data is None else data, **{**defaults, **options})


def test_jepa_is_the_volume_alone():
    data = extraction()
    model = fit(formula="jepa", floor=1e-6, rank=5)
    np.testing.assert_allclose(model.score_samples(data), log_volume(data.singular_values)[:, 0])


def test_density_is_the_change_of_variables():
    new = extraction(seed=1)
    model = fit(formula="density", reference="gaussian")
    expected = model.reference.score_samples(new.embeddings) + model.volume(new)
    np.testing.assert_allclose(model.score_samples(new), expected)


@pytest.mark.parametrize("formula", ["density", "joint"])
@pytest.mark.parametrize("n", [30, 120, 500])
def test_fit_samples_score_as_new_ones_do(n, formula):
    """Or a threshold at a quantile of their scores would flag nearly every new sample."""
    new, flagged = extraction(n=2000, k=16, seed=1), []
    for seed in range(2, 7):
        data = extraction(n=n, k=16, seed=seed)
        model = fit(data, formula=formula)
        flagged.append(np.mean(model.score_samples(new) < np.quantile(model.score_samples(data), 0.1)))
    assert 0.03 < np.mean(flagged) < 0.2


def test_joint_terms_add_up_and_count_what_they_should():
    model, fresh = fit(extraction(n=400)), extraction(n=400, seed=1)
    terms = model.terms(fresh)
    np.testing.assert_allclose(sum(terms.values()), model.score_samples(fresh))
    for name, share in JOINT_WEIGHTS.items():
        assert abs(terms[name].mean()) < 0.4 * share
        assert 0.6 * share < terms[name].std() < 1.6 * share


OTHERS = {name: RNG.normal(size=500) for name in set(JOINT_WEIGHTS) - {"volume", "density"}}


class TestJointWeights:
    def test_terms_that_go_together_are_standardised(self):
        s, log_q = 3 * RNG.normal(size=500), 7 * RNG.normal(size=500)
        weights = joint_weights({"volume": s, "density": log_q + s, **OTHERS})
        assert weights["volume"] == pytest.approx(0.5 / s.std())
        assert weights["density"] == pytest.approx(1 / (log_q + s).std())
        for name, values in OTHERS.items():
            assert weights[name] == pytest.approx(0.5 / values.std())

    def test_terms_that_cancel_are_added_in_nats(self):
        """The limit of perfect opposition is the formula, whatever the scales."""
        s = RNG.normal(size=500)
        weights = joint_weights({"volume": s, "density": -5 * s, **OTHERS})
        assert weights["volume"] == pytest.approx(weights["density"], rel=1e-6)
        assert weights["density"] == pytest.approx(3 / (4 * s).std())
        assert [weights[name] for name in OTHERS] == pytest.approx([0, 0, 0], abs=1e-9)

    @given(st.floats(1e-3, 1))
    def test_of_directions_that_embeddings_do_not_fill_the_volume_counts_by_the_root(self, filled):
        s = RNG.normal(size=500)
        weights = joint_weights({"volume": s, "density": -5 * s, **OTHERS}, filled)
        part = filled**0.5
        assert weights["volume"] == pytest.approx(part * weights["density"], rel=1e-6)
        assert weights["density"] == pytest.approx(3 / ((5 - part) * s).std())

    def test_a_term_that_does_not_vary_counts_nothing(self):
        constant = dict.fromkeys(OTHERS, np.zeros(500))
        log_q = RNG.normal(size=500)
        weights = joint_weights({"volume": np.ones(500), "density": log_q, **constant})
        assert weights == {"volume": 0, "density": pytest.approx(1 / log_q.std()), **dict.fromkeys(constant, 0)}


def test_the_share_filled_is_the_intrinsic_dimension_by_the_number_of_directions():
    plane = RNG.normal(size=(1000, 2)) @ RNG.normal(size=(2, 40))
    found = Extraction(plane, np.ones((1000, 1, 40)), np.arange(1000).astype(str), {"method": "exact"})
    assert filled_share(found, 40) == pytest.approx(2 / 40, rel=0.15)
    assert filled_share(found, 2) == pytest.approx(1, rel=0.15)
    assert filled_share(found, 1) == 1


@pytest.mark.parametrize("method", ["sketch of 10 directions", "subspace of 10 directions, 1a2b"])
def test_some_directions_stand_for_all_of_them(method):
    plane = RNG.normal(size=(1000, 2)) @ RNG.normal(size=(2, 40))
    found = Extraction(plane, np.ones((1000, 1, 10)), np.arange(1000).astype(str), {"method": method})
    assert filled_share(found, 10) == pytest.approx(2 / 40, rel=0.15)
    assert filled_share(found, 5) == pytest.approx(2 / 20, rel=0.15)


def test_a_sketch_counts_the_directions_that_it_stands_for():
    """Five of fifty, opposed to a density of five dimensions: they count as five independent ones would."""
    data = extraction(n=300, k=5)
    s = -3 * KNNDensity().fit(data.embeddings).fit_scores_
    data.singular_values[:] = np.exp(s / 5)[:, np.newaxis, np.newaxis]
    meta = {**data.meta, "method": "sketch of 5 directions"}
    sketch = Extraction(np.repeat(data.embeddings, 10, axis=1), data.singular_values, data.ids, meta)
    for model, part in ((fit(data), 1), (fit(sketch), 0.1**0.5)):
        assert model.weight["volume"] / model.weight["density"] == pytest.approx(part, rel=0.1)


def test_a_jacobian_that_varies_by_rounding_alone_counts_nothing():
    data = extraction(n=200)
    data.singular_values[:] = np.exp(-0.5 * np.arange(5)) * (1 + 1e-7 * RNG.normal(size=data.singular_values.shape))
    model = fit(data)
    assert {name for name, weight in model.weight.items() if weight > 0} == {"density", "direction"}


def test_a_spectrum_of_another_shape_is_found_where_its_volume_is_ordinary():
    model, normal, odd = fit(extraction(n=400)), extraction(seed=1), extraction(seed=1)
    odd.singular_values[:] = np.sort(odd.singular_values * np.exp([1.0, 0.5, 0.0, -0.5, -1.0]), axis=2)[..., ::-1]
    np.testing.assert_allclose(model.volume(odd), model.volume(normal))
    for name, value in model.terms(odd).items():
        same = name != "spectrum given embedding"
        assert np.allclose(value, model.terms(normal)[name]) == same
    assert (model.score_samples(odd) < model.score_samples(normal) - 1).all()


@pytest.mark.parametrize("kind", [{"shift": 4.0}, {"volume": -1.0}, {"volume": 1.5, "shift": 1.0}])
def test_joint_finds_outliers_of_every_kind(kind):
    model = fit(extraction(n=400))
    normal, odd = model.score_samples(extraction(seed=1)), model.score_samples(extraction(seed=2, **kind))
    assert np.mean(normal[:, None] > odd) > 0.95


def test_one_floor_and_one_rank_for_all_samples():
    data, whole = extraction(), extraction()
    for one in (data, whole):
        one.singular_values[:, 0, -1] = 1e-9
    data.singular_values[:5, 0, -2] = 1e-9
    model = fit(data)
    assert model.floor == pytest.approx(AUTO_FLOOR * np.median(data.singular_values[..., 0]))
    assert model.rank == 4
    # A degenerate sample pays for its lost direction instead of gaining by it.
    assert (model.volume(data[:5]) < model.volume(whole[:5]) - 1).all()
    np.testing.assert_array_equal(model.volume(data[5:]), model.volume(whole[5:]))


def test_an_estimator_as_reference():
    reference = KernelDensity(bandwidth=0.5)
    model = fit(reference=reference)
    assert np.isfinite(model.score_samples(extraction(seed=1))).all()
    assert not hasattr(reference, "tree_"), "the user's estimator is cloned, not fitted"


def test_a_floor_under_the_noise_warns():
    data = extraction(precision="float32")
    data.singular_values[..., -1] = 1e-8
    with pytest.warns(UserWarning, match="below the rounding noise"):
        fit(data, floor=1e-9, rank=5)
    fit(data, floor=1e-9, rank=4)
    fit(data)


def test_a_constant_term_does_not_decide():
    data = extraction()
    data.singular_values[:] = 1.0
    scores = fit(data).score_samples(extraction(seed=1)[:3])
    assert np.isfinite(scores).all()


@pytest.mark.parametrize("n", [2, 3, 7])
def test_a_handful_of_samples(n):
    assert np.isfinite(fit(extraction(n=n)).score_samples(extraction(seed=1))).all()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"formula": "best"}, ValueError, "formula must be one of 'joint', 'density', 'jepa'; got 'best'"),
        ({"reference": "kde"}, ValueError, "reference must be one of 'knn', 'gaussian'; got 'kde'"),
        ({"reference": KernelDensity}, TypeError, "or an estimator with fit and score_samples; got KernelDensity"),
        (
            {"reference": Column()},
            ValueError,
            r"Column\.score_samples must return one number per sample, shape \(1,\); got shape \(1, 1\)",
        ),
        ({"reference": 3}, TypeError, "or an estimator with fit and score_samples; got int"),
        ({"floor": 0}, ValueError, r"floor must lie in \(0, inf\); got 0"),
        ({"floor": "low"}, ValueError, "floor must be one of 'auto'; got 'low'"),
        ({"rank": 0}, ValueError, "rank must be at least 1; got 0"),
        ({"rank": 9}, ValueError, r"rank must be at most min\(K, D\) = 5; got 9"),
        ({"rank": 2.5}, TypeError, "rank must be an integer; got 2.5"),
        ({"data": extraction(n=1)}, ValueError, "at least 2 samples; got 1 sample"),
    ],
)
def test_bad_settings_are_named(options, error, message):
    with pytest.raises(error, match=message):
        fit(**options)
