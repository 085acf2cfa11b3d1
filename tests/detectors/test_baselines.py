import numpy as np
import pytest
from oracles import conv_net, mlp, random_images
from PIL import Image
from pyod.models.ecod import ECOD
from pyod.models.knn import KNN
from sklearn.covariance import MinCovDet
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor
from sklearn.preprocessing import normalize

from skjepa import ComplexityDetector, EmbeddingDetector, KNNDetector, MahalanobisDetector, extract, load_encoder
from skjepa.detectors.complexity import bits_per_pixel
from skjepa.extraction.store.settings import SettingsMismatchError

RNG = np.random.default_rng(0)
NORMAL, FRESH = RNG.normal(size=(300, 4)), RNG.normal(size=(50, 4))


def test_mahalanobis_is_the_squared_distance():
    centred = FRESH - NORMAL.mean(axis=0)
    expected = np.einsum("ij,jk,ik->i", centred, np.linalg.inv(np.cov(NORMAL.T, bias=True)), centred)
    np.testing.assert_allclose(-MahalanobisDetector().fit(NORMAL).score_samples(FRESH), expected, rtol=1e-8)


def test_mahalanobis_plus_plus_forgets_length():
    detector = MahalanobisDetector(normalize=True).fit(NORMAL)
    np.testing.assert_allclose(detector.score_samples(FRESH), detector.score_samples(3 * FRESH), rtol=1e-8)
    expected = MahalanobisDetector().fit(normalize(NORMAL)).score_samples(normalize(FRESH))
    np.testing.assert_allclose(detector.score_samples(FRESH), expected)


def test_mahalanobis_does_not_depend_on_units():
    units = np.array([1.0, 1e10, 1e-10, 1e-120])
    expected = MahalanobisDetector().fit(NORMAL).score_samples(FRESH)
    np.testing.assert_allclose(MahalanobisDetector().fit(NORMAL * units).score_samples(FRESH * units), expected)


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_a_constant_column_that_changes_is_noticed(value):
    known = np.column_stack([NORMAL, np.full(300, value)])
    same, other = (np.column_stack([FRESH, np.full(50, value + change)]) for change in (0.0, 1.0))
    for detector in (MahalanobisDetector(), MahalanobisDetector(covariance=MinCovDet(random_state=0)), KNNDetector()):
        detector.fit(known)
        assert (detector.score_samples(other) < detector.score_samples(same)).all()
    assert (MahalanobisDetector().fit(known).predict(other) == -1).all()


def test_few_samples_are_shrunk():
    scores = MahalanobisDetector().fit(NORMAL[:5]).score_samples(FRESH)
    assert np.isfinite(scores).all()
    assert scores.min() > -1e6


def test_a_covariance_of_ones_own():
    outlying = np.concatenate([NORMAL, np.full((60, 4), 20.0)])
    robust = MahalanobisDetector(covariance=MinCovDet(random_state=0)).fit(outlying)
    assert robust.score_samples([[20.0] * 4])[0] < MahalanobisDetector().fit(outlying).score_samples([[20.0] * 4])[0]
    with pytest.raises(TypeError, match=r"covariance must be an estimator from sklearn\.covariance"):
        MahalanobisDetector(covariance="robust").fit(NORMAL)


class TestRelative:
    CLASSES = np.repeat([0, 1], 150)
    TWO = NORMAL + 8 * CLASSES[:, None] * [1, 0, 0, 0]

    def test_nearest_class_less_the_whole(self):
        detector = MahalanobisDetector(relative=True).fit(self.TWO, self.CLASSES)
        within = np.concatenate([self.TWO[c == self.CLASSES] - self.TWO[c == self.CLASSES].mean(0) for c in (0, 1)])
        inverse = np.linalg.inv(within.T @ within / 300)
        means = [self.TWO[c == self.CLASSES].mean(axis=0) for c in (0, 1)]
        nearest = np.min([np.einsum("ij,jk,ik->i", FRESH - m, inverse, FRESH - m) for m in means], axis=0)
        expected = -MahalanobisDetector().fit(self.TWO).score_samples(FRESH) - nearest
        np.testing.assert_allclose(detector.score_samples(FRESH), expected, rtol=1e-7)

    def test_classes_follow_their_samples_into_folds(self):
        detector = MahalanobisDetector(relative=True, calibration=3, target_fpr=0.1).fit(self.TWO, self.CLASSES)
        assert np.ptp(detector.p_values(FRESH)) > 0

    def test_classes_are_needed(self):
        with pytest.raises(ValueError, match="relative=True needs the class of each normal sample"):
            MahalanobisDetector(relative=True).fit(NORMAL)
        with pytest.raises(ValueError, match="y must hold one value per sample: X has 300 samples, y 2"):
            MahalanobisDetector(relative=True).fit(NORMAL, [0, 1])


