"""Update the mean and scatter of rows that arrive in parts, and draw a random sample of all rows so far."""

from typing import Annotated, TypedDict

import numpy as np
from numpy.typing import NDArray

from skjepa.persistence.schema import Above


class Moments(TypedDict):
    """Mean of n rows, sum of outer products of deviations from it, and largest absolute value of each column."""

    n: Annotated[int, Above(0)]
    mean: Annotated[NDArray[np.float64], "_"]
    scatter: Annotated[NDArray[np.float64], "_ _"]
    largest: Annotated[NDArray[np.float64], "_"]


class KeptRows(TypedDict):
    """Rows drawn at random from all rows so far, with their random keys."""

    rows: Annotated[NDArray[np.float64], "_ _"]
    keys: Annotated[NDArray[np.float64], "_"]


def moments_of(rows: NDArray[np.float64]) -> Moments:
    """Return the moments of rows (n, d), computed in two passes."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = rows.mean(axis=0)
        centred = rows - mean
        scatter = centred.T @ centred
    return {"n": len(rows), "mean": mean, "scatter": scatter, "largest": np.abs(rows).max(axis=0)}


def joined_moments(first: Moments, second: Moments) -> Moments:
    """Return the moments of two sets of rows together, exact up to rounding.

    Source: Chan, Golub and LeVeque, 1983, The American Statistician 37(3).
    """
    n = first["n"] + second["n"]
    apart = second["mean"] - first["mean"]
    between = np.outer(apart, apart) * (first["n"] * second["n"] / n)
    return {
        "n": n,
        "mean": first["mean"] + apart * (second["n"] / n),
        "scatter": first["scatter"] + second["scatter"] + between,
        "largest": np.maximum(first["largest"], second["largest"]),
    }


def drawn_rows(kept: KeptRows | None, rows: NDArray[np.float64], seed: int, n_before: int, most: int) -> KeptRows:
    """Draw at most `most` rows uniformly at random from the kept and the new rows.

    Each row gets a random key, and the rows with the smallest keys are kept.

    Parameters
    ----------
    kept : KeptRows or None
        Result for the earlier rows; None for the first rows.
    rows : array of shape (n, d)
        New rows.
    seed, n_before : int
        Seed of the keys, and number of earlier rows. The same pair gives the same keys.
    most : int
        Largest number of rows to keep.
    """
    keys = np.random.default_rng([seed, n_before]).random(len(rows))
    if kept is not None:
        rows, keys = np.concatenate([kept["rows"], rows]), np.concatenate([kept["keys"], keys])
    if len(rows) > most:
        smallest = np.sort(np.argpartition(keys, most)[:most])
        rows, keys = rows[smallest], keys[smallest]
    return {"rows": rows, "keys": keys}
