"""Learn densities from normal samples: log q(z) by kernels or a Gaussian, log q(s | z) and log q(sigma | z).

z is the embedding, s the log-volume and sigma the singular values of the Jacobian. The classes are scikit-learn
estimators with `fit` and `score_samples` (in nats, natural-log units; higher = denser). Any other estimator with these
methods can take their place.
"""

from functools import cached_property
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, clone
from sklearn.covariance import LedoitWolf
from sklearn.dummy import DummyRegressor
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.neighbors import NearestNeighbors
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler, normalize

from skjepa._utils.statistics import affine
from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, Mark, Saved
from skjepa.scores.known_rows import KnownRows

_OF_DIFFERENCES = ("euclidean", "l2", "sqeuclidean", "minkowski", "manhattan", "l1", "cityblock", "chebyshev")
_N_FOLDS = 5
_MOST_KERNELS = 10_000
_N_KERNELS = 100  # nearest kernels that are summed; farther ones hardly count
_FREEDOM = 3  # degrees of freedom of Student's t
_FACTORS = np.geomspace(0.2, 2.0, 9)
_ENOUGH_FOR_A_SLOPE = 10
_RIDGE_ALPHAS = np.logspace(-2, 4, 7)

ROUNDING = 1e-6
"""Variation up to this share of a value's size counts as rounding, because embeddings and Jacobians are float32."""


