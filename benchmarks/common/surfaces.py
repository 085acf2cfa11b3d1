"""Large photographs of one surface, put together from small ones, and small defects in them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, uniform_filter

PATCH, SEAM = 160, 32
"""Side of the pieces, and how far neighbours overlap and fade into one another, in pixels."""

LEVEL = 110.0
"""Mean of every piece: exposures differ more than surfaces do."""

_MOST = 0.5  # of a square that a defect may fill, for its edge to be seen
_EDGE = 0.7  # standard deviation of what softens the edge of a cut-out, in pixels


def surface(photographs: Sequence[NDArray], size: tuple[int, int], rng: np.random.Generator) -> NDArray[np.uint8]:
    """A picture (H, W, 3) of pieces of grey photographs (h, w), mirrored at random, of one mean brightness.

    Photographs with a side shorter than a piece are not used.
    """
    large = [photograph for photograph in photographs if min(photograph.shape) >= PATCH]
    (height, width), step = size, PATCH - SEAM
    total, weight = np.zeros((2, height + PATCH, width + PATCH), dtype=np.float32)
    rise = np.minimum(1, np.arange(1, PATCH + 1) / (SEAM + 1))
    hat = np.multiply.outer(*[rise * rise[::-1]] * 2).astype(np.float32)
    for top in range(0, height, step):
        for left in range(0, width, step):
            place = slice(top, top + PATCH), slice(left, left + PATCH)
            total[place] += hat * _piece(large[rng.integers(len(large))], rng)
            weight[place] += hat
    found = np.clip(LEVEL + (total / weight.clip(1e-9))[:height, :width], 0, 255).astype(np.uint8)
    return np.repeat(found[..., None], 3, axis=2)


def _piece(photograph: NDArray, rng: np.random.Generator) -> NDArray[np.float32]:
    top, left = (int(rng.integers(side - PATCH + 1)) for side in photograph.shape)
    piece = photograph[top : top + PATCH, left : left + PATCH][:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
    return piece - piece.mean()


def with_scratch(picture: NDArray[np.uint8], place: tuple[int, int], length: int = 40) -> NDArray[np.uint8]:
    """A bright scratch, two pixels wide, that rises to the right from `place`, its lower left end (row, column)."""
    odd, (row, column) = picture.copy(), place
    for i in range(length):
        odd[row - i // 2 : row - i // 2 + 2, column + i] = np.minimum(255, odd[row - i // 2, column + i] + 90)
    return odd


def with_cutout(
    picture: NDArray[np.uint8], cut: NDArray, mask: NDArray[np.bool_], place: tuple[int, int], side: int = 40
) -> NDArray[np.uint8]:
    """What a mask (h, w) cuts out of a grey photograph, at its own size, as much darker or brighter there.

    Of a defect that is larger than `side`, a square of this side is laid in that it fills by half, or by as much less
    as it must.

    Parameters
    ----------
    picture : array of shape (H, W, 3)
    cut, mask : arrays of shape (h, w)
    place : (int, int)
        Row and column of the upper left corner of the square.
    side : int
        In pixels.
    """
    change = cut.astype(np.float32) - float(np.median(cut[~mask]))
    change = np.pad(change * gaussian_filter(mask.astype(np.float32), _EDGE), side)
    covered = uniform_filter(np.pad(mask, side).astype(np.float32), side, mode="constant")
    chosen = np.where(covered <= _MOST, covered, 0).argmax()
    row, column = (int(i) - side // 2 for i in np.unravel_index(int(chosen), covered.shape))
    odd, (top, left) = picture.copy(), place
    part = odd[top : top + side, left : left + side]
    part[:] = np.clip(part + change[row : row + side, column : column + side, None], 0, 255).astype(np.uint8)
    return odd
