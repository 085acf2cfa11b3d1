"""Decide how a false-positive rate is calibrated; plain Python, so that a mistyped command loads nothing for it."""

import math

DEFAULT_SHARE, DEFAULT_FOLDS = 0.2, 5
"""What a rate alone is calibrated by: this share of the samples where it suffices, else so many folds."""

ENOUGH = 5
"""Held-out scores below a threshold: with fewer the threshold is nearly the lowest score, and its rate mostly luck."""


def n_allowed(alpha: float, n: int) -> int:
    """Return k = floor(alpha (n + 1)), the number of calibration scores that may lie at or below a threshold."""
    # Rounded before the floor: 0.05 * 20 is 1.0000000000000002 in one order and 0.9999999999999999 in another.
    return math.floor(round(alpha * (n + 1), 9))
