"""One look at a window of p-values, by scipy's tests."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binomtest, kstest

from skjepa._utils.validation import check_number


@dataclass(frozen=True)
class WindowTests:
    """Are the p-values of a window uniform, and are as many flagged as should be?

    Attributes
    ----------
    n : int
        P-values that are no NaN.
    kolmogorov_smirnov : float
        p-value of the two-sided test against the uniform distribution.
    n_flagged : int
        P-values of at most alpha.
    binomial : float
        p-value of the test that more are flagged than a share of alpha explains.
    """

    n: int
    kolmogorov_smirnov: float
    n_flagged: int
    binomial: float


def window_tests(p: ArrayLike, alpha: float = 0.05) -> WindowTests:
    """Test a window of p-values once: for a look back, not for an alarm.

    Whoever tests every window, and stops at the first small p-value, has a false alarm sooner or later: that is what
    `DriftMonitor` is for. Both tests also take p-values for independent, which conformal ones against one set of n
    calibration samples are not; a window of more than about n / 10 samples finds the deviations of that set. The
    p-values of a `ScoreMonitor` are independent.

    Parameters
    ----------
    p : array of shape (n,)
        NaN is left out.
    alpha : float in (0, 1)

    Raises
    ------
    ValueError
        No p-value, or one outside [0, 1].

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
        raise ValueError(f"p must be p-values in [0, 1], at least one; got {len(values)} numbers")
    n_flagged = int((values <= alpha).sum())
    return WindowTests(
        len(values),
        float(kstest(values, "uniform").pvalue),
        n_flagged,
        float(binomtest(n_flagged, len(values), alpha, alternative="greater").pvalue),
    )
