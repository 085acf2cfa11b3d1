"""Baseline detectors on embeddings: Mahalanobis distance and nearest neighbours.

They take an Extraction or rows of numbers and have the thresholds and p-values of `JEPAScoreDetector`. To use them on
images, extract first or put an `EmbeddingTransformer` before them.
"""

import warnings
from abc import abstractmethod
from typing import Annotated, Any, ClassVar, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.covariance import EmpiricalCovariance, LedoitWolf
from sklearn.preprocessing import normalize
from sklearn.utils.validation import column_or_1d

from skjepa._utils.validation import check_integer
from skjepa.data.sources import Source, as_source, holds_vectors
from skjepa.detectors.base import CalibratedDetector, Samples
from skjepa.extraction.extraction import Extraction, require_finite
from skjepa.extraction.store.settings import Settings, require_same_settings
from skjepa.inspection.diagnosis import near_copies
from skjepa.inspection.findings import GROUPS_ARE_GIVEN, NEAR_COPIES
from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, MayLack, Saved
from skjepa.scores.densities import NearestRows
from skjepa.scores.layered import OUTPUT, layers_of

CONCATENATED, SUM = "concatenated", "sum"
"""Special values of `layer`: all layers and the embedding side by side; the sum of the distances in each of them."""

_OF_PASSES = {"method": None, "views": None, "transform": None, "seed": None}  # settings of the singular values, unused
_DEPENDENT = 1e-12  # share of the largest variance


