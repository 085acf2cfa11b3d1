"""Test whether one detector is better than another, over sets of outliers that share their normal samples."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import friedmanchisquare, norm, rankdata, studentized_range

from skjepa._utils.validation import check_integer
from skjepa.evaluation.metrics import METRICS, checked_scores, weighted_metrics

_BLOCK = 1 << 21  # weights held at a time

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class SharedNormals:
    """Hold the scores of several detectors on sets of outliers, and on normal samples that all sets share.

    Attributes
    ----------
    normal : dict of detector -> array (n_normal,)
        Higher = more normal.
    outliers : dict of detector -> dict of set -> array (n_outliers,)
        Scores of the outliers in each set.
    """

    normal: dict[str, Scores]
    outliers: dict[str, dict[str, Scores]]

    @classmethod
    def checked(
        cls, normal: Mapping[str, ArrayLike], outliers: Mapping[str, Mapping[str, ArrayLike]]
    ) -> "SharedNormals":
        """Check the scores and return them; raise ValueError where samples differ or a score is not finite."""
        if not normal or set(normal) != set(outliers):
            raise ValueError(
                f"normal and outliers must hold the same detectors, at least one; got {sorted(normal)} and "
                f"{sorted(outliers)}"
            )
        known = {name: checked_scores(f"normal {name!r}", scores) for name, scores in normal.items()}
        foreign = {
            name: {key: checked_scores(f"{key!r} {name!r}", scores) for key, scores in outliers[name].items()}
            for name in normal
        }
        shapes = {(len(known[name]), *((key, len(part)) for key, part in foreign[name].items())) for name in known}
        if len(shapes) > 1:
            raise ValueError("all detectors must have scored the same samples, in the same sets and the same order")
        if not next(iter(foreign.values())):
            raise ValueError("outliers holds no sets: give at least one set per detector")
        return cls(known, foreign)

    @property
    def detectors(self) -> list[str]:
        return list(self.normal)

    @property
    def sets(self) -> list[str]:
        return list(next(iter(self.outliers.values())))


@dataclass(frozen=True)
class Bootstrap:
    """Hold the metrics of bootstrap samples, where every detector is evaluated on the same samples.

    Attributes
    ----------
    detectors, sets : list of str
    draws : dict of metric -> array (n_detectors, n_sets, n_resamples)
        Value of each metric in each bootstrap sample.
    """

    detectors: list[str]
    sets: list[str]
    draws: dict[str, NDArray[np.float64]]

    def interval(self, detector: str, metric: str, name: str | None = None, level: float = 0.95) -> tuple[float, float]:
        """Return the percentile interval of a metric on the set `name`, or of its mean over the sets."""
        return _ends(self._of(detector, metric, name), level)

    def difference(self, a: str, b: str, metric: str, name: str | None = None, level: float = 0.95):
        """Return the percentile interval of the metric of `a` minus the metric of `b`, paired by bootstrap sample."""
        return _ends(self._of(a, metric, name) - self._of(b, metric, name), level)

    def _of(self, detector: str, metric: str, name: str | None) -> NDArray[np.float64]:
        draws = self.draws[metric][self.detectors.index(detector)]
        return draws.mean(axis=0) if name is None else draws[self.sets.index(name)]


def bootstrap(scores: SharedNormals, *, n_resamples: int = 1000, random_state: int = 0) -> Bootstrap:
    """Draw bootstrap samples of normal samples and outliers, and compute the metrics of all detectors on each.

    The normal samples are drawn once for all sets, and the outliers per set.

    Parameters
    ----------
    scores : SharedNormals
    n_resamples : int
        Number of bootstrap samples.
    random_state : int

    Returns
    -------
    Bootstrap

    Examples
    --------
    >>> scores = SharedNormals.checked({"a": [2, 3, 4]}, {"a": {"far": [0, 1]}})
    >>> bootstrap(scores, n_resamples=20).interval("a", "auroc", "far")
    (1.0, 1.0)
    """
    check_integer("n_resamples", n_resamples, minimum=1)
    sizes = {name: len(part) for name, part in next(iter(scores.outliers.values())).items()}
    n_normal = len(next(iter(scores.normal.values())))
    draws = {metric: np.empty((len(scores.detectors), len(sizes), n_resamples)) for metric in METRICS}
    block = max(1, _BLOCK // (n_normal + max(sizes.values())))
    rng = np.random.default_rng(random_state)
    for start in range(0, n_resamples, block):
        rows = slice(start, min(start + block, n_resamples))
        size = rows.stop - rows.start
        on_normal = _resampled(rng, n_normal, size)
        for s, (name, n_outliers) in enumerate(sizes.items()):
            on_outlier = _resampled(rng, n_outliers, size)
            for d, detector in enumerate(scores.detectors):
                found = weighted_metrics(
                    scores.normal[detector], scores.outliers[detector][name], on_normal, on_outlier
                )
                for metric, values in found.items():
                    draws[metric][d, s, rows] = values
    return Bootstrap(scores.detectors, list(sizes), draws)


def delong(scores: SharedNormals) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the AUROC of every detector and set, and the covariance of the detectors' mean AUROC.

    The covariance is by DeLong et al. (Biometrics 44, 1988). Normal samples are in all sets, so their placements are
    averaged over sets. Ranks are computed as in Sun and Xu (IEEE Signal Processing Letters 21(11), 2014).

    Returns
    -------
    auroc : array of shape (n_detectors, n_sets)
    covariance : array of shape (n_detectors, n_detectors)
        Covariance of the means over sets; NaN where there is a single normal sample or a single outlier in a set.
    """
    sets = scores.sets
    n = len(next(iter(scores.normal.values())))
    placed = np.zeros((len(scores.detectors), n))
    auroc = np.empty((len(scores.detectors), len(sets)))
    covariance = np.zeros((len(scores.detectors),) * 2)
    for s, name in enumerate(sets):
        parts = [_placements(scores.normal[d], scores.outliers[d][name]) for d in scores.detectors]
        of_normal, of_outlier = (np.stack(side) for side in zip(*parts, strict=True))
        auroc[:, s] = of_normal.mean(axis=1)
        placed += of_normal / len(sets)
        covariance += _covariance(of_outlier) / (of_outlier.shape[1] * len(sets) ** 2)
    return auroc, covariance + _covariance(placed) / n


