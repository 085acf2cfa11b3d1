import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from skjepa.evaluation.metrics import METRICS, detection_metrics, observed_false_positives, weighted_metrics


def test_perfect_and_inverted():
    perfect = detection_metrics([3.0, 4.0, 5.0], [0.0, 1.0])
    assert (perfect["auroc"], perfect["aupr_in"], perfect["aupr_out"]) == (1.0, 1.0, 1.0)
    assert (perfect["fpr95_outlier_positive"], perfect["fpr95_normal_positive"]) == (0.0, 0.0)
    assert detection_metrics([0.0, 1.0], [3.0, 4.0])["auroc"] == 0.0


def test_the_two_conventions_of_fpr95_by_hand():
    normal, outlier = np.arange(100.0), np.concatenate([np.full(95, 9.5), np.full(5, 49.5)])
    metrics = detection_metrics(normal, outlier)
    # 95 % of the outliers lie at 9.5: flagging them flags the ten normal samples below.
    assert metrics["fpr95_outlier_positive"] == pytest.approx(0.10)
    # Letting in 95 % of the normal samples (5 ... 99) lets in every outlier.
    assert metrics["fpr95_normal_positive"] == pytest.approx(1.0)


@given(st.integers(0, 2**16))
def test_auroc_is_the_probability_of_the_right_order(seed):
    rng = np.random.default_rng(seed)
    normal, outlier = rng.integers(0, 6, 15).astype(float), rng.integers(0, 6, 10).astype(float)
    wins = (normal[:, None] > outlier) + 0.5 * (normal[:, None] == outlier)
    assert detection_metrics(normal, outlier)["auroc"] == pytest.approx(wins.mean())


@pytest.mark.parametrize(
    ("normal", "outlier", "message"),
    [([], [1.0], "no normal scores"), ([1.0], [], "no outlier scores"), ([1.0], [np.nan], "outlier scores hold NaN")],
)
def test_bad_scores_are_named(normal, outlier, message):
    with pytest.raises(ValueError, match=message):
        detection_metrics(normal, outlier)


@settings(max_examples=15)
@given(st.integers(0, 2**16))
def test_weighted_metrics_are_those_of_scikit_learn_on_the_repeated_samples(seed):
    rng = np.random.default_rng(seed)
    normal, outlier = rng.integers(0, 9, 12).astype(float), rng.integers(0, 7, 9).astype(float)
    weights = rng.multinomial(12, np.full(12, 1 / 12), size=4), rng.multinomial(9, np.full(9, 1 / 9), size=4)
    found = weighted_metrics(normal, outlier, *weights)
    assert tuple(found) == METRICS
    for i, (on_normal, on_outlier) in enumerate(zip(*weights, strict=True)):
        repeated = detection_metrics(np.repeat(normal, on_normal), np.repeat(outlier, on_outlier))
        assert {name: values[i] for name, values in found.items()} == pytest.approx(repeated, abs=1e-12)


@settings(max_examples=25)
@given(st.integers(0, 2**16))
def test_metrics_see_ranks_only(seed):
    rng = np.random.default_rng(seed)
    normal, outlier = rng.normal(size=11), rng.normal(-0.5, 2.0, size=8)
    assert detection_metrics(np.exp(normal), np.exp(outlier)) == pytest.approx(detection_metrics(normal, outlier))
    mirrored = detection_metrics(-outlier, -normal)
    metrics = detection_metrics(normal, outlier)
    assert mirrored["aupr_in"] == pytest.approx(metrics["aupr_out"])
    assert mirrored["fpr95_outlier_positive"] == pytest.approx(metrics["fpr95_normal_positive"])


def test_observed_false_positives_hold_their_bounds_as_often_as_promised():
    rng = np.random.default_rng(0)
    runs = [observed_false_positives(rng.normal(size=199), rng.normal(size=300)) for _ in range(200)]
    for i, alpha in enumerate((0.01, 0.05, 0.1)):
        rows = [run[i] for run in runs]
        assert rows[0]["alpha"] == alpha
        assert np.mean([row["observed"] for row in rows]) == pytest.approx(alpha, abs=0.15 * alpha + 0.001)
        assert np.mean([row["within"] for row in rows]) > 0.92
    shifted = observed_false_positives(rng.normal(size=199), rng.normal(-1, 1, size=300), [0.1])[0]
    assert not shifted["within"]
    assert shifted["observed"] > shifted["high"]


def test_too_few_calibration_samples_have_no_bounds():
    assert observed_false_positives([1.0, 2.0], [0.0], [0.05]) == [
        {"alpha": 0.05, "observed": 0.0, "low": None, "high": None, "within": None}
    ]
