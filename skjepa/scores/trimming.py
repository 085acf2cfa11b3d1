"""Find anomalies among the fit samples, so that a fit can leave them out, with estimates that they cannot bias."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from skjepa.scores.layers import LayerChain, Rows

_START = 0.5  # share of the samples that the first chain learns from
_MOST = 0.75
_STEPS = 3
_FAR = 10.0  # deviations at which a number is clipped
_TO_DEVIATION = 1.4826  # median absolute deviation to standard deviation, for a normal distribution
_LEAST = 1e-3  # smallest spread of a channel, as a share of the layer's median spread, as in `LayerChain`

Oddness = Callable[[LayerChain, Rows], NDArray[np.float64]]


def least_odd(layers: Rows, share: float, is_unit: bool, oddness: Oddness) -> NDArray[np.intp]:
    """Return the positions, ascending, of the samples that are most like the others.

    A covariance that is learned from a cluster of anomalies grows wide, and the cluster then looks normal. The first
    chain therefore learns from the half of the samples that lie nearest to the median of each channel, in median
    absolute deviations. Each further chain learns from the share that was least anomalous to the chain before
    (concentration steps, Rousseeuw and Van Driessen, 1999, Technometrics 41(3)).

    Parameters
    ----------
    layers : dict of name -> array of shape (n_samples, p)
    share : float in (0.5, 1]
        Share of the samples to return.
    is_unit : bool
        See `LayerChain`.
    oddness : callable
        Combines the surprises of a fitted chain into one number per sample, (n_samples,); higher = more anomalous.
    """
    n = len(next(iter(layers.values())))
    kept = _first(_distance_from_medians(layers), int(_START * n))
    for _ in range(_STEPS):
        kept = _first(_odd(layers, kept, is_unit, oddness), n - int(round((1 - share) * n, 9)))
    return kept


def oddness_to_most(layers: Rows, is_unit: bool, oddness: Oddness) -> NDArray[np.float64]:
    """Return how anomalous each sample is to the three quarters that are most like one another, (n_samples,)."""
    n = len(next(iter(layers.values())))
    kept = _first(_distance_from_medians(layers), int(_START * n))
    kept = _first(_odd(layers, kept, is_unit, oddness), int(_MOST * n))
    return _odd(layers, kept, is_unit, oddness)


def _odd(layers: Rows, kept: NDArray[np.intp], is_unit: bool, oddness: Oddness) -> NDArray[np.float64]:
    """Return the oddness of all samples to a chain fitted on the kept ones, each of these as if it were left out."""
    chain = LayerChain(is_unit=is_unit).fit({name: rows[kept] for name, rows in layers.items()})
    odd = oddness(chain, chain.surprises(layers))
    odd[kept] = oddness(chain, chain.fit_surprises)
    return odd


def _first(values: NDArray[np.float64], n: int) -> NDArray[np.intp]:
    """Return the positions of the n lowest values, at least two, ascending."""
    return np.sort(np.argsort(values, kind="stable")[: max(2, n)])


def _distance_from_medians(layers: Rows) -> NDArray[np.float64]:
    """Return the distance of each sample from the medians, averaged over layers, (n_samples,).

    In each layer it is the root mean square of the robust deviations of its numbers, divided by the median sample's.
    """
    found = []
    for values in layers.values():
        apart = np.abs(values - np.median(values, axis=0))
        spread = _TO_DEVIATION * np.median(apart, axis=0)
        varying = spread[spread > 0]
        least = _LEAST * float(np.median(varying)) if len(varying) else 1.0
        distance = np.sqrt((np.minimum(apart / np.maximum(spread, least), _FAR) ** 2).mean(axis=1))
        found.append(distance / max(float(np.median(distance)), 1e-12))
    return np.mean(found, axis=0)
