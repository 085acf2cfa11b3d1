import copy
import pickle

import numpy as np
import pytest
import torch
from oracles import conv_net, linear, mlp, random_images
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skjepa import Extraction, JEPAScoreDetector, extract, load_encoder
from skjepa.encoders.encoder import FingerprintError
from skjepa.extraction.store.settings import SettingsMismatchError

ENCODER = load_encoder(mlp(), precision="float64")
NORMAL = np.random.default_rng(0).normal(size=(200, 12))
FRESH = np.random.default_rng(1).normal(size=(300, 12))


@pytest.fixture(scope="module")
def fitted():
    return JEPAScoreDetector(ENCODER, contamination=0.05).fit(NORMAL)


class TestContract:
    def test_labels_scores_and_offset(self, fitted):
        scores, decision, labels = fitted.score_samples(FRESH), fitted.decision_function(FRESH), fitted.predict(FRESH)
        assert scores.dtype == np.float64
        np.testing.assert_array_equal(decision, scores - fitted.offset_)
        assert labels.dtype.kind == "i"
        np.testing.assert_array_equal(labels, np.where(decision >= 0, 1, -1))
        assert (fitted.predict(NORMAL) == -1).sum() == 10
        np.testing.assert_array_equal(fitted.fit_predict(NORMAL), fitted.predict(NORMAL))

    @pytest.mark.parametrize("layers", ["auto", None])
    def test_what_was_learned(self, fitted, layers):
        exact = JEPAScoreDetector(ENCODER, method="exact", layers=layers).fit(NORMAL)
        assert (exact.floor_, exact.rank_) == (exact.model_.floor, exact.model_.rank)
        assert exact.floor_ > 0
        assert exact.rank_ == 6
        assert 1 <= fitted.intrinsic_dim_ <= 6
        assert fitted.intrinsic_dim_ == pytest.approx(exact.intrinsic_dim_)
        assert not hasattr(JEPAScoreDetector(ENCODER, formula="jepa").fit(NORMAL), "intrinsic_dim_")

    def test_higher_is_more_normal(self, fitted):
        far = fitted.score_samples(FRESH + 5)
        assert np.mean(fitted.score_samples(FRESH)[:, None] > far) > 0.95

    def test_subsets_score_alike(self, fitted):
        one_by_one = np.concatenate([fitted.score_samples(FRESH[[i]]) for i in range(10)])
        np.testing.assert_allclose(one_by_one, fitted.score_samples(FRESH)[:10], rtol=1e-7, atol=1e-7)

    def test_two_fits_agree(self, fitted):
        again = JEPAScoreDetector(ENCODER, contamination=0.05).fit(NORMAL)
        np.testing.assert_array_equal(again.score_samples(FRESH), fitted.score_samples(FRESH))

    def test_parameters_are_checked_in_fit_not_before(self):
        odd = JEPAScoreDetector(-1, contamination="many", formula=[], floor={})
        assert clone(odd).get_params()["contamination"] == "many"
        for value, message in (([], "formula must be one of"), ("jepa", "floor must be a number; got {}")):
            with pytest.raises((TypeError, ValueError), match=message):
                odd.set_params(formula=value).fit(NORMAL)
        with pytest.raises(TypeError, match="contamination must be a number; got 'many'"):
            odd.set_params(floor="auto").fit(NORMAL)

    def test_unfitted(self):
        for method in ("score_samples", "predict", "decision_function", "p_values"):
            with pytest.raises(NotFittedError):
                getattr(JEPAScoreDetector(ENCODER), method)(NORMAL)

    def test_lists_pipelines_and_read_only_memory(self, fitted):
        np.testing.assert_array_equal(fitted.score_samples(FRESH[:5].tolist()), fitted.score_samples(FRESH[:5]))
        frozen = NORMAL.copy()
        frozen.setflags(write=False)
        pipeline = make_pipeline(StandardScaler(), JEPAScoreDetector(ENCODER)).fit(frozen)
        assert pipeline.predict(FRESH).shape == (300,)

    def test_width_of_vectors(self, fitted):
        assert fitted.n_features_in_ == 12
        with pytest.raises(ValueError, match="X has 7 features, but JEPAScoreDetector is expecting 12 features"):
            fitted.predict(np.zeros((3, 7)))

    def test_a_failed_fit_leaves_the_old_one(self, fitted):
        detector, before = clone(fitted).fit(NORMAL), fitted.score_samples(FRESH)
        for bad in (NORMAL[:1], np.full((5, 12), np.nan), np.zeros((0, 12))):
            with pytest.raises(ValueError, match=r"sample|NaN"):
                detector.fit(bad)
        np.testing.assert_array_equal(detector.score_samples(FRESH), before)


