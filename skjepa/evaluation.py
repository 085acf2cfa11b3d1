"""How well scores separate normal samples from outliers. Every metric is 0 to 1 and says which side is positive."""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import auc, precision_recall_curve, roc_auc_score, roc_curve


def detection_metrics(normal: ArrayLike, outlier: ArrayLike) -> dict[str, float]:
    """Threshold-free metrics of scores that are higher for normal samples.

    Parameters
    ----------
    normal : array of shape (n_normal,)
        Scores of normal samples that the detector has not been fitted on.
    outlier : array of shape (n_outlier,)

    Returns
    -------
    dict
        - auroc: probability that a normal sample scores above an outlier, ties count half; .5 is chance;
        - aupr_in, aupr_out: area under the precision-recall curve (trapezoid, as OpenOOD) with normal samples, or
          outliers, as the positive class; chance is that class's share;
        - fpr95_outlier_positive: share of normal samples flagged when 95 % of the outliers are caught (OpenOOD);
        - fpr95_normal_positive: share of outliers let in when 95 % of the normal samples are (Hendrycks and Gimpel).

    Raises
    ------
    ValueError
        One side is empty or a score is not finite.

    Examples
    --------
    >>> detection_metrics([2.0, 3.0], [0.0, 1.0])["auroc"]
    1.0
    """
    normal, outlier = (np.asarray(side, dtype=np.float64).ravel() for side in (normal, outlier))
    for name, side in (("normal", normal), ("outlier", outlier)):
        if len(side) == 0:
            raise ValueError(f"no {name} scores")
        if not np.isfinite(side).all():
            raise ValueError(f"{name} scores hold NaN or infinity: leave out samples that could not be read")
    scores = np.concatenate([normal, outlier])
    is_normal = np.concatenate([np.ones(len(normal), dtype=int), np.zeros(len(outlier), dtype=int)])
    return {
        "auroc": float(roc_auc_score(is_normal, scores)),
        "aupr_in": _aupr(is_normal, scores),
        "aupr_out": _aupr(1 - is_normal, -scores),
        "fpr95_outlier_positive": _fpr_at_95(1 - is_normal, -scores),
        "fpr95_normal_positive": _fpr_at_95(is_normal, scores),
    }


def _aupr(positive: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(positive, scores)
    return float(auc(recall, precision))


def _fpr_at_95(positive: np.ndarray, scores: np.ndarray) -> float:
    false_positive, true_positive, _ = roc_curve(positive, scores, drop_intermediate=False)
    return float(false_positive[np.searchsorted(true_positive, 0.95)])
