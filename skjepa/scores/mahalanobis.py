"""Compute Mahalanobis distances with a shrunk covariance, for fit samples as if each had been left out."""

from typing import Annotated

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from sklearn.base import BaseEstimator
from sklearn.covariance import ledoit_wolf_shrinkage

from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, Mark

MAX_AXES = 512
"""Number of axes kept. More take memory and gain nothing: with 256, the mean AUROC on out-of-distribution sets is the
same within .001."""

_LEAST_VARIANCE = 1e-12  # smallest variance as a share of the mean; below it lies rounding
_ROUNDING = 1e-10  # eigenvalues of a Gram matrix below this share of the largest are rounding


@portable
class ShrunkMahalanobis(BaseEstimator):
    """Compute squared Mahalanobis distances to the mean of the fit samples, with a shrunk covariance.

    The covariance is (1 - a) S + a mu I, where S is the sample covariance, mu the mean of its eigenvalues and a the
    shrinkage (Ledoit and Wolf, 2004, J. Multivariate Analysis 88(2)). S keeps its `MAX_AXES` directions of most
    variance; in all other directions it is replaced by the mean of the remaining variance.

    Attributes
    ----------
    location_ : array of shape (p,)
        Mean.
    axes_ : array of shape (p, r)
        Orthonormal eigenvectors; r <= min(n, p, MAX_AXES).
    precisions_ : array of shape (r,)
        Inverse variances along the axes.
    other_precision_ : float
        Inverse variance in all directions orthogonal to the axes; 0 where there are none.
    fit_distances_ : array of shape (n,)
        Distance of each fit sample as if it had been left out, in closed form: see `_left_out`.
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
        if n <= p:  # with two or three samples it can be 0, and the distance in other directions would be infinite
            shrinkage = max(shrinkage, 1 / n)
        total = float(np.einsum("ij,ij->", centred, centred)) / n
        if not total > 0:  # all rows are copies of one
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
        """Return the squared distance of each row, (n,); it is too small for rows of the fit."""
        centred = np.asarray(X, dtype=np.float64) - self.location_
        along = centred @ self.axes_
        found = (along**2) @ self.precisions_
        if self.other_precision_:
            rest = np.einsum("ij,ij->i", centred, centred) - np.einsum("ij,ij->i", along, along)
            found = found + self.other_precision_ * np.maximum(rest, 0.0)
        return found

    def coordinates(self, X: ArrayLike, n_axes: int) -> NDArray[np.float64]:
        """Where each row lies along the axes of most variance, in standard deviations from the mean; (n, <= n_axes).

        The widest axis first. Its two ends are told apart, which a distance does not do; which is the positive one is
        of no meaning.
        """
        widest = slice(None, -n_axes - 1, -1)
        along = (np.asarray(X, dtype=np.float64) - self.location_) @ self.axes_[:, widest]
        return along * np.sqrt(self.precisions_[widest])

    def slopes(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return half the gradient of the squared distance at each row, (n, p).

        It is S^-1 (x - mean) with the covariance S. Its inner product with x - mean is the squared distance, so that
        the distance is a sum over columns.
        """
        centred = np.asarray(X, dtype=np.float64) - self.location_
        along = centred @ self.axes_
        found = (along * self.precisions_) @ self.axes_.T
        if self.other_precision_:
            found += self.other_precision_ * (centred - along @ self.axes_.T)
        return found


def _principal(centred: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the largest variances, (r,), and their axes, (p, r), with r at most `MAX_AXES`.

    They come from the smaller of the two Gram matrices.
    """
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
    """Return the distances of n fit samples to a mean and a covariance learned without the sample.

    By the Sherman-Morrison formula they are k^2 m / (1 - c k m), with k = n / (n - 1), c = (1 - a) / n and distances m.
    The shrinkage a is not refitted; real refits agree to a correlation above .9999.
    """
    k, c = n / (n - 1), (1 - shrinkage) / n
    return k**2 * distances / np.maximum(1 - c * k * distances, 1e-9)
