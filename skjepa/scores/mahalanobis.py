"""Mahalanobis distances under a shrunk covariance, and what they would be of a fit sample that had been left out."""

from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from sklearn.base import BaseEstimator
from sklearn.covariance import ledoit_wolf_shrinkage

from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, Mark

MAX_AXES = 512
"""More axes take more memory and tell no more: with 256 the mean AUROC over foreign sets is the same within .001."""

_LEAST_VARIANCE = 1e-12  # share of the mean: what varies less is rounding
_ROUNDING = 1e-10  # of eigenvalues of a Gram matrix, as a share of the largest


@portable
class ShrunkMahalanobis(BaseEstimator):
    """Squared Mahalanobis distance to the mean of the fit samples; covariance by Ledoit and Wolf's shrinkage.

    The covariance is (1 - a) S + a mu I, with S that of the sample, mu the mean of its eigenvalues and a the shrinkage
    (Ledoit and Wolf, 2004, J. Multivariate Analysis 88(2)). Of S the `MAX_AXES` directions of most variance are kept as
    they are; in all others it has the mean of what is left.

    Attributes
    ----------
    location_ : array of shape (p,)
    axes_ : array of shape (p, r)
        Orthonormal eigenvectors; r <= min(n, p, MAX_AXES).
    precisions_ : array of shape (r,)
        Inverse variances along them.
    other_precision_ : float
        That of all directions orthogonal to the axes; 0 where there are none.
    fit_distances_ : array of shape (n,)
        Of each fit sample, as if it had been left out, in closed form: see `_left_out`.
    """

    location_: Annotated[NDArray[np.float64], "p"]
    axes_: Annotated[NDArray[np.float64], "p r"]
    precisions_: Annotated[NDArray[np.float64], "r", Above(-1e-300)]
    other_precision_: Annotated[float, Mark.FINITE, Above(-1e-300)]
    fit_distances_: Annotated[NDArray[np.float64], "n"]

    def fit(self, X: ArrayLike, y: object = None) -> "ShrunkMahalanobis":
        """Learn from rows (n, p), at least two."""
        X = np.asarray(X, dtype=np.float64)
        n, p = X.shape
        self.location_ = X.mean(axis=0)
        centred = X - self.location_
        shrinkage = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
        if n <= p:  # of two or three samples it can be 0, and every other direction would be infinitely odd
            shrinkage = max(shrinkage, 1 / n)
        total = float(np.einsum("ij,ij->", centred, centred)) / n
        if not total > 0:  # copies of one row
            total, shrinkage = 1.0, 1.0
        variances, self.axes_ = _principal(centred)
        left = max(total - variances.sum(), 0.0) / max(p - len(variances), 1)
        mean_variance, least = total / p, _LEAST_VARIANCE * total / p
        self.precisions_ = 1 / np.maximum((1 - shrinkage) * variances + shrinkage * mean_variance, least)
        others = 1 / max((1 - shrinkage) * left + shrinkage * mean_variance, least)
        self.other_precision_ = float(others) if len(variances) < p else 0.0
        self.fit_distances_ = _left_out(self.distances(X), n, shrinkage)
        return self

    def distances(self, X: ArrayLike) -> NDArray[np.float64]:
        """Squared distance of each row; (n,). Of a row of the fit it is smaller than of others like it."""
        centred = np.asarray(X, dtype=np.float64) - self.location_
        along = centred @ self.axes_
        found = (along**2) @ self.precisions_
        if self.other_precision_:
            rest = np.einsum("ij,ij->i", centred, centred) - np.einsum("ij,ij->i", along, along)
            found = found + self.other_precision_ * np.maximum(rest, 0.0)
        return found

    def slopes(self, X: ArrayLike) -> NDArray[np.float64]:
        """S^-1 (x - mean) of each row, with S the covariance, (n, p): half the gradient of the squared distance.

        Its inner product with x - mean is the squared distance: so the distance is a sum over columns.
        """
        centred = np.asarray(X, dtype=np.float64) - self.location_
        along = centred @ self.axes_
        found = (along * self.precisions_) @ self.axes_.T
        if self.other_precision_:
            found += self.other_precision_ * (centred - along @ self.axes_.T)
        return found


def _principal(centred: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The largest variances and their axes, (r,) and (p, r), r at most `MAX_AXES`; from the smaller Gram matrix."""
    n, p = centred.shape
    is_tall = n >= p
    gram = (centred.T @ centred if is_tall else centred @ centred.T) / n
    size = len(gram)
    variances, vectors = eigh(gram, subset_by_index=[max(0, size - MAX_AXES), size - 1])
    if is_tall:
        return np.maximum(variances, 0.0), vectors
    if not variances[-1] > 0:
        return np.zeros(1), np.eye(p)[:, :1]
    kept = variances > _ROUNDING * variances[-1]
    variances, vectors = variances[kept], vectors[:, kept]
    return variances, centred.T @ vectors / np.sqrt(n * variances)


def _left_out(distances: NDArray[np.float64], n: int, shrinkage: float) -> NDArray[np.float64]:
    """The distances of n fit samples to a mean and a covariance that each was left out of, at the same shrinkage.

    By Sherman and Morrison k^2 m / (1 - c k m) with k = n / (n - 1) and c = (1 - a) / n. Refits agree with it to a
    correlation above .9999; only the shrinkage itself is not fitted again.
    """
    k, c = n / (n - 1), (1 - shrinkage) / n
    return k**2 * distances / np.maximum(1 - c * k * distances, 1e-9)
