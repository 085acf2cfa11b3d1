"""Measure how unlike normal samples each position of an image is, by a Gaussian at every cell of a grid."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import KFold

from skjepa.extraction.batches.pooling import is_positions
from skjepa.extraction.extraction import Extraction
from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, MayLack
from skjepa.scores.tail import Tail

MAX_AXES = 150
"""Largest number of whitened principal axes to which the channels at a position are reduced."""

OWN_SHARE = 0.5
"""Share of a position's own covariance in its Gaussian; the rest is the mean covariance of all positions."""

TOP_SHARE = 0.03
"""Share of the positions of an image, the most anomalous, whose mean distance scores the image."""

_FOLDS = 5
_LEAST = 1e-3  # smallest deviation as a share of the median one, and smallest variance as a share of the mean
_RIDGE = 1e-6  # added to the variance along axes, as a share of the mean, for axes that do not vary
_LEVELS = 2048  # number of quantiles of the distances of normal positions that are kept
_CHUNK = 256  # samples compared at a time


@dataclass(frozen=True)
class Moments:
    """Hold sums over all positions of some samples: the number of rows, their sum and the sum of their products."""

    count: int
    total: NDArray[np.float64]
    products: NDArray[np.float64]

    @classmethod
    def of(cls, positions: NDArray) -> "Moments":
        n, n_positions, n_channels = positions.shape
        total, products = np.zeros(n_channels), np.zeros((n_channels, n_channels))
        for chunk in _chunks(positions):
            rows = chunk.reshape(-1, n_channels)
            total += rows.sum(axis=0, dtype=np.float64)
            products += rows.T @ rows
        return cls(n * n_positions, total, products)

    @classmethod
    def sum(cls, parts: Sequence["Moments"]) -> "Moments":
        return cls(*(sum(getattr(part, name) for part in parts) for name in ("count", "total", "products")))


class PositionGaussians:
    """Measure squared Mahalanobis distances from each position to normal samples at the same position.

    The C channels are divided by their deviations over all positions and samples, and reduced to at most `MAX_AXES`
    whitened principal axes. Each of the P positions has its own mean. Its covariance is half its own and half the mean
    over positions.

    Parameters
    ----------
    positions : array of shape (n_samples, P, C)
    moments : Moments, optional
        The moments of these positions, where they are known already.
    """

    def __init__(self, positions: NDArray, moments: Moments | None = None) -> None:
        n, _, n_channels = positions.shape
        moments = moments or Moments.of(positions)
        mean = moments.total / moments.count
        self.center = mean.astype(np.float32)
        covariance = moments.products / moments.count - np.outer(mean, mean)
        deviations = np.sqrt(np.maximum(np.diag(covariance), 0))
        varying = deviations[deviations > 0]
        deviations = np.maximum(deviations, _LEAST * np.median(varying) if len(varying) else 1.0)
        variances, vectors = np.linalg.eigh(covariance / np.outer(deviations, deviations))
        chosen = slice(-1, -1 - min(MAX_AXES, n_channels), -1)
        variances = np.maximum(variances[chosen], _LEAST * max(variances.mean(), 1e-12))
        self.axes = (vectors[:, chosen] / deviations[:, None] / np.sqrt(variances)).astype(np.float32)
        z = np.concatenate([self.reduced(chunk) for chunk in _chunks(positions)])
        self.means = z.mean(axis=0)
        z = (z - self.means).transpose(1, 0, 2)
        own = z.transpose(0, 2, 1) @ z / n
        shared = own.mean(axis=0)
        least = _RIDGE * np.trace(shared) / len(shared) + 1e-12
        blended = OWN_SHARE * own + (1 - OWN_SHARE) * shared + least * np.eye(len(shared))
        self.factors = np.linalg.cholesky(np.linalg.inv(blended.astype(np.float64))).astype(np.float32)

    def reduced(self, positions: NDArray) -> NDArray[np.float32]:
        return (positions.astype(np.float32, copy=False) - self.center) @ self.axes

    def distances(self, positions: NDArray) -> NDArray[np.float32]:
        """Return the squared distance at each position, (n_samples, P)."""
        return np.concatenate([_distances(self, chunk) for chunk in _chunks(positions)])


def _distances(model: Any, positions: NDArray) -> NDArray[np.float32]:
    z = ((positions - model.center) @ model.axes - model.means).transpose(1, 0, 2)
    return np.einsum("pnk,pnk->np", along := z @ model.factors, along)


def _chunks(positions: NDArray) -> Iterator[NDArray[np.float32]]:
    for start in range(0, len(positions), _CHUNK):
        yield positions[start : start + _CHUNK].astype(np.float32)