@portable
class NearestRows:
    """Measure distances to the nearest of some rows.

    Parameters
    ----------
    rows : array of shape (n_rows, d)
    n_neighbors : int
    metric : str or callable
        Distance, as `sklearn.neighbors.NearestNeighbors` takes it.
    """

    rows: Annotated[NDArray[np.float64], "n K"]
    n_neighbors: Annotated[int, Above(0)]
    metric: Annotated[Any, Saved(str)]

    def __init__(self, rows: NDArray[np.float64], n_neighbors: int, metric: Any = "euclidean") -> None:
        self.rows, self.n_neighbors, self.metric = rows, n_neighbors, metric
        # Centring leaves distances as they are; without it, squares of large numbers round the differences away.
        self._centre = np.median(rows, axis=0) if metric in _OF_DIFFERENCES else np.zeros(rows.shape[1])
        self._search = NearestNeighbors(n_neighbors=n_neighbors, metric=metric).fit(rows - self._centre)

    def distances(self, rows: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """Return the distances to the nearest neighbours, ascending, (n, n_neighbors).

        Without `rows`, return them for the stored rows, each left out of its own neighbours.
        """
        return self.neighbors(rows)[0]

    def neighbors(self, rows: NDArray[np.float64] | None = None) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """Return `distances` and the positions of the neighbours, both (n, n_neighbors)."""
        return self._search.kneighbors(None if rows is None else rows - self._centre)

    def distances_to_others(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return `distances`, where a row that equals a stored row is left out of its own neighbours."""
        found = self.distances(rows)
        if not np.isfinite(found).all():  # the values are too large to compute distances
            return found
        places = self._known.places(rows)
        if (places >= 0).any():
            found[places >= 0] = self.distances()[places[places >= 0]]
        return found

    @cached_property
    def _known(self) -> KnownRows:
        return KnownRows(self.rows)

    def portable_state(self) -> dict[str, Any]:
        return {"rows": self.rows, "n_neighbors": self.n_neighbors, "metric": self.metric}

    @classmethod
    def from_portable_state(cls, state: dict[str, Any], given: dict[str, Any]) -> "NearestRows":
        made = cls(**state)
        made.distances(made.rows[:1])  # some metrics, and too many neighbours, fail only here
        return made


@portable
class KNNDensity(BaseEstimator):
    """Estimate log q(z), up to a constant, by kernels that are wider where samples are sparse.

    log q(z) = log sum_i w_i^-d (1 + (r_i / w_i)^2 / 3)^-((3 + d) / 2), a sum of Student-t kernels over the hundred
    nearest samples z_i. Here r_i is the distance to z_i, d the intrinsic dimension, and w_i the distance of z_i to its
    k-th neighbour times a common factor. The factor maximises the leave-one-out likelihood (Breiman, Meisel and
    Purcell, 1977, Technometrics 19(2)). Near the samples log q(z) is smooth. Far from them it falls like
    -(3 + d) log r instead of -r^2, so that a few far samples do not decide everything
    (benchmarks/accuracy/joint_forms.py).

    Parameters
    ----------
    n_neighbors : int
        k, reduced where there are fewer samples.

    Attributes
    ----------
    intrinsic_dim_ : float
        d, the maximum-likelihood estimate of Levina and Bickel (2004) with MacKay and Ghahramani's mean of inverses.
    factor_ : float
        Common factor of the widths, between 0.2 and 2.
    fit_scores_ : array of shape (n_samples,)
        log q(z) of each fit sample without its own kernel. With it, as in `score_samples`, the value would be too high.

    Notes
    -----
    With more than 10,000 samples, 10,000 random ones get kernels, which bounds the time of a query.
    """

    n_neighbors: int
    intrinsic_dim_: Annotated[float, Above(0)]
    factor_: Annotated[float, Above(0)]
    fit_scores_: Annotated[NDArray[np.float64], "n"]
    _nearest: Annotated[NearestRows, "n=kernels K"]
    _widths: Annotated[NDArray[np.float64], "kernels", Above(0)]

    def __init__(self, n_neighbors: int = 30) -> None:
        self.n_neighbors = n_neighbors

    def fit(self, Z: ArrayLike, y: object = None) -> "KNNDensity":
        """Learn from embeddings (n_samples, K)."""
        everyone = np.asarray(Z, dtype=np.float64)
        chosen = np.arange(len(everyone))
        if len(everyone) > _MOST_KERNELS:
            chosen = np.sort(np.random.default_rng(0).choice(len(everyone), _MOST_KERNELS, replace=False))
        Z = everyone[chosen]
        self._nearest = NearestRows(Z, max(1, min(max(_N_KERNELS, self.n_neighbors), len(Z) - 1)))
        alone = np.ones((1, 1)), np.zeros((1, 1), dtype=np.intp)
        distances, neighbors = self._nearest.neighbors() if len(Z) > 1 else alone
        near = distances[:, : self.n_neighbors]
        # Duplicates are at distance zero, and a kernel of zero width would dominate the sum and the score.
        radius = near[:, -1]
        smallest = 1e-3 * float(np.median(radius) or radius.mean() or 1.0)
        self.intrinsic_dim_ = _intrinsic_dimension(np.maximum(near, smallest), upper=Z.shape[1])
        widths = np.maximum(radius, smallest)
        unseen = [self._log_density(distances, (factor * widths)[neighbors]) for factor in _FACTORS]
        best = int(np.argmax([values.mean() for values in unseen]))
        self.factor_, self.fit_scores_ = float(_FACTORS[best]), unseen[best]
        self._widths = self.factor_ * widths
        if len(chosen) < len(everyone):  # samples without a kernel of their own need none left out
            left_out = np.setdiff1d(np.arange(len(everyone)), chosen)
            scores = np.empty(len(everyone))
            scores[chosen], scores[left_out] = self.fit_scores_, self.score_samples(everyone[left_out])
            self.fit_scores_ = scores
        return self

    def score_samples(self, Z: ArrayLike) -> NDArray[np.float64]:
        """Return log q(z) in nats, up to a constant, (n_samples,)."""
        distances, neighbors = self._nearest.neighbors(np.asarray(Z, dtype=np.float64))
        return self._log_density(distances, self._widths[neighbors])

    def _log_density(self, distances: NDArray[np.float64], widths: NDArray[np.float64]) -> NDArray[np.float64]:
        d = self.intrinsic_dim_
        kernels = (_FREEDOM + d) / 2 * np.log1p((distances / widths) ** 2 / _FREEDOM) + d * np.log(widths)
        return logsumexp(-kernels, axis=1)


@portable
class GaussianDensity(BaseEstimator):
    """Estimate log q(z) by a Gaussian with a shrunk covariance.

    The value is log N(z; mean, covariance) in nats, with the covariance by Ledoit and Wolf.

    Parameters
    ----------
    n_components : int, optional
        Number of leading principal components to which z is reduced; by default all dimensions are kept.

    Attributes
    ----------
    location_ : array of shape (n_features,)
        Mean.
    components_ : array of shape (n_components, n_features)
        Orthonormal axes.
    covariance_ : array of shape (n_components, n_components)
        Covariance along the axes.
    """

    n_components: int | None
    location_: Annotated[NDArray[np.float64], "K"]
    components_: Annotated[NDArray[np.float64], "r K"]
    covariance_: Annotated[NDArray[np.float64], "r r"]
    _cholesky: Annotated[NDArray[np.float64], "r r"]

    def __init__(self, n_components: int | None = None) -> None:
        self.n_components = n_components

    def fit(self, Z: ArrayLike, y: object = None) -> "GaussianDensity":
        """Learn from embeddings (n_samples, K)."""
        Z = np.asarray(Z, dtype=np.float64)
        self.location_ = Z.mean(axis=0)
        self.components_ = np.eye(Z.shape[1])
        if self.n_components is not None and self.n_components < Z.shape[1]:
            # Fewer samples than components span too few directions; only then compute all singular vectors.
            fewer = len(Z) < self.n_components
            self.components_ = np.linalg.svd(Z - self.location_, full_matrices=fewer)[2][: self.n_components]
        self.covariance_ = LedoitWolf(assume_centered=True).fit(self._centred(Z)).covariance_
        # A constant embedding has zero covariance; a ridge of the size of rounding keeps the density finite.
        rounding = ROUNDING * (np.abs(Z).max() or 1.0)
        ridge = max(1e-9 * np.trace(self.covariance_) / len(self.covariance_), rounding**2)
        self._cholesky = np.linalg.cholesky(self.covariance_ + ridge * np.eye(len(self.covariance_)))
        return self

    @property
    def cholesky(self) -> NDArray[np.float64]:
        """The lower triangular factor of the covariance in use, (n_components, n_components)."""
        return self._cholesky

    def _centred(self, Z: ArrayLike) -> NDArray[np.float64]:
        return (np.asarray(Z, dtype=np.float64) - self.location_) @ self.components_.T

    def score_samples(self, Z: ArrayLike) -> NDArray[np.float64]:
        """Return log N(z) in nats, (n_samples,)."""
        centred = self._centred(Z)
        whitened = np.linalg.solve(self._cholesky, centred.T)
        constant = np.log(np.diag(self._cholesky)).sum() + 0.5 * centred.shape[1] * np.log(2 * np.pi)
        return -0.5 * (whitened**2).sum(axis=0) - constant

    def portable_check(self) -> None:
        if not hasattr(self, "_cholesky"):
            return
        if not ((np.diag(self._cholesky) > 0).all() and np.isfinite(self.score_samples(self.location_[None])).all()):
            raise ValueError("the covariance is not positive definite")


@portable
class DirectionDensity(BaseEstimator):
    """Estimate the log-density of the direction of an embedding, z / norm z, by a Gaussian.

    It is `GaussianDensity` on embeddings of unit length, in nats, as in Mahalanobis++ (Mueller and Hein, 2025, arXiv
    2505.18032). The length is dropped because it reflects contrast and sharpness more than content. The Gaussian uses
    the covariance, which kernels ignore.
    """

    density_: Annotated[GaussianDensity, "K"]

    def fit(self, Z: ArrayLike, y: object = None) -> "DirectionDensity":
        """Learn from embeddings (n_samples, K)."""
        self.density_ = GaussianDensity().fit(normalize(Z))
        return self

    def score_samples(self, Z: ArrayLike) -> NDArray[np.float64]:
        """Return log N(z / norm z) in nats, (n_samples,)."""
        return self.density_.score_samples(normalize(Z))


@portable
class ConditionalDensity(BaseEstimator):
    """Estimate log q(s | z), which is low where the log-volume s is unusual for the embedding z.

    It is a normal density. Its mean is a ridge regression of s on z. Its variance is the mean square of the out-of-fold
    residuals.
    """

    intercept_: Annotated[float, Mark.FINITE]
    coef_: Annotated[NDArray[np.float64], "K", Above(-1e100, below=1e100)]  # so that products stay finite
    scale_: Annotated[float, Above(0)]
    fit_scores_: Annotated[NDArray[np.float64], "n"]

    def fit(self, Z: ArrayLike, s: ArrayLike) -> "ConditionalDensity":
        """Learn from embeddings (n_samples, K) and log-volumes (n_samples,)."""
        self.intercept_, self.coef_, residual = _regress(Z, s)
        self.scale_ = float(np.sqrt(np.mean(residual**2))) or 1.0
        self.fit_scores_ = self._log_density(residual)
        return self

    def score_samples(self, Z: ArrayLike, s: ArrayLike) -> NDArray[np.float64]:
        """Return log q(s | z) in nats, (n_samples,)."""
        return self._log_density(np.asarray(s, dtype=np.float64) - self.intercept_ - np.asarray(Z) @ self.coef_)

    def _log_density(self, residual: NDArray[np.float64]) -> NDArray[np.float64]:
        return -0.5 * (residual / self.scale_) ** 2 - np.log(self.scale_) - 0.5 * np.log(2 * np.pi)


@portable
class SpectrumDensity(BaseEstimator):
    """Estimate log q(sigma | z), which is low where the singular values sigma are unusual for the embedding z.

    It is a `KNNDensity` on the residuals of a ridge regression of the log singular values on z, up to a constant. It
    also finds samples whose log-volume, the sum of the logs, is ordinary while single values are not. Blur, for
    example, lowers the large singular values and leaves the small ones.
    """

    intercept_: Annotated[NDArray[np.float64], "R"]
    coef_: Annotated[NDArray[np.float64], "K R", Above(-1e100, below=1e100)]
    density_: Annotated[KNNDensity, "n K=R"]
    fit_scores_: Annotated[NDArray[np.float64], "n"]

    def fit(self, Z: ArrayLike, log_sigma: ArrayLike) -> "SpectrumDensity":
        """Learn from embeddings (n_samples, K) and log singular values (n_samples, R)."""
        self.intercept_, self.coef_, residual = _regress(Z, log_sigma)
        self.density_ = KNNDensity().fit(residual)
        self.fit_scores_ = self.density_.fit_scores_
        return self

    def score_samples(self, Z: ArrayLike, log_sigma: ArrayLike) -> NDArray[np.float64]:
        """Return log q(sigma | z) in nats, up to a constant, (n_samples,)."""
        return self.density_.score_samples(np.asarray(log_sigma) - self.intercept_ - np.asarray(Z) @ self.coef_)


AnyDensity = KNNDensity | GaussianDensity | DirectionDensity
"""Models of log q(z) that can be saved."""


def _regress(Z: ArrayLike, target: ArrayLike) -> tuple[Any, NDArray[np.float64], NDArray[np.float64]]:
    """Return intercept and coefficients of a ridge regression on z, and out-of-fold residuals in the target's shape."""
    Z, target = np.asarray(Z, dtype=np.float64), np.asarray(target, dtype=np.float64)
    # Too few samples determine no slope: then the target is compared with its mean.
    slope = RidgeCV(alphas=_RIDGE_ALPHAS) if len(Z) >= _ENOUGH_FOR_A_SLOPE else DummyRegressor()
    regression = make_pipeline(StandardScaler(), slope).fit(Z, target)
    # scikit-learn drops the axis of a single target.
    residual = target - cross_val_predict(regression, Z, target, cv=_folds(Z)).reshape(target.shape)
    # The Jacobian of a linear encoder differs between samples by rounding alone, to which kernels must not fit.
    negligible = residual.std(axis=0) <= ROUNDING * (1 + np.abs(target).max(axis=0))
    intercept, coef = affine(regression, Z.shape[1])
    shape = target.shape[1:]
    return intercept.reshape(shape)[()], coef.reshape(-1, *shape), np.where(negligible, 0.0, residual)


def out_of_fold_scores(density: BaseEstimator, Z: ArrayLike) -> NDArray[np.float64]:
    """Return the out-of-sample log q(z) of every sample that a density was fitted on, (n_samples,).

    These are the density's own `fit_scores_` where it has them, and otherwise scores by folds. Kernels need their own,
    because a fold has fewer samples, and so another intrinsic dimension and another constant in log q(z).
    """
    Z = np.asarray(Z, dtype=np.float64)
    if hasattr(density, "fit_scores_"):
        return density.fit_scores_
    if len(Z) < 3:  # a fold would hold a single sample, which determines no density
        return density.score_samples(Z)
    scores = np.empty(len(Z))
    for seen, unseen in _folds(Z).split(Z):
        scores[unseen] = clone(density).fit(Z[seen]).score_samples(Z[unseen])
    return scores


def _folds(Z: NDArray[np.float64]) -> KFold:
    # Shuffled because folders come sorted by class, and a fold with a class of its own would look anomalous.
    return KFold(min(_N_FOLDS, len(Z)), shuffle=True, random_state=0)


def _intrinsic_dimension(distances: NDArray[np.float64], *, upper: int) -> float:
    """Estimate d from sorted distances (n, k) to the other samples; return 1 where k is below 3."""
    if distances.shape[1] < 3:
        return 1.0
    ratios = np.log(distances[:, -1:] / distances[:, :-1])
    inverse = ratios.mean(axis=1).mean()
    return float(np.clip(1 / inverse, 1.0, upper)) if inverse > 0 else 1.0
