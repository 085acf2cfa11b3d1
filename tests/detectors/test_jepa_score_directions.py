"""`JEPAScoreDetector` with fewer passes: what it learns and from whom, one extraction for a grid, save and load."""

import numpy as np
import pytest
from oracles import conv_net, mlp, random_images
from PIL import Image
from scipy.stats import spearmanr
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

import skjepa.extraction.batches.measurement
from skjepa import JEPAScoreDetector, NormalKFold, VectorJEPA, embed, extract, learn_directions, load_encoder
from skjepa.extraction.store.settings import SettingsMismatchError
from skjepa.jacobian.directions import random_directions
from skjepa.jacobian.rows import jacobian

ENCODER = load_encoder(mlp(12, 8), precision="float64")
NORMAL = np.random.default_rng(0).normal(size=(160, 12))
FRESH = np.random.default_rng(1).normal(size=(100, 12))


@pytest.fixture(scope="module")
def directions():
    return learn_directions(ENCODER, NORMAL, 3)


@pytest.fixture
def passes(monkeypatch):
    """Samples measured, by the number of directions; None stands for all of them."""
    counted = {}

    def watched(function, x, *, directions, **how):
        m = None if directions is None else directions.shape[1]
        counted[m] = counted.get(m, 0) + len(x)
        return jacobian(function, x, directions=directions, **how)

    monkeypatch.setattr(skjepa.extraction.batches.measurement, "jacobian", watched)
    return counted


class TestSubspace:
    def test_fit_learns_directions_and_a_correction(self, passes):
        detector = JEPAScoreDetector(ENCODER, method="subspace", n_directions=3).fit(NORMAL)
        assert passes == {None: 160, 3: 320}  # exact ones once, then their subspace, then everyone's
        passes.clear()
        scores = detector.score_samples(FRESH)
        assert passes == {3: 100}
        assert detector.directions_.n_directions == 3
        assert 0 < detector.correction_.residual_ < 5
        exact = JEPAScoreDetector(ENCODER, method="exact").fit(NORMAL)
        assert detector.floor_ == pytest.approx(exact.floor_)
        assert detector.rank_ == exact.rank_
        assert spearmanr(scores, exact.score_samples(FRESH)).statistic > 0.8
        assert (detector.predict(NORMAL) == -1).sum() == 16
        assert str(detector.diagnose()).startswith("nothing wrong")
        assert detector.diagnose(FRESH).n_singular_values == 3

    def test_all_directions_score_as_exact(self):
        ours, exact = (
            JEPAScoreDetector(ENCODER, method=method, n_directions=m).fit(NORMAL).score_samples(FRESH)
            for method, m in (("subspace", 8), ("exact", None))
        )
        np.testing.assert_allclose(ours, exact, rtol=0, atol=1e-8)

    def test_two_fits_agree(self):
        detector = JEPAScoreDetector(ENCODER, method="subspace")
        np.testing.assert_array_equal(
            detector.fit(NORMAL).score_samples(FRESH), clone(detector).fit(NORMAL).score_samples(FRESH)
        )

    def test_held_out_samples_are_not_learned_from(self):
        """Those that directions and correction come from are all but the calibration samples."""
        detector = JEPAScoreDetector(ENCODER, method="subspace", calibration=0.25, random_state=1).fit(NORMAL)
        distances = np.linalg.norm(embed(ENCODER, NORMAL)[:, None] - detector.directions_.embeddings, axis=2)
        held_out = distances.min(axis=1) > 1e-9
        assert held_out.sum() == 40 == len(detector.calibration_scores_)
        np.testing.assert_allclose(
            np.sort(detector.score_samples(NORMAL[held_out])), np.sort(detector.calibration_scores_), rtol=1e-9
        )

    def test_each_fold_learns_its_own(self):
        detector = JEPAScoreDetector(ENCODER, method="subspace", calibration=2, target_fpr=0.2).fit(NORMAL)
        seen = [{row.tobytes() for row in model.directions.embeddings} for model in detector.models_]
        assert [len(rows) for rows in seen] == [80, 80]
        assert not seen[0] & seen[1]
        assert detector.p_values(FRESH).shape == detector.predict(FRESH).shape == (100,)
        with pytest.raises(ValueError, match="every fold trained its own encoder or learned its own directions"):
            detector.extract(FRESH)

    def test_on_a_trained_encoder(self):
        jepa = VectorJEPA(n_components=4, widths=(16,), n_steps=20)
        detector = JEPAScoreDetector(jepa, method="subspace", n_directions=4).fit(NORMAL)
        assert detector.encoder_ is detector.models_[0].encoder
        assert detector.score_samples(FRESH).shape == (100,)

    def test_extract_after_fit(self):
        detector = JEPAScoreDetector(ENCODER, method="subspace")
        with pytest.raises(NotFittedError, match="the directions are not learned yet"):
            detector.extract(NORMAL)
        detector.fit(NORMAL)
        np.testing.assert_array_equal(detector.score_samples(detector.extract(FRESH)), detector.score_samples(FRESH))

    def test_unreadable_images(self, tmp_path):
        for i, image in enumerate(random_images(56)):
            Image.fromarray(image).save(tmp_path / f"{i:02}.png")
        (tmp_path / "03.png").write_bytes(b"")
        encoder = load_encoder(conv_net(8), image_size=32)
        detector = JEPAScoreDetector(encoder, method="subspace", n_directions=2, on_error="skip", calibration=0.09)
        with pytest.warns(UserWarning, match=r"skipped .*03\.png"):
            detector.fit(tmp_path)
        assert detector.n_samples_fit_ == 50
        assert np.isfinite(detector.calibration_scores_).all()
        with pytest.warns(UserWarning, match=r"skipped .*03\.png"):
            scores = detector.score_samples(tmp_path)
        assert np.flatnonzero(np.isnan(scores)).tolist() == [3]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"method": "fast"}, "method must be one of 'auto', 'forward', 'exact', 'sketch', 'subspace'; got 'fast'"),
            ({"method": "subspace", "n_directions": 9}, "n_directions must be at most K = 8; got 9"),
            ({"method": "subspace", "n_directions": 0}, "n_directions must be at least 1"),
            ({"method": "subspace", "calibration": 0.7}, "got 48 different samples; .* need 50 exact ones"),
        ],
    )
    def test_bad_settings(self, options, message):
        detector = JEPAScoreDetector(ENCODER, **options)
        with pytest.raises(ValueError, match=message):
            detector.fit(NORMAL)
        assert not hasattr(detector, "models_")

    def test_an_extraction_has_no_jacobians(self):
        with pytest.raises(ValueError, match="method='subspace' learns directions from samples"):
            JEPAScoreDetector(ENCODER, method="subspace").fit(extract(ENCODER, NORMAL))