@portable
class LocalModel:
    """Hold a `PositionGaussians` with the out-of-fold distances of normal samples, which calibrate it.

    Attributes
    ----------
    grid : (int, int)
        Rows and columns of positions.
    center : array of shape (C,)
    axes : array of shape (C, k)
    means : array of shape (P, k)
    triangles : array of shape (P, k (k + 1) / 2), float16
        Lower triangles of the Cholesky factors of the inverse covariances.
    tail : Tail
        Distribution of the log distance of a position.
    quantiles : array of shape (q,)
        Quantiles of the log distances of all positions of normal samples, at `levels`, ascending.
    levels : array of shape (q,)
        Share of these that lie at or above a quantile.
    hottest : array of shape (n_pictures,)
        The largest log distance in each normal image, ascending.
    n_parts : int
        Number of tiles of the normal image with the fewest tiles; 1 where samples are whole images.
    image_surprises : array of shape (n_samples,)
        Result of `image_values` for each normal sample.
    """

    grid: tuple[Annotated[int, Above(0)], ...]
    center: Annotated[NDArray[np.float32], "C"]
    axes: Annotated[NDArray[np.float32], "C k"]
    means: Annotated[NDArray[np.float32], "P k"]
    triangles: Annotated[NDArray[np.float16], "P t"]
    tail: Tail
    quantiles: Annotated[NDArray[np.float64], "q"]
    levels: Annotated[NDArray[np.float64], "q", Above(0)]
    hottest: Annotated[NDArray[np.float64], "h"]
    n_parts: MayLack[Annotated[int, Above(0)]] = 1  # detectors saved before there were tiles lack it
    image_surprises: Annotated[NDArray[np.float64], "n"]

    def fit(
        self, rows: NDArray, grid: tuple[int, int], apart: NDArray | None = None, pictures: NDArray | None = None
    ) -> "LocalModel":
        """Learn from positions, (n_samples, P * C), of normal samples.

        Parameters
        ----------
        rows : array of shape (n_samples, P * C)
        grid : (int, int)
        apart : array of shape (n_samples,), optional
            Name of each sample's group. The samples of a group are scored by models fitted without the whole group. By
            default each sample is a group of its own.
        pictures : array of shape (n_samples,), optional
            Position of the image that each sample is a tile of. By default each sample is a whole image.
        """
        positions = rows.reshape(len(rows), grid[0] * grid[1], -1)
        folds = folds_apart(np.arange(len(rows)) if apart is None else apart)
        moments = [Moments.of(positions[held]) for held in folds]
        model = PositionGaussians(positions, Moments.sum(moments))
        self.grid = (int(grid[0]), int(grid[1]))
        self.center, self.axes, self.means = model.center, model.axes, model.means
        self.triangles = model.factors[:, *np.tril_indices(model.factors.shape[1])].astype(np.float16)
        unseen = _log(_out_of_fold(positions, folds, moments))
        self.tail = Tail.learn(unseen.ravel())
        self.levels, self.quantiles = _thinned(unseen.ravel())
        hottest, counts = _largest(unseen.max(axis=1), pictures)
        self.hottest, self.n_parts = np.sort(hottest), int(counts.min())
        self.image_surprises = image_values(unseen)
        return self

    @cached_property
    def factors(self) -> NDArray[np.float32]:
        k = self.axes.shape[1]
        whole = np.zeros((len(self.triangles), k, k), dtype=np.float32)
        whole[:, *np.tril_indices(k)] = self.triangles
        return whole

    def log_distances(self, rows: NDArray) -> NDArray[np.float64]:
        """Return the log of the squared distance at each position, (n_samples, P), for rows (n_samples, P * C)."""
        n_positions, expected = len(self.means), len(self.means) * len(self.center)
        if rows.shape[1] != expected:
            raise ValueError(f"the local model reads {expected} numbers per sample; got {rows.shape[1]}")
        positions = rows.reshape(len(rows), n_positions, -1)
        if not len(positions):
            return np.empty((0, n_positions))
        return _log(np.concatenate([_distances(self, chunk) for chunk in _chunks(positions)]))

    def surprises(self, log_distances: NDArray) -> NDArray[np.float64]:
        """Return how unusual each log distance is for a normal position, in nats; higher = more anomalous."""
        return self.tail.surprise(log_distances)

    def patch_p_values(self, log_distances: NDArray) -> NDArray[np.float64]:
        """Return the p-value of each position among the positions of normal samples; small = unlike normal samples."""
        place = np.searchsorted(self.quantiles, log_distances, side="right")
        found = self.levels[np.maximum(place - 1, 0)]
        return np.where(log_distances > self.quantiles[-1], self.levels[-1] / 2, found)  # 1 / (n + 1), not 2 / (n + 1)

    def image_wide_p_values(self, log_distances: NDArray) -> NDArray[np.float64]:
        """Return the share of images, this one included, whose most anomalous position is at least as anomalous."""
        n = len(self.hottest)
        return (1 + n - np.searchsorted(self.hottest, log_distances, side="left")) / (n + 1)

    def portable_state(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in LocalModel.__annotations__}

    def portable_check(self) -> None:
        n_positions, k = self.means.shape
        if len(self.grid) != 2 or self.grid[0] * self.grid[1] != n_positions:
            raise ValueError(f"the grid {self.grid} does not have {n_positions} positions")
        if self.triangles.shape[1] != k * (k + 1) // 2:
            raise ValueError(f"triangles of {k} axes have {k * (k + 1) // 2} numbers; got {self.triangles.shape[1]}")
        if (np.diff(self.quantiles) < 0).any() or (np.diff(self.hottest) < 0).any():
            raise ValueError("quantiles and hottest must be in ascending order")