class TestEncoderParameter:
    def test_clone_and_copies_share_the_encoder(self, fitted):
        assert clone(fitted).encoder is ENCODER
        assert copy.deepcopy(fitted).encoder_ is ENCODER

    def test_pickle_keeps_the_scores(self, fitted):
        again = pickle.loads(pickle.dumps(fitted))
        np.testing.assert_allclose(again.score_samples(FRESH), fitted.score_samples(FRESH), rtol=1e-12)

    def test_a_pickle_of_a_named_encoder_holds_no_weights(self):
        detector = JEPAScoreDetector(formula="jepa").fit(random_images(4))
        data = pickle.dumps(detector)
        assert len(data) < 20_000
        X = random_images(3, seed=1)
        np.testing.assert_allclose(pickle.loads(data).score_samples(X), detector.score_samples(X))

    def test_a_bare_module_is_refused(self):
        with pytest.raises(TypeError, match=r"give encoder=load_encoder\(module\)"):
            JEPAScoreDetector(conv_net()).fit(random_images(4))

    def test_a_number_is_refused(self):
        with pytest.raises(TypeError, match=r"encoder must be a name, an Encoder .* or a VectorJEPA; got 3"):
            JEPAScoreDetector(3).fit(NORMAL)

    def test_weights_changed_after_fit(self):
        module = mlp()
        detector = JEPAScoreDetector(load_encoder(module)).fit(NORMAL)
        with torch.no_grad():
            module[0].weight.mul_(2)
        with pytest.raises(FingerprintError, match=r"has fingerprint .*, and the fit used"):
            detector.predict(FRESH)


class TestExtraction:
    def test_in_the_place_of_data(self, fitted):
        detector = JEPAScoreDetector(ENCODER, contamination=0.05)
        passed = detector.extract(NORMAL)
        detector.fit(passed)
        np.testing.assert_array_equal(detector.score_samples(extract(ENCODER, FRESH)), fitted.score_samples(FRESH))
        np.testing.assert_array_equal(detector.score_samples(FRESH), fitted.score_samples(FRESH))

    def test_of_another_encoder_is_refused(self, fitted):
        other = extract(load_encoder(mlp(seed=3), precision="float64"), FRESH)
        with pytest.raises(SettingsMismatchError, match="fingerprint is"):
            fitted.predict(other)

    def test_as_many_scores_as_samples(self, fitted):
        assert fitted.score_samples(extract(ENCODER, FRESH[:4])).shape == (4,)

    def test_without_meta(self):
        z, sigma = NORMAL[:, :6], np.abs(NORMAL[:, None, :6]) + 1
        made = Extraction(z, -np.sort(-sigma, axis=-1), np.arange(200).astype(str))
        assert JEPAScoreDetector(formula="jepa").fit(made).predict(made).shape == (200,)


