"""Large photographs of one surface, put together from small ones, and small defects in them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

PATCH = 160
"""Side of the pieces, in pixels."""

LEVEL = 110.0
"""Mean of every piece: exposures differ more than surfaces do."""


def surface(photographs: Sequence[NDArray], size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture (H, W, 3) of pieces of grey photographs (h, w), mirrored at random, of one mean brightness."""
    height, width = size
    found = np.empty((height, width), dtype=np.uint8)
    for top in range(0, height, PATCH):
        for left in range(0, width, PATCH):
            piece = _piece(photographs[rng.integers(len(photographs))], rng)
            down, across = min(PATCH, height - top), min(PATCH, width - left)
            found[top : top + down, left : left + across] = piece[:down, :across]
    return np.repeat(found[..., None], 3, axis=2)


def _piece(photograph: NDArray, rng: np.random.Generator) -> NDArray[np.uint8]:
    whole = np.pad(photograph, [(0, max(0, PATCH - side)) for side in photograph.shape], mode="symmetric")
    top, left = (int(rng.integers(side - PATCH + 1)) for side in whole.shape)
    piece = whole[top : top + PATCH, left : left + PATCH][:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
    return np.clip(piece + (LEVEL - piece.mean()), 0, 255).astype(np.uint8)


def with_scratch(picture: NDArray[np.uint8], place: tuple[int, int], length: int = 40) -> NDArray[np.uint8]:
    """A bright scratch, two pixels wide, that rises to the right from `place`, its lower left end (row, column)."""
    odd, (row, column) = picture.copy(), place
    for i in range(length):
        odd[row - i // 2 : row - i // 2 + 2, column + i] = np.minimum(255, odd[row - i // 2, column + i] + 90)
    return odd


def with_cutout(
    picture: NDArray[np.uint8], cut: NDArray, mask: NDArray[np.bool_], place: tuple[int, int], longest: int = 40
) -> NDArray[np.uint8]:
    """What a mask (h, w) cuts out of a grey photograph, brought to so many pixels, as much darker or brighter there.

    Parameters
    ----------
    picture : array of shape (H, W, 3)
    cut, mask : arrays of shape (h, w)
    place : (int, int)
        Row and column of its upper left corner.
    longest : int
        Longer side of the mask after that.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    change = (cut.astype(np.float32) - float(np.median(cut[~mask]))) * gaussian_filter(mask.astype(np.float32), 0.7)
    height, width = change[inside].shape
    scale = longest / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    small = np.asarray(Image.fromarray(change[inside]).resize(size, Image.Resampling.BOX))
    odd, (top, left) = picture.copy(), place
    part = odd[top : top + size[1], left : left + size[0]]
    part[:] = np.clip(part + small[..., None], 0, 255).astype(np.uint8)
    return odd
