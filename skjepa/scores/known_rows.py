"""Recognise the rows of a fit among new rows, because a model scores the rows that it was fitted on too high."""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from sklearn.neighbors import NearestNeighbors

ROUNDING = 1e-5
"""Share of its size by which the same sample may differ between batches."""
_SHARE = 0.05  # largest tolerance as a share of the distance between rows, so that two rows stay two
_WATCHED = 1000  # rows for the median of that distance
_CANDIDATES = 8


class KnownRows:
    """Hold rows and recognise each of them up to rounding.

    The tolerance of a row never exceeds a small share of the distance between rows.

    Parameters
    ----------
    rows : array of shape (n_rows, d)
    numbers : array of shape (n_rows,), optional
        A number per row that has to agree as well, where it varies by more than rounding.
    """

    def __init__(self, rows: NDArray[np.float64], numbers: NDArray[np.float64] | None = None) -> None:
        self._numbers = np.zeros(len(rows)) if numbers is None else numbers
        # Rounding grows with the size of the original rows; distances are more exact between centred ones.
        self._centre = np.median(rows, axis=0)
        self._rows = rows - self._centre
        self._reach = _reach(self._rows, ROUNDING * np.linalg.norm(rows, axis=1))
        self._tolerance = np.maximum(ROUNDING * (1 + np.abs(self._numbers)), 1e-3 * self._numbers.std())
        # The weight makes the nearest number decide between rows that are equal.
        self._weight = (float(np.median(self._reach)) or 1e-12) / float(np.median(self._tolerance))
        self._tree = cKDTree(self._points(self._rows, self._numbers))

    def _points(self, rows: NDArray[np.float64], numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.column_stack([rows, self._weight * numbers])

    def as_arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return the arrays that `places` compares by, for use without this class.

        ``rows`` are the rows minus their ``centre``. Per row, ``reach`` is the largest distance of a match, and
        ``tolerance`` the largest difference of ``numbers``. Among several rows within reach the nearest one matches; a
        difference of numbers counts ``weight`` times as much as a distance of rows.
        """
        return {
            "rows": self._rows,
            "centre": self._centre,
            "reach": self._reach,
            "numbers": self._numbers,
            "tolerance": self._tolerance,
            "weight": np.float64(self._weight),
        }

    def places(self, rows: NDArray[np.float64], numbers: NDArray[np.float64] | None = None) -> NDArray[np.intp]:
        """Return the position of the stored row that each row equals, (n,); -1 for none."""
        numbers = np.zeros(len(rows)) if numbers is None else numbers
        rows = rows - self._centre
        limit = (1 + 1e-9) * max(float(np.hypot(self._reach, self._weight * self._tolerance).max()), 1e-150)
        distances, places = self._tree.query(
            self._points(rows, numbers), np.arange(1, min(_CANDIDATES, self._tree.n) + 1), distance_upper_bound=limit
        )
        found = np.where(np.isfinite(distances), places, 0)
        apart = np.linalg.norm(self._rows[found] - rows[:, None], axis=2)
        known = np.isfinite(distances) & (apart <= self._reach[found])
        known &= np.abs(self._numbers[found] - numbers[:, None]) <= self._tolerance[found]
        chosen = np.arange(len(rows)), np.argmax(known, axis=1)  # the nearest candidate within the limits
        return np.where(known[chosen], found[chosen], -1)


def _reach(rows: NDArray[np.float64], rounding: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the distance, (n,), up to which a new row counts as the same as each row."""
    if len(rows) < 2:
        return rounding
    some = rows
    if len(rows) > _WATCHED:
        some = rows[np.random.default_rng(0).choice(len(rows), _WATCHED, replace=False)]
    search = NearestNeighbors(n_neighbors=2).fit(rows)
    apart = search.kneighbors(some)[0][:, 1]
    apart = apart[apart > 1e-11 * np.median(rounding)]  # leave out copies
    typical = float(np.median(apart)) if len(apart) else np.inf
    large = rounding > _SHARE * typical
    limit = np.full(len(rows), _SHARE * typical)
    if large.any():  # rows of large size lie farther apart, so their own distance sets the limit
        limit[large] = np.maximum(limit[large], _SHARE * search.kneighbors(rows[large])[0][:, 1])
    return np.minimum(rounding, limit)