@dataclass(frozen=True)
class PairedTest:
    """Hold the comparison of one detector with another, its rival.

    Attributes
    ----------
    rival : str
    difference : float
        Mean AUROC over the sets, minus the mean AUROC of the rival.
    standard_error : float
    p_value : float
        Two-sided p-value of the hypothesis that the difference is zero (DeLong).
    adjusted_p_value : float
        p-value after Holm's correction for the number of rivals.
    """

    rival: str
    difference: float
    standard_error: float
    p_value: float
    adjusted_p_value: float


def paired_tests(scores: SharedNormals, detector: str) -> list[PairedTest]:
    """Test whether `detector` differs from each of the others in mean AUROC over the sets.

    The test treats the samples as random and the sets as fixed.

    Returns
    -------
    list of PairedTest
        One per other detector.

    Raises
    ------
    ValueError
        There is no such detector.
    """
    if detector not in scores.detectors:
        raise ValueError(
            f"there are no scores of detector {detector!r}: give one of {', '.join(map(repr, scores.detectors))}"
        )
    auroc, covariance = delong(scores)
    mean, own = auroc.mean(axis=1), scores.detectors.index(detector)
    rivals = [i for i in range(len(mean)) if i != own]
    difference = np.array([mean[own] - mean[i] for i in rivals])
    variance = np.array([covariance[own, own] + covariance[i, i] - 2 * covariance[own, i] for i in rivals])
    error = np.sqrt(np.maximum(variance, 0.0))
    # Detectors that rank samples alike differ by rounding alone.
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(np.abs(difference) < 1e-12, 0.0, np.abs(difference) / error)
    p = 2 * norm.sf(z)
    return [
        PairedTest(scores.detectors[i], float(d), float(e), float(raw), float(adjusted))
        for i, d, e, raw, adjusted in zip(rivals, difference, error, p, holm(p), strict=True)
    ]


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """Adjust p-values so that they hold for all hypotheses together (Holm, 1979).

    Examples
    --------
    >>> holm([0.01, 0.04, 0.03]).tolist()
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(p)
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted


def mean_ranks(table: ArrayLike) -> NDArray[np.float64]:
    """Return the mean rank of each detector over sets, 1 = best, by a metric (n_detectors, n_sets), higher = better."""
    return rankdata(-np.asarray(table, dtype=np.float64), axis=0).mean(axis=1)


def friedman_p_value(table: ArrayLike) -> float:
    """Return the p-value of the hypothesis that all detectors perform alike over the sets (Friedman).

    It is NaN with fewer than three detectors or two sets.
    """
    rows = np.asarray(table, dtype=np.float64)
    if rows.shape[0] < 3 or rows.shape[1] < 2 or (np.ptp(rows, axis=0) == 0).all():
        return float("nan")
    return float(friedmanchisquare(*rows).pvalue)


def critical_difference(n_detectors: int, n_sets: int, alpha: float = 0.05) -> float:
    """Return the difference of mean ranks above which two detectors differ significantly.

    It is the critical difference of Nemenyi's test (Demsar, JMLR 7, 2006).

    Examples
    --------
    >>> round(critical_difference(4, 14), 2)  # the worked example of Demsar's paper
    1.25
    """
    q = studentized_range.ppf(1 - alpha, n_detectors, np.inf) / np.sqrt(2)
    return float(q * np.sqrt(n_detectors * (n_detectors + 1) / (6 * n_sets)))


def _placements(normal: Scores, outlier: Scores) -> tuple[Scores, Scores]:
    """Return the share of outliers below each normal sample, and the share of normal samples above each outlier."""
    ranks = rankdata(np.concatenate([normal, outlier]))
    of_normal = (ranks[: len(normal)] - rankdata(normal)) / len(outlier)
    of_outlier = 1 - (ranks[len(normal) :] - rankdata(outlier)) / len(normal)
    return of_normal, of_outlier


def _covariance(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    if rows.shape[1] < 2:
        return np.full((len(rows), len(rows)), np.nan)
    return np.atleast_2d(np.cov(rows))


def _resampled(rng: np.random.Generator, n: int, size: int) -> NDArray[np.int64]:
    return rng.multinomial(n, np.full(n, 1 / n), size=size)


def _ends(values: NDArray[np.float64], level: float) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