class OnEmbeddings(CalibratedDetector):
    """Base class of detectors on rows: embeddings or hidden layers of an Extraction, or vectors themselves.

    Subclasses have parameters `normalize` and `layer`, and define `_fit_rows` and `_score_rows`.
    """

    is_local: ClassVar[bool] = True  # compares with neighbours, so near copies in the fit samples spoil the scores
    adds_layers: ClassVar[bool] = False  # accepts layer="sum"
    normalize: bool
    layer: MayLack[str | None] = None
    _settings: Settings | None
    _widths: MayLack[list[int]]

    @abstractmethod
    def _fit_rows(self, rows: NDArray[np.float64], y: NDArray | None) -> Any: ...

    @abstractmethod
    def _score_rows(self, model: Any, rows: NDArray[np.float64]) -> NDArray[np.float64]: ...

    def _check_parameters(self) -> None:
        """Check the parameters of the subclass; raise ValueError or TypeError."""

    def _read_for_fit(self, X: Any, seed: int) -> Samples:
        self._check_thresholds()
        self._check_parameters()
        if not isinstance(self.normalize, bool | np.bool_):
            raise TypeError(f"normalize must be True or False; got {self.normalize!r}")
        if self.layer is not None and not isinstance(self.layer, str):
            raise TypeError(f"layer must be the name of a layer or None; got {self.layer!r}")
        if self.layer == SUM and not self.adds_layers:
            raise ValueError(
                f"layer='sum' works with MahalanobisDetector alone: give {type(self).__name__} layer='concatenated'"
            )
        self._settings = None
        if isinstance(X, Extraction):
            require_finite(X)
            self._widths = [block.shape[1] for block in self._blocks(X).values()]
            self.n_features_in_ = sum(self._widths)
            self._settings = X.settings
            samples: Samples = X
        else:
            samples = self._rows_of(X, reset=True)
        self._check_size(samples.ids, seed)
        return samples

    def _read(self, X: Any) -> Samples:
        if not isinstance(X, Extraction):
            return self._rows_of(X, reset=False)
        require_finite(X)
        if self._settings is not None:
            expected, found = ({**of, **_OF_PASSES} for of in (self._settings, X.meta))
            require_same_settings(expected, found, "the detector's fit and these samples")
        width = sum(block.shape[1] for block in self._blocks(X).values())
        if width != self.n_features_in_:
            raise ValueError(
                f"X has {width} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        return X

    def _rows_of(self, X: Any, *, reset: bool) -> Source:
        if self.layer is not None:
            raise TypeError(
                f"layer={self.layer!r} names a layer of an encoder, and X is no Extraction: give {type(self).__name__} "
                "skjepa.extract(encoder, X, method='forward')"
            )
        if not holds_vectors(X):
            raise TypeError(
                f"{type(self).__name__} takes rows of numbers or an Extraction, and X holds images: give it "
                "skjepa.extract(encoder, X), or put an EmbeddingTransformer before it"
            )
        return as_source(self._validated(X, reset=reset))

    @property
    def reads(self) -> str:
        return "embeddings" if self.layer is None else "forward"

    def _blocks(self, samples: Samples) -> dict[str, NDArray[np.float64]]:
        """Return the rows to compare, by the name of their layer."""
        if not isinstance(samples, Extraction):
            return {"": samples.rows()}
        if self.layer is None:
            return {OUTPUT: samples.embeddings}
        layers = layers_of(samples, None if self.layer in (CONCATENATED, SUM) else [self.layer])
        return {name: np.asarray(rows, dtype=np.float64) for name, rows in layers.items()}

    def _embeddings(self, samples: Samples) -> NDArray[np.float64]:
        blocks = self._blocks(samples).values()
        return np.hstack([normalize(rows) if self.normalize else rows for rows in blocks])

    def _learn(self, samples: Samples, y: NDArray | None, seed: int) -> tuple[Any, NDArray[np.float64]]:
        rows = self._embeddings(samples)
        if self.is_local and not GROUPS_ARE_GIVEN.get() and near_copies(rows) > NEAR_COPIES:
            warnings.warn(
                "many of the fit samples are near copies of a few others, so their scores are too high and the "
                "threshold is unreliable: fit on one sample of each, or give groups= and calibration=",
                stacklevel=4,
            )
        model = self._fit_rows(rows, y)
        return model, self._score_rows(model, rows)

    def _score(self, model: Any, samples: Samples) -> NDArray[np.float64]:
        return self._score_rows(model, self._embeddings(samples))


class _Gaussian(TypedDict):
    """A fitted Mahalanobis distance, in columns divided by `scale`."""

    scale: Annotated[NDArray[np.float64], "d", Above(0)]
    mean: Annotated[NDArray[np.float64], "d"]
    precision: Annotated[NDArray[np.float64], "d d"]
    class_means: NotRequired[Annotated[NDArray[np.float64], "classes d"]]
    class_precision: NotRequired[Annotated[NDArray[np.float64], "d d"]]


@portable
class MahalanobisDetector(OnEmbeddings):
    """Detect anomalies by the squared Mahalanobis distance to the mean of normal embeddings.

    The score is minus this distance: higher = more normal (Lee et al., NeurIPS 2018). It is a fast baseline that works
    well where normal embeddings form one cluster.

    Parameters
    ----------
    covariance : sklearn.covariance estimator, optional
        Cloned and fitted. By default the sample covariance; with fewer than two samples per dimension, its
        Ledoit-Wolf shrinkage.
    normalize : bool
        Divide embeddings by their length first: Mahalanobis++ (Mueller and Hein, 2025).
    layer : str, optional
        Name of the hidden layer of an Extraction to compare in place of the embedding. "concatenated": all layers and
        the embedding side by side. "sum": the sum of the distances in each layer (multi-layer Mahalanobis, Lee et al.,
        2018, with equal weights).
    relative : bool
        Score by the distance to the nearest class of `y`, less the distance without classes: relative Mahalanobis (Ren
        et al., 2021). `fit` then needs `y`, the classes of the normal samples, which share one covariance.
    contamination, target_fpr, calibration, random_state
        As for `skjepa.JEPAScoreDetector`.

    Attributes
    ----------
    models_, offset_, calibration_scores_, n_samples_fit_
        See `skjepa.detectors.CalibratedDetector`.

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa import MahalanobisDetector
    >>> X = np.random.default_rng(0).normal(size=(500, 3))
    >>> detector = MahalanobisDetector(calibration=0.5, target_fpr=0.05).fit(X)
    >>> detector.predict([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0]]).tolist()
    [1, -1]
    """

    is_local: ClassVar[bool] = False
    adds_layers: ClassVar[bool] = True
    covariance: Annotated[Any, Saved(None)]
    relative: bool
    models_: list[_Gaussian | list[_Gaussian]]

    def __init__(
        self,
        *,
        covariance: Any = None,
        normalize: bool = False,
        relative: bool = False,
        layer: str | None = None,
        contamination: float = 0.1,
        target_fpr: float | None = None,
        calibration: float | int | None = None,
        random_state: Any = None,
    ) -> None:
        self.covariance = covariance
        self.normalize = normalize
        self.relative = relative
        self.layer = layer
        self.contamination = contamination
        self.target_fpr = target_fpr
        self.calibration = calibration
        self.random_state = random_state

    def portable_check(self) -> None:
        super().portable_check()
        for model in self.models_:
            widths = getattr(self, "_widths", []) if self.layer == SUM else [self.n_features_in_]
            parts = model if isinstance(model, list) else [model]
            if [len(part["mean"]) for part in parts] != widths:
                raise ValueError(f"the covariances must have the widths of the layers, {widths}")
            if any(("class_means" in part) != ("class_precision" in part) for part in parts):
                raise ValueError("class_means and class_precision must both be present or both be missing")

    def _check_parameters(self) -> None:
        if self.covariance is not None and not hasattr(self.covariance, "mahalanobis"):
            raise TypeError(f"covariance must be an estimator from sklearn.covariance; got {self.covariance!r}")

    def _labels(self, y: Any, n_samples: int) -> NDArray | None:
        if not isinstance(self.relative, bool | np.bool_):
            raise TypeError(f"relative must be True or False; got {self.relative!r}")
        if not self.relative:
            return None
        if y is None:
            raise ValueError("relative=True needs the class of each normal sample: call fit(X, y)")
        labels = column_or_1d(y)
        if len(labels) != n_samples:
            raise ValueError(f"y must hold one class per sample: X has {n_samples} samples, y {len(labels)} classes")
        return labels

    def _fit_rows(self, rows: NDArray[np.float64], y: NDArray | None) -> Any:
        if self.layer != SUM:
            return self._fit_block(rows, y)
        return [self._fit_block(block, y) for block in self._split(rows)]

    def _score_rows(self, model: Any, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        if not isinstance(model, list):
            return self._score_block(model, rows)
        return np.sum(
            [self._score_block(part, block) for part, block in zip(model, self._split(rows), strict=True)], axis=0
        )

    def _split(self, rows: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Split the rows into the columns of each layer."""
        return np.split(rows, np.cumsum(self._widths)[:-1], axis=1)

    def _fit_block(self, rows: NDArray[np.float64], y: NDArray | None) -> _Gaussian:
        scale, varies = _scales(rows)
        rows = rows / scale
        centre, precision = rows.mean(axis=0), np.eye(rows.shape[1])
        if varies.any():
            whole = self._covariance(rows).fit(rows[:, varies])
            centre[varies] = whole.location_
            precision = _with_constants(_precision(whole), varies)
        model: _Gaussian = {"scale": scale, "mean": centre, "precision": precision}
        if y is None:
            return model
        classes, members = np.unique(y, return_inverse=True)
        means = np.stack([rows[members == c].mean(axis=0) for c in range(len(classes))])
        if varies.any():
            within = self._covariance(rows).set_params(assume_centered=True).fit((rows - means[members])[:, varies])
            precision = _with_constants(_precision(within), varies)
        return {**model, "class_means": means, "class_precision": precision}

    def _score_block(self, model: _Gaussian, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = rows / model["scale"]
        whole = _squared_distance(rows, model["mean"], model["precision"])
        if "class_means" not in model:
            return -whole
        return whole - np.min(
            [_squared_distance(rows, mean, model["class_precision"]) for mean in model["class_means"]], axis=0
        )

    def _covariance(self, rows: NDArray[np.float64]) -> Any:
        if self.covariance is not None:
            return clone(self.covariance)
        return EmpiricalCovariance() if len(rows) >= 2 * rows.shape[1] else LedoitWolf()


@portable
class KNNDetector(OnEmbeddings):
    """Detect anomalies by the distance to the k-th nearest normal embedding.

    The score is minus this distance: higher = more normal (Sun et al., ICML 2022).

    Parameters
    ----------
    n_neighbors : int
        k, reduced where there are fewer samples. A fit sample is not counted among its own neighbours.
    metric : str or callable
        Distance, as `sklearn.neighbors.NearestNeighbors` takes it.
    normalize : bool
        Divide embeddings by their length first.
    layer : str, optional
        Name of the hidden layer of an Extraction to compare in place of the embedding. "concatenated": all layers and
        the embedding side by side.
    contamination, target_fpr, calibration, random_state
        As for `skjepa.JEPAScoreDetector`.

    Attributes
    ----------
    models_, offset_, calibration_scores_, n_samples_fit_
        See `skjepa.detectors.CalibratedDetector`.

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa import KNNDetector
    >>> X = np.random.default_rng(0).normal(size=(100, 3))
    >>> int((KNNDetector(contamination=0.1).fit(X).predict(X) == -1).sum())
    10
    """

    n_neighbors: int
    metric: Annotated[Any, Saved(str)]
    models_: list[Annotated[NearestRows, "K=d"]]

    def __init__(
        self,
        *,
        n_neighbors: int = 10,
        metric: Any = "euclidean",
        normalize: bool = False,
        layer: str | None = None,
        contamination: float = 0.1,
        target_fpr: float | None = None,
        calibration: float | int | None = None,
        random_state: Any = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.normalize = normalize
        self.layer = layer
        self.contamination = contamination
        self.target_fpr = target_fpr
        self.calibration = calibration
        self.random_state = random_state

    def _check_parameters(self) -> None:
        check_integer("n_neighbors", self.n_neighbors, minimum=1)

    def _fit_rows(self, rows: NDArray[np.float64], y: NDArray | None) -> NearestRows:
        return NearestRows(rows, min(self.n_neighbors, len(rows) - 1), self.metric)

    def _score_rows(self, model: NearestRows, rows: NDArray[np.float64]) -> NDArray[np.float64]:
        return -model.distances_to_others(rows)[:, -1]


def _scales(rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the standard deviation of each column and whether the column varies.

    A constant column gets a small scale, so that any change in it counts. Columns are scaled because very different
    units would round off the smallest eigenvalues of the covariance, and with them the columns.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        deviation, size = rows.std(axis=0), np.abs(rows).max(axis=0)
    if not np.isfinite(deviation).all():
        worst = int(np.argmin(np.isfinite(deviation)))
        raise ValueError(
            f"X holds values too large to square: column {worst} has a value of {size[worst]:.3g} in size; scale X"
        )
    varies = deviation > 1e-12 * size
    return np.where(deviation > 0, deviation, 1e-6 * np.where(size > 0, size, 1.0)), varies


def _precision(fitted: Any) -> NDArray[np.float64]:
    """Return the inverse covariance.

    Where columns are linearly dependent, the smallest variances are raised to a floor, so that a sample that breaks
    the dependence gets a large distance.
    """
    if type(fitted) is not EmpiricalCovariance:
        return fitted.get_precision()
    variances, axes = np.linalg.eigh(fitted.covariance_)
    least = _DEPENDENT * variances[-1]
    if variances[0] > least:
        return fitted.get_precision()
    return (axes / np.maximum(variances, least)) @ axes.T


def _with_constants(precision: NDArray[np.float64], varies: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Extend the precision of the columns that vary by a 1 on the diagonal for each column that does not."""
    whole = np.eye(len(varies))
    whole[np.ix_(varies, varies)] = precision
    return whole


def _squared_distance(rows: NDArray[np.float64], mean: NDArray, precision: NDArray) -> NDArray[np.float64]:
    centred = rows - mean
    return np.einsum("ij,ij->i", centred @ precision, centred)
