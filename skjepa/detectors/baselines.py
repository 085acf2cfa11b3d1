"""Baseline detectors on embeddings: Mahalanobis distance and nearest neighbours."""

from typing import Annotated, Any, ClassVar, Literal, NotRequired, TypedDict

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import pinvh
from sklearn.base import clone
from sklearn.covariance import EmpiricalCovariance, LedoitWolf

from skjepa._utils.validation import check_integer
from skjepa.detectors.base import Samples
from skjepa.detectors.fitting import one_each
from skjepa.detectors.growing import GrowingDetector
from skjepa.detectors.on_embeddings import SUM, OnEmbeddings
from skjepa.encoders.encoder import Encoder
from skjepa.persistence.folder import portable
from skjepa.persistence.schema import Above, MayLack, Saved
from skjepa.scores.densities import NearestRows
from skjepa.scores.moments import KeptRows, Moments, drawn_rows, joined_moments, moments_of

_DEPENDENT = 1e-12  # share of the largest variance
_MOST_KEPT = 2000  # rows that `partial_fit` takes its threshold from


class _Gaussian(TypedDict):
    """A fitted Mahalanobis distance, in columns divided by `scale`."""

    scale: Annotated[NDArray[np.float64], "d", Above(0)]
    mean: Annotated[NDArray[np.float64], "d"]
    precision: Annotated[NDArray[np.float64], "d d"]
    class_means: NotRequired[Annotated[NDArray[np.float64], "classes d"]]
    class_precision: NotRequired[Annotated[NDArray[np.float64], "d d"]]


class _Grown(TypedDict):
    """What `partial_fit` goes on from: moments of each layer's columns, and rows to take the threshold from."""

    moments: list[Moments]
    kept: KeptRows


