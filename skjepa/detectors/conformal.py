"""Thresholds and p-values from scores of normal samples. NumPy only; higher score = more normal throughout."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

_BLOCK = 1 << 22  # differences held at a time


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
    k = n_allowed(alpha, len(scores))
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


def cross_conformal_p_values(
    fold_scores: Sequence[NDArray[np.float64]], scores: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Conformal p-values where each calibration sample was scored by the model of its own fold.

    (1 + number of calibration scores at or below the score that the model of their fold gives the sample) / (n + 1).
    Under exchangeability P(p <= alpha) is at most 2 alpha and a little (CV+ of Barber et al., Annals of Statistics
    49(1), 2021); in practice alpha. With one fold, `conformal_p_values`.

    Parameters
    ----------
    fold_scores : sequence of arrays
        Of each fold, scores of its samples by the model that has not seen them.
    scores : array of shape (n_folds, n_samples)
        Of new samples, by every model.
    """
    below = [np.searchsorted(np.sort(own), row, side="right") for own, row in zip(fold_scores, scores, strict=True)]
    p = (1 + np.sum(below, axis=0)) / (sum(map(len, fold_scores)) + 1)
    return np.where(np.isnan(scores).any(axis=0), np.nan, p)


def cross_conformal_margin(
    fold_scores: Sequence[NDArray[np.float64]], scores: NDArray[np.float64], alpha: float
) -> NDArray[np.float64]:
    """One score a sample from those of several folds' models: below zero exactly where its p-value is at most alpha.

    The k-th largest of (score by the model of a fold) - (score of a calibration sample of that fold), over all
    calibration samples, k = floor(alpha (n + 1)). With one fold, the score less `conformal_offset`.

    Parameters
    ----------
    fold_scores, scores
        As for `cross_conformal_p_values`.
    alpha : float
        k is at least 1.
    """
    n = sum(map(len, fold_scores))
    k = max(1, n_allowed(alpha, n))
    margin = np.empty(scores.shape[1])
    for start in range(0, scores.shape[1], block := max(1, _BLOCK // n)):
        part = scores[:, start : start + block]
        margins = np.concatenate([row[:, None] - own for own, row in zip(fold_scores, part, strict=True)], axis=1)
        margin[start : start + block] = np.partition(margins, n - k, axis=1)[:, n - k]
    return np.where(np.isnan(scores).any(axis=0), np.nan, margin)


def n_allowed(alpha: float, n: int) -> int:
    """k = floor(alpha (n + 1)), the calibration scores a threshold may leave below or at it."""
    # Rounded before the floor: 0.05 * 20 is 1.0000000000000002 in one order and 0.9999999999999999 in another.
    return int(np.floor(np.round(alpha * (n + 1), 9)))