class TestWhatIsMeasured:
    """By `method` and `layers`: what `fit` reads, and what every later sample is measured with."""

    @pytest.mark.parametrize(
        ("options", "method", "layers"),
        [
            ({}, "forward", ["input", "1", "3"]),
            ({"layers": None}, "forward", None),
            ({"layers": ["3"]}, "forward", ["3"]),
            ({"method": "exact"}, "exact", ["input", "1", "3"]),
            ({"method": "exact", "layers": None}, "exact", None),
            ({"formula": "density"}, "exact", ["input", "1", "3"]),
            ({"formula": "jepa", "layers": None}, "exact", None),
        ],
    )
    def test_by_the_parameters(self, options, method, layers):
        detector = JEPAScoreDetector(ENCODER, **options).fit(NORMAL)
        made = detector.extract(FRESH)
        for settings in (detector.models_[0].settings, made.settings):
            assert (settings["method"], settings["layers"]) == (method, layers)
        assert (made.singular_values is None) == (method == "forward")
        np.testing.assert_array_equal(detector.score_samples(made), detector.score_samples(FRESH))
        assert hasattr(detector, "floor_") == (method == "exact")

    def test_terms_of_the_joint_score(self):
        layers = {"layer input", "layer 1", "layer 3", "layer output", "neighbours"}
        volume = {"volume given embedding", "spectrum given embedding"}
        for options, terms in (({}, layers), ({"method": "exact"}, layers | volume)):
            assert JEPAScoreDetector(ENCODER, **options).fit(NORMAL).models_[0].terms.keys() == terms
        without = JEPAScoreDetector(ENCODER, method="exact", layers=None).fit(NORMAL)
        assert without.models_[0].terms.keys() == {"volume", "density", "direction", *volume}

    def test_few_outputs_of_images_are_differentiated(self):
        few, many = (load_encoder(conv_net(n), image_size=32) for n in (64, 65))
        assert JEPAScoreDetector(few).extract(random_images(3)).settings["method"] == "exact"
        assert JEPAScoreDetector(many).extract(random_images(3)).settings["method"] == "forward"
        assert JEPAScoreDetector(many, views=2).extract(random_images(3)).settings["method"] == "exact"

    def test_an_extraction_that_knows_more_is_taken_without_it(self):
        detector, made = JEPAScoreDetector(ENCODER, method="forward"), extract(ENCODER, NORMAL)
        fitted = clone(detector).fit(NORMAL)
        np.testing.assert_array_equal(
            clone(detector).fit(made).score_samples(made), fitted.score_samples(made.forward_only())
        )
        with pytest.raises(SettingsMismatchError, match=r"layers is \['input'\], expected \['input', '1', '3'\]"):
            fitted.predict(extract(ENCODER, FRESH, layers=["input"]))

    @pytest.mark.parametrize("formula", ["jepa", "density"])
    def test_what_needs_passes_is_refused_without(self, formula):
        with pytest.raises(
            ValueError, match=f"formula='{formula}' needs singular values, and method='forward' measures none"
        ):
            JEPAScoreDetector(ENCODER, method="forward", formula=formula).fit(NORMAL)
        with pytest.raises(ValueError, match="extracted with method='forward'"):
            JEPAScoreDetector(ENCODER, formula=formula).fit(extract(ENCODER, NORMAL, method="forward"))

    @pytest.mark.parametrize(
        ("first", "then", "method", "layers"),
        [
            ({}, {"formula": "jepa"}, "exact", ["input", "1", "3"]),
            ({"formula": "jepa"}, {"formula": "joint"}, "forward", ["input", "1", "3"]),
            ({}, {"layers": None}, "forward", None),
            ({}, {"layers": ["3"]}, "forward", ["3"]),
        ],
    )
    def test_a_second_fit_measures_what_it_is_asked_for(self, first, then, method, layers):
        detector = JEPAScoreDetector(ENCODER, **first).fit(NORMAL).set_params(**then).fit(NORMAL)
        settings = detector.models_[0].settings
        assert (settings["method"], settings["layers"]) == (method, layers)
        np.testing.assert_array_equal(detector.score_samples(FRESH), clone(detector).fit(NORMAL).score_samples(FRESH))

    @pytest.mark.parametrize("sizes", [(40, 200), (200, 40)])
    def test_a_second_fit_has_the_layers_of_its_own_encoder(self, sizes):
        """Fewer than 50 rows train no network."""
        first, then = (NORMAL[:n, :3] for n in sizes)
        again = JEPAScoreDetector(random_state=0).fit(first).fit(then)
        once = JEPAScoreDetector(random_state=0).fit(then)
        np.testing.assert_array_equal(again.score_samples(FRESH[:, :3]), once.score_samples(FRESH[:, :3]))


class TestTrim:
    def test_anomalies_among_the_fit_samples_are_left_out(self):
        spoilt = np.concatenate([NORMAL, FRESH[:20] + 3])
        rank = {}
        for trim in (0.0, 0.15):
            detector = JEPAScoreDetector(ENCODER, trim=trim).fit(spoilt)
            assert (detector.predict(spoilt) == -1).sum() == 22  # of `contamination` all count
            scores = [detector.score_samples(X) for X in (FRESH[20:], FRESH[20:] + 2)]
            rank[trim] = (scores[0][:, None] > scores[1]).mean()
            assert len(detector.model_.seen.embeddings) == 220 - int(trim * 220)
        assert rank[0.15] > rank[0.0]

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"trim": 0.5}, r"trim must lie in \[0, 0\.5\)"),
            ({"trim": -0.1}, r"trim must lie in \[0, 0\.5\)"),
            ({"trim": 0.1, "formula": "jepa"}, "needs formula=.joint. on hidden layers"),
            ({"trim": 0.1, "method": "exact", "layers": None}, "needs formula=.joint. on hidden layers"),
        ],
    )
    def test_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            JEPAScoreDetector(ENCODER, **options).fit(NORMAL)


