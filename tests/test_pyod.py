"""What PyOD and ADBench ask of a detector; PyOD's own formulas are the reference for probabilities and confidence."""

import joblib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.testing import assert_allclose, assert_array_equal
from oracles import conv_net, mlp, random_images
from PIL import Image
from pyod.models.base import BaseDetector
from pyod.models.knn import KNN
from pyod.utils.data import generate_data
from pyod.utils.utility import check_detector, standardizer
from scipy.stats import rankdata
from sklearn.base import BaseEstimator, clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from skjepa import JEPAScoreDetector, VectorJEPA, extract, load_encoder
from skjepa.detectors.baselines import KNNDetector, MahalanobisDetector
from skjepa.pyod import ADBenchModel, PyODDetector

X_TRAIN, X_TEST, Y_TRAIN, Y_TEST = generate_data(n_train=200, n_test=100, contamination=0.1, random_state=42)
ENCODER = load_encoder(mlp(n_inputs=2), precision="float64")
DETECTORS = {
    "trained encoder": JEPAScoreDetector(VectorJEPA(n_steps=20)),
    "frozen encoder": JEPAScoreDetector(ENCODER),
    "Mahalanobis": MahalanobisDetector(),
    "IsolationForest": IsolationForest(random_state=0),
    "pipeline": make_pipeline(StandardScaler(), LocalOutlierFactor(novelty=True)),
}
IMAGES = random_images(20)


class ColumnDetector(BaseEstimator):
    """Minus the first column is the score; every call of `score_samples` is counted."""

    offset_ = -0.5

    def fit(self, X, y=None):
        self.calls_ = 0
        return self

    def score_samples(self, X):
        self.calls_ += 1
        return -np.asarray(X, dtype=float)[:, 0]


class HalfRange:
    """A thresholder in the manner of pythresh: above the middle of the range is an outlier."""

    def fit(self, scores):
        self.thresh_ = (scores.min() + scores.max()) / 2
        self.labels_ = self.predict(scores)
        return self

    def predict(self, scores):
        return (scores > self.thresh_).astype(int)


@pytest.fixture(scope="module", params=DETECTORS)
def fitted(request):
    return PyODDetector(DETECTORS[request.param], contamination=0.1).fit(X_TRAIN)


@pytest.fixture(scope="module")
def frozen():
    return PyODDetector(DETECTORS["frozen encoder"], contamination=0.1).fit(X_TRAIN)


@pytest.fixture(scope="module")
def of_images():
    return PyODDetector(JEPAScoreDetector(load_encoder(conv_net(8), image_size=32))).fit(IMAGES)


