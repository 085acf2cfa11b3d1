import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skjepa.evaluation import detection_metrics


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
