"""Test a window of p-values once, by SciPy's tests."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, kstest

from skjepa._utils.validation import check_number


@dataclass(frozen=True)
class WindowTests:
    """Hold the results of `window_tests`: whether p-values are uniform, and whether too many are flagged.

    Attributes
    ----------
    n : int
        Number of p-values without NaN.
    kolmogorov_smirnov : float
        p-value of the two-sided Kolmogorov-Smirnov test against the uniform distribution.
    n_flagged : int
        Number of p-values of at most alpha.
    binomial : float
        p-value of the one-sided binomial test; small = more are flagged than the share alpha explains.
    """

    n: int
    kolmogorov_smirnov: float
    n_flagged: int
    binomial: float


def window_tests(p: ArrayLike, alpha: float = 0.05) -> WindowTests:
    """Test once whether the p-values of a window are uniform and whether too many are flagged.

    Use it to look back at a window, and `DriftMonitor` for alarms: testing window after window until a p-value is small
    leads to a false alarm sooner or later. Both tests assume independent p-values. The p-values of a `ScoreMonitor` are
    independent. Conformal p-values from one set of n calibration samples are not, and a window of more than about
    n / 10 samples finds the deviations of that set.

    Parameters
    ----------
    p : array of shape (n,)
        p-values; NaN is left out.
    alpha : float in (0, 1)
        Level at which p-values count as flagged.

    Returns
    -------
    WindowTests

    Raises
    ------
    ValueError
        There is no p-value, or one lies outside [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa.deployment import window_tests
    >>> window_tests(np.linspace(0.01, 1, 100)).n_flagged
    5
    """
    alpha = check_number("alpha", alpha, above=0.0, below=1.0)
    values = np.asarray(p, dtype=np.float64).ravel()
    values = values[~np.isnan(values)]
    if not len(values) or values.min() < 0 or values.max() > 1:
        raise ValueError(f"p must hold at least one p-value, all of them in [0, 1]; got {len(values)} numbers")
    n_flagged = int((values <= alpha).sum())
    return WindowTests(
        len(values),
        float(kstest(values, "uniform").pvalue),
        n_flagged,
        float(binomtest(n_flagged, len(values), alpha, alternative="greater").pvalue),
    )