class TestContractOfPyOD:
    """The assertions of PyOD's tests of its KNN."""

    def test_attributes_of_a_fit(self, fitted):
        assert isinstance(fitted, BaseDetector)
        check_detector(fitted)
        assert fitted.decision_scores_.shape == (200,)
        assert np.isfinite([fitted.threshold_, fitted._mu, fitted._sigma]).all()
        assert set(fitted.labels_) == {0, 1}
        assert fitted.labels_.sum() == 20

    def test_training_scores_are_those_of_the_training_samples(self, fitted):
        assert_allclose(fitted.decision_function(X_TRAIN), fitted.decision_scores_, rtol=1e-6, atol=1e-9)
        assert_array_equal(fitted.predict(X_TRAIN), fitted.labels_)

    def test_higher_is_more_abnormal(self, fitted):
        scores = fitted.decision_function(X_TEST)
        assert scores.shape == Y_TEST.shape
        assert roc_auc_score(Y_TEST, scores) >= 0.8

    def test_labels(self, fitted):
        labels = fitted.predict(X_TEST)
        assert labels.dtype.kind == "i"
        assert_array_equal(labels, fitted.decision_function(X_TEST) > fitted.threshold_)

    @pytest.mark.parametrize("method", ["linear", "unify"])
    def test_probabilities(self, fitted, method):
        probabilities, confidence = fitted.predict_proba(X_TEST, method=method, return_confidence=True)
        assert_allclose(probabilities, BaseDetector.predict_proba(fitted, X_TEST, method=method), atol=1e-12)
        assert_allclose(probabilities.sum(axis=1), 1)
        assert_array_equal(confidence, fitted.predict_confidence(X_TEST))
        assert 0 <= probabilities.min() <= probabilities.max() <= 1

    def test_unknown_method_of_probabilities(self, fitted):
        with pytest.raises(ValueError, match="method must be one of 'linear', 'unify'; got 'something'"):
            fitted.predict_proba(X_TEST, method="something")

    def test_confidence(self, fitted):
        labels, confidence = fitted.predict(X_TEST, return_confidence=True)
        assert_array_equal(labels, fitted.predict(X_TEST))
        assert_allclose(confidence, BaseDetector.predict_confidence(fitted, X_TEST), atol=1e-12)
        assert 0 <= confidence.min() <= confidence.max() <= 1

    def test_rejection(self, fitted):
        labels = fitted.predict_with_rejection(X_TEST, T=3)
        expected = BaseDetector.predict_with_rejection(fitted, X_TEST, T=3, c_r=1)
        assert_array_equal(labels, expected)
        assert_array_equal(labels[labels != -2], fitted.predict(X_TEST)[labels != -2])
        assert (fitted.predict_with_rejection(X_TEST) == -2).sum() >= (labels == -2).sum()

    def test_statistics_of_rejection(self, fitted):
        labels, (share, bound, cost) = fitted.predict_with_rejection(X_TEST, return_stats=True)
        assert labels.shape == Y_TEST.shape
        assert 0 <= share <= bound <= 1
        assert cost >= 0

    @pytest.mark.parametrize("normalized", [False, True])
    def test_ranks(self, fitted, normalized):
        ranks = fitted._predict_rank(X_TEST, normalized=normalized)
        assert_allclose(rankdata(ranks), rankdata(fitted.decision_function(X_TEST)), atol=3)
        assert 0 <= ranks.min() <= ranks.max() <= (1 if normalized else 200)

    def test_clone_is_unfitted(self, fitted):
        copy = clone(fitted)
        assert repr(copy) == repr(fitted)
        with pytest.raises(NotFittedError):
            copy.predict(X_TEST)

    @pytest.mark.filterwarnings("ignore:Function fit_predict:FutureWarning")
    def test_fit_predict(self, frozen):
        assert_array_equal(clone(frozen).fit_predict(X_TRAIN), frozen.labels_)

    @pytest.mark.filterwarnings("ignore:Function fit_predict_score:FutureWarning")
    def test_fit_predict_score(self, frozen):
        copy = clone(frozen)
        assert copy.fit_predict_score(X_TEST, Y_TEST) == roc_auc_score(Y_TEST, copy.decision_scores_)
        assert 0 <= copy.fit_predict_score(X_TEST, Y_TEST, scoring="prc_n_score") <= 1
        with pytest.raises(NotImplementedError):
            copy.fit_predict_score(X_TEST, Y_TEST, scoring="something")


@settings(max_examples=30)
@given(
    train=arrays(np.float64, st.integers(2, 40), elements=st.floats(-100, 100, width=16), unique=True),
    test=arrays(np.float64, st.integers(1, 10), elements=st.floats(-200, 200, width=16)),
    contamination=st.floats(0.01, 0.5),
)
def test_labels_probabilities_and_confidence_are_those_of_pyod(train, test, contamination):
    clf = PyODDetector(ColumnDetector(), contamination=contamination).fit(train[:, None])
    X = test[:, None]
    assert_array_equal(clf.predict(X), BaseDetector.predict(clf, X))
    assert_allclose(clf.predict_confidence(X), BaseDetector.predict_confidence(clf, X), atol=1e-12)
    for method in ("linear", "unify"):
        assert_allclose(clf.predict_proba(X, method), BaseDetector.predict_proba(clf, X, method), atol=1e-12)


