"""scikit-learn's own checks, no failure expected, and the same assertions for frozen encoders, which have one width."""

import copy
import io
import pickle

import joblib
import numpy as np
import pytest
from oracles import conv_net, mlp, random_images
from sklearn.base import clone
from sklearn.model_selection import cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils.estimator_checks import parametrize_with_checks

from skjepa import (
    EmbeddingDetector,
    JEPAScoreDetector,
    KNNDetector,
    MahalanobisDetector,
    NormalKFold,
    VectorJEPA,
    load_encoder,
)

SMALL = VectorJEPA(n_components=4, widths=(16,), n_steps=20)


@parametrize_with_checks([JEPAScoreDetector(), JEPAScoreDetector(SMALL), MahalanobisDetector(), KNNDetector()])
def test_scikit_learns_checks(estimator, check):
    check(estimator)


X = np.random.default_rng(0).normal(size=(300, 6))
FROZEN = {
    "vectors": (JEPAScoreDetector(load_encoder(mlp(6), precision="float64")), X),
    "images": (JEPAScoreDetector(load_encoder(conv_net(), image_size=32, precision="float64")), random_images(30)),
    "adapter": (EmbeddingDetector(KNNDetector()), X),
}


@pytest.mark.parametrize("name", FROZEN)
class TestFrozen:
    """What `parametrize_with_checks` asserts of an outlier detector, with data of the width that it takes."""

    def test_outliers_train(self, name):
        detector, data = FROZEN[name]
        detector = clone(detector).set_params(contamination=0.1).fit(data)
        labels, decision, scores = (
            detector.predict(data),
            detector.decision_function(data),
            detector.score_samples(data),
        )
        assert set(labels) == {-1, 1}
        assert labels.dtype.kind == "i"
        np.testing.assert_array_equal(decision, scores - detector.offset_)
        np.testing.assert_array_equal(labels, np.where(decision >= 0, 1, -1))
        assert (labels == -1).sum() == len(data) // 10
        np.testing.assert_array_equal(clone(detector).fit_predict(data), labels)

    def test_notebooks_show_a_diagram(self, name):
        """Fitted or not, alone and as the end of a pipeline."""
        detector, data = FROZEN[name]
        fitted = clone(detector).fit(data)
        for shown in (detector, fitted, make_pipeline(FunctionTransformer(), fitted)):
            page = shown._repr_html_()
            assert type(detector).__name__ in page
            assert shown._repr_mimebundle_()["text/html"]

    def test_subsets_and_order(self, name):
        detector, data = FROZEN[name]
        scores = clone(detector).fit(data).score_samples
        whole, order = scores(data), np.random.default_rng(1).permutation(len(data))
        np.testing.assert_allclose(scores(data[order]), whole[order], rtol=1e-7, atol=1e-7)
        alone = np.concatenate([scores(data[[i]]) for i in range(10)])
        np.testing.assert_allclose(alone, whole[:10], rtol=1e-7, atol=1e-7)

    def test_predict_leaves_the_estimator_alone(self, name):
        detector, data = FROZEN[name]
        detector = clone(detector).fit(data)
        before = dict(vars(detector))
        detector.predict(data)
        assert vars(detector).keys() == before.keys()
        assert all(vars(detector)[key] is value for key, value in before.items())

    def test_copies(self, name):
        detector, data = FROZEN[name]
        detector = clone(detector).fit(data)
        buffer = io.BytesIO()
        joblib.dump(detector, buffer)
        buffer.seek(0)
        for twin in (pickle.loads(pickle.dumps(detector)), copy.deepcopy(detector), joblib.load(buffer)):
            np.testing.assert_array_equal(twin.score_samples(data), detector.score_samples(data))

    def test_lists_and_read_only_memory(self, name, tmp_path):
        detector, data = FROZEN[name]
        expected = clone(detector).fit(data).score_samples(data)
        np.testing.assert_array_equal(clone(detector).fit(list(data)).score_samples(list(data)), expected)
        np.save(tmp_path / "data.npy", data)
        mapped = np.load(tmp_path / "data.npy", mmap_mode="r")
        np.testing.assert_array_equal(clone(detector).fit(mapped).score_samples(mapped), expected)

    def test_y_is_ignored(self, name):
        detector, data = FROZEN[name]
        expected = clone(detector).fit(data).score_samples(data)
        np.testing.assert_array_equal(clone(detector).fit(data, "anything").score_samples(data), expected)


def test_the_encoder_is_shared_by_clones():
    encoder = load_encoder(conv_net(), image_size=32)
    assert clone(JEPAScoreDetector(encoder)).encoder is encoder


def test_folds_share_one_encoder():
    """Their memory does not grow by an encoder each."""
    encoder = load_encoder(conv_net(), image_size=32)
    data, y = random_images(24), np.repeat([1, -1], 12)
    folds = cross_validate(
        JEPAScoreDetector(encoder), data, y, cv=NormalKFold(3), scoring="roc_auc", return_estimator=True
    )
    assert all(fitted.encoder_ is encoder for fitted in folds["estimator"])


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.ones((5, 7)), "X has 7 features, but .* is expecting 6 features"),
        (np.full((5, 6), np.nan), "contains NaN"),
        (np.ones(6), "Reshape your data"),
        ([["a"] * 6], "could not convert string to float|must be"),
    ],
)
@pytest.mark.parametrize("name", ["vectors", "adapter"])
def test_bad_vectors_after_fit(name, bad, message):
    detector, data = FROZEN[name]
    detector = clone(detector).fit(data)
    with pytest.raises((ValueError, TypeError), match=message):
        detector.predict(bad)


@pytest.mark.parametrize("make", [JEPAScoreDetector, MahalanobisDetector, KNNDetector])
def test_constant_columns_are_no_obstacle(make):
    rows = np.column_stack([X, np.ones(len(X))])
    assert np.isfinite(make().fit(rows).score_samples(rows)).all()


@pytest.mark.parametrize("make", [JEPAScoreDetector, MahalanobisDetector, KNNDetector])
def test_a_failed_refit_changes_nothing(make):
    detector = make().fit(X)
    before = detector.score_samples(X)
    for bad in (np.ones((5, 3)) * np.nan, [[1.0, 2.0]]):
        with pytest.raises(ValueError, match=r"NaN|minimum of 2"):
            detector.fit(bad)
        assert detector.n_features_in_ == 6
        np.testing.assert_array_equal(detector.score_samples(X), before)