class TestFrozenDirections:
    def test_a_grid_on_one_extraction(self, directions, passes):
        X = np.concatenate([NORMAL, FRESH + 1.5])
        y = np.repeat([1, -1], [160, 100])
        extraction = extract(ENCODER, X, method=directions)
        detector = JEPAScoreDetector(ENCODER, method=directions)
        grid = {"formula": ["jepa", "density", "joint"], "floor": ["auto", 1e-3], "rank": [None, 4]}
        search = GridSearchCV(
            detector, grid, scoring="roc_auc", cv=NormalKFold(3, random_state=0), error_score="raise"
        ).fit(extraction, y)
        assert passes == {3: 260}
        assert len(search.cv_results_["params"]) == 12
        assert search.best_estimator_.method is directions
        assert search.best_score_ > 0.8

    def test_data_and_extraction_score_alike(self, directions):
        detector = JEPAScoreDetector(ENCODER, method=directions).fit(NORMAL)
        assert detector.directions_ is directions
        assert detector.model_.correction is not None
        again = clone(detector).fit(detector.extract(NORMAL))
        np.testing.assert_array_equal(again.score_samples(FRESH), detector.score_samples(FRESH))

    def test_other_directions_are_refused(self, directions):
        other = learn_directions(ENCODER, NORMAL, 3, random_state=1)
        detector = JEPAScoreDetector(ENCODER, method=directions)
        with pytest.raises(SettingsMismatchError, match="measured by method 'subspace of 3 directions"):
            detector.fit(extract(ENCODER, NORMAL, method=other))
        with pytest.raises(SettingsMismatchError, match="method is 'exact', expected 'subspace of 3"):
            detector.fit(NORMAL).predict(extract(ENCODER, FRESH))

    def test_save_and_load(self, directions, tmp_path):
        for i, method in enumerate((directions, "subspace", "sketch", random_directions(8, 3))):
            detector = JEPAScoreDetector(ENCODER, method=method, random_state=5).fit(NORMAL)
            detector.save(tmp_path / str(i))
            again = JEPAScoreDetector.load(tmp_path / str(i), encoder=ENCODER)
            np.testing.assert_array_equal(again.score_samples(FRESH), detector.score_samples(FRESH))

    def test_a_sketch_is_seeded_by_the_detector(self):
        scores = [
            JEPAScoreDetector(ENCODER, method="sketch", n_directions=3, formula="jepa", random_state=seed)
            .fit(NORMAL)
            .score_samples(FRESH)
            for seed in (0, 0, 1)
        ]
        np.testing.assert_array_equal(scores[0], scores[1])
        assert np.abs(scores[0] - scores[2]).max() > 0.01
