"""Measure how well scores separate normal samples from outliers, by metrics from 0 to 1."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.integrate import trapezoid
from scipy.stats import betabinom
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score, roc_curve

from skjepa.detectors.conformal import conformal_p_values

METRICS = ("auroc", "aupr_in", "aupr_out", "fpr95_outlier_positive", "fpr95_normal_positive")


def detection_metrics(normal: ArrayLike, outlier: ArrayLike) -> dict[str, float]:
    """Compute threshold-free metrics of scores that are higher for normal samples.

    Parameters
    ----------
    normal : array of shape (n_normal,)
        Scores of normal samples that the detector was not fitted on.
    outlier : array of shape (n_outlier,)
        Scores of outliers.

    Returns
    -------
    dict of str -> float
        - auroc: probability that a normal sample scores above an outlier, with ties counted half; chance is .5;
        - aupr_in: area under the precision-recall curve with normal samples as the positive class (trapezoid rule, as
          in OpenOOD); chance is the share of normal samples;
        - aupr_out: the same with outliers as the positive class;
        - fpr95_outlier_positive: share of normal samples flagged when 95 % of the outliers are caught (OpenOOD);
        - fpr95_normal_positive: share of outliers accepted when 95 % of the normal samples are accepted (Hendrycks and
          Gimpel).

    Raises
    ------
    ValueError
        One side is empty or a score is not finite.

    Examples
    --------
    >>> detection_metrics([2.0, 3.0], [0.0, 1.0])["auroc"]
    1.0
    """
    normal, outlier = checked_scores("normal", normal), checked_scores("outlier", outlier)
    scores = np.concatenate([normal, outlier])
    is_normal = np.concatenate([np.ones(len(normal), dtype=int), np.zeros(len(outlier), dtype=int)])
    return {
        "auroc": float(roc_auc_score(is_normal, scores)),
        "aupr_in": _aupr(is_normal, scores),
        "aupr_out": _aupr(1 - is_normal, -scores),
        "fpr95_outlier_positive": _fpr_at_95(1 - is_normal, -scores),
        "fpr95_normal_positive": _fpr_at_95(is_normal, scores),
    }


def weighted_metrics(
    normal: ArrayLike, outlier: ArrayLike, normal_weights: ArrayLike, outlier_weights: ArrayLike
) -> dict[str, NDArray[np.float64]]:
    """Compute `detection_metrics` for many weightings of the same scores at once, such as bootstrap samples.

    Parameters
    ----------
    normal, outlier : arrays of shape (n_normal,) and (n_outlier,)
        Scores, higher = more normal.
    normal_weights, outlier_weights : arrays of shape (n_weightings, n_normal) and (n_weightings, n_outlier)
        How often each sample counts; every row needs at least one sample of each side.

    Returns
    -------
    dict of arrays of shape (n_weightings,)

    Examples
    --------
    >>> weighted_metrics([2.0, 3.0], [2.5], [[1, 1], [2, 0]], [[1], [1]])["auroc"].tolist()
    [0.5, 0.0]
    """
    normal, outlier = checked_scores("normal", normal), checked_scores("outlier", outlier)
    scores = np.concatenate([normal, outlier])
    order = np.argsort(scores, kind="stable")
    starts = np.flatnonzero(np.r_[True, np.diff(scores[order]) > 0])  # equal scores form one step of every curve
    weights = {
        "in": np.pad(np.atleast_2d(normal_weights), ((0, 0), (0, len(outlier)))),
        "out": np.pad(np.atleast_2d(outlier_weights), ((0, 0), (len(normal), 0))),
    }
    steps = {side: np.add.reduceat(weight[:, order], starts, axis=1) for side, weight in weights.items()}
    # From the most normal score downward, and from the least normal one upward.
    inward = {side: np.cumsum(step[:, ::-1], axis=1) for side, step in steps.items()}
    outward = {side: np.cumsum(step, axis=1) for side, step in steps.items()}
    return {
        "auroc": _area(*(_from_zero(inward[side] / inward[side][:, -1:]) for side in ("out", "in"))),
        "aupr_in": _aupr_of_counts(inward["in"], inward["out"]),
        "aupr_out": _aupr_of_counts(outward["out"], outward["in"]),
        "fpr95_outlier_positive": _fpr_at_95_of_counts(outward["out"], outward["in"]),
        "fpr95_normal_positive": _fpr_at_95_of_counts(inward["in"], inward["out"]),
    }


def observed_false_positives(
    calibration: ArrayLike, normal: ArrayLike, alphas: Sequence[float] = (0.01, 0.05, 0.1), *, level: float = 0.95
) -> list[dict[str, Any]]:
    """Check whether a conformal threshold flags the share of new normal samples that it guarantees.

    Parameters
    ----------
    calibration : array of shape (n_calibration,)
        Scores of normal samples that the detector was not fitted on.
    normal : array of shape (n_normal,)
        Scores of further normal samples.
    alphas : sequence of float
        Nominal false-positive rates.
    level : float
        Probability of the range `low` to `high`.

    Returns
    -------
    list of dict
        One per alpha:

        - alpha, observed: nominal and observed share of `normal` that is flagged;
        - low, high: central range of the observed share over draws of both sets. For exchangeable scores without ties
          the number of flagged samples has the beta-binomial distribution BetaBin(n_normal, k, n_calibration + 1 - k)
          with k = floor(alpha (n_calibration + 1)) (Vovk, Machine Learning 92, 2013). With ties fewer are flagged;
        - within: whether the observed share lies in this range. All three are None where k is 0, because nothing can be
          flagged.

    Examples
    --------
    >>> observed_false_positives(range(99), range(100), [0.1])[0]["observed"]
    0.09
    """
    calibration, normal = checked_scores("calibration", calibration), checked_scores("normal", normal)
    p = conformal_p_values(calibration, normal)
    rows = []
    for alpha in alphas:
        k = int(np.floor(np.round(alpha * (len(calibration) + 1), 9)))
        observed = float((p <= alpha + 1e-12).mean())
        row: dict[str, Any] = {"alpha": float(alpha), "observed": observed, "low": None, "high": None, "within": None}
        if k > 0:
            ends = [(1 - level) / 2, (1 + level) / 2]
            low, high = betabinom(len(normal), k, len(calibration) + 1 - k).ppf(ends) / len(normal)
            row |= {"low": float(low), "high": float(high), "within": bool(low <= observed <= high)}
        rows.append(row)
    return rows


def checked_scores(name: str, scores: ArrayLike) -> NDArray[np.float64]:
    """Return the scores as float64, (n,); raise ValueError where there are none or one is not finite."""
    scores = np.asarray(scores, dtype=np.float64).ravel()
    if len(scores) == 0:
        raise ValueError(f"there are no {name} scores: give at least one")
    if not np.isfinite(scores).all():
        raise ValueError(f"{name} scores hold NaN or infinity: leave out samples that could not be read")
    return scores


def _aupr(positive: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(positive, scores)
    return float(auc(recall, precision))


def _fpr_at_95(positive: np.ndarray, scores: np.ndarray) -> float:
    false_positive, true_positive, _ = roc_curve(positive, scores, drop_intermediate=False)
    return float(false_positive[np.searchsorted(true_positive, 0.95)])


def _from_zero(values: NDArray[np.float64], start: float = 0.0) -> NDArray[np.float64]:
    return np.pad(values, ((0, 0), (1, 0)), constant_values=start)


def _area(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    return trapezoid(y, x, axis=1)


def _aupr_of_counts(positive: NDArray, negative: NDArray) -> NDArray[np.float64]:
    flagged = positive + negative
    # Precision starts at 1, as in scikit-learn's curve.
    precision = np.divide(positive, flagged, out=np.ones(flagged.shape), where=flagged > 0)
    return _area(_from_zero(positive / positive[:, -1:]), _from_zero(precision, start=1.0))


def _fpr_at_95_of_counts(positive: NDArray, negative: NDArray) -> NDArray[np.float64]:
    first = np.argmax(positive / positive[:, -1:] >= 0.95, axis=1)
    return np.take_along_axis(negative / negative[:, -1:], first[:, None], axis=1)[:, 0]
