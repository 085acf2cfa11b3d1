"""The detectors to beat: Mahalanobis, nearest neighbours, any of PyOD's or scikit-learn's, and plain complexity.

All of them take what `JEPAScoreDetector` takes as an Extraction, or rows of numbers, as they are; and have its
thresholds and p-values. Images reach them through an `EmbeddingTransformer`, or as an Extraction.
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
"""In the place of a layer's name: all layers and the embedding side by side; of a Mahalanobis distance, the sum of that
of each."""

_OF_PASSES = {"method": None, "views": None, "transform": None, "seed": None}  # singular values are not looked at
_DEPENDENT = 1e-12  # share of the largest variance


class OnEmbeddings(CalibratedDetector):
    """A detector of rows: embeddings or hidden layers of an Extraction, or vectors themselves.

    Subclasses have parameters `normalize` and `layer`, and say how to `_fit_rows` and `_score_rows`.
    """

    is_local: ClassVar[bool] = True  # looks at neighbours, which near copies are
    adds_layers: ClassVar[bool] = False  # knows what layer="sum" means
    normalize: bool
    layer: MayLack[str | None] = None
    _settings: Settings | None
    _widths: MayLack[list[int]]

    @abstractmethod
    def _fit_rows(self, rows: NDArray[np.float64], y: NDArray | None) -> Any: ...

    @abstractmethod
    def _score_rows(self, model: Any, rows: NDArray[np.float64]) -> NDArray[np.float64]: ...

    def _check_parameters(self) -> None:
        """Of the subclass; raises ValueError or TypeError."""

    def _read_for_fit(self, X: Any, seed: int) -> Samples:
        self._check_thresholds()
        self._check_parameters()
        if not isinstance(self.normalize, bool | np.bool_):
            raise TypeError(f"normalize must be True or False; got {self.normalize!r}")
        if self.layer is not None and not isinstance(self.layer, str):
            raise TypeError(f"layer must be the name of a layer or None; got {self.layer!r}")
        if self.layer == SUM and not self.adds_layers:
            raise ValueError(f"layer='sum' is for MahalanobisDetector; give {type(self).__name__} layer='concatenated'")
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
                f"layer={self.layer!r} is one of an encoder: give {type(self).__name__} an Extraction, of "
                "skjepa.extract(encoder, X, method='forward')"
            )
        if not holds_vectors(X):
            raise TypeError(
                f"{type(self).__name__} takes rows of numbers or an Extraction; for images give it "
                "skjepa.extract(encoder, X), or put an EmbeddingTransformer before it"
            )
        return as_source(self._validated(X, reset=reset))

    @property
    def reads(self) -> str:
        return "embeddings" if self.layer is None else "forward"

    def _blocks(self, samples: Samples) -> dict[str, NDArray[np.float64]]:
        """The rows that are compared: of several layers, each by its name."""
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
                "many of the fit samples are near copies of a few others: their scores are too kind, and so is the "
                "threshold. Fit on one of each, or give groups= and calibration=",
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
    """Minus the squared Mahalanobis distance to the mean of normal embeddings (Lee et al., NeurIPS 2018).

    Parameters
    ----------
    covariance : sklearn.covariance estimator, optional
        Cloned and fitted. By default the sample covariance, and where there are fewer than two samples a dimension
        Ledoit and Wolf's shrinkage of it.
    normalize : bool
        Divide embeddings by their length first: Mahalanobis++ (Mueller and Hein, 2025).
    layer : str, optional
        Of an Extraction, the hidden layer to compare in the place of the embedding, by its name; "concatenated": all
        layers and the embedding side by side; "sum": the sum of the distances of each (multi-layer Mahalanobis, Lee et
        al., 2018, with equal weights).
    relative : bool
        Score by the nearest class of `y` (classes of normal samples, one covariance for all), less the score without
        classes: relative Mahalanobis (Ren et al., 2021). `fit` then needs `y`.
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
                raise ValueError(f"the covariances have not the widths {widths} of the layers")
            if any(("class_means" in part) != ("class_precision" in part) for part in parts):
                raise ValueError("class_means and class_precision go together")

    def _check_parameters(self) -> None:
        if self.covariance is not None and not hasattr(self.covariance, "mahalanobis"):
            raise TypeError(f"covariance must be an estimator of sklearn.covariance; got {self.covariance!r}")

    def _labels(self, y: Any, n_samples: int) -> NDArray | None:
        if not isinstance(self.relative, bool | np.bool_):
            raise TypeError(f"relative must be True or False; got {self.relative!r}")
        if not self.relative:
            return None
        if y is None:
            raise ValueError("relative=True needs y, the class of each normal sample")
        labels = column_or_1d(y)
        if len(labels) != n_samples:
            raise ValueError(f"X has {n_samples} samples and y {len(labels)} classes")
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
        """The columns of each layer."""
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
    """Minus the distance to the k-th nearest normal embedding (Sun et al., ICML 2022).

    Parameters
    ----------
    n_neighbors : int
        k; fewer where fewer samples are there. A training sample is its own first neighbour.
    metric : str or callable
        Of `sklearn.neighbors.NearestNeighbors`.
    normalize : bool
        Divide embeddings by their length first.
    layer : str, optional
        Of an Extraction, the hidden layer to compare in the place of the embedding, by its name; "concatenated": all
        layers and the embedding side by side.
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
    """Standard deviation of each column, and whether it varies; a constant gets a scale that notices a change.

    Columns of very different units would cost the covariance its smallest eigenvalues, and with them the columns.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        deviation, size = rows.std(axis=0), np.abs(rows).max(axis=0)
    if not np.isfinite(deviation).all():
        worst = int(np.argmin(np.isfinite(deviation)))
        raise ValueError(f"X holds values too large to square: column {worst} has one of {size[worst]:.3g} in size")
    varies = deviation > 1e-12 * size
    return np.where(deviation > 0, deviation, 1e-6 * np.where(size > 0, size, 1.0)), varies


def _precision(fitted: Any) -> NDArray[np.float64]:
    """The inverse covariance; where columns depend on one another, one that notices when they no longer do."""
    if type(fitted) is not EmpiricalCovariance:
        return fitted.get_precision()
    variances, axes = np.linalg.eigh(fitted.covariance_)
    least = _DEPENDENT * variances[-1]
    if variances[0] > least:
        return fitted.get_precision()
    return (axes / np.maximum(variances, least)) @ axes.T


def _with_constants(precision: NDArray[np.float64], varies: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The precision of the columns that vary, and one for each that does not."""
    whole = np.eye(len(varies))
    whole[np.ix_(varies, varies)] = precision
    return whole


def _squared_distance(rows: NDArray[np.float64], mean: NDArray, precision: NDArray) -> NDArray[np.float64]:
    centred = rows - mean
    return np.einsum("ij,ij->i", centred @ precision, centred)
