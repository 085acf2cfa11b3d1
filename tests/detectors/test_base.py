import numpy as np
import pytest
from oracles import conv_net, mlp, random_images
from PIL import Image
from scipy.stats import betabinom, kstest
from sklearn.base import clone
from sklearn.neighbors import KernelDensity

import skjepa.detectors.jepa_score
from skjepa import JEPAScoreDetector, KNNDetector, MahalanobisDetector, VectorJEPA, extract, load_encoder

RNG = np.random.default_rng(0)
NORMAL, FRESH = RNG.normal(size=(200, 5)), RNG.normal(size=(400, 5))
OUTLIERS = RNG.normal(size=(40, 5)) + 6


class TestFolds:
    def test_every_sample_is_learned_from_and_calibrated_with(self):
        detector = KNNDetector(calibration=5, target_fpr=0.1).fit(NORMAL)
        assert (len(detector.models_), len(detector.calibration_scores_), detector.n_samples_fit_) == (5, 200, 200)

    def test_flags_and_p_values_decide_alike(self):
        detector = KNNDetector(calibration=4, target_fpr=0.1).fit(NORMAL)
        both = np.concatenate([FRESH, OUTLIERS])
        np.testing.assert_array_equal(detector.p_values(both) <= 0.1, detector.predict(both) == -1)
        assert (detector.predict(OUTLIERS) == -1).all()

    def test_contamination_is_kept_on_the_training_samples(self):
        detector = KNNDetector(calibration=5, contamination=0.1).fit(NORMAL)
        assert (detector.predict(NORMAL) == -1).sum() == 20

    def test_vectors_train_an_encoder_for_each_fold(self):
        jepa = VectorJEPA(n_components=4, widths=(8,), n_steps=5)
        detector = JEPAScoreDetector(jepa, calibration=3, target_fpr=0.1).fit(NORMAL)
        assert len({model.encoder.fingerprint for model in detector.models_}) == 3
        assert (detector.predict(OUTLIERS) == -1).mean() > 0.9
        with pytest.raises(ValueError, match="no single extraction"):
            detector.extract(NORMAL)

    def test_folds_with_a_network_and_without(self):
        """Of 99 rows one fold has enough for a network, the other not: each has layers of its own."""
        detector = JEPAScoreDetector(calibration=2, target_fpr=0.1).fit(NORMAL[:99, :3])
        assert [model.settings["layers"] for model in detector.models_] == [None, ["rows", "hidden 1", "hidden 2"]]
        assert (detector.predict(OUTLIERS[:, :3]) == -1).mean() > 0.9

    @pytest.mark.parametrize("method", ["auto", "exact"])
    def test_an_extraction_is_split_without_a_second_pass(self, method):
        encoder = load_encoder(mlp(5), precision="float64")
        made = extract(encoder, NORMAL, method=method)
        detector = JEPAScoreDetector(encoder, method=method, calibration=4, target_fpr=0.1)
        np.testing.assert_array_equal(
            clone(detector).fit(made).score_samples(made), clone(detector).fit(NORMAL).score_samples(NORMAL)
        )

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"calibration": 1}, "calibration must be at least 2; got 1"),
            ({"calibration": True}, "calibration must be an integer; got True"),
            ({"calibration": 300}, "calibration=300 folds need at least 300 different samples or groups; got 200"),
            (
                {"calibration": 2, "contamination": 0.2, "n": 3},
                "calibration=2 leaves 1 of 3 different samples or groups",
            ),
            ({"calibration": 5, "target_fpr": 0.001}, r"rate of 0\.001 needs 999 calibration samples; got 200"),
        ],
    )
    def test_impossible_folds_are_refused(self, options, message):
        n = options.pop("n", 200)
        with pytest.raises((ValueError, TypeError), match=message):
            KNNDetector(**options).fit(NORMAL[:n])

    def test_skipped_images_may_leave_too_few(self, tmp_path):
        for i, image in enumerate(random_images(4)):
            Image.fromarray(image).save(tmp_path / f"{i}.png")
            if i < 2:
                (tmp_path / f"{i}.png").write_bytes(b"broken")
        detector = JEPAScoreDetector(load_encoder(conv_net(), image_size=32), on_error="skip", calibration=4)
        with (
            pytest.warns(UserWarning, match="skipped"),
            pytest.raises(ValueError, match="at least 3 different samples or groups; got 2"),
        ):
            detector.fit(tmp_path)

    def test_copies_do_not_delay_the_refusal(self, monkeypatch):
        def late(*_):
            raise AssertionError("trained before it was refused")

        monkeypatch.setattr(skjepa.detectors.jepa_score, "trained_encoder", late)
        with pytest.raises(ValueError, match=r"rate of 0\.01 needs 99 calibration samples"):
            JEPAScoreDetector(calibration=0.5, target_fpr=0.01).fit(np.concatenate([NORMAL[:60], NORMAL[:1]]))


