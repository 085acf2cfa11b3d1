import copy
import pickle
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from oracles import random_images
from sklearn.base import clone

from skjepa import JEPAScoreDetector, VectorJEPA, extract
from skjepa.jacobian.rows import jacobian
from skjepa.pretraining.tables import NETWORK_SHARE

RNG = np.random.default_rng(0)
MIXING = RNG.normal(size=(2, 6))
X = np.tanh(RNG.normal(size=(150, 2)) @ MIXING) + 0.1 * RNG.normal(size=(150, 6))  # a bent sheet
FRESH = np.tanh(RNG.normal(size=(80, 2)) @ MIXING) + 0.1 * RNG.normal(size=(80, 6))
OFF_THE_SHEET = RNG.permuted(FRESH, axis=0)  # every feature as usual, not so together


@pytest.fixture(scope="module")
def fitted() -> VectorJEPA:
    return VectorJEPA(random_state=3).fit(X)


def scores(jepa: VectorJEPA, rows=FRESH, fit=X) -> np.ndarray:
    return JEPAScoreDetector(jepa).fit(fit).score_samples(rows)


class TestTraining:
    def test_what_was_asked_for(self, fitted):
        assert extract(fitted.encoder_, FRESH).embeddings.shape == (80, 16 + 6)
        assert fitted.encoder_.precision == "float64"
        assert fitted.n_features_in_ == 6
        first, *_, last = (epoch["loss"] for epoch in fitted.history_)
        assert last < first - 0.3

    def test_the_seed_decides_and_nothing_else(self, fitted):
        torch.manual_seed(5)
        before = torch.random.get_rng_state()
        again = clone(fitted).fit(X).encoder_
        assert torch.equal(torch.random.get_rng_state(), before)
        assert again.fingerprint == fitted.encoder_.fingerprint
        assert VectorJEPA(random_state=4).fit(X).encoder_.fingerprint != again.fingerprint

    def test_the_embedding_has_two_parts(self, fitted):
        z = extract(fitted.encoder_, X).embeddings
        np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-9)
        shares = [part.var(axis=0).sum() for part in (z[:, :6], z[:, 6:])]
        np.testing.assert_allclose(shares, [1 - NETWORK_SHARE, NETWORK_SHARE], rtol=1e-9)

    def test_copies_carry_the_encoder(self, fitted):
        expected = extract(fitted.encoder_, FRESH)
        for other in (pickle.loads(pickle.dumps(fitted)), copy.deepcopy(fitted)):
            np.testing.assert_array_equal(extract(other.encoder_, FRESH).embeddings, expected.embeddings)
        assert not hasattr(clone(fitted), "encoder_")

    def test_parameters_are_checked_in_fit_not_before(self):
        for options, message in (
            ({"n_components": 1}, "n_components must be at least 2; got 1"),
            ({"widths": (8, 0)}, "widths must be at least 1; got 0"),
            ({"objective": "none"}, "objective must be one of 'info_nce', 'sigreg', 'vicreg'"),
            ({"noise": -1}, r"noise must lie in \[0, inf\)"),
            ({"mask": 1.0}, r"mask must lie in \[0, 1\)"),
            ({"temperature": 0}, r"temperature must lie in \(0, inf\)"),
            ({"n_steps": -1}, "n_steps must be at least 0"),
        ):
            with pytest.raises(ValueError, match=message):
                clone(VectorJEPA(**options)).fit(X)

    @pytest.mark.parametrize("objective", ["sigreg", "vicreg"])
    def test_other_objectives(self, objective):
        s = scores(VectorJEPA(objective=objective, n_steps=20))
        assert np.isfinite(s).all()


class TestJacobian:
    def test_is_taken_with_respect_to_standardised_features(self, fitted):
        """Against finite differences: one standard deviation of each feature is the unit."""
        deviation, step = X.std(axis=0), 1e-6
        with fitted.encoder_.scoring() as function:
            x = torch.from_numpy(FRESH[:4])
            for mode in ("forward", "reverse"):
                found = jacobian(function, x, mode=mode)[1]
                for j in range(6):
                    shift = torch.zeros(6, dtype=torch.float64)
                    shift[j] = step * deviation[j]
                    expected = (function(x + shift) - function(x - shift)) / (2 * step)
                    torch.testing.assert_close(found[:, :, j], expected, rtol=1e-5, atol=1e-7)

    def test_units_of_the_features_change_nothing(self, fitted):
        units, shift = np.array([1e9, 1e-9, 1.0, 3.0, 1e4, 0.1]), np.array([1e9, 0.0, -7.0, 5.0, 0.0, 1e3])
        other = scores(VectorJEPA(random_state=3), FRESH * units + shift, X * units + shift)
        np.testing.assert_allclose(other, scores(fitted.encoder_), rtol=1e-6, atol=1e-6)