@portable
class MahalanobisDetector(OnEmbeddings, GrowingDetector):
    """Detect anomalies by the squared Mahalanobis distance to the mean of normal embeddings.

    The score is minus this distance: higher = more normal (Lee et al., NeurIPS 2018). It is a fast baseline that works
    well where normal embeddings form one cluster.

    `partial_fit` takes normal samples in parts: mean and covariance are kept as sums, and of samples at most 2,000,
    drawn at random, from which the threshold is taken.

    Parameters
    ----------
    covariance : sklearn.covariance estimator, optional
        Cloned and fitted. By default the sample covariance; with fewer than two samples per dimension, its
        Ledoit-Wolf shrinkage.
    normalize : bool
        Divide embeddings by their length first: Mahalanobis++ (Mueller and Hein, 2025).
    layer : str, optional
        Name of the hidden layer to compare in place of the embedding, for images and an Extraction. "concatenated":
        all layers and the embedding side by side. "sum": the sum of the distances in each layer (multi-layer
        Mahalanobis, Lee et al., 2018, with equal weights).
    relative : bool
        Score by the distance to the nearest class of `y`, less the distance without classes: relative Mahalanobis (Ren
        et al., 2021). `fit` then needs `y`, the classes of the normal samples, which share one covariance.
    encoder : str or Encoder
        What embeds images, one forward pass per image: "auto" takes the encoder of `skjepa.JEPAScoreDetector`. Rows of
        numbers are compared as they are.
    contamination, target_fpr, calibration, random_state
        As for `skjepa.JEPAScoreDetector`.
    device, memory_budget, n_jobs, on_error, verbose
        Of the forward pass over images, as for `skjepa.JEPAScoreDetector`.

    Attributes
    ----------
    models_, offset_, calibration_scores_, n_samples_fit_, calibration_
        See `skjepa.detectors.CalibratedDetector`.
    encoder_ : Encoder or None
        The encoder that embedded the images; None after a fit on rows or on an Extraction.

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa import MahalanobisDetector
    >>> X = np.random.default_rng(0).normal(size=(500, 3))
    >>> detector = MahalanobisDetector(calibration=0.5, target_fpr=0.05).fit(X)
    >>> detector.predict([[0.0, 0.0, 0.0], [5.0, 5.0, 5.0]]).tolist()
    [1, -1]

    Images, or a folder of them, are embedded by one forward pass each:

    >>> images = np.random.default_rng(0).integers(0, 256, size=(40, 32, 32, 3), dtype=np.uint8)
    >>> MahalanobisDetector().fit(images).score_samples(images).shape
    (40,)
    """

    is_local: ClassVar[bool] = False
    adds_layers: ClassVar[bool] = True
    covariance: Annotated[Any, Saved(None)]
    relative: bool
    models_: list[_Gaussian | list[_Gaussian]]
    _grown: MayLack[_Grown]

    def __init__(
        self,
        *,
        covariance: Any = None,
        normalize: bool = False,
        relative: bool = False,
        layer: str | None = None,
        encoder: str | Encoder = "auto",
        contamination: float = 0.1,
        target_fpr: float | None = None,
        calibration: float | int | None = None,
        device: str = "auto",
        memory_budget: int | None = None,
        n_jobs: int | None = None,
        on_error: str = "raise",
        random_state: Any = None,
        verbose: int | Literal["auto"] = "auto",
    ) -> None:
        self.covariance = covariance
        self.normalize = normalize
        self.relative = relative
        self.layer = layer
        self.encoder = encoder
        self.contamination = contamination
        self.target_fpr = target_fpr
        self.calibration = calibration
        self.device = device
        self.memory_budget = memory_budget
        self.n_jobs = n_jobs
        self.on_error = on_error
        self.random_state = random_state
        self.verbose = verbose

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

    def _labels(self, y: Any, samples: Samples) -> NDArray | None:
        if not isinstance(self.relative, bool | np.bool_):
            raise TypeError(f"relative must be True or False; got {self.relative!r}")
        if not self.relative:
            return None
        if y is None:
            raise ValueError("relative=True needs the class of each normal sample: call fit(X, y)")
        return one_each("y", y, samples)

    def _read_for_fit(self, X: Any, seed: int) -> Samples:
        self.__dict__.pop("_grown", None)
        return super()._read_for_fit(X, seed)

    def _check_can_grow(self) -> None:
        if self.covariance is not None or self.relative:
            given = f"covariance={self.covariance!r}" if self.covariance is not None else "relative=True"
            raise ValueError(
                f"partial_fit keeps the sums that the sample covariance is made of, and none for {given}: leave it "
                "out, or call fit with all samples"
            )
        if hasattr(self, "models_") and not hasattr(self, "_grown"):
            raise ValueError(
                "this fit keeps no sums that partial_fit could go on from: it held samples out, or had fewer than two "
                "per dimension. Give a new detector all parts by partial_fit"
            )

    def _learn(self, samples: Samples, y: NDArray | None, seed: int) -> tuple[Any, NDArray[np.float64]]:
        rows = self._embeddings(samples)
        widest = max(self._widths) if self.layer == SUM else rows.shape[1]
        if self.calibration_ is not None or self.covariance is not None or y is not None or len(rows) < 2 * widest:
            return super()._learn(samples, y, seed)
        model, _, _, self._grown = self._grow(rows, seed)
        return model, self._score_rows(model, rows)

    def _grow(self, rows: NDArray[np.float64], seed: int) -> tuple[Any, NDArray[np.float64], int, Any]:
        moments = [moments_of(block) for block in (self._split(rows) if self.layer == SUM else [rows])]
        before: _Grown | None = getattr(self, "_grown", None)
        if before is not None:
            moments = [joined_moments(*pair) for pair in zip(before["moments"], moments, strict=True)]
        n = moments[0]["n"]
        kept = drawn_rows(None if before is None else before["kept"], rows, seed, n - len(rows), _MOST_KEPT)
        gaussians = [_gaussian_of(block) for block in moments]
        model = gaussians if self.layer == SUM else gaussians[0]
        return model, self._score_rows(model, kept["rows"]), n, {"moments": moments, "kept": kept}

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
class KNNDetector(OnEmbeddings, GrowingDetector):
    """Detect anomalies by the distance to the k-th nearest normal embedding.

    The score is minus this distance: higher = more normal (Sun et al., ICML 2022).

    `partial_fit` adds rows to those that are there, so memory grows with them; it also goes on from `fit`.

    Parameters
    ----------
    n_neighbors : int
        k, reduced where there are fewer samples. A fit sample is not counted among its own neighbours.
    metric : str or callable
        Distance, as `sklearn.neighbors.NearestNeighbors` takes it.
    normalize : bool
        Divide embeddings by their length first.
    layer : str, optional
        Name of the hidden layer to compare in place of the embedding, for images and an Extraction. "concatenated":
        all layers and the embedding side by side.
    encoder : str or Encoder
        What embeds images, one forward pass per image: "auto" takes the encoder of `skjepa.JEPAScoreDetector`. Rows of
        numbers are compared as they are.
    contamination, target_fpr, calibration, random_state
        As for `skjepa.JEPAScoreDetector`.
    device, memory_budget, n_jobs, on_error, verbose
        Of the forward pass over images, as for `skjepa.JEPAScoreDetector`.

    Attributes
    ----------
    models_, offset_, calibration_scores_, n_samples_fit_, calibration_
        See `skjepa.detectors.CalibratedDetector`.
    encoder_ : Encoder or None
        The encoder that embedded the images; None after a fit on rows or on an Extraction.

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
    _grown: MayLack[None]

    def __init__(
        self,
        *,
        n_neighbors: int = 10,
        metric: Any = "euclidean",
        normalize: bool = False,
        layer: str | None = None,
        encoder: str | Encoder = "auto",
        contamination: float = 0.1,
        target_fpr: float | None = None,
        calibration: float | int | None = None,
        device: str = "auto",
        memory_budget: int | None = None,
        n_jobs: int | None = None,
        on_error: str = "raise",
        random_state: Any = None,
        verbose: int | Literal["auto"] = "auto",
    ) -> None:
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.normalize = normalize
        self.layer = layer
        self.encoder = encoder
        self.contamination = contamination
        self.target_fpr = target_fpr
        self.calibration = calibration
        self.device = device
        self.memory_budget = memory_budget
        self.n_jobs = n_jobs
        self.on_error = on_error
        self.random_state = random_state
        self.verbose = verbose

    def _check_parameters(self) -> None:
        check_integer("n_neighbors", self.n_neighbors, minimum=1)

    def _check_can_grow(self) -> None:
        """Rows can always be added."""

    def _grow(self, rows: NDArray[np.float64], seed: int) -> tuple[Any, NDArray[np.float64], int, Any]:
        if hasattr(self, "models_"):
            rows = np.concatenate([self.models_[0].rows, rows])
        model = self._fit_rows(rows, None)
        return model, self._score_rows(model, rows), len(rows), None

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
        return _scales_of(rows.std(axis=0), np.abs(rows).max(axis=0))


def _scales_of(
    deviation: NDArray[np.float64], size: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    if not np.isfinite(deviation).all():
        worst = int(np.argmin(np.isfinite(deviation)))
        raise ValueError(
            f"X holds values too large to square: column {worst} has a value of {size[worst]:.3g} in size; scale X"
        )
    varies = deviation > 1e-12 * size
    return np.where(varies, deviation, 1e-6 * np.where(size > 0, size, 1.0)), varies


def _gaussian_of(moments: Moments) -> _Gaussian:
    """What `fit` learns of the rows that these are the moments of."""
    n, width = moments["n"], len(moments["mean"])
    if n < 2 * width:
        raise ValueError(
            f"{n} rows of {width} columns: of fewer than {2 * width} the covariance is shrunk, which takes all rows. "
            "Give more rows in the first call, or call fit with all of them"
        )
    with np.errstate(over="ignore", invalid="ignore"):
        scale, varies = _scales_of(np.sqrt(np.diag(moments["scatter"]) / n), moments["largest"])
    centre, precision = moments["mean"] / scale, np.eye(width)
    if varies.any():
        whole = EmpiricalCovariance()
        whole.covariance_ = (moments["scatter"] / n / np.outer(scale, scale))[np.ix_(varies, varies)]
        whole.precision_ = pinvh(whole.covariance_)
        precision = _with_constants(_precision(whole), varies)
    return {"scale": scale, "mean": centre, "precision": precision}


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
