"""Hidden layers in the correction of few directions: against dense regressions, without layers, saved and loaded."""

import numpy as np
import pytest
from oracles import conv_net, random_images

import skjepa.jacobian.control_variate
from skjepa import JEPAScoreDetector, extract, jepa_score, learn_directions, load_encoder
from skjepa.jacobian.control_variate import TwoStageRidge, activations, deviation_floors, folds
from skjepa.jacobian.directions import Correction, Directions
from skjepa.jacobian.volume import log_volume
from skjepa.persistence.folder import read_folder, write_folder

ENCODER = load_encoder(conv_net(8), image_size=32, precision="float64")
LAYER = ["0"]  # the first convolution
IMAGES, FRESH = random_images(70), random_images(8, seed=1)


@pytest.fixture(scope="module")
def directions():
    return learn_directions(ENCODER, IMAGES, 2, layers=LAYER)


def dense_ridge(X, y, alpha, at):
    """By the normal equations of standardised columns."""
    mean, scale = X.mean(axis=0), X.std(axis=0)
    Z = (X - mean) / scale
    weights = np.linalg.solve(Z.T @ Z + alpha * np.eye(Z.shape[1]), Z.T @ (y - y.mean()))
    return y.mean() + (at - mean) / scale @ weights


class TestTwoStages:
    @pytest.fixture
    def one_penalty(self, monkeypatch):
        monkeypatch.setattr(skjepa.jacobian.control_variate, "_ALPHAS", np.array([2.0]))
        monkeypatch.setattr(skjepa.jacobian.control_variate, "_ALPHAS_OF_LAYERS", np.array([30.0]))

    def test_agree_with_the_normal_equations(self, one_penalty):
        rng = np.random.default_rng(0)
        X, at = rng.normal(size=(60, 7)), rng.normal(size=(9, 7))
        y = X @ rng.normal(size=7) + rng.normal(size=60)
        samples = np.repeat(np.arange(30), 2)
        left = np.empty(60)
        for seen, unseen in folds(samples).split(X, y, samples):
            left[unseen] = y[unseen] - dense_ridge(X[seen, :3], y[seen], 2.0, X[unseen, :3])
        expected = dense_ridge(X[:, :3], y, 2.0, at[:, :3]) + dense_ridge(X[:, 3:], left, 30.0, at[:, 3:])
        ours = TwoStageRidge(3).fit(X, y, samples=samples).predict(at)
        np.testing.assert_allclose(ours, expected, rtol=1e-10)

    def test_without_others_there_is_one_stage(self, one_penalty):
        rng = np.random.default_rng(0)
        X, y = rng.normal(size=(40, 3)), rng.normal(size=40)
        np.testing.assert_allclose(TwoStageRidge(3).fit(X, y).predict(X), dense_ridge(X, y, 2.0, X), rtol=1e-10)

    def test_layers_are_means_and_logarithms_of_deviations(self):
        layers = {"maps": np.array([[1.0, -2.0, 1.0, 0.0], [3.0, 4.0, 2.0, 1.0]]), "vectors": -np.ones((2, 2))}
        floors = deviation_floors(layers)
        assert floors == {"maps": pytest.approx(0.01)}
        expected = [[1, -2, 0, np.log(0.01)], [3, 4, np.log(2), 0]]
        np.testing.assert_allclose(activations(layers, floors, 2), expected, atol=1e-15)


