"""Provide detectors with PyOD's interface, for PyOD pipelines and the ADBench benchmark.

This module alone uses PyOD's signs and labels: higher = more abnormal, 1 = outlier, 0 = normal.
"""

from contextlib import suppress
from functools import partial
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pyod.models.base import BaseDetector
from scipy.special import erf
from scipy.stats import binom
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.preprocessing import MinMaxScaler
from sklearn.utils.validation import check_is_fitted, validate_data

from skjepa._utils.validation import check_choice, check_number
from skjepa.data.one_picture import listed
from skjepa.data.sources import holds_vectors
from skjepa.detectors.baselines import KNNDetector, MahalanobisDetector
from skjepa.detectors.fitting import all_or_nothing
from skjepa.detectors.jepa_score import JEPAScoreDetector
from skjepa.extraction.extraction import Extraction


class PyODDetector(BaseDetector):
    """Wrap a scikit-learn outlier detector as a PyOD detector.

    It is a `pyod.models.base.BaseDetector`. Every method scores its samples once and derives labels, probabilities and
    confidence from the same scores.

    Parameters
    ----------
    detector : estimator, optional
        A detector with `fit` and `score_samples` (higher = more normal), which `fit` clones. By default
        ``JEPAScoreDetector()``.
    contamination : float in (0, 0.5], None or thresholder
        A number is the share of the training samples above the threshold, as everywhere in PyOD. None takes the
        threshold that `detector` set itself (its `offset_`), for example by `target_fpr`. Otherwise give a pythresh
        object with `fit` and `predict` on scores, which `fit` clones.

    Attributes
    ----------
    detector_ : estimator
        The fitted detector.
    decision_scores_ : array of shape (n_samples,), float64
        Scores of the training samples; higher = more abnormal.
    threshold_ : float
        Scores above it are labelled 1. With a pythresh object it is the object's `thresh_`, which has its own units.
    labels_ : array of shape (n_samples,), int
        1 for training samples above the threshold, else 0.
    thresholder_ : object or None
        The fitted clone of a pythresh object.

    Notes
    -----
    X may be anything that `detector` takes: arrays, lists, images, a folder, an `Extraction`. An image that `detector`
    skips (``on_error="skip"``) gets NaN as score, probabilities and confidence, and the label 1. The threshold is set
    without it.

    Where `detector` has a frozen encoder, one encoder pass serves both `fit` and `decision_scores_`. Where `fit` trains
    the encoder, the training samples pass through it once more after training.

    ``joblib.dump`` and ``pyod.utils.persistence.save`` store the whole detector. Both write pickles, and loading a
    pickle can run any code in it: load only files that you trust.

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa.pyod import PyODDetector
    >>> from sklearn.ensemble import IsolationForest
    >>> X = np.random.default_rng(0).normal(size=(200, 4))
    >>> clf = PyODDetector(IsolationForest(random_state=0), contamination=0.1).fit(X)
    >>> int(clf.labels_.sum())
    20
    >>> clf.predict(np.vstack([np.zeros((1, 4)), np.full((1, 4), 9.0)])).tolist()
    [0, 1]
    """

    def __init__(self, detector: Any = None, contamination: Any = 0.1) -> None:
        super().__init__(contamination=contamination)
        self.detector = detector

    def fit(self, X: Any, y: object = None) -> "PyODDetector":
        """Fit a clone of `detector`, score the training samples, and set the threshold.

        Parameters
        ----------
        X : anything that `detector` takes
        y : array, optional
            Passed on to the `fit` of `detector`, which usually ignores it. No method here depends on it.

        Returns
        -------
        self

        Raises
        ------
        ValueError, TypeError
            Bad data or parameters. A `fit` that fails leaves the result of an earlier `fit` unchanged.
        """
        with all_or_nothing(self):
            self._check_parameters()
            self._set_n_classes(None)  # PyOD would size probabilities by the number of classes in y
            self.detector_ = JEPAScoreDetector() if self.detector is None else clone(self.detector)
            self.decision_scores_ = _fit_and_score(self.detector_, X, y)
            self._process_decision_scores()
        return self

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return the anomaly score of each sample, (n_samples,); higher = more abnormal.

        It is minus the `score_samples` of `detector`.
        """
        check_is_fitted(self, ["decision_scores_", "threshold_", "labels_"])
        return -np.asarray(self.detector_.score_samples(X), dtype=np.float64)

    def predict(self, X: Any, return_confidence: bool = False) -> Any:
        """Return 1 for outliers and 0 for normal samples, (n_samples,).

        With `return_confidence`, also return `predict_confidence` as a second array.
        """
        scores = self.decision_function(X)
        labels = self._labels(scores)
        return (labels, self._confidence(scores, labels)) if return_confidence else labels

    def predict_proba(self, X: Any, method: str = "linear", return_confidence: bool = False) -> Any:
        """Return scores rescaled to [0, 1] as PyOD does; they are not calibrated probabilities.

        Parameters
        ----------
        X : anything that `detector` takes
        method : {"linear", "unify"}
            "linear": the range of the training scores becomes [0, 1]. "unify": the Gaussian error function of the
            score, standardised on the training scores (Kriegel et al., 2011).
        return_confidence : bool
            Whether to return `predict_confidence` as well.

        Returns
        -------
        array of shape (n_samples, 2)
            Columns: normal, outlier.
        """
        check_choice("method", method, ("linear", "unify"))
        scores = self.decision_function(X)
        if method == "linear":
            scaler = MinMaxScaler().fit(self.decision_scores_.reshape(-1, 1))
            outlier = scaler.transform(scores.reshape(-1, 1)).ravel()
        else:
            spread = max(self._sigma, np.finfo(np.float64).tiny)  # it is 0 where all training scores are equal
            outlier = erf((scores - self._mu) / (spread * np.sqrt(2)))
        outlier = outlier.clip(0, 1)
        probabilities = np.column_stack([1 - outlier, outlier])
        return (probabilities, self._confidence(scores, self._labels(scores))) if return_confidence else probabilities

    def predict_confidence(self, X: Any) -> NDArray[np.float64]:
        """Return the probability that the label stays the same under another training set, (n_samples,).

        See Perini et al. (2020).
        """
        return self.predict(X, return_confidence=True)[1]

    def predict_with_rejection(
        self,
        X: Any,
        T: float = 32,
        return_stats: bool = False,
        delta: float = 0.1,
        c_fp: float = 1,
        c_fn: float = 1,
        c_r: float = -1,
    ) -> Any:
        """Return labels, with -2 where the confidence is too low, (n_samples,).

        See Perini and Davis (2023).

        Parameters
        ----------
        X : anything that `detector` takes
        T : float
            A label is withheld where ``2 |confidence - 1/2|`` is at most ``1 - 2 exp(-T)``.
        return_stats : bool
            Whether to return [expected share of rejections, its upper bound, upper bound of the cost] as well.
        delta : float
            The bound on the share holds with probability 1 - delta.
        c_fp, c_fn, c_r : float
            Costs of false positives, false negatives and rejections. A negative `c_r` stands for `contamination`.

        Raises
        ------
        ValueError
            `return_stats` is given and `contamination` is not a number.
        """
        labels, confidence = self.predict(X, return_confidence=True)
        labels[2 * np.abs(confidence - 0.5) <= 1 - 2 * np.exp(-T)] = -2
        if return_stats:
            return labels, list(self.compute_rejection_stats(T=T, delta=delta, c_fp=c_fp, c_fn=c_fn, c_r=c_r))
        return labels

    def compute_rejection_stats(self, *args: Any, **options: Any) -> tuple[float, float, float]:
        """Return PyOD's statistics of rejection; raise ValueError where `contamination` is not a number.

        They depend on `contamination` and the number of training samples alone.
        """
        if not isinstance(self.contamination, Real):
            raise ValueError(
                f"statistics of rejection need contamination as a number; got {self.contamination!r}: give, for "
                "example, contamination=0.1"
            )
        return super().compute_rejection_stats(*args, **options)

    def _check_parameters(self) -> None:
        """Check the parameters at `fit`, because `set_params` runs no `__init__` and PyOD takes any object here."""
        share = self.contamination
        is_thresholder = hasattr(share, "fit") and hasattr(share, "predict")
        if share is not None and not is_thresholder:
            check_number("contamination", share, above=0.0, below=0.5, closed=">")
        detector = self.detector
        methods = ("fit", "score_samples")
        if detector is None or (not isinstance(detector, type) and all(hasattr(detector, name) for name in methods)):
            return
        raise TypeError(
            "detector must be an outlier detector with fit and score_samples, such as JEPAScoreDetector() or "
            f"LocalOutlierFactor(novelty=True); got {detector!r}"
        )

    def _process_decision_scores(self) -> "PyODDetector":
        """Set threshold and labels in the hook that PyOD calls, from the samples that could be read."""
        scores = self.decision_scores_
        read = scores[~np.isnan(scores)]
        self._mu, self._sigma = read.mean(), read.std()
        self.thresholder_ = None
        if self.contamination is None:
            self.threshold_ = -_own_offset(self.detector_)
        elif isinstance(self.contamination, Real):
            self.threshold_ = float(np.percentile(read, 100 * (1 - float(self.contamination))))
        else:
            self.thresholder_ = clone(self.contamination, safe=False)
            self.thresholder_.fit(read)
            self.threshold_ = self.thresholder_.thresh_
        self.labels_ = self._labels(scores)
        return self

    def _labels(self, scores: NDArray[np.float64]) -> NDArray[np.int64]:
        labels = np.ones(len(scores), dtype=np.int64)  # flag samples that could not be read, for someone to inspect
        read = ~np.isnan(scores)
        if self.thresholder_ is None:
            labels[read] = scores[read] > self.threshold_
        elif read.any():
            labels[read] = self.thresholder_.predict(scores[read])
        return labels

    def _confidence(self, scores: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
        read = ~np.isnan(self.decision_scores_)
        train, n = np.sort(self.decision_scores_[read]), int(read.sum())
        number = isinstance(self.contamination, Real)
        share = float(self.contamination) if number else self.labels_[read].mean()
        below = np.searchsorted(train, scores, side="right")
        outlier = 1 - binom.cdf(n - int(n * share), n, (1 + below) / (2 + n))
        return np.where(np.isnan(scores), np.nan, np.where(labels == 1, outlier, 1 - outlier))


class ADBenchModel:
    """Run a detector in ADBench as a customised model.

    Call ``RunPipeline(...).run(clf=ADBenchModel)``.

    Parameters
    ----------
    seed : int
        Seed of the detector.
    model_name : str, optional
        A key of `models`. ADBench itself always passes "Customized", which means `default`, as None does. To choose
        another model, set `default` in a subclass: ``class Alone(ADBenchModel): default = "jepa"``.

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa.pyod import ADBenchModel
    >>> rng = np.random.default_rng(0)
    >>> X_train = rng.normal(size=(60, 3))
    >>> model = ADBenchModel(seed=0, model_name="joint").fit(X_train=X_train, y_train=np.zeros(60))
    >>> near, far = model.predict_score(np.array([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0]]))
    >>> bool(near < far)
    True
    """

    models: ClassVar[dict[str, Any]] = {
        **{formula: partial(JEPAScoreDetector, formula=formula) for formula in ("joint", "density", "jepa")},
        "mahalanobis": MahalanobisDetector,
        "mahalanobis++": partial(MahalanobisDetector, normalize=True),
        "knn": KNNDetector,
    }
    """Functions by name that make the detector from a `random_state`. On tables the baselines read the features."""

    default = "joint"

    def __init__(self, seed: int, model_name: str | None = None) -> None:
        name = self.default if model_name in (None, "Customized") else model_name
        self.seed = seed
        self.model_name = check_choice("model_name", name, self.models)

    def fit(self, X_train: Any, y_train: Any = None) -> "ADBenchModel":
        """Fit on the rows that are not known to be outliers.

        Parameters
        ----------
        X_train : array of shape (n_samples, n_features)
        y_train : array of shape (n_samples,), optional
            1 for known outliers, which are left out; 0 for all other rows, which may contain unlabelled outliers.

        Returns
        -------
        self
        """
        rows = np.asarray(X_train)
        if y_train is not None:
            known = np.asarray(y_train) == 1
            if known.shape != (len(rows),):
                raise ValueError(
                    f"y_train must hold one label per row: {len(rows)} rows, labels of shape {known.shape}"
                )
            rows = rows[~known]
        self.detector_ = self.models[self.model_name](random_state=self.seed).fit(rows)
        return self

    def predict_score(self, X: Any) -> NDArray[np.float64]:
        """Return anomaly scores, (n_samples,); higher = more abnormal."""
        if not hasattr(self, "detector_"):
            raise NotFittedError("this ADBenchModel is not fitted yet: call fit(X_train) first")
        return -self.detector_.score_samples(np.asarray(X))


def _fit_and_score(detector: Any, X: Any, y: Any) -> NDArray[np.float64]:
    """Fit and return the scores of the training samples, with one encoder pass where the encoder is frozen."""
    samples = X = listed(X)  # it is read twice
    if hasattr(detector, "extract") and not isinstance(X, Extraction):
        with suppress(NotFittedError):
            samples = detector.extract(X)
    scores = -np.asarray(detector.fit(samples, y).score_samples(samples), dtype=np.float64)
    if samples is not X and holds_vectors(X):
        validate_data(detector, X, skip_check_array=True)  # stores the column names, which an Extraction does not have
    return scores if samples is X else samples.aligned(scores)


def _own_offset(detector: Any) -> float:
    try:
        return float(detector.offset_)
    except AttributeError:
        raise ValueError(
            f"contamination=None takes the detector's own threshold, and {type(detector).__name__} has no offset_: "
            "give contamination as a number, for example 0.1"
        ) from None
