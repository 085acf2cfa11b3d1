"""Split a log-determinant into Aumann-Shapley shares of the parts of a Gram matrix.

The Gram matrix is a sum over parts of the input, G = sum_p G_p. The naive share tr(G^-1 G_p) / 2 sums to K / 2 for
every sample. The share here is the derivative of the log-determinant, averaged along the straight line from a reference
G0 to G, so that the shares sum to the difference of the two log-determinants.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh


def logarithmic_slope(ratio: ArrayLike) -> NDArray[np.float64]:
    """Return c(l) = ln(l) / (l - 1) for positive l, with c(1) = 1: the mean of 1 / (1 + t (l - 1)) for t in [0, 1]."""
    ratio = np.asarray(ratio, dtype=np.float64)
    excess = np.where(ratio == 1, 1.0, ratio - 1)  # at l = 1 any number will do; it is not used
    # log1p is accurate near one, where ln(l) is not; near zero l - 1 rounds l away, and ln(l) is accurate.
    logarithm = np.where(ratio < 0.5, np.log(ratio), np.log1p(np.maximum(excess, -0.5)))
    return np.where(ratio == 1, 1.0, logarithm / excess)


def average_gradient(gram: ArrayLike, base: ArrayLike) -> NDArray[np.float64]:
    r"""Return a root S, (R, R), of the mean inverse of G0 + t (G - G0) for t in [0, 1], so that ``S S^T`` is the mean.

    Then ``tr(S^T (G - G0) S) / 2 = (logdet G - logdet G0) / 2``. The left side is linear in G - G0; the contribution
    of a part G_p - G0_p is its Aumann-Shapley share (Aumann and Shapley, 1974, Values of Non-Atomic Games). With
    G0^-1/2 G G0^-1/2 = Q diag(l) Q^T, ``S S^T = G0^-1/2 Q diag(c(l)) Q^T G0^-1/2``.

    Parameters
    ----------
    gram, base : array of shape (R, R)
        G and G0, symmetric and positive definite.

    Raises
    ------
    numpy.linalg.LinAlgError
        `base` is not positive definite.

    Examples
    --------
    >>> G, G0 = np.diag([4.0, 9.0]), np.eye(2)
    >>> S = average_gradient(G, G0)
    >>> bool(np.isclose(np.trace(S.T @ (G - G0) @ S) / 2, np.log(6.0)))
    True
    """
    ratios, vectors = eigh(np.asarray(gram, dtype=np.float64), np.asarray(base, dtype=np.float64))
    # Both matrices are positive definite, so all ratios are positive up to rounding.
    return vectors * np.sqrt(logarithmic_slope(np.maximum(ratios, np.finfo(float).tiny)))


def lifted(gram: ArrayLike, floor: float) -> NDArray[np.float64]:
    """Raise the eigenvalues of G to at least floor^2, as a floor of the singular values does."""
    gram = np.asarray(gram, dtype=np.float64)
    values, vectors = np.linalg.eigh(gram)
    lacking = np.maximum(floor**2 - values, 0.0)
    return gram + (vectors * lacking) @ vectors.T if lacking.any() else gram


def half_logdet(gram: ArrayLike) -> float:
    """Return logdet(G) / 2, the sum of the log singular values of a matrix whose Gram matrix is G."""
    return 0.5 * float(np.linalg.slogdet(np.asarray(gram, dtype=np.float64))[1])


def leading_subspace(gram: ArrayLike, rank: int) -> NDArray[np.float64]:
    """Return the eigenvectors of the `rank` largest eigenvalues, (K, rank); unit vectors for full rank."""
    gram = np.asarray(gram, dtype=np.float64)
    if rank == len(gram):
        return np.eye(rank)
    return np.ascontiguousarray(np.linalg.eigh(gram)[1][:, ::-1][:, :rank])
