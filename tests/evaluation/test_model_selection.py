"""Folds that never train on outliers, labels that point the right way, and one encoder pass for a whole grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from oracles import mlp
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import skjepa.extraction.batches.measurement
from skjepa import JEPAScoreDetector, NormalKFold, extract, inlier_labels, load_encoder
from skjepa.jacobian.rows import jacobian

ENCODER = load_encoder(mlp(), precision="float64")
RNG = np.random.default_rng(0)
X = np.concatenate([RNG.normal(size=(90, 12)), RNG.normal(size=(30, 12)) + 1.5])
Y = np.repeat([1, -1], [90, 30])
GRID = {"formula": ["jepa", "density", "joint"], "floor": ["auto", 1e-3], "reference": ["knn", "gaussian"]}


@pytest.fixture
def measured(monkeypatch):
    sizes = []
    monkeypatch.setattr(
        skjepa.extraction.batches.measurement,
        "jacobian",
        lambda f, x, **how: sizes.append(len(x)) or jacobian(f, x, **how),
    )
    return sizes


class TestNormalKFold:
    @given(st.integers(2, 6), st.integers(6, 40), st.integers(6, 20), st.booleans(), st.integers(0, 9))
    def test_partition_of_the_tests_and_normal_training(self, n_splits, n_normal, n_outliers, shuffle, seed):
        y = np.random.default_rng(seed).permutation(np.repeat([1, -1], [n_normal, n_outliers]))
        folds = list(NormalKFold(n_splits, shuffle=shuffle, random_state=seed).split(y, y))
        assert len(folds) == NormalKFold(n_splits).get_n_splits(y, y) == n_splits
        np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in folds])), np.arange(len(y)))
        for train, test in folds:
            assert (y[train] == 1).all()
            assert set(y[test]) == {1, -1}
            # Every normal sample that is not tested is trained on.
            np.testing.assert_array_equal(np.sort(np.append(train, test[y[test] == 1])), np.flatnonzero(y == 1))

    def test_the_seed_decides(self):
        def folds(seed):
            return [test.tolist() for _, test in NormalKFold(3, random_state=seed).split(X, Y)]

        assert folds(0) == folds(0) != folds(1)

    @pytest.mark.parametrize(
        ("y", "message"),
        [
            (None, r"needs y: y must be \+1 for normal samples and -1 for outliers"),
            (
                [0, 0, 0, 1, 1, 1],
                r"\+1 for normal samples and -1 for outliers; got 0, 1\. .* give y=skjepa\.inlier_labels",
            ),
            ([1, 1, 1, 2, -1, -1], r"got -1, 1, 2$"),
            (["a"] * 6, "got a$"),
            ([1] * 6, r"3 folds need at least 3 outliers \(-1\) in y; got 0"),
            ([-1] * 6, r"3 folds need at least 3 normal samples \(\+1\) in y; got 0"),
            ([1, 1, 1, 1, -1, -1], "at least 3 outliers .* got 2"),
        ],
    )
    def test_bad_labels_are_named(self, y, message):
        with pytest.raises(ValueError, match=message):
            list(NormalKFold(3).split(np.zeros(6), y))

    @pytest.mark.parametrize(
        ("y", "normal"),
        [(Y == -1, False), (Y == 1, True), ((Y == -1).astype(int), 0), (np.where(Y == 1, "good", "crack"), "good")],
    )
    def test_labels_of_another_kind_where_the_normal_one_is_named(self, y, normal):
        folds = list(NormalKFold(3, random_state=0, normal=normal).split(X, y))
        for (train, test), (train_too, test_too) in zip(folds, NormalKFold(3, random_state=0).split(X, Y), strict=True):
            assert np.array_equal(train, train_too)
            assert np.array_equal(test, test_too)
            assert (Y[train] == 1).all()

    def test_a_normal_label_that_no_sample_has(self):
        with pytest.raises(ValueError, match="no sample has the normal label 'good'; y holds -1, 1"):
            list(NormalKFold(3, normal="good").split(X, Y))
        with pytest.raises(ValueError, match=r"3 folds need at least 3 normal samples \(0\) in y; got 2"):
            list(NormalKFold(3, normal=0).split(X[:8], [0, 0, 1, 1, 1, 1, 1, 1]))

    @pytest.mark.parametrize(("n_splits", "error"), [(1, ValueError), ("many", TypeError)])
    def test_number_of_folds(self, n_splits, error):
        with pytest.raises(error, match="n_splits must be"):
            list(NormalKFold(n_splits).split(X, Y))


class TestLabels:
    @pytest.mark.parametrize("y", [[0, 1, 0], [False, True, False], [0.0, 1.0, 0.0]])
    def test_conversion(self, y):
        labels = inlier_labels(y)
        assert labels.tolist() == [1, -1, 1]
        assert labels.dtype.kind == "i"

    @pytest.mark.parametrize("y", [[1, -1], [0, 2], ["normal", "outlier"], [0.0, np.nan]])
    def test_others_are_refused(self, y):
        with pytest.raises(ValueError, match=r"labels must be 0 \(normal\) and 1 \(outlier\); got"):
            inlier_labels(y)

    def test_outliers_as_ones_would_turn_the_auroc_round(self):
        """Why the splitter refuses them."""
        zero_one = (Y == -1).astype(int)
        folds = list(StratifiedKFold(3).split(X, Y))
        forest = IsolationForest(n_estimators=20, random_state=0)
        wrong = cross_val_score(forest, X, zero_one, cv=folds, scoring="roc_auc")
        right = cross_val_score(forest, X, inlier_labels(zero_one), cv=folds, scoring="roc_auc")
        np.testing.assert_allclose(wrong, 1 - right)
        assert right.min() > 0.8


class TestOnePassForAGrid:
    def test_twelve_settings_on_an_extraction(self, measured):
        extraction = extract(ENCODER, X)
        search = GridSearchCV(
            JEPAScoreDetector(ENCODER, method="exact"),
            GRID,
            scoring="roc_auc",
            cv=NormalKFold(3, random_state=0),
            refit=False,
            error_score="raise",
        ).fit(extraction, Y)
        assert sum(measured) == len(X)
        assert len(search.cv_results_["params"]) == 12
        # What the search says of a setting is what a fold by hand says, with data in the place of the Extraction.
        folds = NormalKFold(3, random_state=0)
        best = JEPAScoreDetector(ENCODER, method="exact", **search.best_params_)
        by_hand = cross_val_score(best, X, Y, cv=folds, scoring="roc_auc")
        assert search.best_score_ == pytest.approx(by_hand.mean(), abs=1e-12)
        assert search.best_score_ > 0.8

    def test_twelve_settings_on_arrays_with_a_memory(self, measured, tmp_path):
        options = {"scoring": "roc_auc", "cv": NormalKFold(3, random_state=0), "refit": False, "error_score": "raise"}
        detector = JEPAScoreDetector(ENCODER, method="exact", layers=None)
        search = GridSearchCV(clone(detector).set_params(memory=tmp_path), GRID, **options).fit(X, Y)
        assert sum(measured) == len(X)
        expected = GridSearchCV(detector, GRID, **options).fit(extract(ENCODER, X, layers=None), Y)
        np.testing.assert_allclose(
            search.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"], rtol=1e-10
        )

    def test_the_default_with_a_memory(self, measured, tmp_path):
        """The forward passes of "joint" are kept as the backward passes of the other formulas are."""
        options = {"scoring": "roc_auc", "cv": NormalKFold(3, random_state=0), "refit": False, "error_score": "raise"}
        kept, expected = (
            GridSearchCV(JEPAScoreDetector(ENCODER, memory=memory), GRID, **options).fit(X, Y)
            for memory in (tmp_path, None)
        )
        assert len(list(tmp_path.rglob("manifest.json"))) == 2
        np.testing.assert_allclose(
            kept.cv_results_["mean_test_score"], expected.cv_results_["mean_test_score"], rtol=1e-10
        )
        measured.clear()
        again = GridSearchCV(JEPAScoreDetector(ENCODER, memory=tmp_path), GRID, **options).fit(X, Y)
        assert measured == []
        np.testing.assert_array_equal(again.cv_results_["mean_test_score"], kept.cv_results_["mean_test_score"])

    def test_balanced_accuracy_over_contamination(self, measured):
        extraction = extract(ENCODER, X)
        search = GridSearchCV(
            JEPAScoreDetector(ENCODER),
            {"contamination": [0.01, 0.1, 0.3]},
            scoring="balanced_accuracy",
            cv=NormalKFold(3, random_state=0),
            refit=False,
            error_score="raise",
        ).fit(extraction, Y)
        assert sum(measured) == len(X)
        assert len(set(search.cv_results_["mean_test_score"])) > 1

    def test_two_processes_share_encoder_and_memory(self, measured, tmp_path):
        options = {"scoring": "roc_auc", "cv": NormalKFold(2, random_state=0)}
        detector = JEPAScoreDetector(ENCODER, formula="density", memory=tmp_path)
        two = cross_val_score(clone(detector), X, Y, n_jobs=2, **options)
        one = cross_val_score(clone(detector), X, Y, **options)
        assert measured == []  # what the two have kept is all there is to know
        extraction = extract(ENCODER, X)
        np.testing.assert_allclose(one, cross_val_score(clone(detector), extraction, Y, **options), rtol=1e-10)
        np.testing.assert_allclose(
            one, cross_val_score(clone(detector), extraction, Y, n_jobs=2, **options), rtol=1e-10
        )
        np.testing.assert_allclose(one, two, rtol=1e-10)

    def test_in_a_pipeline(self):
        pipeline = make_pipeline(StandardScaler(), JEPAScoreDetector(ENCODER))
        search = GridSearchCV(
            pipeline,
            {"jepascoredetector__formula": ["jepa", "joint"]},
            scoring="roc_auc",
            cv=NormalKFold(2, random_state=0),
            refit=False,
            error_score="raise",
        ).fit(X, Y)
        assert np.isfinite(search.cv_results_["mean_test_score"]).all()
