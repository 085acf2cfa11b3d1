"""Anomalies among the fit samples: which of them to leave out of a fit, found without being misled by them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from skjepa.scores.layers import LayerChain, Rows

_START = 0.5  # share of the samples that the first chain learns from
_MOST = 0.75
_STEPS = 3
_FAR = 10.0  # deviations: beyond them a number is as odd as it can be
_TO_DEVIATION = 1.4826  # of a normal distribution, from the median absolute deviation
_LEAST = 1e-3  # share of a layer's median spread, as in `LayerChain`

Oddness = Callable[[LayerChain, Rows], NDArray[np.float64]]


def least_odd(layers: Rows, share: float, is_unit: bool, oddness: Oddness) -> NDArray[np.intp]:
    """Positions, ascending, of this share of the samples: those that look most like the others.

    A cluster of anomalies widens a covariance that is learned from it, and then looks normal. So the first chain learns
    from the half of the samples whose numbers lie nearest to the median of each channel, in median absolute deviations;
    each further one from the share that was least odd to the one before (concentration steps, Rousseeuw and Van
    Driessen, 1999, Technometrics 41(3)).

    Parameters
    ----------
    layers : dict of name -> array of shape (n_samples, p)
    share : float in (0.5, 1]
    is_unit : bool
        Of `LayerChain`.
    oddness : callable
        What a fitted chain makes of the surprises of its layers, (n_samples,); higher = odder.
    """
    n = len(next(iter(layers.values())))
    kept = _first(_distance_from_medians(layers), int(_START * n))
    for _ in range(_STEPS):
        kept = _first(_odd(layers, kept, is_unit, oddness), n - int(round((1 - share) * n, 9)))
    return kept


def oddness_to_most(layers: Rows, is_unit: bool, oddness: Oddness) -> NDArray[np.float64]:
    """How odd each sample is to the three quarters that look most like one another, (n_samples,)."""
    n = len(next(iter(layers.values())))
    kept = _first(_distance_from_medians(layers), int(_START * n))
    kept = _first(_odd(layers, kept, is_unit, oddness), int(_MOST * n))
    return _odd(layers, kept, is_unit, oddness)


def _odd(layers: Rows, kept: NDArray[np.intp], is_unit: bool, oddness: Oddness) -> NDArray[np.float64]:
    """Of all samples, to a chain of those that are kept, which are each judged as if it had been left out."""
    chain = LayerChain(is_unit=is_unit).fit({name: rows[kept] for name, rows in layers.items()})
    odd = oddness(chain, chain.surprises(layers))
    odd[kept] = oddness(chain, chain.fit_surprises)
    return odd


def _first(values: NDArray[np.float64], n: int) -> NDArray[np.intp]:
    """Positions of the n lowest values, at least two, ascending."""
    return np.sort(np.argsort(values, kind="stable")[: max(2, n)])


def _distance_from_medians(layers: Rows) -> NDArray[np.float64]:
    """Root mean square of the robust deviations of a layer's numbers, over their median, mean over layers."""
    found = []
    for values in layers.values():
        apart = np.abs(values - np.median(values, axis=0))
        spread = _TO_DEVIATION * np.median(apart, axis=0)
        varying = spread[spread > 0]
        least = _LEAST * float(np.median(varying)) if len(varying) else 1.0
        distance = np.sqrt((np.minimum(apart / np.maximum(spread, least), _FAR) ** 2).mean(axis=1))
        found.append(distance / max(float(np.median(distance)), 1e-12))
    return np.mean(found, axis=0)
