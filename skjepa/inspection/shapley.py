"""Who made a log-volume larger or smaller: Aumann-Shapley shares of a log-determinant among the parts of a Gram matrix.

A Gram matrix is a sum over parts of the input, G = sum_p G_p. The naive share tr(G^-1 G_p) / 2 sums to K / 2 for every
sample; the share here is the derivative of the log-determinant along the straight way from a reference G0 to G, so
that the shares sum to the difference of the two.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh


def logarithmic_slope(ratio: ArrayLike) -> NDArray[np.float64]:
    """c(l) = ln(l) / (l - 1), c(1) = 1, of positive numbers: the mean of 1 / (1 + t (l - 1)) over t from 0 to 1."""
    ratio = np.asarray(ratio, dtype=np.float64)
    excess = np.where(ratio == 1, 1.0, ratio - 1)  # any number where it is not used
    # Near one ln(l) loses what log1p keeps; near zero l - 1 has lost l.
    logarithm = np.where(ratio < 0.5, np.log(ratio), np.log1p(np.maximum(excess, -0.5)))
    return np.where(ratio == 1, 1.0, logarithm / excess)


def average_gradient(gram: ArrayLike, base: ArrayLike) -> NDArray[np.float64]:
    r"""S (R, R), of which ``S S^T`` is the mean of the inverse of G0 + t (G - G0) over t from 0 to 1.

    With it ``tr(S^T (G - G0) S) / 2 = (logdet G - logdet G0) / 2``, and the left side is linear in G - G0: what a part
    G_p - G0_p adds to it is its Aumann-Shapley share (Aumann and Shapley, 1974, Values of Non-Atomic Games). In terms
    of G0^-1/2 G G0^-1/2 = Q diag(l) Q^T it is ``S S^T = G0^-1/2 Q diag(c(l)) Q^T G0^-1/2``.

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
    # The way from one positive definite matrix to another stays among them: a ratio that is not positive is rounding.
    return vectors * np.sqrt(logarithmic_slope(np.maximum(ratios, np.finfo(float).tiny)))


def lifted(gram: ArrayLike, floor: float) -> NDArray[np.float64]:
    """G with no eigenvalue under floor^2: what a floor of the singular values does to a Gram matrix."""
    gram = np.asarray(gram, dtype=np.float64)
    values, vectors = np.linalg.eigh(gram)
    lacking = np.maximum(floor**2 - values, 0.0)
    return gram + (vectors * lacking) @ vectors.T if lacking.any() else gram


def half_logdet(gram: ArrayLike) -> float:
    """logdet(G) / 2, the sum of log singular values of whatever G is the Gram matrix of."""
    return 0.5 * float(np.linalg.slogdet(np.asarray(gram, dtype=np.float64))[1])


def leading_subspace(gram: ArrayLike, rank: int) -> NDArray[np.float64]:
    """Eigenvectors of the `rank` largest eigenvalues, (K, rank); of all K the unit vectors, which round nothing."""
    gram = np.asarray(gram, dtype=np.float64)
    if rank == len(gram):
        return np.eye(rank)
    return np.ascontiguousarray(np.linalg.eigh(gram)[1][:, ::-1][:, :rank])
