import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import matrix_of_spectrum

from skjepa.jacobian import spectrum
from skjepa.jacobian.spectrum import singular_values


@settings(max_examples=50)
@given(
    st.lists(st.floats(-6, 3), min_size=1, max_size=8),
    st.integers(0, 6),
    st.booleans(),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_prescribed_spectrum_comes_back(exponents, extra_columns, transposed, dtype):
    sigma = np.sort(10.0 ** np.array(exponents))[::-1]
    J = matrix_of_spectrum(sigma, len(sigma) + extra_columns).to(dtype)
    found = singular_values((J.T if transposed else J)[None])
    assert found.dtype == torch.float64
    # What rounding the entries of J to its dtype may change, and no more.
    np.testing.assert_allclose(found[0], sigma, rtol=0, atol=10 * torch.finfo(dtype).eps * sigma[0])


def test_gram_path_matches_svd_of_the_same_float32_jacobian():
    J = matrix_of_spectrum(np.logspace(2, -3, 24), 300).float()
    exact = torch.linalg.svdvals(J.double())
    torch.testing.assert_close(singular_values(J[None])[0].log(), exact.log(), rtol=0, atol=1e-4)


def test_chunks_of_columns_do_not_change_the_gram(monkeypatch):
    J = torch.randn(3, 5, 101)
    whole = singular_values(J)
    monkeypatch.setattr(spectrum, "_CHUNK_ENTRIES", 3 * 5 * 7)
    torch.testing.assert_close(singular_values(J), whole, rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_zero_singular_values_are_numbers(dtype):
    sigma = singular_values(torch.ones(1, 3, 4, dtype=dtype))[0]
    assert torch.isfinite(sigma).all()
    assert (sigma >= 0).all()
    assert sigma[0] == pytest.approx(12**0.5)
    assert sigma[1:].max() < 1e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_that_is_not_finite_spoils_no_other(dtype):
    J = torch.eye(3, 4, dtype=dtype).repeat(3, 1, 1)
    J[1, 0, 0] = torch.inf
    sigma = singular_values(J)
    assert torch.isnan(sigma[1]).all()
    torch.testing.assert_close(sigma[[0, 2]], torch.ones(2, 3, dtype=torch.float64))