class TestParameters:
    def test_default_is_the_detector_of_this_package(self):
        clf = PyODDetector().fit(X_TRAIN[:30])
        assert isinstance(clf.detector_, JEPAScoreDetector)
        assert clf.labels_.sum() == 3

    def test_nested_parameters_and_the_detector_given(self, frozen):
        copy = clone(frozen).set_params(detector__formula="jepa", contamination=0.2)
        assert frozen.detector.formula == "joint"
        assert copy.fit(X_TRAIN).detector_.formula == "jepa"
        assert copy.labels_.sum() == 40
        assert not hasattr(copy.detector, "offset_")

    @pytest.mark.parametrize("share", [0, 0.6, -1, float("nan"), True])
    def test_contamination_out_of_range(self, share, frozen):
        with pytest.raises(ValueError, match="contamination must be in"):
            PyODDetector(contamination=share)
        with pytest.raises((ValueError, TypeError), match=r"contamination must (lie in \(0, 0.5\]|be a number); got"):
            clone(frozen).set_params(contamination=share).fit(X_TRAIN)

    @pytest.mark.parametrize("share", ["many", [0.1], {}])
    def test_contamination_of_another_kind(self, share):
        with pytest.raises(TypeError, match="contamination must be a number"):
            PyODDetector(ColumnDetector(), contamination=share).fit(X_TRAIN)

    def test_contamination_of_numpy(self):
        clf = PyODDetector(ColumnDetector(), contamination=np.float32(0.1)).fit(X_TRAIN)
        assert clf.labels_.sum() == 20
        assert clf.predict_confidence(X_TEST).shape == (100,)

    def test_threshold_of_the_detector(self):
        detector = JEPAScoreDetector(ENCODER, target_fpr=0.05, calibration=0.3)
        clf = PyODDetector(detector, contamination=None).fit(X_TRAIN)
        expected = clone(detector).fit(X_TRAIN).predict(X_TEST) == -1
        assert_array_equal(clf.predict(X_TEST), expected)
        confidence = clf.predict_confidence(X_TEST)
        assert 0 <= confidence.min() <= confidence.max() <= 1
        assert set(clf.predict_with_rejection(X_TEST)) <= {-2, 0, 1}
        with pytest.raises(ValueError, match="statistics of rejection need contamination as a number; got None"):
            clf.predict_with_rejection(X_TEST, return_stats=True)

    def test_threshold_of_a_detector_that_has_none(self):
        with pytest.raises(ValueError, match="Pipeline has no offset_: give contamination as a number"):
            PyODDetector(DETECTORS["pipeline"], contamination=None).fit(X_TRAIN)

    def test_thresholder(self):
        rule = HalfRange()
        clf = PyODDetector(ColumnDetector(), contamination=rule).fit(X_TRAIN)
        middle = (X_TRAIN[:, 0].min() + X_TRAIN[:, 0].max()) / 2
        assert clf.threshold_ == middle
        assert_array_equal(clf.labels_, X_TRAIN[:, 0] > middle)
        assert_array_equal(clf.predict(X_TEST), X_TEST[:, 0] > middle)
        assert clf.predict_confidence(X_TEST).shape == (100,)
        assert not hasattr(rule, "thresh_")

    @pytest.mark.parametrize("detector", [LocalOutlierFactor(), KNN(), JEPAScoreDetector, "knn", 3])
    def test_what_is_no_detector(self, detector):
        with pytest.raises(TypeError, match="detector must be an outlier detector with fit and score_samples"):
            PyODDetector(detector).fit(X_TRAIN)

    def test_a_failed_fit_leaves_the_old_one(self, frozen):
        clf = clone(frozen).fit(X_TRAIN)
        for bad in (X_TRAIN[:1], np.full((5, 2), np.nan)):
            with pytest.raises(ValueError, match=r"sample|NaN|finite"):
                clf.fit(bad)
        assert_array_equal(clf.predict(X_TEST), frozen.predict(X_TEST))
        assert_array_equal(clf.labels_, frozen.labels_)


