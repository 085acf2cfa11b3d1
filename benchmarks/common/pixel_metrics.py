"""Pixel AUROC and per-region overlap, from counts of each picture so that pictures can be drawn again."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label

BINS = 1000
FPR_LIMIT = 0.3
"""PRO is averaged up to so many false positives, as MVTec's authors do (Bergmann et al., 2020)."""

_EDGE_SAMPLE = 20_000  # pixels of each picture from which the edges of the bins are taken


@dataclass(frozen=True)
class PixelCounts:
    """Pixels of some pictures by how odd the map calls them, the oddest first.

    Attributes
    ----------
    good, defect : arrays of shape (n_pictures, bins)
    regions : array of shape (n_regions, bins)
        Of each connected region of a defect.
    picture_of : array of shape (n_regions,)
    """

    good: NDArray[np.int64]
    defect: NDArray[np.int64]
    regions: NDArray[np.int64]
    picture_of: NDArray[np.int64]

    @cached_property
    def _found(self) -> NDArray[np.float64]:
        """Share of each region that is at least so odd, (n_regions, bins)."""
        return self.regions.cumsum(axis=1) / self.regions.sum(axis=1, keepdims=True)

    def auroc(self, times: NDArray | None = None) -> float:
        """Share of pairs of a defect pixel and a good one that are in order; pictures count `times`."""
        times = np.ones(len(self.good)) if times is None else times
        fpr, tpr = _rates(times @ self.good), _rates(times @ self.defect)
        return float(np.trapezoid(tpr, fpr))

    def pro(self, times: NDArray | None = None) -> float:
        """Mean share of a region that is found, averaged over false-positive rates up to `FPR_LIMIT`."""
        times = np.ones(len(self.good)) if times is None else times
        fpr = _rates(times @ self.good)
        weights = times[self.picture_of]
        overlap = np.concatenate([[0.0], weights @ self._found / weights.sum()])
        below = fpr <= FPR_LIMIT
        at_limit = np.interp(FPR_LIMIT, fpr, overlap)
        x, y = np.append(fpr[below], FPR_LIMIT), np.append(overlap[below], at_limit)
        return float(np.trapezoid(y, x) / FPR_LIMIT)


def pixel_counts(maps: Sequence[NDArray], masks: Sequence[NDArray[np.bool_]]) -> PixelCounts:
    """Counts of pictures, whose maps have the size of their masks; where a map is NaN it is the least odd."""
    filled = [np.where(np.isnan(values), -np.inf, values) for values in maps]
    rng = np.random.default_rng(0)
    sample = np.concatenate([rng.choice(values.ravel(), min(_EDGE_SAMPLE, values.size)) for values in filled])
    edges = np.unique(np.quantile(sample[np.isfinite(sample)], np.linspace(0, 1, BINS)))
    good, defect, regions, picture_of = [], [], [], []
    for i, (values, mask) in enumerate(zip(filled, masks, strict=True)):
        place = len(edges) - np.searchsorted(edges, values, side="right")

        def counted(chosen: NDArray, place: NDArray = place) -> NDArray[np.int64]:
            return np.bincount(place[chosen], minlength=len(edges) + 1)

        good.append(counted(~mask))
        defect.append(counted(mask))
        labels, n_regions = label(mask, np.ones((3, 3)))
        regions += [counted(labels == own) for own in range(1, n_regions + 1)]
        picture_of += [i] * n_regions
    return PixelCounts(np.array(good), np.array(defect), np.array(regions), np.array(picture_of, dtype=np.int64))


def _rates(counts: NDArray) -> NDArray[np.float64]:
    total = counts.cumsum()
    return np.concatenate([[0.0], total / max(total[-1], 1)])