class TestCorrection:
    def test_finds_what_layers_alone_can_tell(self):
        """What is lacking lies in the deviation of one channel; the sketch and z are noise."""
        rng = np.random.default_rng(0)
        layers = {"maps": np.hstack([rng.normal(size=(200, 2)), rng.uniform(0.5, 2, size=(200, 2))]).astype("f4")}
        lacking = 3 * np.log(layers["maps"][:, 2:3].astype("f8"))
        subspace = np.exp(rng.normal(size=(200, 1, 2)))
        exact = np.concatenate([subspace, np.exp(lacking)[:, None]], axis=2)
        z = rng.normal(size=(200, 3))
        found = Directions(np.eye(3)[:, :2], None, z, exact, subspace, None, layers)
        without, within = found.correction(1e-6), found.correction(1e-6, layers=layers)
        assert without.residual_ > 1
        assert within.residual_ < 0.15 * without.residual_
        ours = within.log_volume(z, subspace, layers)
        assert np.abs(ours - log_volume(exact, floor=1e-6)).max() < 0.3

    def test_error_is_out_of_fold(self):
        """Of layers that are noise, and more than samples: nothing seems to be gained."""
        rng = np.random.default_rng(0)
        noise = {"maps": np.abs(rng.normal(size=(80, 400))).astype("f4")}
        subspace, z = np.exp(rng.normal(size=(80, 1, 2))), rng.normal(size=(80, 3))
        exact = np.concatenate([subspace, np.exp(rng.normal(size=(80, 1, 1)))], axis=2)
        found = Directions(np.eye(3)[:, :2], None, z, exact, subspace, None, noise)
        assert found.correction(1e-6, layers=noise).residual_ > 0.97 * found.correction(1e-6).residual_

    def test_samples_without_layers_have_the_former_correction(self, directions):
        with_layers, without = (extract(ENCODER, FRESH, method=directions, layers=names) for names in (LAYER, None))
        assert directions.correction(layers=with_layers.layers).deviation_floors.keys() == {"0"}
        former, now = directions.correction(), directions.correction(layers=without.layers)
        assert not now.deviation_floors
        np.testing.assert_array_equal(now.coef, former.coef)
        expected = former.log_volume(without.embeddings, without.spectra)[:, 0]
        assert not np.allclose(jepa_score(ENCODER, FRESH, method=directions), expected)  # it reads the layers itself
        np.testing.assert_allclose(
            jepa_score(ENCODER, FRESH, method=directions, layers=None, floor=former.floor), expected, rtol=1e-12
        )

    def test_all_directions_leave_nothing_to_tell(self):
        everything = learn_directions(ENCODER, IMAGES, 8, layers=LAYER)
        ours = jepa_score(ENCODER, FRESH, method=everything)
        np.testing.assert_allclose(ours, jepa_score(ENCODER, FRESH), rtol=0, atol=1e-8)


class TestDetector:
    def test_saved_and_loaded_scores_are_equal(self, directions, tmp_path):
        fit, fresh = (extract(ENCODER, part, method=directions, layers=LAYER) for part in (IMAGES, FRESH))
        detector = JEPAScoreDetector(ENCODER, formula="jepa", method=directions, layers=LAYER).fit(fit)
        assert detector.correction_.deviation_floors.keys() == {"0"}
        expected = detector.correction_.log_volume(fresh.embeddings, fresh.spectra, fresh.layers)[:, 0]
        np.testing.assert_allclose(detector.score_samples(fresh), expected, rtol=1e-12)
        detector.save(tmp_path / "d")
        loaded = JEPAScoreDetector.load(tmp_path / "d", encoder=ENCODER)
        np.testing.assert_array_equal(loaded.score_samples(fresh), detector.score_samples(fresh))

    def test_layers_that_are_lacking_are_named(self, directions):
        fit = extract(ENCODER, IMAGES, method=directions, layers=LAYER)
        model = JEPAScoreDetector(ENCODER, formula="jepa", method=directions, layers=LAYER).fit(fit).model_
        with pytest.raises(ValueError, match="no layer '0'"):
            model.volumes(fit.narrowed(None))

    def test_a_fit_learns_from_the_layers_that_it_reads(self):
        detector = JEPAScoreDetector(
            ENCODER, formula="jepa", method="subspace", n_directions=2, layers=LAYER, random_state=0
        )
        assert detector.fit(IMAGES).correction_.deviation_floors.keys() == {"0"}

    def test_those_of_earlier_versions_are_read(self, directions, tmp_path, monkeypatch):
        """Their folders say nothing of layers."""
        plain = learn_directions(ENCODER, IMAGES, 2, layers=None)
        for value, lacks in ((plain, "layers"), (plain.correction(), "deviation_floors")):
            kind = type(value)
            monkeypatch.setattr(
                kind,
                "portable_state",
                lambda self, lacks=lacks: {k: v for k, v in vars(self).items() if k != lacks},
                raising=False,
            )
            write_folder(value, tmp_path / lacks, versions={})
            read = read_folder(tmp_path / lacks)
            assert isinstance(read, Directions | Correction)
            assert getattr(read, lacks) == {}
