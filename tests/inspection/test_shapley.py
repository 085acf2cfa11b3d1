import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad_vec
from scipy.linalg import sqrtm

from skjepa.inspection.shapley import average_gradient, half_logdet, leading_subspace, lifted, logarithmic_slope


def parts(n_parts: int, n: int, seed: int) -> np.ndarray:
    """Positive semidefinite parts whose sum is definite, (n_parts, n, n)."""
    J = np.random.default_rng(seed).normal(size=(n_parts, n, n))
    return J @ J.transpose(0, 2, 1)


def shares(G_p: np.ndarray, G0_p: np.ndarray) -> np.ndarray:
    S = average_gradient(G_p.sum(axis=0), G0_p.sum(axis=0))
    return 0.5 * np.einsum("ik,pij,jk->p", S, G_p - G0_p, S)


@given(st.integers(1, 8), st.integers(1, 6), st.integers(0, 2**31))
def test_shares_sum_to_the_difference_of_log_volumes(n_parts, n, seed):
    G_p, G0_p = parts(n_parts, n, seed), parts(n_parts, n, seed + 1)
    difference = half_logdet(G_p.sum(axis=0)) - half_logdet(G0_p.sum(axis=0))
    condition = np.linalg.cond(G0_p.sum(axis=0)) + np.linalg.cond(G_p.sum(axis=0))
    assert shares(G_p, G0_p).sum() == pytest.approx(difference, rel=1e-12, abs=1e-14 * condition)


def test_shares_are_those_of_the_formula_written_out():
    G_p, G0_p = parts(5, 4, 0), parts(5, 4, 1)
    root = np.linalg.inv(np.real(sqrtm(G0_p.sum(axis=0))))
    values, Q = np.linalg.eigh(root @ G_p.sum(axis=0) @ root)
    slope = np.log(values) / (values - 1)
    expected = [
        0.5 * sum(c * q @ root @ (G - G0) @ root @ q for c, q in zip(slope, Q.T, strict=True))
        for G, G0 in zip(G_p, G0_p, strict=True)
    ]
    np.testing.assert_allclose(shares(G_p, G0_p), expected, rtol=1e-10)


def test_shares_are_the_mean_gradient_along_the_way():
    """Aumann and Shapley's definition, by numerical integration."""
    G_p, G0_p = parts(4, 3, 2), parts(4, 3, 3)
    G, G0, change = G_p.sum(axis=0), G0_p.sum(axis=0), G_p - G0_p
    slope = lambda t: 0.5 * np.einsum("ij,pji->p", np.linalg.inv(G0 + t * (G - G0)), change)  # noqa: E731
    np.testing.assert_allclose(shares(G_p, G0_p), quad_vec(slope, 0, 1, epsabs=1e-12)[0], rtol=1e-9)


def test_parts_that_are_as_in_the_reference_have_no_share():
    G0_p = parts(4, 3, 4)
    G_p = G0_p.copy()
    G_p[2] *= 0.1
    found = shares(G_p, G0_p)
    assert found[2] < -0.1
    np.testing.assert_allclose(np.delete(found, 2), 0, atol=1e-14)
    np.testing.assert_allclose(shares(G0_p, G0_p), 0, atol=1e-14)


def test_logarithmic_slope_is_smooth_at_one_and_finite_far_away():
    assert logarithmic_slope([1.0])[0] == 1.0
    np.testing.assert_allclose(logarithmic_slope([1 - 1e-9, 1 + 1e-9]), [1 + 5e-10, 1 - 5e-10], rtol=1e-15)
    np.testing.assert_allclose(logarithmic_slope([0.25, 4.0]), [np.log(4) / 0.75, np.log(4) / 3], rtol=1e-15)
    assert np.isfinite(logarithmic_slope([1e-300, 1e300])).all()


@given(st.floats(1e-3, 10), st.integers(0, 2**31))
def test_lifted_is_what_a_floor_of_singular_values_does(floor, seed):
    J = np.random.default_rng(seed).normal(size=(4, 7)) * np.array([[1e-2], [1], [3], [1e-4]])
    expected = np.log(np.maximum(np.linalg.svd(J)[1], floor)).sum()
    assert half_logdet(lifted(J @ J.T, floor)) == pytest.approx(expected, abs=1e-6)


def test_lifted_leaves_what_is_above_the_floor_as_it_is():
    G = parts(1, 4, 5)[0] + np.eye(4)
    assert lifted(G, 0.5) is G


def test_leading_subspace_holds_the_largest_eigenvalues():
    G = np.diag([1.0, 5.0, 3.0])
    np.testing.assert_allclose(np.abs(leading_subspace(G, 2)), [[0, 0], [1, 0], [0, 1]])
    np.testing.assert_array_equal(leading_subspace(G, 3), np.eye(3))
