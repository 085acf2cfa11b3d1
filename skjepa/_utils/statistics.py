"""Compute rank correlations, and the affine function of a fitted pipeline."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr


def affine(regression: Any, n_features: int) -> tuple[Any, NDArray[np.float64]]:
    """Return intercept and coefficients (n_features, ...) of a fitted linear regression, also inside a pipeline."""
    intercept = regression.predict(np.zeros((1, n_features)))[0]
    return intercept, regression.predict(np.eye(n_features)) - intercept


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Return Spearman's rank correlation; 0 if one of the two is constant."""
    if is_constant(a) or is_constant(b):
        return 0.0
    return float(spearmanr(a, b).statistic)


def is_constant(values: NDArray[np.float64]) -> bool:
    """Return whether values do not vary, up to rounding."""
    return bool(np.ptp(values) <= 1e-9 * (1 + np.abs(values).max()))
