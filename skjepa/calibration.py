"""Thresholds and p-values from scores of normal samples. NumPy only; higher score = more normal throughout."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def contamination_offset(scores: ArrayLike, contamination: float) -> float:
    """Offset below which the share `contamination` of the training `scores` lies: no promise for new data."""
    return float(np.percentile(np.asarray(scores), 100.0 * contamination))


def conformal_offset(calibration_scores: ArrayLike, alpha: float) -> float:
    """Offset that flags a new normal sample with probability at most `alpha`, over draws of the calibration set.

    The k-th smallest calibration score, k = floor(alpha (n + 1)); a sample is flagged when strictly below it. The same
    decisions as ``p_value <= alpha`` (Vovk et al., Algorithmic Learning in a Random World, 2005).

    Raises
    ------
    ValueError
        n < 1 / alpha - 1: no threshold can hold the promise; names the n needed.
    """
    scores = np.sort(np.asarray(calibration_scores, dtype=np.float64))
    # Rounded before the floor: 0.05 * 20 is 1.0000000000000002 in one order and 0.9999999999999999 in another.
    k = int(np.floor(np.round(alpha * (len(scores) + 1), 9)))
    if k < 1:
        needed = int(np.ceil(np.round(1 / alpha - 1, 9)))
        raise ValueError(
            f"a false-positive rate of {alpha:g} needs {needed} calibration samples; got {len(scores)}. "
            "Give more normal samples, hold a larger share out, or allow a higher rate"
        )
    return float(scores[k - 1])


def conformal_p_values(calibration_scores: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """(1 + number of calibration scores at or below the score) / (n + 1), in (0, 1]; small = unlike normal data.

    Under exchangeability with the calibration samples, P(p <= alpha) <= alpha for a normal sample. NaN stays NaN.

    Examples
    --------
    >>> conformal_p_values([1.0, 2.0, 3.0], [0.0, 2.0, 9.0]).tolist()
    [0.25, 0.75, 1.0]
    """
    calibration = np.sort(np.asarray(calibration_scores, dtype=np.float64))
    scores = np.asarray(scores, dtype=np.float64)
    p = (1 + np.searchsorted(calibration, scores, side="right")) / (len(calibration) + 1)
    return np.where(np.isnan(scores), np.nan, p)
