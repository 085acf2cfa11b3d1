"""Densities learned from normal samples: log q(z) by kernels or a Gaussian, log q(s | z) and log q(sigma | z).

scikit-learn estimators with `fit` and `score_samples` (nats, higher = denser); any other such estimator serves as well.
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
_N_KERNELS = 100  # those farther away hardly count
_FREEDOM = 3  # degrees, of Student's t
_FACTORS = np.geomspace(0.2, 2.0, 9)
_ENOUGH_FOR_A_SLOPE = 10
_RIDGE_ALPHAS = np.logspace(-2, 4, 7)

ROUNDING = 1e-6
"""What varies by no more than this share of its size does not vary: embeddings and Jacobians are of float32."""


@portable
class NearestRows:
    """Distances to the nearest of some rows.

    Parameters
    ----------
    rows : array of shape (n_rows, d)
    n_neighbors : int
    metric : str or callable
        Of `sklearn.neighbors.NearestNeighbors`.
    """

    rows: Annotated[NDArray[np.float64], "n K"]
    n_neighbors: Annotated[int, Above(0)]
    metric: Annotated[Any, Saved(str)]

    def __init__(self, rows: NDArray[np.float64], n_neighbors: int, metric: Any = "euclidean") -> None:
        self.rows, self.n_neighbors, self.metric = rows, n_neighbors, metric
        # Distances do not know where zero is; squares of numbers far from it have no digits left for them.
        self._centre = np.median(rows, axis=0) if metric in _OF_DIFFERENCES else np.zeros(rows.shape[1])
        self._search = NearestNeighbors(n_neighbors=n_neighbors, metric=metric).fit(rows - self._centre)

    def distances(self, rows: NDArray[np.float64] | None = None) -> NDArray[np.float64]:
        """To the nearest neighbours, ascending, (n, n_neighbors); by default of the rows, but for each row itself."""
        return self.neighbors(rows)[0]

    def neighbors(self, rows: NDArray[np.float64] | None = None) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        """`distances`, and which rows these are to, both (n, n_neighbors)."""
        return self._search.kneighbors(None if rows is None else rows - self._centre)

    def distances_to_others(self, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        """`distances`, where what is known as one of these rows is not its own neighbour."""
        found = self.distances(rows)
        if not np.isfinite(found).all():  # too large for distances
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
    """log q(z) up to a constant: a Student-t kernel on each nearest neighbour, as wide as samples are sparse around it.

    log q(z) = log sum_i w_i^-d (1 + (r_i / w_i)^2 / 3)^-((3 + d) / 2), i among the hundred nearest samples, r_i the
    distance to z_i, d the intrinsic dimension, w_i the distance of z_i to its k-th neighbour times a factor common to
    all, which has the greatest leave-one-out likelihood (Breiman, Meisel and Purcell, 1977, Technometrics 19(2)). Near
    the samples it is smooth; far from them it falls like -(3 + d) log r, not like -r^2, by which a few far samples
    would decide everything (benchmarks/accuracy/joint_forms.py).

    Parameters
    ----------
    n_neighbors : int
        k; fewer where fewer samples are there.

    Attributes
    ----------
    intrinsic_dim_ : float
        d, the maximum-likelihood estimate of Levina and Bickel (2004) with MacKay and Ghahramani's mean of inverses.
    factor_ : float
        That of the widths, between 0.2 and 2.
    fit_scores_ : array of shape (n_samples,)
        log q(z) of each fit sample without its own kernel, for which `score_samples` would be too sure of it.

    Notes
    -----
    Of more than 10,000 samples so many, drawn at random, have kernels: more take longer and tell no more.
    """

    n_neighbors: int
    intrinsic_dim_: Annotated[float, Above(0)]
    factor_: Annotated[float, Above(0)]
    fit_scores_: Annotated[NDArray[np.float64], "n"]
    _nearest: Annotated[NearestRows, "kernels K"]
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
        # Duplicates are at distance zero: a kernel of no width would drown every other, and every other term.
        radius = near[:, -1]
        smallest = 1e-3 * float(np.median(radius) or radius.mean() or 1.0)
        self.intrinsic_dim_ = _intrinsic_dimension(np.maximum(near, smallest), upper=Z.shape[1])
        widths = np.maximum(radius, smallest)
        unseen = [self._log_density(distances, (factor * widths)[neighbors]) for factor in _FACTORS]
        best = int(np.argmax([values.mean() for values in unseen]))
        self.factor_, self.fit_scores_ = float(_FACTORS[best]), unseen[best]
        self._widths = self.factor_ * widths
        if len(chosen) < len(everyone):  # the others have no kernel to leave out
            left_out = np.setdiff1d(np.arange(len(everyone)), chosen)
            scores = np.empty(len(everyone))
            scores[chosen], scores[left_out] = self.fit_scores_, self.score_samples(everyone[left_out])
            self.fit_scores_ = scores
        return self

    def score_samples(self, Z: ArrayLike) -> NDArray[np.float64]:
        """log q(z), in nats up to a constant; (n_samples,)."""
        distances, neighbors = self._nearest.neighbors(np.asarray(Z, dtype=np.float64))
        return self._log_density(distances, self._widths[neighbors])

    def _log_density(self, distances: NDArray[np.float64], widths: NDArray[np.float64]) -> NDArray[np.float64]:
        d = self.intrinsic_dim_
        kernels = (_FREEDOM + d) / 2 * np.log1p((distances / widths) ** 2 / _FREEDOM) + d * np.log(widths)
        return logsumexp(-kernels, axis=1)


@portable
class GaussianDensity(BaseEstimator):
    """log N(z; mean, covariance) in nats, with Ledoit-Wolf shrinkage: -Mahalanobis^2 / 2 and its constant.

    Parameters
    ----------
    n_components : int, optional
        Leading principal components that it lives in; by default all dimensions.

    Attributes
    ----------
    location_ : array of shape (n_features,)
    components_ : array of shape (n_components, n_features)
        Orthonormal.
    covariance_ : array of shape (n_components, n_components)
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
            # Fewer samples span fewer directions: only then the others are asked for, too.
            fewer = len(Z) < self.n_components
            self.components_ = np.linalg.svd(Z - self.location_, full_matrices=fewer)[2][: self.n_components]
        self.covariance_ = LedoitWolf(assume_centered=True).fit(self._centred(Z)).covariance_
        # A constant embedding has no covariance; one of the size of rounding keeps the density finite.
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
        """log N(z), in nats; (n_samples,)."""
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
    """log N(z / norm z) in nats: `GaussianDensity` of embeddings brought to unit length, whatever their length.

    What Mahalanobis++ measures (Mueller and Hein, 2025, arXiv 2505.18032): the length of an embedding says more of
    contrast and sharpness than of content, and a Gaussian knows the covariance that kernels ignore.
    """

    density_: Annotated[GaussianDensity, "K"]

    def fit(self, Z: ArrayLike, y: object = None) -> "DirectionDensity":
        """Learn from embeddings (n_samples, K)."""
        self.density_ = GaussianDensity().fit(normalize(Z))
        return self

    def score_samples(self, Z: ArrayLike) -> NDArray[np.float64]:
        """log N(z / norm z); (n_samples,)."""
        return self.density_.score_samples(normalize(Z))


