"""Find images that are equal or nearly equal: scaled, re-compressed, slightly brighter."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

SIDE = 16
TOLERANCE = 0.2
"""Images count as alike if they differ by less than this share of their contrast."""
_GREY_LEVEL = 1.0  # rounding error of a pixel
_PROJECTED = 12
_BLOCK = 2048


@dataclass(frozen=True)
class Look:
    """Hold a small copy of an image, by which similar images are found.

    Attributes
    ----------
    small : array of shape (SIDE * SIDE * 3,), uint8
        The image, scaled to a small square.
    """

    small: NDArray[np.uint8]


def look_of(image: Image.Image) -> Look:
    """Return the small copy of an RGB image."""
    small = image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2.0)
    return Look(np.asarray(small, dtype=np.uint8).ravel())


def alike(looks: Sequence[Look | None], *, tolerance: float = TOLERANCE) -> list[list[int]]:
    """Group images that are equal or nearly equal.

    Images are compared at 16 x 16 pixels. Two are alike if the root mean square of their difference is at most
    `tolerance` times the smaller of their contrasts (standard deviations of their pixels), plus one grey level. An
    image that is alike to one member of a group belongs to the group.

    Parameters
    ----------
    looks : sequence of Look or None
        None for an image that could not be read, which is alike to none.
    tolerance : float

    Returns
    -------
    list of lists of positions
        Each in ascending order, the largest groups first.

    Examples
    --------
    >>> ramp = Image.linear_gradient("L").convert("RGB")
    >>> alike([look_of(picture) for picture in (ramp, ramp.rotate(90), ramp.resize((100, 100)))])
    [[0, 2]]
    """
    places = np.array([i for i, look in enumerate(looks) if look is not None], dtype=np.intp)
    if len(places) < 2:
        return []
    small = np.stack([look.small for look in looks if look is not None]).astype(np.float32)
    first, second = _pairs(small, tolerance)
    n = len(places)
    _, label = connected_components(coo_array((np.ones(len(first)), (first, second)), shape=(n, n)), directed=False)
    order = np.argsort(label, kind="stable")
    groups = np.split(places[order], np.flatnonzero(np.diff(label[order])) + 1)
    return sorted((group.tolist() for group in groups if len(group) > 1), key=lambda group: (-len(group), group))


def is_alike(first: Look, second: Look, *, tolerance: float = TOLERANCE) -> bool:
    """Return whether two images are alike, see `alike`."""
    small = np.stack([first.small, second.small]).astype(np.float32)
    return bool(_distances(small[1:], small[0])[0] <= _reach(small, tolerance).min())


def _reach(small: NDArray[np.float32], tolerance: float) -> NDArray[np.float64]:
    """Return the largest distance of an alike image, for each image (n, d)."""
    return (tolerance * small.std(axis=1, dtype=np.float64) + _GREY_LEVEL) * np.sqrt(small.shape[1])


def _distances(small: NDArray[np.float32], one: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.sqrt(np.square(small - one).sum(axis=1, dtype=np.float64))


def _pairs(small: NDArray[np.float32], tolerance: float) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the positions i < j of all alike pairs.

    A projection never increases distances, so pairs that are far apart in a few dimensions need not be compared.
    """
    reach = _reach(small, tolerance)
    centred = small - small.mean(axis=0)
    _, axes = np.linalg.eigh(centred.T @ centred)
    projected = (centred @ axes[:, -_PROJECTED:]).astype(np.float64)
    tree = cKDTree(projected)
    found: list[NDArray[np.intp]] = [np.empty((0, 2), dtype=np.intp)]
    for start in range(0, len(small), _BLOCK):
        block = slice(start, start + _BLOCK)
        for i, near in enumerate(tree.query_ball_point(projected[block], reach[block] * (1 + 1e-4)), start=start):
            later = np.array([j for j in near if j > i], dtype=np.intp)
            later = later[_distances(small[later], small[i]) <= np.minimum(reach[i], reach[later])]
            found.append(np.column_stack([np.full(len(later), i), later]))
    pairs = np.concatenate(found)
    return pairs[:, 0], pairs[:, 1]
