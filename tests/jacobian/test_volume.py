import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skjepa.jacobian.volume import combine_views, log_volume, noise_level, numerical_rank

positive = st.floats(1e-8, 1e4)
spectra = arrays(np.float64, st.tuples(st.integers(1, 5), st.integers(1, 6)), elements=positive).map(
    lambda sigma: -np.sort(-sigma, axis=-1)
)


@given(spectra)
def test_volume_is_the_log_of_the_product(sigma):
    np.testing.assert_allclose(log_volume(sigma, floor=1e-12), np.log(np.prod(sigma, axis=-1)), atol=1e-9)


@given(spectra, positive, positive)
def test_a_higher_floor_never_lowers_the_volume(sigma, a, b):
    assert (log_volume(sigma, floor=max(a, b)) >= log_volume(sigma, floor=min(a, b))).all()


@given(spectra)
def test_rank_keeps_the_largest(sigma):
    np.testing.assert_allclose(log_volume(sigma, floor=1e-12, rank=1), np.log(sigma[:, 0]))


def test_paper_floor_is_the_default():
    assert log_volume([[1.0, 0.0]])[0] == pytest.approx(np.log(1e-6))


@given(arrays(np.float64, (3, 4), elements=st.floats(-50, 50)))
def test_views_combine_as_log_mean_of_the_inverse(scores):
    combined = combine_views(scores)
    np.testing.assert_allclose(combined, -np.log(np.mean(np.exp(-scores), axis=1)), atol=1e-9)
    assert (combined <= scores.mean(axis=1) + 1e-9).all()  # Jensen
    assert (combined >= scores.min(axis=1) - 1e-9).all()


def test_numerical_rank_counts_above_the_noise():
    sigma = np.array([[100.0, 1.0, 9e-6, 1e-6]])
    assert noise_level(sigma, 1e-8)[0] == pytest.approx(1e-5)
    assert numerical_rank(sigma, 1e-8).tolist() == [2]
    assert numerical_rank(sigma, 1e-16).tolist() == [4]