@portable
class ConditionalDensity(BaseEstimator):
    """log q(s | z): is this sample's log-volume s what it should be where its embedding z lies?

    Normal with the mean of a ridge regression of s on z and the variance of its out-of-fold residuals.
    """

    intercept_: Annotated[float, Mark.FINITE]
    coef_: Annotated[NDArray[np.float64], "K", Above(-1e100, below=1e100)]  # whose products are finite
    scale_: Annotated[float, Above(0)]
    fit_scores_: Annotated[NDArray[np.float64], "n"]

    def fit(self, Z: ArrayLike, s: ArrayLike) -> "ConditionalDensity":
        """Learn from embeddings (n_samples, K) and log-volumes (n_samples,)."""
        self.intercept_, self.coef_, residual = _regress(Z, s)
        self.scale_ = float(np.sqrt(np.mean(residual**2))) or 1.0
        self.fit_scores_ = self._log_density(residual)
        return self

    def score_samples(self, Z: ArrayLike, s: ArrayLike) -> NDArray[np.float64]:
        """log q(s | z), in nats; (n_samples,)."""
        return self._log_density(np.asarray(s, dtype=np.float64) - self.intercept_ - np.asarray(Z) @ self.coef_)

    def _log_density(self, residual: NDArray[np.float64]) -> NDArray[np.float64]:
        return -0.5 * (residual / self.scale_) ** 2 - np.log(self.scale_) - 0.5 * np.log(2 * np.pi)


