"""What a monitor watches of a detector: its score and the terms of the score, beside those of normal samples."""

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
    """The score of new samples and, where the detector explains it, each of its terms.

    Parameters
    ----------
    detector : CalibratedDetector
        Fitted.
    X : images, vectors or Extraction
        An Extraction is measured once for score and terms; images are too, unless every fold has an encoder of its own.

    Returns
    -------
    dict of name -> array of shape (n_samples,)
        "score" first; higher = more normal. NaN for a sample that could not be read.
    """
    if not isinstance(detector, ExplainingDetector):
        return {SCORE: detector.score_samples(X)}
    if isinstance(X, Extraction) or detector.measures_per_model:
        return {SCORE: detector.score_samples(X), **detector.explain(X).parts}
    samples = detector.extract(X)
    measured = {SCORE: detector.score_samples(samples), **detector.explain(samples).parts}
    return {name: samples.aligned(values) for name, values in measured.items()}


def normal_values(detector: CalibratedDetector, X_normal: Any = None) -> Values:
    """The same values of normal samples, that a `ScoreMonitor` compares the stream with.

    Parameters
    ----------
    detector : CalibratedDetector
    X_normal : images, vectors or Extraction, optional
        Normal samples that the detector has not learned from. By default the calibration scores of the detector, where
        they are scores that `score_samples` gives (a share held out, or `calibrate`), and nothing of the terms: those
        of the fit samples are not exchangeable with terms of new ones.

    Returns
    -------
    dict of name -> array of shape (n,)
        Of n = 0 where nothing is known.
    """
    if X_normal is not None:
        return {name: values[~np.isnan(values)] for name, values in stream_values(detector, X_normal).items()}
    calibration = None if detector.is_cross_calibrated else detector.calibration_scores_
    terms = detector.models_[0].terms if isinstance(detector, ExplainingDetector) else {}
    return {SCORE: np.zeros(0) if calibration is None else calibration, **{name: np.zeros(0) for name in terms}}


def term_p_values(detector: CalibratedDetector, X: Any, X_normal: Any) -> Values:
    """Conformal p-values of the score and of each of its terms, against normal samples.

    Parameters
    ----------
    detector : CalibratedDetector
    X : images, vectors or Extraction
        New samples.
    X_normal : images, vectors or Extraction
        Normal samples that the detector has not learned from: where it has, p-values promise nothing.

    Returns
    -------
    dict of name -> array of shape (n_samples,)
        In (0, 1], small = lower than of normal samples; each by itself at most a with probability at most a for a
        normal sample. NaN for a sample that could not be read.
    """
    normal = normal_values(detector, X_normal)
    return {name: conformal_p_values(normal[name], values) for name, values in stream_values(detector, X).items()}