class TestLabelsGiven:
    @pytest.mark.parametrize("y", [np.zeros(200), Y_TRAIN, np.arange(200) % 5])
    def test_are_ignored_in_silence(self, frozen, y):
        clf = clone(frozen).fit(X_TRAIN, y)
        assert_array_equal(clf.predict_proba(X_TEST), frozen.predict_proba(X_TEST))

    def test_reach_a_detector_that_asks_for_them(self):
        y = (X_TRAIN[:, 0] > np.median(X_TRAIN[:, 0])).astype(int)
        clf = PyODDetector(MahalanobisDetector(relative=True)).fit(X_TRAIN, y)
        expected = -MahalanobisDetector(relative=True).fit(X_TRAIN, y).score_samples(X_TEST)
        assert_array_equal(clf.decision_function(X_TEST), expected)


class TestOnePass:
    METHODS = (
        lambda clf, X: clf.predict(X),
        lambda clf, X: clf.predict(X, return_confidence=True),
        lambda clf, X: clf.predict_confidence(X),
        lambda clf, X: clf.predict_proba(X, return_confidence=True),
        lambda clf, X: clf.predict_proba(X, method="unify"),
        lambda clf, X: clf.predict_with_rejection(X, return_stats=True),
    )

    @pytest.mark.parametrize("method", METHODS)
    def test_samples_are_scored_once(self, method):
        clf = PyODDetector(ColumnDetector()).fit(X_TRAIN)
        before = clf.detector_.calls_
        method(clf, X_TEST)
        assert clf.detector_.calls_ == before + 1

    def test_images_go_through_the_encoder_once(self):
        passed = []

        class Counting(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = conv_net(8)

            def forward(self, x):
                passed.append(len(x))
                return self.net(x)

        def through(call):
            passed.clear()
            call()
            return sum(passed)

        detector = JEPAScoreDetector(load_encoder(Counting(), image_size=32))
        looked = clone(detector)  # the encoder and its layers are looked at once
        through(lambda: looked.fit(IMAGES))
        through(lambda: looked.predict(IMAGES))
        once = through(lambda: clone(detector).fit(IMAGES))
        clf = PyODDetector(detector)
        assert through(lambda: clf.fit(IMAGES)) == once >= 20
        assert through(lambda: clf.predict(IMAGES, return_confidence=True)) == once
        assert through(lambda: clf.predict_with_rejection(IMAGES)) == once


class TestInputs:
    def test_images(self, of_images):
        assert of_images.labels_.sum() == 2
        assert_allclose(of_images.decision_function(IMAGES), of_images.decision_scores_, rtol=1e-6)

    def test_lists_and_folders_of_images(self, of_images, tmp_path):
        pictures = [Image.fromarray(image) for image in IMAGES]
        for i, picture in enumerate(pictures):
            picture.save(tmp_path / f"{i:02}.png")
        expected = of_images.predict_proba(IMAGES)
        for X in (pictures, list(IMAGES), tmp_path, sorted(tmp_path.iterdir())):
            assert_allclose(of_images.predict_proba(X), expected, atol=1e-6)
        assert_allclose(clone(of_images).fit(tmp_path).decision_scores_, of_images.decision_scores_, rtol=1e-6)

    def test_extraction(self, of_images):
        extraction = extract(of_images.detector.encoder, IMAGES)
        clf = clone(of_images).fit(extraction)
        assert_allclose(clf.decision_scores_, of_images.decision_scores_, rtol=1e-6)
        assert_allclose(clf.predict_proba(extraction), of_images.predict_proba(IMAGES), atol=1e-6)

    def test_names_of_columns_are_kept(self, frozen):
        pd = pytest.importorskip("pandas")
        frame = pd.DataFrame(X_TRAIN).rename(columns=str)
        clf = clone(frozen).fit(frame)
        np.testing.assert_array_equal(clf.decision_function(frame), frozen.decision_function(X_TRAIN))
        with pytest.raises(ValueError, match="feature names should match"):
            clf.predict(frame[frame.columns[::-1]])

    def test_lists_of_numbers(self, frozen):
        clf = clone(frozen).fit(X_TRAIN.tolist())
        assert_array_equal(clf.decision_scores_, frozen.decision_scores_)
        for method in ("linear", "unify"):
            expected = frozen.predict_proba(X_TEST, method=method)
            assert_allclose(clf.predict_proba(X_TEST.tolist(), method=method), expected, atol=1e-9)

    @pytest.mark.filterwarnings("ignore:skipped:UserWarning")
    def test_images_that_cannot_be_read(self, of_images, tmp_path):
        for i, image in enumerate(IMAGES):
            Image.fromarray(image).save(tmp_path / f"{i:02}.png")
        (tmp_path / "05.png").write_bytes(b"no picture")
        clf = clone(of_images).set_params(detector__on_error="skip").fit(tmp_path)
        scores, labels = clf.decision_function(tmp_path), clf.predict(tmp_path)
        probabilities, confidence = clf.predict_proba(tmp_path, return_confidence=True)
        rejected = clf.predict_with_rejection(tmp_path)
        broken = np.arange(20) == 5
        for values in (clf.decision_scores_, scores, confidence, probabilities[:, 0], probabilities[:, 1]):
            assert_array_equal(np.isnan(values), broken)
        read = np.delete(IMAGES, 5, axis=0)
        alone = clone(of_images).fit(read)
        assert_allclose(clf.threshold_, alone.threshold_, rtol=1e-6)
        assert_allclose(clf.predict_confidence(read), alone.predict_confidence(read), atol=1e-6)
        assert labels[broken] == clf.labels_[broken] == rejected[broken] == 1
        assert_array_equal(labels[~broken], alone.predict(read))

    def test_equal_scores(self):
        clf = PyODDetector(ColumnDetector()).fit(np.ones((20, 1)))
        assert clf.labels_.sum() == 0
        assert_array_equal(clf.predict_proba([[0.0], [1.0], [3.0]], method="unify")[:, 1], [0, 0, 1])


class TestSaving:
    def test_joblib(self, fitted, tmp_path):
        joblib.dump(fitted, tmp_path / "clf.joblib")
        again = joblib.load(tmp_path / "clf.joblib")
        assert_array_equal(again.labels_, fitted.labels_)
        assert_allclose(again.predict_proba(X_TEST), fitted.predict_proba(X_TEST), atol=1e-9)

    def test_persistence_of_pyod(self, frozen, tmp_path):
        persistence = pytest.importorskip("pyod.utils.persistence", reason="PyOD of before 3.6")
        persistence.save(frozen, tmp_path / "clf.joblib")
        again = persistence.load(tmp_path / "clf.joblib", trusted=True)
        assert_allclose(again.decision_function(X_TEST), frozen.decision_function(X_TEST), rtol=1e-9)


class TestAmongOthers:
    """Ensembles and pipelines of PyOD's."""

    def members(self):
        return [PyODDetector(DETECTORS["frozen encoder"]), PyODDetector(MahalanobisDetector()), KNN()]

    def test_standardised_scores(self):
        members = [clf.fit(X_TRAIN) for clf in self.members()]
        train = np.column_stack([clf.decision_scores_ for clf in members])
        test = np.column_stack([clf.decision_function(X_TEST) for clf in members])
        _, standardised = standardizer(train, test)
        assert roc_auc_score(Y_TEST, standardised.mean(axis=1)) > 0.8
        assert roc_auc_score(Y_TEST, standardised.max(axis=1)) > 0.8

    def test_lscp(self):
        from pyod.models.lscp import LSCP

        clf = LSCP(self.members(), n_bins=3, random_state=0).fit(X_TRAIN)
        assert clf.labels_.sum() == 20
        assert roc_auc_score(Y_TEST, clf.decision_function(X_TEST)) > 0.8

    @pytest.mark.parametrize("name", ["average", "maximization", "median"])
    def test_combination(self, name):
        pytest.importorskip("combo", reason="the package that combines scores for PyOD")
        from pyod.models import combination

        scores = np.column_stack([clf.fit(X_TRAIN).decision_function(X_TEST) for clf in self.members()])
        assert roc_auc_score(Y_TEST, getattr(combination, name)(standardizer(scores))) > 0.8

    def test_feature_bagging(self):
        pytest.importorskip("combo", reason="the package that combines scores for PyOD")
        from pyod.models.feature_bagging import FeatureBagging

        X, unseen = np.hstack([X_TRAIN, X_TRAIN**2]), np.hstack([X_TEST, X_TEST**2])
        clf = FeatureBagging(PyODDetector(KNNDetector()), n_estimators=3, random_state=0, check_detector=True).fit(X)
        assert roc_auc_score(Y_TEST, clf.decision_function(unseen)) > 0.8

    def test_suod(self):
        pytest.importorskip("suod", reason="the package that PyOD's SUOD is a face of")
        from pyod.models.suod import SUOD

        options = {"rp_flag_global": False, "bps_flag": False, "approx_flag_global": False, "n_jobs": 1}
        clf = SUOD(self.members(), combination="average", **options).fit(X_TRAIN)
        assert roc_auc_score(Y_TEST, clf.decision_function(X_TEST)) > 0.8

    def test_embeddings_of_an_encoder_of_ours(self):
        embedding = pytest.importorskip("pyod.models.embedding", reason="PyOD of before 3")
        encoder = load_encoder(conv_net(8), image_size=32)
        clf = embedding.EmbeddingOD(lambda X: extract(encoder, X).embeddings, PyODDetector(MahalanobisDetector()))
        clf.fit(list(IMAGES))
        assert clf.labels_.sum() == 2
        assert clf.predict_proba(list(IMAGES[:3])).shape == (3, 2)

    def test_embeddings_of_theirs_before_a_detector_of_ours(self):
        embedding = pytest.importorskip("pyod.models.embedding", reason="PyOD of before 3")
        clf = embedding.EmbeddingOD(np.asarray, PyODDetector(DETECTORS["trained encoder"])).fit(X_TRAIN)
        assert roc_auc_score(Y_TEST, clf.decision_function(X_TEST)) > 0.8


class TestADBench:
    @pytest.mark.parametrize("name", ADBenchModel.models)
    def test_models(self, name):
        model = ADBenchModel(seed=np.int64(1), model_name=name)
        assert model.fit(X_train=X_TRAIN[:60], y_train=np.zeros(60)) is model
        scores = model.predict_score(X_TEST)
        assert scores.shape == (100,)
        assert np.isfinite(scores).all()
        assert_array_equal(scores, -model.detector_.score_samples(X_TEST))

    def test_known_outliers_are_not_learned_from(self):
        model = ADBenchModel(0, "mahalanobis").fit(X_TRAIN, Y_TRAIN)
        assert model.detector_.n_samples_fit_ == (Y_TRAIN == 0).sum()
        expected = ADBenchModel(0, "mahalanobis").fit(X_TRAIN[Y_TRAIN == 0])
        assert_array_equal(model.predict_score(X_TEST), expected.predict_score(X_TEST))

    def test_the_name_that_adbench_gives(self):
        class Neighbours(ADBenchModel):
            default = "knn"

        for name in (None, "Customized"):
            assert ADBenchModel(seed=0, model_name=name).model_name == "joint"
            assert Neighbours(seed=0, model_name=name).model_name == "knn"

    def test_bad_input(self):
        with pytest.raises(ValueError, match="model_name must be one of 'joint'"):
            ADBenchModel(0, "COPOD")
        with pytest.raises(ValueError, match="y_train must hold one label per row: 200 rows, labels of shape"):
            ADBenchModel(0, "knn").fit(X_TRAIN, Y_TEST)
        with pytest.raises(NotFittedError, match="not fitted yet"):
            ADBenchModel(0).predict_score(X_TEST)

    def test_a_set_of_adbench(self, shared_data):
        with np.load(sorted((shared_data / "adbench").glob("*_Stamps.npz"))[0]) as data:
            X, y = data["X"], data["y"]
        order = np.random.default_rng(0).permutation(len(y))
        fit, test = order[: len(y) // 2], order[len(y) // 2 :]
        known = np.where(np.arange(len(fit)) % 2, y[fit], 0)  # every second label; the others are taken for normal
        for name in ("joint", "mahalanobis"):
            scores = ADBenchModel(seed=1, model_name=name).fit(X[fit], known).predict_score(X[test])
            assert roc_auc_score(y[test], scores) > 0.8