def across_models(
    models: Sequence[LocalModel], rows: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Combine the surprises and p-values of positions from the models of several folds.

    Each model is calibrated on normal samples that were held out of its fit. Surprises are averaged over models, and
    the p-value is the geometric mean of the p-values of the models. The proven bound is that e times this p-value is
    valid (Vovk and Wang, 2020). In practice fewer normal positions fall below a given level than by a single model.
    The largest surprises of normal images come from single models, so they are somewhat larger than averages would be.

    Parameters
    ----------
    models : sequence of LocalModel
    rows : array of shape (n_samples, P * C)

    Returns
    -------
    surprises, p_values : arrays of shape (n_samples, P)
    hottest : array of shape (n_hottest,)
        Surprise of the most anomalous position of each normal image, by each model, ascending.
    """
    logs = [model.log_distances(rows) for model in models]
    pairs = list(zip(models, logs, strict=True))
    surprises = np.mean([model.surprises(log) for model, log in pairs], axis=0)
    p_values = np.exp(np.mean([np.log(model.patch_p_values(log)) for model, log in pairs], axis=0))
    return surprises, p_values, np.sort(np.concatenate([model.surprises(model.hottest) for model in models]))


def image_values(log_distances: NDArray) -> NDArray[np.float64]:
    """Return the log of the mean distance of the `TOP_SHARE` most anomalous positions of each sample, (n_samples,)."""
    n_top = max(1, round(TOP_SHARE * log_distances.shape[1]))
    top = np.partition(log_distances, -n_top, axis=1)[:, -n_top:]
    most = top.max(axis=1)
    return most + np.log(np.exp(top - most[:, None]).mean(axis=1))


def positions_of(extraction: Extraction) -> tuple[tuple[int, int], NDArray[Any]]:
    """Return the grid of an Extraction, rows and columns, and the channels at its cells, (n_samples, P * C).

    Raises
    ------
    ValueError
        The Extraction has no positions.
    """
    for name, rows in extraction.layers.items():
        if is_positions(name):
            down, across = name.split(" ")[1].split("x")
            return (int(down), int(across)), rows
    raise ValueError(
        "the Extraction has no positions, which local=True needs: make it with detector.extract(X) and local=True"
    )


def folds_apart(apart: NDArray) -> list[NDArray[np.bool_]]:
    """Return for each fold a mask of the samples that it holds out; samples with the same name stay together.

    With a single name, there is one fold, which holds out all samples.
    """
    names = np.unique(apart)
    if len(names) < 2 or len(apart) < 3:
        return [np.ones(len(apart), dtype=bool)]
    folds = KFold(min(_FOLDS, len(names)), shuffle=True, random_state=0).split(names)
    return [np.isin(apart, names[held]) for _, held in folds]


def _out_of_fold(positions: NDArray, folds: list[NDArray[np.bool_]], moments: list[Moments]) -> NDArray[np.float32]:
    """Return the distances of all positions, each sample by a model that was not fitted on its fold."""
    if len(folds) < 2:
        return PositionGaussians(positions).distances(positions)
    found = np.empty(positions.shape[:2], dtype=np.float32)
    for i, held in enumerate(folds):
        others = Moments.sum([own for j, own in enumerate(moments) if j != i])
        found[held] = PositionGaussians(positions[~held], others).distances(positions[held])
    return found


def _log(distances: NDArray) -> NDArray[np.float64]:
    return np.log(np.maximum(distances.astype(np.float64), 1e-30))


def _largest(values: NDArray, names: NDArray | None) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the largest value for each name, and the number of values with this name."""
    if names is None:
        return values, np.ones(len(values), dtype=np.intp)
    own, counts = np.unique(names, return_inverse=True, return_counts=True)[1:]
    found = np.full(len(counts), -np.inf)
    np.maximum.at(found, own, values)
    return found, counts


def _thinned(values: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Thin the values to quantiles whose levels are evenly spaced on a log scale, the highest value included.

    Return levels and quantiles. The level of a value is (1 + number of values at least as high) / (n + 1).
    """
    ordered = np.sort(values)[::-1]
    n = len(ordered)
    ranks = np.unique(np.round(np.geomspace(1, n, _LEVELS)).astype(int))
    return (ranks[::-1] + 1) / (n + 1), ordered[ranks - 1][::-1]
