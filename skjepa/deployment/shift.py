"""Adapt to a shift of the samples, by weighted conformal p-values or by a level that follows delayed labels."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skjepa._utils.validation import check_number, seed_from

_FOLDS = 5
_STRENGTHS = [1e-4, 1e-3, 1e-2, 1e-1, 1.0]
_FEWEST = 2 * _FOLDS


def likelihood_ratio(
    calibration_embeddings: ArrayLike, embeddings: ArrayLike, *, random_state: int | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Estimate how much more frequent each sample is among new samples than among calibration samples.

    Use the result as the weights of `weighted_p_values`. A logistic regression separates the two by their standardised
    embeddings, with a penalty chosen by cross-validation, and its odds are the ratio (Tibshirani et al., 2019, section
    2.3). Each sample gets an out-of-fold ratio, because in-sample ratios are too far from 1. No labels are needed, but
    anomalous new samples count as part of the shift.

    Parameters
    ----------
    calibration_embeddings : array of shape (n, d)
        Embeddings of the calibration samples, at least 10.
    embeddings : array of shape (m, d)
        Embeddings of all new samples, at least 10.
    random_state : int, optional
        Seeds the folds; None means 0.

    Returns
    -------
    calibration_weights : array of shape (n,)
        Positive weights of the calibration samples, up to a common factor.
    weights : array of shape (m,)
        Positive weights of the new samples, up to the same factor. `effective_size` shows whether the weights are
        useful.

    Raises
    ------
    ValueError
        There are too few samples, the dimensions differ, or a value is not finite.
    """
    old, new = np.asarray(calibration_embeddings, np.float64), np.asarray(embeddings, np.float64)
    if old.ndim != 2 or new.ndim != 2 or old.shape[1] != new.shape[1]:
        raise ValueError(f"embeddings must be (n, d) and (m, d); got shapes {old.shape} and {new.shape}")
    if min(len(old), len(new)) < _FEWEST:
        raise ValueError(
            f"at least {_FEWEST} calibration samples and {_FEWEST} new ones are needed; got {len(old)} and {len(new)}"
        )
    if not (np.isfinite(old).all() and np.isfinite(new).all()):
        raise ValueError("embeddings hold NaN or infinite values: leave out samples that could not be read")
    seed = seed_from(random_state)
    is_new = np.repeat([0, 1], [len(old), len(new)])
    penalised = GridSearchCV(LogisticRegression(max_iter=1000), {"C": _STRENGTHS}, scoring="neg_log_loss", cv=3)
    classifier = make_pipeline(StandardScaler(), penalised)
    folds = StratifiedKFold(_FOLDS, shuffle=True, random_state=seed)
    p = cross_val_predict(classifier, np.concatenate([old, new]), is_new, cv=folds, method="predict_proba")[:, 1]
    p = np.clip(p, 1e-6, 1 - 1e-6)
    odds = p / (1 - p) * len(old) / len(new)
    return odds[: len(old)], odds[len(old) :]


def effective_size(weights: ArrayLike) -> float:
    """Return the number of samples of equal weight that would be as informative, between 1 and n.

    It is (sum w)^2 / sum w^2 (Kish, 1965). Where it is under about 1 / alpha for the calibration weights, too few
    calibration samples resemble the new samples. Weights cannot help then: calibrate with fresh normal samples.
    """
    w = np.asarray(weights, dtype=np.float64)
    return float(w.sum() ** 2 / (w**2).sum())