class TestData:
    @pytest.mark.parametrize(
        "make",
        [
            lambda X: X.astype(np.float32),
            lambda X: (100 * X).astype(int),
            lambda X: X.tolist(),
            lambda X: np.hstack([X, np.full((len(X), 2), 0.1)]),
            lambda X: np.repeat(X[:30], 4, axis=0),
            lambda X: np.hstack([X] * 30)[:25],
        ],
        ids=["float32", "integers", "lists", "constant columns", "copies", "wide"],
    )
    def test_all_kinds(self, make):
        rows = make(X)
        few = pytest.warns(UserWarning, match="25 distinct rows") if len(rows) == 25 else nullcontext()
        with few:
            detector = JEPAScoreDetector(VectorJEPA(n_steps=10)).fit(rows)
        assert np.isfinite(detector.score_samples(rows)).all()

    def test_read_only_files(self, tmp_path):
        np.save(tmp_path / "rows.npy", X)
        mapped = np.load(tmp_path / "rows.npy", mmap_mode="r")
        assert VectorJEPA(random_state=3, n_steps=5).fit(mapped).encoder_.fingerprint == (
            VectorJEPA(random_state=3, n_steps=5).fit(X).encoder_.fingerprint
        )

    def test_what_is_refused(self):
        holed = X.copy()
        holed[3, 2] = np.nan
        with pytest.raises(ValueError, match="X holds NaN or infinite values"):
            VectorJEPA().fit(holed)
        with pytest.raises(ValueError, match="trains on vectors"):
            VectorJEPA().fit(random_images(3))
        with pytest.raises(ValueError, match="too large to standardise"), np.errstate(over="ignore", invalid="ignore"):
            VectorJEPA().fit(X * 1e300)

    @pytest.mark.parametrize("rows", [X[:8], X[:, :1], np.repeat(X[:5], 40, axis=0)], ids=["few", "one", "copies"])
    def test_too_little_to_train_on(self, rows):
        """The compressed features alone, which still know what is far."""
        jepa = VectorJEPA().fit(rows)
        assert jepa.history_ == []
        assert VectorJEPA(n_steps=0).fit(rows).encoder_.fingerprint == jepa.encoder_.fingerprint
        for score in ("jepa", "density", "joint"):
            detector = JEPAScoreDetector(jepa.encoder_, formula=score).fit(rows)
            assert detector.score_samples(rows + 20).max() < detector.score_samples(rows).min()


@pytest.fixture(scope="module")
def detector() -> JEPAScoreDetector:
    return JEPAScoreDetector().fit(X)


class TestDetector:
    def test_trains_by_itself(self, detector):
        assert detector.encoder_.name == "VectorJEPA"
        wins = detector.score_samples(FRESH)[:, None] > detector.score_samples(OFF_THE_SHEET)
        assert wins.mean() > 0.8

    def test_the_seed_of_the_detector_serves_where_the_jepa_has_none(self):
        def seeded(jepa_seed, seed):
            return JEPAScoreDetector(VectorJEPA(n_steps=5, random_state=jepa_seed), random_state=seed).fit(X).encoder_

        assert seeded(None, 7).fingerprint == seeded(7, 8).fingerprint != seeded(None, 8).fingerprint

    def test_the_given_jepa_stays_untrained(self):
        jepa = VectorJEPA(n_steps=5)
        detector = JEPAScoreDetector(jepa).fit(X)
        assert detector.encoder is jepa
        assert not hasattr(jepa, "encoder_")

    def test_two_fits_agree(self, detector):
        np.testing.assert_array_equal(JEPAScoreDetector().fit(X).score_samples(FRESH), detector.score_samples(FRESH))

    def test_subsets_and_pickles_score_alike(self, detector):
        whole = detector.score_samples(FRESH)
        one_by_one = np.concatenate([detector.score_samples(FRESH[[i]]) for i in range(10)])
        np.testing.assert_allclose(one_by_one, whole[:10], rtol=1e-7, atol=1e-7)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(detector)).score_samples(FRESH), whole)

    def test_held_out_rows_are_new_to_the_encoder(self):
        detector = JEPAScoreDetector(calibration=0.3, random_state=1).fit(X)
        assert (detector.n_samples_fit_, len(detector.calibration_scores_)) == (105, 45)
        gaps = np.abs(detector.score_samples(X)[:, None] - detector.calibration_scores_)
        held_out = gaps.min(axis=1) < 1e-9
        assert held_out.sum() == 45
        learned = VectorJEPA(random_state=1).fit(X[~held_out]).encoder_
        assert learned.fingerprint == detector.encoder_.fingerprint

    def test_nothing_to_extract_with_before_fit(self, detector):
        with pytest.raises(ValueError, match=r"not trained yet: call fit\(X\) first"):
            JEPAScoreDetector().extract(X)
        passed = detector.extract(X)
        again = JEPAScoreDetector().fit(passed)
        np.testing.assert_array_equal(again.score_samples(detector.extract(FRESH)), detector.score_samples(FRESH))
        with pytest.raises(ValueError, match="lacks the trained encoder"):
            again.score_samples(FRESH)