@portable
class SpectrumDensity(BaseEstimator):
    """log q(sigma | z), up to a constant: are the singular values what they should be where the embedding z lies?

    `KNNDensity` of what a ridge regression on z leaves of the log singular values. Their sum, the log-volume, may be
    ordinary where their shape is not: blur takes from the large ones what it leaves to the small.
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
        """log q(sigma | z); (n_samples,)."""
        return self.density_.score_samples(np.asarray(log_sigma) - self.intercept_ - np.asarray(Z) @ self.coef_)


AnyDensity = KNNDensity | GaussianDensity | DirectionDensity
"""Models of log q(z) that can be saved."""


def _regress(Z: ArrayLike, target: ArrayLike) -> tuple[Any, NDArray[np.float64], NDArray[np.float64]]:
    """Intercept and coefficients of a ridge regression on z, and its out-of-fold residuals, as the target is shaped."""
    Z, target = np.asarray(Z, dtype=np.float64), np.asarray(target, dtype=np.float64)
    # A handful of samples says nothing of a slope: then the target is compared with its mean.
    slope = RidgeCV(alphas=_RIDGE_ALPHAS) if len(Z) >= _ENOUGH_FOR_A_SLOPE else DummyRegressor()
    regression = make_pipeline(StandardScaler(), slope).fit(Z, target)
    # scikit-learn drops the axis of a single target.
    residual = target - cross_val_predict(regression, Z, target, cv=_folds(Z)).reshape(target.shape)
    # What a linear encoder's Jacobian differs by between samples is rounding, and kernels would fit themselves to it.
    negligible = residual.std(axis=0) <= ROUNDING * (1 + np.abs(target).max(axis=0))
    intercept, coef = affine(regression, Z.shape[1])
    shape = target.shape[1:]
    return intercept.reshape(shape)[()], coef.reshape(-1, *shape), np.where(negligible, 0.0, residual)


def out_of_fold_scores(density: BaseEstimator, Z: ArrayLike) -> NDArray[np.float64]:
    """log q(z) of every sample that a density has been fitted on, as if it had not; (n_samples,).

    What the density knows of that itself (`fit_scores_`), else by folds. Folds of kernels would not do: fewer samples
    have another intrinsic dimension, and log q(z) then another constant.
    """
    Z = np.asarray(Z, dtype=np.float64)
    if hasattr(density, "fit_scores_"):
        return density.fit_scores_
    if len(Z) < 3:  # one sample alone has no density to tell of
        return density.score_samples(Z)
    scores = np.empty(len(Z))
    for seen, unseen in _folds(Z).split(Z):
        scores[unseen] = clone(density).fit(Z[seen]).score_samples(Z[unseen])
    return scores


def _folds(Z: NDArray[np.float64]) -> KFold:
    # Shuffled: folders come sorted by class, and a fold of one class would be foreign to the rest.
    return KFold(min(_N_FOLDS, len(Z)), shuffle=True, random_state=0)


def _intrinsic_dimension(distances: NDArray[np.float64], *, upper: int) -> float:
    """d from sorted distances (n, k) to neighbours other than oneself; 1 where k is too small to tell."""
    if distances.shape[1] < 3:
        return 1.0
    ratios = np.log(distances[:, -1:] / distances[:, :-1])
    inverse = ratios.mean(axis=1).mean()
    return float(np.clip(1 / inverse, 1.0, upper)) if inverse > 0 else 1.0