class TestRateAlone:
    def test_few_samples_make_folds(self):
        alone = KNNDetector(target_fpr=0.1).fit(NORMAL)
        told = KNNDetector(target_fpr=0.1, calibration=5).fit(NORMAL)
        assert (alone.calibration_, alone.n_samples_fit_, len(alone.calibration_scores_)) == (5, 200, 200)
        np.testing.assert_array_equal(alone.score_samples(FRESH), told.score_samples(FRESH))

    def test_many_samples_hold_a_share_out(self):
        many = np.random.default_rng(5).normal(size=(500, 3))
        alone = KNNDetector(target_fpr=0.05).fit(many)
        told = KNNDetector(target_fpr=0.05, calibration=0.2).fit(many)
        assert (alone.calibration_, alone.n_samples_fit_, len(alone.calibration_scores_)) == (0.2, 400, 100)
        np.testing.assert_array_equal(alone.decision_function(FRESH[:, :3]), told.decision_function(FRESH[:, :3]))
        assert KNNDetector(target_fpr=0.05).fit(many[:490]).calibration_ == 5

    def test_nothing_is_calibrated_without_a_rate(self):
        assert KNNDetector().fit(NORMAL).calibration_ is None

    def test_groups_stay_together(self):
        groups = np.arange(200) // 4
        alone = KNNDetector(target_fpr=0.1).fit(NORMAL, groups=groups)
        told = KNNDetector(target_fpr=0.1, calibration=5).fit(NORMAL, groups=groups)
        np.testing.assert_array_equal(alone.score_samples(FRESH), told.score_samples(FRESH))

    @pytest.mark.parametrize(("n", "lowest"), [(12, "0.077"), (6, "0.143"), (3, "0.25")])
    def test_too_few_for_the_rate(self, n, lowest):
        """The rate that the message names is then taken."""
        with pytest.raises(ValueError, match=f"needs 19 calibration samples; got {n}, .* a rate of {lowest} or more"):
            KNNDetector(target_fpr=0.05).fit(NORMAL[:n])
        assert KNNDetector(target_fpr=float(lowest)).fit(NORMAL[:n]).calibration_ == min(n, 5)

    def test_the_rate_is_kept(self):
        """Over 60 fits on 60 rows each; the proof covers twice the rate, and about the rate is what is seen."""
        rng = np.random.default_rng(6)
        rows = rng.normal(size=(2000, 4))
        flagged = []
        for seed in range(60):
            chosen = rng.permutation(2000)
            detector = MahalanobisDetector(target_fpr=0.1, random_state=seed).fit(rows[chosen[:60]])
            flagged.append((detector.predict(rows[chosen[60:1060]]) == -1).mean())
        assert 0.05 < np.mean(flagged) < 0.1 + 3 * np.std(flagged) / np.sqrt(60)


class TestNonFiniteScores:
    def test_of_the_fit(self):
        narrow = KernelDensity(kernel="tophat", bandwidth=1e-3)
        encoder = load_encoder(mlp(5), precision="float64")
        with pytest.raises(
            ValueError, match=r"the out-of-fold term 'neighbours' is not finite for \d+ of 200 fit samples"
        ):
            JEPAScoreDetector(encoder, reference=narrow).fit(NORMAL)
        with pytest.raises(
            ValueError, match=r"the out-of-fold term 'density' is not finite for \d+ of 200 fit samples"
        ):
            JEPAScoreDetector(encoder, reference=narrow, method="exact", layers=None).fit(NORMAL)
        with np.errstate(all="ignore"), pytest.raises(ValueError, match="200 of 200 scores of the fit samples are not"):
            KNNDetector().fit(NORMAL * 1e200)

    @pytest.mark.parametrize("part", ["singular values", "layers"])
    def test_of_an_extraction(self, part):
        made = extract(load_encoder(mlp(5), precision="float64"), NORMAL)
        (made.singular_values if part == "singular values" else made.layers["input"])[3] = np.nan
        for detector in (JEPAScoreDetector(), JEPAScoreDetector(formula="jepa"), MahalanobisDetector()):
            with pytest.raises(ValueError, match=f"NaN or infinite values in 1 samples, the first {made.ids[3]}"):
                detector.fit(made)


