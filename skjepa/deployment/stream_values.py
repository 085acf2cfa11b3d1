"""Compute the values that a monitor watches: the score of a detector, its terms, and features of hidden layers."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skjepa.deployment.drift_alarm import SCORE, axis_stream, size_stream
from skjepa.detectors.base import CalibratedDetector
from skjepa.detectors.conformal import conformal_p_values
from skjepa.detectors.explaining import ExplainingDetector
from skjepa.extraction.extraction import Extraction
from skjepa.scores.layered import LayeredScore, layers_of

Values = dict[str, NDArray[np.float64]]
AXES = 3
"""Number of axes watched per layer; every further stream raises the alarm threshold of all streams."""


def stream_values(detector: CalibratedDetector, X: Any, axes: int = AXES) -> Values:
    """Return the score of new samples, each of its terms, and the size and the coordinates of each hidden layer.

    A term measures how far a layer is from normal samples, in any direction, and for images it ignores the length of
    the layer's vector. A change that all samples share, such as less light, may move each sample by less than normal
    samples differ from each other, so that no distance grows. Lengths and coordinates along axes have a sign: averaged
    over samples, the shared change remains and the differences between samples cancel.

    Parameters
    ----------
    detector : CalibratedDetector
        Fitted detector.
    X : images, vectors or Extraction
        New samples. They pass the encoder once, unless every fold has its own encoder.
    axes : int
        Number of axes per layer: the widest principal axes of each layer except the last. With 0, neither axes nor
        sizes are returned. A detector that reads no layers, or different layers in different folds, has none.

    Returns
    -------
    dict of name -> array of shape (n_samples,)
        "score" comes first. For score and terms, higher = more normal. For an axis, such as "stage 1 axis 2": standard
        deviations from the mean of the fit samples. For a size, such as "stage 1 size": its natural logarithm. Unusual
        axes and sizes may be low or high. NaN for a sample that could not be read.
    """
    if not isinstance(detector, ExplainingDetector):
        return {SCORE: detector.score_samples(X)}
    samples = X if isinstance(X, Extraction) or detector.needs_samples else detector.extract(X)
    judged, explained = detector.judge_and_explain(samples)
    measured = {SCORE: judged.scores, **explained.parts}
    if not isinstance(samples, Extraction):
        return measured
    measured |= place_values(detector, samples, axes)
    return measured if samples is X else {name: samples.aligned(values) for name, values in measured.items()}


def place_values(detector: ExplainingDetector, samples: Extraction, axes: int = AXES) -> Values:
    """Return the sizes and coordinates of `stream_values` alone.

    The dict is empty if the detector reads no layers, or if its folds read different layers.
    """
    model = _layered(detector)
    if model is None or not axes:
        return {}
    layers = layers_of(samples)
    found = {size_stream(layer): size for layer, size in model.chain.log_lengths(layers).items()}
    for layer, along in model.chain.coordinates(layers, axes).items():
        found |= {axis_stream(layer, i): column for i, column in enumerate(along.T)}
    return found


def _layered(detector: ExplainingDetector) -> LayeredScore | None:
    """Return the model whose axes are watched: with folds, the model of the first fold."""
    model = None if detector.needs_samples else detector.models_[0].model
    return model if isinstance(model, LayeredScore) else None


def normal_values(detector: CalibratedDetector, X_normal: Any = None, axes: int = AXES) -> Values:
    """Return the values of normal samples that a `ScoreMonitor` compares the stream with.

    Parameters
    ----------
    detector : CalibratedDetector
        Fitted detector.
    X_normal : images, vectors or Extraction, optional
        Normal samples that the detector was not fitted on. By default the score has the calibration scores of the
        detector, where these come from a held-out share or from `calibrate`. The terms and coordinates then have no
        values, because terms of the fit samples are not exchangeable with terms of new samples.
    axes : int
        Number of axes per layer, see `stream_values`.

    Returns
    -------
    dict of name -> array of shape (n,)
        "score" and the terms, as for `stream_values`; n = 0 where no values are known.
    """
    if X_normal is not None:
        return {name: values[~np.isnan(values)] for name, values in stream_values(detector, X_normal, axes).items()}
    calibration = None if detector.is_cross_calibrated else detector.calibration_scores_
    names = (
        [*detector.models_[0].terms, *_place_names(detector, axes)] if isinstance(detector, ExplainingDetector) else []
    )
    return {SCORE: np.zeros(0) if calibration is None else calibration, **{name: np.zeros(0) for name in names}}


def _place_names(detector: ExplainingDetector, axes: int) -> list[str]:
    """Return the names of the streams of sizes and axes."""
    model = _layered(detector)
    if model is None or not axes:
        return []
    sizes = [size_stream(layer) for layer in model.chain.deviations if model.chain.is_unit]
    widths = {layer: min(axes, fitted.axes_.shape[1]) for layer, fitted in model.chain.alone.items()}
    return [*sizes, *(axis_stream(layer, i) for layer, n in widths.items() for i in range(n))]


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
    normal, found = normal_values(detector, X_normal, axes=0), stream_values(detector, X, axes=0)
    return {name: conformal_p_values(normal[name], values) for name, values in found.items()}
