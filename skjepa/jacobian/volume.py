"""Compute log-volume, combination of views and numerical rank from singular values, in NumPy."""

import warnings

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

PAPER_FLOOR = 1e-6
"""Lower bound of singular values in Listing 1 of arXiv 2510.05949."""

_NOISE_FACTOR = 10.0


def log_volume(sigma: ArrayLike, *, floor: float = PAPER_FLOOR, rank: int | None = None) -> NDArray[np.float64]:
    r"""Sum the logarithms of singular values: the log-volume, in nats.

    Computes ``sum_{k <= rank} log max(sigma_k, floor)``; higher = denser = more normal. With the defaults this is
    JEPA-SCORE (arXiv 2510.05949, Eq. 5).

    Parameters
    ----------
    sigma : array of shape (..., R)
        Singular values, descending along the last axis.
    floor : float
        Lower bound of singular values: smaller ones are replaced by it. Use the same floor for all samples, otherwise
        scores cannot be compared.
    rank : int, optional
        Number of largest values that are summed; by default all. Use the same rank for all samples, since leaving out a
        small singular value raises a score.

    Returns
    -------
    array of shape (...)
        Log-volumes in nats (natural logarithms).

    Examples
    --------
    >>> log_volume([[2.0, 0.5], [1.0, 0.0]], floor=np.exp(-3.0)).tolist()
    [0.0, -3.0]
    """
    kept = np.asarray(sigma, dtype=np.float64)[..., :rank]
    return np.log(np.maximum(kept, floor)).sum(axis=-1)


def combine_views(scores: ArrayLike) -> NDArray[np.float64]:
    r"""Combine the scores of several views to one score per sample, ``-log mean_v exp(-score_v)``.

    This is Eq. 4 / Theorem 1 of arXiv 2510.05949: the expectation over training transforms is taken of the inverse
    volume, so the view with the lowest score weighs most.

    Parameters
    ----------
    scores : array of shape (..., V)
        Log-volumes of the views, in nats.

    Returns
    -------
    array of shape (...)
        Scores in nats; higher = denser = more normal.

    Examples
    --------
    >>> float(combine_views([1.0, 1.0, 1.0]))
    1.0
    """
    scores = np.asarray(scores, dtype=np.float64)
    return np.log(scores.shape[-1]) - logsumexp(-scores, axis=-1)


def noise_level(sigma: ArrayLike, eps: float) -> NDArray[np.float64]:
    """Return the largest value that rounding may give to a zero singular value, 10 eps sigma_max.

    Parameters
    ----------
    sigma : array of shape (..., R), descending
    eps : float
        Machine epsilon: 1.2e-7 for float32, 2.2e-16 for float64, see `skjepa.jacobian.Arithmetic`.

    Returns
    -------
    array of shape (...)
    """
    return _NOISE_FACTOR * eps * np.asarray(sigma, dtype=np.float64)[..., 0]


def warn_if_floor_is_noise(sigma: ArrayLike, *, floor: float, rank: int | None, eps: float) -> None:
    """Warn if floor and smallest summed value are both below the rounding noise, so that a score sums noise."""
    noise = float(np.median(noise_level(sigma, eps)))
    smallest = float(np.median(np.asarray(sigma)[..., :rank][..., -1]))
    if floor < noise and smallest < noise:
        warnings.warn(
            f"floor {floor:.2g} and some singular values are below the rounding noise ({noise:.2g}, ten epsilon times "
            "the largest singular value), so the score contains rounding errors. Give a floor above "
            f"{noise:.2g} (in a detector floor='auto'), a rank, or precision='float64'",
            stacklevel=3,
        )


def numerical_rank(sigma: ArrayLike, eps: float) -> NDArray[np.int64]:
    """Count the singular values above the rounding noise, 10 eps times the largest; not part of any score.

    Parameters
    ----------
    sigma : array of shape (..., R), descending
    eps : float
        Machine epsilon: 1.2e-7 for float32, 2.2e-16 for float64, see `skjepa.jacobian.Arithmetic`.

    Returns
    -------
    array of shape (...), int
    """
    sigma = np.asarray(sigma, dtype=np.float64)
    return (sigma > noise_level(sigma, eps)[..., None]).sum(axis=-1)