class TestCalibrate:
    def test_fresh_samples_make_the_promise(self):
        detector = MahalanobisDetector().fit(NORMAL).calibrate(FRESH, target_fpr=0.05)
        assert (detector.predict(FRESH) == -1).sum() == int(0.05 * 401) - 1
        p = detector.p_values(FRESH)
        np.testing.assert_array_equal(p <= 0.05, detector.predict(FRESH) == -1)

    def test_after_folds_p_values_are_exact(self):
        detector = KNNDetector(calibration=4, target_fpr=0.1).fit(NORMAL)
        scores = detector.score_samples(OUTLIERS)
        detector.calibrate(FRESH)
        np.testing.assert_array_equal(detector.score_samples(OUTLIERS), scores)
        assert len(detector.calibration_scores_) == 400
        assert (detector.predict_fdr(OUTLIERS) == -1).all()

    def test_without_a_rate_the_threshold_stays(self):
        detector = KNNDetector().fit(NORMAL)
        offset = detector.offset_
        assert detector.calibrate(FRESH).offset_ == offset
        assert (detector.p_values(OUTLIERS) == 1 / 401).all()

    def test_too_few_change_nothing(self):
        detector = KNNDetector().fit(NORMAL)
        with pytest.raises(ValueError, match=r"rate of 0\.01 needs 99 calibration samples; got 50"):
            detector.calibrate(FRESH[:50], target_fpr=0.01)
        assert detector.calibration_scores_ is None
        made = extract(load_encoder(mlp(5), precision="float64"), FRESH)
        with pytest.raises(ValueError, match="X holds none"):
            JEPAScoreDetector(formula="jepa").fit(made).calibrate(made[:0])


class TestFalseDiscoveries:
    def test_outliers_are_found_among_normal_samples(self):
        detector = MahalanobisDetector().fit(FRESH).calibrate(RNG.normal(size=(3000, 5)))
        mixed = np.concatenate([NORMAL, OUTLIERS])
        flagged = detector.predict_fdr(mixed, level=0.1) == -1
        assert flagged[200:].all()
        assert flagged[:200].sum() <= 0.2 * flagged.sum()

    def test_folds_are_refused(self):
        with pytest.raises(ValueError, match="p-values of held-out samples"):
            KNNDetector(calibration=4).fit(NORMAL).predict_fdr(OUTLIERS)

    def test_too_few_calibration_samples_are_said(self):
        detector = MahalanobisDetector(calibration=0.1).fit(NORMAL)
        with pytest.warns(UserWarning, match="give 3999 calibration samples"):
            detector.predict_fdr(FRESH, level=0.1)


@pytest.mark.slow
class TestValidity:
    """Over 200 draws of fit and calibration samples."""

    def test_split_form_has_its_exact_law(self):
        """Flagged of m new samples: beta-binomial(m, k, n + 1 - k), k = floor(alpha (n + 1)) - 1 flagged of n."""
        rng, m, n, alpha = np.random.default_rng(0), 100, 99, 0.1
        k = int(alpha * (n + 1))
        flagged = []
        for _ in range(200):
            detector = MahalanobisDetector().fit(rng.normal(size=(50, 3))).calibrate(rng.normal(size=(n, 3)), alpha)
            flagged.append((detector.predict(rng.normal(size=(m, 3))) == -1).sum())
        law = betabinom(m, k, n + 1 - k)
        # Jittered to a continuous law, for which the Kolmogorov-Smirnov test is exact.
        uniform = law.cdf(np.array(flagged) - 1) + rng.random(200) * law.pmf(flagged)
        assert kstest(uniform, "uniform").pvalue > 0.01
        narrower = np.random.default_rng(1).binomial(m, alpha, 200)  # the test would see the plain binomial
        uniform = law.cdf(narrower - 1) + rng.random(200) * law.pmf(narrower)
        assert kstest(uniform, "uniform").pvalue < 0.01

    @pytest.mark.parametrize("folds", [2, 5])
    def test_folds_hold_the_rate(self, folds):
        rng, rates = np.random.default_rng(0), []
        for _ in range(200):
            detector = KNNDetector(n_neighbors=3, calibration=folds, target_fpr=0.1).fit(rng.normal(size=(60, 3)))
            rates.append((detector.predict(rng.normal(size=(100, 3))) == -1).mean())
        assert 0.05 < np.mean(rates) < 0.1 + 3 * np.std(rates) / np.sqrt(200)

    def test_false_discovery_rate(self):
        rng, shares = np.random.default_rng(0), []
        for _ in range(200):
            detector = MahalanobisDetector().fit(rng.normal(size=(100, 3))).calibrate(rng.normal(size=(499, 3)))
            mixed = np.concatenate([rng.normal(size=(80, 3)), rng.normal(size=(20, 3)) + 4])
            flagged = detector.predict_fdr(mixed, level=0.2) == -1
            shares.append(flagged[:80].sum() / max(flagged.sum(), 1))
        assert np.mean(shares) < 0.2 + 3 * np.std(shares) / np.sqrt(200)
