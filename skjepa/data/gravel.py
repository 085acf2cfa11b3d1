"""Make images of gravel with and without a foreign object in it, cut from photographs of scikit-image."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage import data

SIDE = 96
_N_FIT, _N_NORMAL, _N_ODD = 240, 100, 40
_LAST_FIT_ROW = 332  # row of 512: images for the fit lie above it, all others below
_SMALLEST_COIN = 700  # pixels


@dataclass(frozen=True)
class GravelImages:
    """Images of one kind, with masks of the objects in them.

    Attributes
    ----------
    images : array of shape (n, 96, 96, 3), uint8
    masks : array of shape (n, 96, 96), bool
        True where the object lies; False everywhere in images of gravel alone.
    places : array of shape (n,), int
        Number of the part of the photograph that an image comes from. Images of one part overlap: pass this as
        ``groups=`` to keep them together.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    places: NDArray[np.int64]


def gravel_images(seed: int = 0) -> dict[str, GravelImages]:
    """Return images of gravel, and of gravel with a coin, a piece of brick or a tuft of grass in it.

    The surfaces and objects are real photographs; objects are cut out and laid onto the gravel. "fit" comes from the
    upper part of the photograph of the gravel and all others from the lower part, so that no pixel is in both.

    Returns
    -------
    dict of str -> GravelImages
        "fit" (240 images) and "gravel" (100) are normal; "coins", "bricks" and "grass" (40 each) are not.
    """
    rng = np.random.default_rng(seed)
    found = {
        "fit": _plain(rng, _N_FIT, 0, _LAST_FIT_ROW),
        "gravel": _plain(rng, _N_NORMAL, _LAST_FIT_ROW, len(data.gravel())),
    }
    kinds: dict[str, Callable] = {"coins": _coin, "bricks": _shard_of(data.brick), "grass": _shard_of(data.grass)}
    for kind, draw in kinds.items():
        below = _plain(rng, _N_ODD, _LAST_FIT_ROW, len(data.gravel()))
        laid = [_laid(image, draw(rng), rng) for image in below.images]
        images, masks = (np.stack(part) for part in zip(*laid, strict=True))
        found[kind] = GravelImages(images, masks, below.places)
    return found


def _plain(rng: np.random.Generator, n: int, first_row: int, end_row: int) -> GravelImages:
    """Cut random squares of the gravel, rotated and mirrored, which still look like gravel."""
    gravel = data.gravel()
    images, places = [], []
    for _ in range(n):
        top, left = rng.integers(first_row, end_row - SIDE + 1), rng.integers(0, gravel.shape[1] - SIDE + 1)
        square = np.rot90(gravel[top : top + SIDE, left : left + SIDE], int(rng.integers(4)))
        images.append(_rgb(square.T if rng.integers(2) else square))
        places.append(top // SIDE * 10 + left // SIDE)
    return GravelImages(np.stack(images), np.zeros((n, SIDE, SIDE), dtype=bool), np.array(places))


def _laid(image: NDArray, cut_out: tuple[NDArray, NDArray], rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Paste an object at a random place, its edge blurred by less than a pixel; return the image and the mask."""
    thing, outline = cut_out
    height, width = thing.shape
    top, left = rng.integers(2, SIDE - height - 1), rng.integers(2, SIDE - width - 1)
    cover = np.zeros((SIDE, SIDE))
    cover[top : top + height, left : left + width] = outline
    cover = ndimage.gaussian_filter(cover, 0.7)
    laid = np.zeros((SIDE, SIDE))
    laid[top : top + height, left : left + width] = thing
    return _rgb(image[..., 0] * (1 - cover) + laid * cover), cover > 0.5


def _coin(rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    coins = _coins()
    return coins[rng.integers(len(coins))]


@cache
def _coins() -> list[tuple[NDArray, NDArray]]:
    """Cut out the 24 coins, which are brighter than the uneven background of their photograph."""
    photograph = data.coins().astype(float)
    background = ndimage.gaussian_filter(photograph, 40)
    bright = ndimage.binary_fill_holes(ndimage.gaussian_filter(photograph, 1) > background + 18)
    numbers, _ = ndimage.label(bright)
    found = [(photograph[box], numbers[box] == i) for i, box in enumerate(ndimage.find_objects(numbers), start=1)]
    return [(coin, outline) for coin, outline in found if outline.sum() > _SMALLEST_COIN]


def _shard_of(photograph: Callable[[], NDArray]) -> Callable:
    """Return a function that cuts pieces with an uneven round outline, 25 to 50 pixels wide, from a photograph."""

    def draw(rng: np.random.Generator) -> tuple[NDArray, NDArray]:
        whole = photograph()
        side = int(rng.integers(36, 56))
        top, left = rng.integers(0, len(whole) - side, 2)
        down, across = np.mgrid[:side, :side] - (side - 1) / 2
        angle = np.arctan2(down, across)
        waves = sum(rng.normal(0, 0.12) * np.cos(k * angle + rng.uniform(0, 2 * np.pi)) for k in (2, 3, 5))
        outline = np.hypot(down, across) < 0.38 * side * (1 + waves)
        return whole[top : top + side, left : left + side].astype(float), outline

    return draw


def _rgb(grey: NDArray) -> NDArray[np.uint8]:
    return np.repeat(np.round(grey).astype(np.uint8)[..., None], 3, axis=-1)
