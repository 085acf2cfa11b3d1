"""Compute the values that a monitor watches: the score of a detector and the terms of the score."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skjepa.deployment.drift_alarm import SCORE
from skjepa.detectors.base import CalibratedDetector
from skjepa.detectors.conformal import conformal_p_values
from skjepa.detectors.explaining import ExplainingDetector
from skjepa.extraction.extraction import Extraction

Values = dict[str, NDArray[np.float64]]


def stream_values(detector: CalibratedDetector, X: Any) -> Values:
    """Return the score of new samples and, where the detector explains it, each of its terms.

    Give the result to `ScoreMonitor.update`.

    Parameters
    ----------
    detector : CalibratedDetector
        Fitted detector.
    X : images, vectors or Extraction
        New samples. They pass the encoder once, unless every fold has its own encoder.

    Returns
    -------
    dict of name -> array of shape (n_samples,)
        "score" first, then the terms; higher = more normal. NaN for a sample that could not be read.
    """
    if not isinstance(detector, ExplainingDetector):
        return {SCORE: detector.score_samples(X)}
    if isinstance(X, Extraction) or detector.measures_per_model:
        return {SCORE: detector.score_samples(X), **detector.explain(X).parts}
    samples = detector.extract(X)
    measured = {SCORE: detector.score_samples(samples), **detector.explain(samples).parts}
    return {name: samples.aligned(values) for name, values in measured.items()}


def normal_values(detector: CalibratedDetector, X_normal: Any = None) -> Values:
    """Return the values of normal samples that a `ScoreMonitor` compares the stream with.

    Parameters
    ----------
    detector : CalibratedDetector
        Fitted detector.
    X_normal : images, vectors or Extraction, optional
        Normal samples that the detector was not fitted on. By default the score has the calibration scores of the
        detector, where these come from a held-out share or from `calibrate`. The terms then have no values, because
        terms of the fit samples are not exchangeable with terms of new samples.

    Returns
    -------
    dict of name -> array of shape (n,)
        "score" and the terms, as for `stream_values`; n = 0 where no values are known.
    """
    if X_normal is not None:
        return {name: values[~np.isnan(values)] for name, values in stream_values(detector, X_normal).items()}
    calibration = None if detector.is_cross_calibrated else detector.calibration_scores_
    terms = detector.models_[0].terms if isinstance(detector, ExplainingDetector) else {}
    return {SCORE: np.zeros(0) if calibration is None else calibration, **{name: np.zeros(0) for name in terms}}


def term_p_values(detector: CalibratedDetector, X: Any, X_normal: Any) -> Values:
    """Return conformal p-values of the score and of each of its terms, compared with normal samples.

    Parameters
    ----------
    detector : CalibratedDetector
        Fitted detector.
    X : images, vectors or Extraction
        New samples.
    X_normal : images, vectors or Extraction
        Normal samples that the detector was not fitted on. With samples of the fit the p-values have no guarantee.

    Returns
    -------
    dict of name -> array of shape (n_samples,)
        In (0, 1], small = lower than for normal samples. For a normal sample P(p <= a) <= a holds for each p-value
        alone. NaN for a sample that could not be read.
    """
    normal = normal_values(detector, X_normal)
    return {name: conformal_p_values(normal[name], values) for name, values in stream_values(detector, X).items()}