class TestCalibration:
    def test_held_out_samples_are_not_learned_from(self):
        detector = JEPAScoreDetector(ENCODER, calibration=0.25, target_fpr=0.1, random_state=1).fit(NORMAL)
        assert (detector.n_samples_fit_, len(detector.calibration_scores_)) == (150, 50)
        assert (detector.calibration_scores_ < detector.offset_).sum() == int(0.1 * 51) - 1
        p = detector.p_values(FRESH)
        assert ((p > 0) & (p <= 1)).all()
        np.testing.assert_array_equal(p <= 0.1, detector.predict(FRESH) == -1)

    def test_copies_of_a_sample_count_once(self):
        detector = JEPAScoreDetector(ENCODER, calibration=0.5, formula="jepa").fit(np.repeat(NORMAL[:20], 5, axis=0))
        assert (len(detector.calibration_scores_), detector.n_samples_fit_) == (10, 10)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (
                {"target_fpr": 0.004},
                r"0\.004 needs 249 calibration samples; got 200, .* rate of 0\.00498 or",
            ),
            (
                {"target_fpr": 0.01, "calibration": 0.2},
                r"0\.01 needs 99 calibration samples; got 40.* 0\.0244 or more",
            ),
            ({"calibration": 0.995}, r"calibration=0\.995 leaves 1 of 200 different samples or groups"),
            ({"calibration": 1.0}, r"calibration must lie in \(0, 1\)"),
            ({"contamination": 0.7}, r"contamination must lie in \(0, 0\.5\]"),
        ],
    )
    def test_impossible_promises_are_refused(self, options, message):
        with pytest.raises(ValueError, match=message):
            JEPAScoreDetector(ENCODER, **options).fit(NORMAL)

    def test_p_values_need_calibration(self, fitted):
        with pytest.raises(ValueError, match=r"fit with target_fpr=0\.05 or with calibration=0\.2"):
            fitted.p_values(FRESH)

    @pytest.mark.slow
    @pytest.mark.parametrize("score", ["jepa", "density", "joint"])
    def test_false_positive_rate_holds_on_average(self, score):
        """200 splits of fit and calibration; the mean rate over them is at most nominal, up to its standard error."""
        rng = np.random.default_rng(0)
        rates = []
        everything = extract(ENCODER, rng.normal(size=(4000, 12)))
        for _ in range(200):
            order = rng.permutation(4000)
            detector = JEPAScoreDetector(ENCODER, formula=score, calibration=0.5, target_fpr=0.1)
            detector.fit(everything[order[:200]])
            rates.append((detector.predict(everything[order[200:1200]]) == -1).mean())
        assert np.mean(rates) < 0.1 + 3 * np.std(rates) / np.sqrt(200)
        assert np.mean(rates) > 0.07  # and the promise is not kept by flagging nothing


class TestImages:
    def test_skipped_images_score_nan_and_are_flagged(self, tmp_path):
        from PIL import Image

        for i, image in enumerate(random_images(6)):
            Image.fromarray(image).save(tmp_path / f"{i}.png")
        detector = JEPAScoreDetector(load_encoder(conv_net(), image_size=32), formula="jepa", on_error="skip")
        detector.fit(tmp_path)
        (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:200])
        with pytest.warns(UserWarning, match=r"skipped .*3\.png"):
            scores = detector.score_samples(tmp_path)
        assert np.isnan(scores).tolist() == [False, False, False, True, False, False]
        with pytest.warns(UserWarning, match=r"skipped .*3\.png"):
            assert detector.predict(tmp_path)[3] == -1
        detector.set_params(on_error="raise")
        with pytest.raises(ValueError, match=r"3\.png: cannot be read"):
            detector.predict(tmp_path)

    def test_a_random_state_seeds_the_views_once(self):
        encoder, X = load_encoder(conv_net(), image_size=32), random_images(8)
        random_state = np.random.RandomState(0)
        detector = JEPAScoreDetector(encoder, views=2, random_state=random_state).fit(X)
        np.testing.assert_array_equal(detector.score_samples(X), detector.score_samples(X))


class TestCollapse:
    def test_equal_scores_are_said_with_the_rank(self):
        flat = load_encoder(linear(torch.eye(3).double()), precision="float64")
        with pytest.warns(UserWarning, match=r"all 30 scores are equal: .*rank of the embeddings: 3 of 3"):
            JEPAScoreDetector(flat, formula="jepa").fit(NORMAL[:30, :3])

    def test_a_constant_encoder(self):
        class Constant(torch.nn.Module):
            def forward(self, x):
                return 0 * x + 1

        encoder = load_encoder(Constant())
        with pytest.warns(UserWarning, match=r"rank of the embeddings: 0 of 12\)"):
            JEPAScoreDetector(encoder, layers=None).fit(NORMAL)
        with pytest.warns(UserWarning, match=r"rank of the embeddings: 0 of 12; .*rank of the Jacobian: 0\)"):
            JEPAScoreDetector(encoder, method="exact", layers=None).fit(NORMAL)
        by_rows = JEPAScoreDetector(encoder).fit(NORMAL)  # its first layer is the rows, which differ
        assert "complete collapse" in [finding.name for finding in by_rows.diagnose().findings]
        assert (by_rows.predict(FRESH + 5) == -1).all()
