"""Bet against uniform p-values and track the capital, by conformal test martingales.

A bet multiplies its stake by a factor whose mean over uniform p is 1, so that no bet gains on average while the stream
is exchangeable (Vovk, Nouretdinov and Gammerman, Testing exchangeability on-line, ICML 2003). This module needs NumPy
alone.
"""

import numpy as np
from numpy.typing import NDArray

BETTINGS = ("jumper", "power")
JUMP = 0.01
"""Share of the capital that is redistributed among the bets at each sample, as in Vovk's simple jumper."""

_SLOPES = np.array([-2.0, -1.0, 1.0, 2.0])  # with a steeper slope than 2 a factor could be negative
_POWERS = np.array([0.2, 0.4, 0.6, 0.8])
_SMALLEST = 1e-9  # smallest distance of p from 0 and 1; clipping lowers the mean of a factor and never raises it
_MOST = 1e200  # largest capital; clipping can only delay an alarm


def n_bets(betting: str) -> int:
    """Return the number of bets."""
    return len(_SLOPES) if betting == "jumper" else 2 * len(_POWERS)


def bets_on_small(betting: str) -> NDArray[np.bool_]:
    """Return which bets gain where p-values are small, (n_bets,); the others gain where they are large."""
    return _SLOPES < 0 if betting == "jumper" else np.arange(2 * len(_POWERS)) < len(_POWERS)


def factors(betting: str, p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the factor of each bet, (..., n_bets), for p of shape (...); all ones where p is NaN.

    The factors of "jumper" are 1 + slope (p - 1/2), those of "power" are power p^(power - 1), and the same for 1 - p.
    """
    p = np.clip(p, _SMALLEST, 1 - _SMALLEST)[..., np.newaxis]
    if betting == "jumper":
        found = 1 + _SLOPES * (p - 0.5)
    else:
        found = np.concatenate([_POWERS * side ** (_POWERS - 1) for side in (p, 1 - p)], axis=-1)
    return np.where(np.isnan(p), 1.0, found)


def next_capital(capital: NDArray[np.float64], factor: NDArray[np.float64], fresh: float) -> NDArray[np.float64]:
    """Return the capital after one sample, (..., n_bets).

    A part of the capital changes bets, `fresh` is added in equal shares, and all of it is bet.
    """
    mixed = (1 - JUMP) * capital + JUMP * capital.mean(axis=-1, keepdims=True)
    return np.minimum((mixed + fresh / capital.shape[-1]) * factor, _MOST)


def log_martingale(capital: NDArray[np.float64], n: int, horizon: int) -> NDArray[np.float64]:
    """Return the logarithm of the total capital, bets and reserve, (...), after n of `horizon` samples; 0 at the start.

    Each sample brings 1 / horizon of the initial reserve into play, because a change may begin at any sample.
    """
    with np.errstate(divide="ignore"):
        return np.log(capital.sum(axis=-1) + (1 - n / horizon))
