"""Compute thresholds and p-values from scores of normal samples; higher = more normal throughout.

This module needs NumPy alone, so that the runtime without PyTorch can import it.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skjepa.detectors.rates import n_allowed

_BLOCK = 1 << 22  # differences held at a time


def contamination_offset(scores: ArrayLike, contamination: float) -> float:
    """Return the offset that flags the share `contamination` of the training scores.

    It makes no guarantee about new data; for that see `skjepa.detectors.conformal_offset`.
    """
    return float(np.percentile(np.asarray(scores), 100.0 * contamination))


def conformal_offset(calibration_scores: ArrayLike, alpha: float) -> float:
    """Return the offset that flags a new normal sample with probability at most `alpha`.

    The probability is over draws of the n calibration samples. The offset is the k-th smallest calibration score,
    k = floor(alpha (n + 1)), and a sample is flagged when its score is strictly below it. The decisions equal
    ``p_value <= alpha`` (Vovk et al., Algorithmic Learning in a Random World, 2005).

    Raises
    ------
    ValueError
        n < 1 / alpha - 1, where no threshold can keep the rate; the message names the n needed, and the lowest rate
        that n scores can keep.
    """
    scores = np.sort(np.asarray(calibration_scores, dtype=np.float64))
    k = n_allowed(alpha, len(scores))
    if k < 1:
        needed = int(np.ceil(np.round(1 / alpha - 1, 9)))
        raise ValueError(
            f"a false-positive rate of {alpha:g} needs {needed} calibration samples; got {len(scores)}, which can keep "
            f"a rate of {_lowest_rate(len(scores))} or more. Give more normal samples or allow that rate. Where "
            "calibration is a share, folds (calibration=5) calibrate on all samples"
        )
    return float(scores[k - 1])


def _lowest_rate(n: int) -> str:
    """1 / (n + 1), rounded up to three digits, so that the number shown is allowed."""
    rate = 1 / (n + 1)
    step = 10.0 ** (math.floor(math.log10(rate)) - 2)
    return f"{math.ceil(round(rate / step, 6)) * step:.3g}"


def conformal_p_values(calibration_scores: ArrayLike, scores: ArrayLike) -> NDArray[np.float64]:
    """Return the conformal p-value of each score, in (0, 1]; small = unlike normal data.

    It is (1 + number of calibration scores at or below the score) / (n + 1) with n calibration scores. For a normal
    sample that is exchangeable with the calibration samples, P(p <= alpha) <= alpha. NaN stays NaN.

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
    """Return conformal p-values where each calibration sample was scored by the model of its own fold.

    A calibration sample counts against a new sample when its score is at or below the score of the new sample by the
    same model. The p-value is (1 + this count) / (n + 1) with n calibration samples in all folds. Under exchangeability
    P(p <= alpha) is at most slightly above 2 alpha (CV+, Barber et al., Annals of Statistics 49(1), 2021); in practice
    it is alpha. With one fold the result equals that of `skjepa.detectors.conformal_p_values`.

    Parameters
    ----------
    fold_scores : sequence of arrays
        For each fold, the scores of its samples by the model that was not fitted on them.
    scores : array of shape (n_folds, n_samples)
        Scores of the new samples by the model of every fold.
    """
    below = [np.searchsorted(np.sort(own), row, side="right") for own, row in zip(fold_scores, scores, strict=True)]
    p = (1 + np.sum(below, axis=0)) / (sum(map(len, fold_scores)) + 1)
    return np.where(np.isnan(scores).any(axis=0), np.nan, p)


def cross_conformal_margin(
    fold_scores: Sequence[NDArray[np.float64]], scores: NDArray[np.float64], alpha: float
) -> NDArray[np.float64]:
    """Combine the scores by the models of all folds into one score per sample, below zero where it is flagged.

    It is below zero exactly where the p-value by `skjepa.detectors.cross_conformal_p_values` is at most `alpha`. For
    every calibration sample, take the score of the new sample by the model of that fold, less the score of the
    calibration sample. The result is the k-th largest of these differences, k = floor(alpha (n + 1)). With one fold it
    is the score less `skjepa.detectors.conformal_offset`.

    Parameters
    ----------
    fold_scores, scores
        As for `skjepa.detectors.cross_conformal_p_values`.
    alpha : float
        Share of normal samples to flag. Where it gives k = 0, k = 1 is used.
    """
    n = sum(map(len, fold_scores))
    k = max(1, n_allowed(alpha, n))
    margin = np.empty(scores.shape[1])
    for start in range(0, scores.shape[1], block := max(1, _BLOCK // n)):
        part = scores[:, start : start + block]
        margins = np.concatenate([row[:, None] - own for own, row in zip(fold_scores, part, strict=True)], axis=1)
        margin[start : start + block] = np.partition(margins, n - k, axis=1)[:, n - k]
    return np.where(np.isnan(scores).any(axis=0), np.nan, margin)
