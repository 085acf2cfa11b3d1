"""From singular values to a number a sample: log-volume, combined views, numerical rank. NumPy only."""

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

PAPER_FLOOR = 1e-6
"""The absolute clip of Listing 1 in arXiv 2510.05949."""

_NOISE_FACTOR = 10.0


def log_volume(sigma: ArrayLike, *, floor: float = PAPER_FLOOR, rank: int | None = None) -> NDArray[np.float64]:
    r"""Sum of log singular values, ``sum_{k <= rank} log max(sigma_k, floor)``, in nats: higher = denser = more normal.

    With the defaults this is JEPA-SCORE (arXiv 2510.05949, Eq. 5).

    Parameters
    ----------
    sigma : array of shape (..., R)
        Singular values, descending along the last axis.
    floor : float
        Values below it count as `floor`. One floor for all samples, else scores do not compare.
    rank : int, optional
        Only the `rank` largest values count. One rank for all samples: dropping a small singular value RAISES a score.

    Returns
    -------
    array of shape (...)

    Examples
    --------
    >>> log_volume([[2.0, 0.5], [1.0, 0.0]], floor=np.exp(-3.0)).tolist()
    [0.0, -3.0]
    """
    kept = np.asarray(sigma, dtype=np.float64)[..., :rank]
    return np.log(np.maximum(kept, floor)).sum(axis=-1)


def combine_views(scores: ArrayLike) -> NDArray[np.float64]:
    r"""One score from several views, ``-log mean_v exp(-score_v)`` (arXiv 2510.05949, Eq. 4 / Theorem 1).

    The expectation over training transforms is of the inverse volume, so the least dense view weighs most.

    Parameters
    ----------
    scores : array of shape (..., V)
        Log-volumes of the views, in nats.

    Returns
    -------
    array of shape (...)

    Examples
    --------
    >>> float(combine_views([1.0, 1.0, 1.0]))
    1.0
    """
    scores = np.asarray(scores, dtype=np.float64)
    return np.log(scores.shape[-1]) - logsumexp(-scores, axis=-1)


def noise_level(sigma: ArrayLike, eps: float) -> NDArray[np.float64]:
    """Largest value that a zero singular value may read in arithmetic of machine epsilon `eps`: 10 eps sigma_max.

    Parameters
    ----------
    sigma : array of shape (..., R), descending
    eps : float
        1.2e-7 for float32, 2.2e-16 for float64, see `skjepa.jacobian.Arithmetic`.

    Returns
    -------
    array of shape (...)
    """
    return _NOISE_FACTOR * eps * np.asarray(sigma, dtype=np.float64)[..., 0]


def warn_if_floor_is_noise(sigma: ArrayLike, *, floor: float, rank: int | None, eps: float) -> None:
    """Warn where a score would count rounding errors: floor and smallest counted value both lie under the noise."""
    noise = float(np.median(noise_level(sigma, eps)))
    smallest = float(np.median(np.asarray(sigma)[..., :rank][..., -1]))
    if floor < noise and smallest < noise:
        warnings.warn(
            f"floor {floor:.2g} lies under the noise of the arithmetic ({noise:.2g}, ten epsilon times the largest "
            "singular value), and so do some singular values: the score counts rounding errors. Use a floor above "
            f"{noise:.2g} (a detector's floor='auto'), a rank, or precision='float64'",
            stacklevel=3,
        )


def numerical_rank(sigma: ArrayLike, eps: float) -> NDArray[np.int64]:
    """Number of singular values above the noise of the arithmetic: a diagnostic, never part of a score.

    Parameters and errors as `noise_level`; returns integers of shape (...).
    """
    sigma = np.asarray(sigma, dtype=np.float64)
    return (sigma > noise_level(sigma, eps)[..., None]).sum(axis=-1)
