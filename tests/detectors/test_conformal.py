import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import betabinom, kstest

from skjepa.detectors.conformal import (
    conformal_offset,
    conformal_p_values,
    contamination_offset,
    cross_conformal_margin,
    cross_conformal_p_values,
)

scores = arrays(np.float64, st.integers(20, 60), elements=st.floats(-5, 5))


@pytest.mark.parametrize("contamination", [0.01, 0.1, 0.25, 0.5])
def test_contamination_flags_exactly_its_share(contamination):
    values = np.random.default_rng(0).normal(size=300)
    assert (values < contamination_offset(values, contamination)).sum() == 300 * contamination


@given(scores, st.floats(0.05, 0.9), st.floats(-6, 6))
def test_offset_and_p_value_decide_alike(calibration, alpha, score):
    flagged = score < conformal_offset(calibration, alpha)
    assert flagged == (conformal_p_values(calibration, [score])[0] <= round(alpha, 12) + 1e-9)


def test_p_values_by_hand():
    assert conformal_p_values([1.0, 2.0, 3.0], [0.5, 1.0, 2.5, 4.0, np.nan]).tolist()[:4] == [0.25, 0.5, 0.75, 1.0]
    assert np.isnan(conformal_p_values([1.0], [np.nan])[0])


def test_too_few_calibration_samples_are_refused_with_the_number_needed():
    with pytest.raises(ValueError, match=r"rate of 0\.01 needs 99 calibration samples; got 98.*calibration is a share"):
        conformal_offset(np.arange(98.0), 0.01)
    assert conformal_offset(np.arange(99.0), 0.01) == 0.0


def test_rounding_does_not_move_the_quantile():
    assert conformal_offset(np.arange(19.0), 0.05) == 0.0
    assert conformal_offset(np.arange(99.0), 0.29) == 28.0


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [0.01, 0.05, 0.1])
def test_false_positives_follow_the_beta_binomial_law(alpha):
    n, m, runs = 199, 500, 400
    rng = np.random.default_rng(0)
    flagged = []
    for _ in range(runs):
        normal = rng.normal(size=n + m)
        flagged.append((normal[n:] < conformal_offset(normal[:n], alpha)).sum())
    k = int(alpha * (n + 1))
    law = betabinom(m, k, n + 1 - k)
    jittered = np.array(flagged) + rng.uniform(size=runs)  # a continuous version of a discrete law, for the KS test
    uniform = [law.cdf(int(x) - 1) + (x - int(x)) * law.pmf(int(x)) for x in jittered]
    assert kstest(uniform, "uniform").pvalue > 0.001


folds = st.lists(arrays(float, st.integers(1, 8), elements=st.integers(-5, 5).map(float)), min_size=1, max_size=4)


@given(folds, st.integers(1, 99), st.integers(0, 2**32 - 1))
def test_cross_conformal_margin_and_p_value_decide_alike(fold_scores, percent, seed):
    alpha, n = percent / 100, sum(map(len, fold_scores))
    assume(int(np.round(alpha * (n + 1), 9)) >= 1)
    scores = np.random.default_rng(seed).integers(-6, 7, size=(len(fold_scores), 20)).astype(float)
    p = cross_conformal_p_values(fold_scores, scores)
    counted = sum((own[:, None] <= row).sum(axis=0) for own, row in zip(fold_scores, scores, strict=True))
    np.testing.assert_allclose(p, (1 + counted) / (n + 1))
    np.testing.assert_array_equal(cross_conformal_margin(fold_scores, scores, alpha) < 0, np.round(p - alpha, 9) <= 0)


def test_one_fold_is_the_split_form():
    calibration, scores = np.arange(19.0), np.linspace(-3, 22, 50)
    np.testing.assert_array_equal(
        cross_conformal_p_values([calibration], scores[None]), conformal_p_values(calibration, scores)
    )
    margin = cross_conformal_margin([calibration], scores[None], 0.1)
    np.testing.assert_allclose(margin, scores - conformal_offset(calibration, 0.1))


def test_folds_of_other_scales_do_not_swallow_the_margin():
    fold_scores = [np.array([1e6]), np.array([1e-12, 2e-12, 3e-12])]
    scores = np.array([[1e7, 1e7], [1.5e-12, 0.0]])
    assert cross_conformal_p_values(fold_scores, scores).tolist() == [0.6, 0.4]
    assert (cross_conformal_margin(fold_scores, scores, 0.8) < 0).all()


def test_unread_images_have_no_margin():
    scores = np.array([[np.nan, 1.0], [np.nan, 1.0]])
    assert np.isnan(cross_conformal_margin([np.zeros(3)] * 2, scores, 0.5)).tolist() == [True, False]
    assert np.isnan(cross_conformal_p_values([np.zeros(3)] * 2, scores)).tolist() == [True, False]
