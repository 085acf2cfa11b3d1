"""Bets against p-values that are uniform, and the capital they bring: conformal test martingales. NumPy only.

A bet multiplies the stake by a factor whose mean over uniform p is 1, so that nobody gains by betting while the stream
is exchangeable (Vovk, Nouretdinov and Gammerman, Testing exchangeability on-line, ICML 2003).
"""

import numpy as np
from numpy.typing import NDArray

BETTINGS = ("jumper", "power")
JUMP = 0.01
"""Share of the capital that is dealt out anew among the bets at each sample, as in Vovk's simple jumper."""

_SLOPES = np.array([-2.0, -1.0, 1.0, 2.0])  # 2 is the steepest whose factor is never negative
_POWERS = np.array([0.2, 0.4, 0.6, 0.8])
_SMALLEST = 1e-9  # a p-value nearer to 0 or 1 counts as this: the mean of a factor falls a little under 1, never above
_MOST = 1e200  # capital above is cut off, which can only delay


def n_bets(betting: str) -> int:
    return len(_SLOPES) if betting == "jumper" else 2 * len(_POWERS)


def bets_on_small(betting: str) -> NDArray[np.bool_]:
    """Which bets gain where p-values are small, (n_bets,); the others gain where they are large."""
    return _SLOPES < 0 if betting == "jumper" else np.arange(2 * len(_POWERS)) < len(_POWERS)


def factors(betting: str, p: NDArray[np.float64]) -> NDArray[np.float64]:
    """What each bet multiplies its stake by, (..., n_bets), from p of shape (...); all ones where p is NaN.

    "jumper" bets 1 + slope (p - 1/2); "power" bets power p^(power - 1), and the same of 1 - p.
    """
    p = np.clip(p, _SMALLEST, 1 - _SMALLEST)[..., np.newaxis]
    if betting == "jumper":
        found = 1 + _SLOPES * (p - 0.5)
    else:
        found = np.concatenate([_POWERS * side ** (_POWERS - 1) for side in (p, 1 - p)], axis=-1)
    return np.where(np.isnan(p), 1.0, found)


def next_capital(capital: NDArray[np.float64], factor: NDArray[np.float64], fresh: float) -> NDArray[np.float64]:
    """Capital after one sample, (..., n_bets): a part changes bets, `fresh` joins in equal shares, then all is bet."""
    mixed = (1 - JUMP) * capital + JUMP * capital.mean(axis=-1, keepdims=True)
    return np.minimum((mixed + fresh / capital.shape[-1]) * factor, _MOST)


def log_martingale(capital: NDArray[np.float64], n: int, horizon: int) -> NDArray[np.float64]:
    """Logarithm of bets and reserve together, (...), after n of `horizon` samples; 0 at the start.

    Each sample takes 1 / horizon of the reserve into play: a change may begin at any of them.
    """
    with np.errstate(divide="ignore"):
        return np.log(capital.sum(axis=-1) + (1 - n / horizon))
