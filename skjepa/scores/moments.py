"""Mean and scatter of rows that come in parts, and a sample of all of them: what a Gaussian needs of its rows."""

from typing import Annotated, TypedDict

import numpy as np
from numpy.typing import NDArray

from skjepa.persistence.schema import Above


class Moments(TypedDict):
    """Of n rows: the mean, the sum of outer products of deviations from it, and the largest size of each column."""

    n: Annotated[int, Above(0)]
    mean: Annotated[NDArray[np.float64], "_"]
    scatter: Annotated[NDArray[np.float64], "_ _"]
    largest: Annotated[NDArray[np.float64], "_"]


class KeptRows(TypedDict):
    """Rows that were drawn from all that came, and their keys."""

    rows: Annotated[NDArray[np.float64], "_ _"]
    keys: Annotated[NDArray[np.float64], "_"]


def moments_of(rows: NDArray[np.float64]) -> Moments:
    """Of rows (n, d), in two passes."""
    with np.errstate(over="ignore", invalid="ignore"):
        mean = rows.mean(axis=0)
        centred = rows - mean
        scatter = centred.T @ centred
    return {"n": len(rows), "mean": mean, "scatter": scatter, "largest": np.abs(rows).max(axis=0)}


def joined_moments(first: Moments, second: Moments) -> Moments:
    """Of the rows of both together, exact but for rounding.

    Chan, Golub and LeVeque, 1983, The American Statistician 37(3).
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
    """At most so many rows of all that came, each set of that size as likely as any other.

    Each row draws a key, and those with the smallest keys stay; up to `most` rows all of them.

    Parameters
    ----------
    kept : KeptRows or None
        Of the rows before.
    rows : array of shape (n, d)
        New ones.
    seed, n_before : int
        Keys depend on the seed and on how many rows came before.
    most : int
    """
    keys = np.random.default_rng([seed, n_before]).random(len(rows))
    if kept is not None:
        rows, keys = np.concatenate([kept["rows"], rows]), np.concatenate([kept["keys"], keys])
    if len(rows) > most:
        smallest = np.sort(np.argpartition(keys, most)[:most])
        rows, keys = rows[smallest], keys[smallest]
    return {"rows": rows, "keys": keys}
