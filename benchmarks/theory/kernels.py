"""A reference for log q(z) of Gaussian kernels on all samples, to hold the package's own beside."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from sklearn.base import BaseEstimator
from sklearn.neighbors import NearestNeighbors

from skjepa.scores.densities import KNNDensity

N_JUDGES = 500
"""Fit samples by whose leave-one-out likelihood the common factor of the bandwidths is chosen."""


class AdaptiveKernelDensity(BaseEstimator):
    """Gaussian kernels, each as wide as its sample's distance to the k-th neighbour, times a factor common to all.

    log q(z) = log mean_i w_i^-d exp(-|z - z_i|^2 / (2 w_i^2)) up to a constant, d the intrinsic dimension. The
    factor has the greatest leave-one-out likelihood. (Breiman, Meisel and Purcell, 1977, Technometrics 19(2).)

    Parameters
    ----------
    n_neighbors : int
        k.
    n_factors : int
        Factors tried, from 0.2 to 2.
    """

    def __init__(self, n_neighbors: int = 30, n_factors: int = 10) -> None:
        self.n_neighbors = n_neighbors
        self.n_factors = n_factors

    def fit(self, Z: ArrayLike, y: object = None) -> "AdaptiveKernelDensity":
        """Learn from embeddings (n_samples, K)."""
        self._points = Z = np.asarray(Z, dtype=np.float64)
        k = min(self.n_neighbors, len(Z) - 1)
        radius = NearestNeighbors(n_neighbors=k).fit(Z).kneighbors()[0][:, -1]
        radius = np.maximum(radius, 1e-3 * np.median(radius))
        self.intrinsic_dim_ = KNNDensity(k).fit(Z).intrinsic_dim_
        judges = np.random.default_rng(0).permutation(len(Z))[:N_JUDGES]
        squared = cdist(Z[judges], Z, "sqeuclidean")
        squared[np.arange(len(judges)), judges] = np.inf
        factors = np.geomspace(0.2, 2.0, self.n_factors)
        likelihood = [self._log_density(squared, factor * radius).mean() for factor in factors]
        self.factor_ = float(factors[np.argmax(likelihood)])
        self._widths = self.factor_ * radius
        return self

    def score_samples(self, Z: ArrayLike) -> NDArray[np.float64]:
        """log q(z), in nats up to a constant; (n_samples,)."""
        return self._log_density(cdist(np.asarray(Z, dtype=np.float64), self._points, "sqeuclidean"), self._widths)

    def _log_density(self, squared: NDArray, widths: NDArray) -> NDArray:
        return logsumexp(-squared / (2 * widths**2) - self.intrinsic_dim_ * np.log(widths), axis=1)