def test_nearest_neighbours_are_those_of_a_full_search():
    distances = np.sort(np.linalg.norm(FRESH[:, None] - NORMAL[None], axis=2), axis=1)
    detector = KNNDetector(n_neighbors=7).fit(NORMAL)
    np.testing.assert_allclose(-detector.score_samples(FRESH), distances[:, 6])
    city = KNNDetector(n_neighbors=1, metric="manhattan").fit(NORMAL)
    np.testing.assert_allclose(-city.score_samples(FRESH), np.abs(FRESH[:, None] - NORMAL).sum(2).min(1))


@pytest.mark.parametrize("inner", [ECOD(), KNN(), IsolationForest(random_state=0), LocalOutlierFactor(novelty=True)])
def test_any_detector_keeps_its_ranks_and_gets_our_signs(inner):
    scores = EmbeddingDetector(inner).fit(NORMAL).score_samples(FRESH)
    inner.fit(NORMAL)
    pyod = "pyod" in type(inner).__module__
    expected = -inner.decision_function(FRESH) if pyod else inner.score_samples(FRESH)
    np.testing.assert_allclose(scores, expected)


@pytest.mark.parametrize("inner", [LocalOutlierFactor(), "knn", None])
def test_what_cannot_score_is_refused(inner):
    with pytest.raises(TypeError, match="detector must be a PyOD detector"):
        EmbeddingDetector(inner).fit(NORMAL)


class TestExtraction:
    ENCODER = load_encoder(mlp(4), precision="float64")

    def test_is_its_embeddings(self):
        known, new = extract(self.ENCODER, NORMAL), extract(self.ENCODER, FRESH)
        scores = KNNDetector().fit(known).score_samples(new)
        np.testing.assert_array_equal(KNNDetector().fit(known.embeddings).score_samples(new.embeddings), scores)
        np.testing.assert_array_equal(KNNDetector().fit(known).score_samples(new.embeddings), scores)

    def test_of_another_encoder_is_refused(self):
        other = extract(load_encoder(mlp(4, seed=1), precision="float64"), FRESH)
        with pytest.raises(SettingsMismatchError, match="fingerprint"):
            KNNDetector().fit(extract(self.ENCODER, NORMAL)).score_samples(other)
        with pytest.raises(ValueError, match="X has 6 features, but KNNDetector is expecting 4"):
            KNNDetector().fit(NORMAL).score_samples(other)

    def test_images_are_extracted(self):
        with pytest.raises(TypeError, match="fitted on rows of numbers, and X holds images"):
            KNNDetector().fit(NORMAL).predict(random_images(4))
        made = extract(load_encoder(conv_net(), image_size=32), random_images(6))
        assert MahalanobisDetector().fit(made).predict(made).shape == (6,)


class TestComplexity:
    NOISE = random_images(20)

    def test_simple_images_score_higher_in_every_form(self):
        flat = np.full((2, 32, 32, 3), 128, dtype=np.uint8)
        detector = ComplexityDetector(calibration=0.5, target_fpr=0.2).fit(self.NOISE)
        assert detector.score_samples(flat).min() > detector.score_samples(self.NOISE).max()
        images = [Image.fromarray(image) for image in self.NOISE]
        np.testing.assert_array_equal(detector.score_samples(images), detector.score_samples(self.NOISE))
        floats = detector.score_samples(self.NOISE / 255)
        np.testing.assert_array_equal(floats, detector.score_samples(self.NOISE))

    def test_bits_are_those_of_a_file(self, tmp_path):
        bits = bits_per_pixel(self.NOISE[:1])[0]
        Image.fromarray(self.NOISE[0]).save(tmp_path / "image.png", compress_level=9)
        assert bits == 8 * (tmp_path / "image.png").stat().st_size / 32**2

    def test_what_is_no_image_is_refused(self):
        with pytest.raises(ValueError, match="complexity is defined for images"):
            ComplexityDetector().fit(NORMAL)
        with pytest.raises(TypeError, match="reads images, which an Extraction does not hold"):
            ComplexityDetector().fit(extract(load_encoder(mlp(4), precision="float64"), NORMAL))


@pytest.mark.parametrize(
    ("detector", "message"),
    [
        (KNNDetector(n_neighbors=0), "n_neighbors must be at least 1"),
        (MahalanobisDetector(relative="yes"), "relative must be True or False; got 'yes'"),
        (KNNDetector(normalize="yes"), "normalize must be True or False; got 'yes'"),
    ],
)
def test_parameters_are_checked(detector, message):
    with pytest.raises((ValueError, TypeError), match=message):
        detector.fit(NORMAL)