def weighted_p_values(
    calibration_scores: ArrayLike, scores: ArrayLike, calibration_weights: ArrayLike, weights: ArrayLike
) -> NDArray[np.float64]:
    """Return conformal p-values under a shift, where weights describe how the new normal samples are distributed.

    The p-value of a sample is the total weight of the calibration scores at or below its score, plus its own weight,
    divided by the total weight of all calibration scores plus its own. With equal weights it equals
    `skjepa.detectors.conformal_p_values`. If the weights are the true ratio of densities, P(p <= a) <= a for a new
    normal sample (Tibshirani, Barber, Candes and Ramdas, Conformal prediction under covariate shift, NeurIPS 2019).
    With the weights of `likelihood_ratio` this holds approximately, where the calibration samples cover the new ones.

    Parameters
    ----------
    calibration_scores : array of shape (n,)
        Higher = more normal.
    scores : array of shape (m,)
        Scores of new samples; NaN stays NaN.
    calibration_weights : array of shape (n,)
        Positive weights of the calibration samples.
    weights : array of shape (m,)
        Positive weights of the new samples.

    Returns
    -------
    array of shape (m,)
        In (0, 1], small = unlike normal data.

    Raises
    ------
    ValueError
        The lengths differ, or a weight is not positive.

    Examples
    --------
    >>> from skjepa.deployment import weighted_p_values
    >>> weighted_p_values([1.0, 2.0, 3.0], [1.5], [2.0, 1.0, 0.5], [0.5]).tolist()
    [0.625]
    """
    known, w = np.asarray(calibration_scores, np.float64), np.asarray(calibration_weights, np.float64)
    new, v = np.asarray(scores, np.float64), np.asarray(weights, np.float64)
    if known.ndim != 1 or known.shape != w.shape or new.shape != v.shape or new.ndim != 1:
        raise ValueError(
            f"give one weight per score: got {known.shape} calibration scores with {w.shape} weights, and "
            f"{new.shape} scores with {v.shape}"
        )
    if not ((w > 0).all() and (v > 0).all() and np.isfinite(w).all() and np.isfinite(v).all()):
        raise ValueError("calibration_weights and weights must be positive and finite")
    order = np.argsort(known, kind="stable")
    summed = np.concatenate([[0.0], np.cumsum(w[order])])
    below = summed[np.searchsorted(known[order], new, side="right")]
    return np.where(np.isnan(new), np.nan, (below + v) / (summed[-1] + v))


class AdaptiveLevel:
    """Adapt the level for p-values to labels, so that the wanted share of normal samples is flagged in the long run.

    Use it where labels of past samples arrive while the stream drifts. After each normal sample the level grows by
    gamma * alpha, and falls by gamma where the sample was flagged. For any stream, the flagged share of T normal
    samples differs from alpha by at most (max(alpha, 1 - alpha) + gamma) / (gamma T), if labels arrive at once
    (adaptive conformal inference; Gibbs and Candes, NeurIPS 2021, proposition 4.1). A label that arrives later moves
    the level later. The bound holds in the long run and shows little right after a change. There is no guarantee about
    a single sample or about anomalies.

    Parameters
    ----------
    alpha : float in (0, 1)
        Share of normal samples to flag.
    gamma : float in (0, 1)
        Step size. A larger step follows a change faster and varies more. Gibbs and Candes use 0.005.
    start : float, optional
        First level, for example the level of an earlier run; by default alpha.

    Attributes
    ----------
    level : float
        Samples with p <= level are flagged. A level of at most 0 flags no sample, a level of at least 1 all of them.
    n : int
        Number of labels so far.

    Examples
    --------
    >>> from skjepa.deployment import AdaptiveLevel
    >>> adaptive = AdaptiveLevel(0.05, gamma=0.01)
    >>> round(adaptive.update(True), 4)  # a normal sample was flagged: flag less
    0.0405
    >>> adaptive.flags([0.02, 0.045]).tolist()
    [True, False]
    """

    def __init__(self, alpha: float, gamma: float = 0.005, *, start: float | None = None) -> None:
        self.alpha = check_number("alpha", alpha, above=0.0, below=1.0)
        self.gamma = check_number("gamma", gamma, above=0.0, below=1.0)
        self.level = self.alpha if start is None else check_number("start", start)
        self.n = 0

    def flags(self, p: ArrayLike) -> NDArray[np.bool_]:
        """Return which samples are flagged at the current level, (n,).

        NaN, the p-value of a sample that could not be read, is flagged.
        """
        values = np.asarray(p, dtype=np.float64)
        if self.level >= 1:
            return np.ones(values.shape, dtype=bool)
        return np.isnan(values) | ((values <= self.level) & (self.level > 0))

    def update(self, was_flagged: ArrayLike) -> float:
        """Move the level by samples that turned out to be normal, in their order, and return it.

        Parameters
        ----------
        was_flagged : bool or array of shape (n,), bool
            Whether each normal sample was flagged when it arrived. Leave out anomalous samples, which carry no
            information about the flagged share of normal ones.

        Returns
        -------
        float
            The new level.

        Raises
        ------
        TypeError
            The values are not booleans, for example p-values or labels of +1 and -1.
        """
        errors = np.atleast_1d(np.asarray(was_flagged))
        if errors.dtype != np.bool_:
            raise TypeError(f"was_flagged must be True or False for each normal sample; got {was_flagged!r}")
        for error in errors.tolist():
            self.level += self.gamma * (self.alpha - error)
        self.n += len(errors)
        return self.level
