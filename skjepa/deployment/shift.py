"""After a shift of what comes: conformal p-values with weights, and a level that follows delayed labels."""

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
    """How much more frequent a sample is among the new samples than among the calibration samples, by a classifier.

    A logistic regression tells the two apart by their standardised embeddings, with a penalty chosen by
    cross-validation; the ratio is its odds (Tibshirani et al., 2019, section 2.3). Each sample is judged by a model
    that has not seen it, or ratios would be too far from 1. No labels are needed, but new samples that are anomalous
    count as part of the shift.

    Parameters
    ----------
    calibration_embeddings : array of shape (n, d)
        Of the samples that the calibration scores are of.
    embeddings : array of shape (m, d)
        Of new samples, all together. At least 10 of each.
    random_state : int, optional
        Seeds the folds; None means 0.

    Returns
    -------
    calibration_weights : array of shape (n,)
    weights : array of shape (m,)
        Positive, up to a common factor. See `effective_size` for whether they are of use.

    Raises
    ------
    ValueError
        Too few samples, other dimensions, or values that are not finite.
    """
    old, new = np.asarray(calibration_embeddings, np.float64), np.asarray(embeddings, np.float64)
    if old.ndim != 2 or new.ndim != 2 or old.shape[1] != new.shape[1]:
        raise ValueError(f"embeddings must be (n, d) and (m, d); got shapes {old.shape} and {new.shape}")
    if min(len(old), len(new)) < _FEWEST:
        raise ValueError(f"at least {_FEWEST} samples of each are needed; got {len(old)} and {len(new)}")
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
    """So many samples of equal weight tell as much: (sum w)^2 / sum w^2, between 1 and n (Kish, 1965).

    Of calibration weights: where it is under about 1 / alpha, the calibration samples hold too few of the kind that now
    comes, and no weights replace a calibration with fresh ones.
    """
    w = np.asarray(weights, dtype=np.float64)
    return float(w.sum() ** 2 / (w**2).sum())


def weighted_p_values(
    calibration_scores: ArrayLike, scores: ArrayLike, calibration_weights: ArrayLike, weights: ArrayLike
) -> NDArray[np.float64]:
    """Conformal p-values where new normal samples come from the calibration samples' distribution with other weights.

    The weight of the calibration scores at or below the score, and its own, in all these weights. With equal weights
    `skjepa.detectors.conformal_p_values`. If weights are the true ratio of densities, a new normal sample gets a
    p-value of at most a with probability at most a (Tibshirani, Barber, Candes and Ramdas, Conformal prediction under
    covariate shift, NeurIPS 2019); with `likelihood_ratio` about so, where the calibration samples hold what now
    comes.

    Parameters
    ----------
    calibration_scores : array of shape (n,)
        Higher = more normal.
    scores : array of shape (m,)
        NaN stays NaN.
    calibration_weights : array of shape (n,)
    weights : array of shape (m,)
        Positive.

    Returns
    -------
    array of shape (m,)
        In (0, 1], small = unlike normal data.

    Raises
    ------
    ValueError
        Lengths differ, or a weight is not positive.

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
            f"one weight a score is needed: {known.shape} calibration scores with {w.shape} weights, "
            f"{new.shape} scores with {v.shape}"
        )
    if not ((w > 0).all() and (v > 0).all() and np.isfinite(w).all() and np.isfinite(v).all()):
        raise ValueError("weights must be positive and finite")
    order = np.argsort(known, kind="stable")
    summed = np.concatenate([[0.0], np.cumsum(w[order])])
    below = summed[np.searchsorted(known[order], new, side="right")]
    return np.where(np.isnan(new), np.nan, (below + v) / (summed[-1] + v))


class AdaptiveLevel:
    """A level for p-values that is moved after each label, so that in the long run the rate asked for is flagged.

    After each normal sample: level + gamma (alpha - 1 if it was flagged, else alpha - 0). Whatever the stream does, the
    share flagged of T normal samples differs from alpha by at most (max(alpha, 1 - alpha) + gamma) / (gamma T)
    (adaptive conformal inference; Gibbs and Candes, NeurIPS 2021, proposition 4.1, for labels that come at once). A
    label that comes later moves the level later; a bound that long after a change says little, and nothing is promised
    of a single sample or of anomalies.

    Parameters
    ----------
    alpha : float in (0, 1)
        Share of normal samples to flag.
    gamma : float in (0, 1)
        Step: larger follows faster and wavers more. Gibbs and Candes take 0.005.
    start : float, optional
        First level, such as that of a run before; by default alpha.

    Attributes
    ----------
    level : float
        Flag where p <= level. At most 0 flags nothing, at least 1 everything.
    n : int
        Labels taken.

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
        """Which p-values are at most the level now; (n,). A NaN, of what could not be read, is flagged."""
        values = np.asarray(p, dtype=np.float64)
        if self.level >= 1:
            return np.ones(values.shape, dtype=bool)
        return np.isnan(values) | ((values <= self.level) & (self.level > 0))

    def update(self, was_flagged: ArrayLike) -> float:
        """Move the level by normal samples whose label has come, in their order, and return it.

        Parameters
        ----------
        was_flagged : bool or array of shape (n,), bool
            Whether each was flagged when it came. Samples found to be anomalous are left out: they say nothing of how
            normal ones are flagged.

        Raises
        ------
        TypeError
            Not booleans, such as p-values or labels of +1 and -1.
        """
        errors = np.atleast_1d(np.asarray(was_flagged))
        if errors.dtype != np.bool_:
            raise TypeError(f"was_flagged must be True or False for each normal sample; got {was_flagged!r}")
        for error in errors.tolist():
            self.level += self.gamma * (self.alpha - error)
        self.n += len(errors)
        return self.level
