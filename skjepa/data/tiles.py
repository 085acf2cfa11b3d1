"""Cut large images into overlapping tiles at their own resolution, each a sample of its own."""

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skjepa._utils.validation import check_integer, check_number
from skjepa.data.images import ImageReadError, as_picture
from skjepa.data.sources import Source, as_source

OVERLAP = 0.25
"""Default overlap of neighbouring tiles, as a share of their side."""


_TOO_LONG = 2**31  # pixels


@dataclass(frozen=True, eq=False)
class TiledPictures:
    """Hold the tiles of some images, and combine scores of tiles to scores of images.

    Attributes
    ----------
    source : Source
        All tiles, image by image, with ids ``"PICTURE [left,top,side]"``. Any detector can fit on it and score it.
    groups : array of shape (n_tiles,)
        Position of the image that a tile belongs to: give it to `fit` as ``groups=``.
    boxes : array of shape (n_tiles, 4)
        Left, top, right and bottom of each tile in its image, in pixels; right and bottom are exclusive.
    ids : array of shape (n_pictures,), str
        Ids of the images.
    sizes : array of shape (n_pictures, 2)
        Height and width of each image. An image that cannot be read has 0 and 0, and one tile that cannot be read.
    """

    source: Source
    groups: NDArray[np.intp]
    boxes: NDArray[np.intp]
    ids: NDArray[np.str_]
    sizes: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, chosen: NDArray) -> "TiledPictures":
        """Return the tiles at a mask or at integer positions, with the images unchanged."""
        return TiledPictures(self.source[chosen], self.groups[chosen], self.boxes[chosen], self.ids, self.sizes)

    @property
    def counts(self) -> NDArray[np.intp]:
        """Number of tiles of each image, (n_pictures,)."""
        return np.bincount(self.groups, minlength=len(self))

    def least_normal(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the lowest score among the tiles of each image, (n_pictures,); NaN if a tile could not be read."""
        found = np.full(len(self), np.inf)
        np.minimum.at(found, self.groups, scores)
        return found

    def p_values(self, p_values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return one p-value per image, (n_pictures,): the smallest of its tiles times their number (Bonferroni)."""
        return np.minimum(1.0, self.least_normal(p_values) * self.counts)


def tile_pictures(X: Any, size: int | Sequence[int], *, overlap: float = OVERLAP) -> TiledPictures:
    """Cut images into overlapping square tiles at their own resolution.

    Use it to find small defects in large images. A defect of 40 pixels in a photograph 5,000 pixels wide is less than
    two pixels wide when the photograph is resized to 224; in tiles of 224 it stays 40.

    Parameters
    ----------
    X : images
        In any form that `as_source` takes. Each is read once for its size, and again when its tiles are loaded.
    size : int, or several
        Side of a tile in pixels; tiles of the side that the encoder takes are not resized. With several sides, each
        image is cut once per side. If an image is shorter than `size`, its tiles have its shorter side.
    overlap : float in [0, 1)
        Smallest share of a tile's side by which neighbours overlap. A small defect on the border of one tile then
        lies whole in another.

    Returns
    -------
    TiledPictures

    Raises
    ------
    ValueError, TypeError
        If X holds vectors, or a parameter is out of range.

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa.data import tile_pictures
    >>> tiles = tile_pictures(np.zeros((2, 100, 160, 3), dtype=np.uint8), 64)
    >>> len(tiles.source), tiles.boxes[:3].tolist()
    (12, [[0, 0, 64, 64], [48, 0, 112, 64], [96, 0, 160, 64]])
    """
    source = as_source(X)
    if source.is_vector:
        raise ValueError("X holds vectors, and tiles are cut from images: give images")
    sides = check_sides("size", size)
    return cut(source, sides, check_number("overlap", overlap, above=0.0, below=1.0, closed="<"))


def cut(
    source: Source, sides: list[int], overlap: float = OVERLAP, sizes: NDArray[np.intp] | None = None
) -> TiledPictures:
    """Cut images as `tile_pictures` does; with their `sizes`, (n_pictures, 2), none is read for its size."""
    pictures = _LastPicture(source)
    if sizes is None:
        sizes = np.array([pictures.size(i) for i in range(len(source))], dtype=np.intp)
    boxes = [boxes_of(height, width, sides, overlap) for height, width in sizes.tolist()]
    groups = np.repeat(np.arange(len(source)), [len(own) for own in boxes])
    all_boxes = np.concatenate(boxes)
    places = [f"[{left},{top},{right - left}]" for left, top, right, _ in all_boxes.tolist()]
    names = [f"{source.ids[group]} {place}" for group, place in zip(groups, places, strict=True)]

    def load(i: int) -> NDArray[np.uint8]:
        left, top, right, bottom = all_boxes[i]
        return pictures(int(groups[i]))[top:bottom, left:right]

    def content(i: int) -> str:
        known = source.content(int(groups[i]))
        return known and hashlib.blake2b(f"{known} {places[i]}".encode(), digest_size=16).hexdigest()

    tiles = Source(np.array(names, dtype=np.str_), load, stable_ids=source.stable_ids, content=content)
    return TiledPictures(tiles, groups, all_boxes, source.ids, sizes)


def check_sides(name: str, sides: Any) -> list[int]:
    """Return the sides of tiles as a list; raise ValueError or TypeError, calling the parameter `name`."""
    several = sides if isinstance(sides, list | tuple) else [sides]
    if not several:
        raise ValueError(f"{name} is empty: give the side of the tiles in pixels, or several sides")
    found = [check_integer(name, side, minimum=1) for side in several]
    if max(found) >= _TOO_LONG:
        raise ValueError(f"{name} must be shorter than {_TOO_LONG} pixels; got {max(found)}")
    return found


def boxes_of(height: int, width: int, sides: list[int], overlap: float = OVERLAP) -> NDArray[np.intp]:
    """Return left, top, right and bottom of an image's tiles, (n_tiles, 4); one empty box for an image without size."""
    found = [
        (left, top, left + side, top + side)
        for side in sorted({min(side, height, width) for side in sides})
        for top in _starts(height, side, overlap)
        for left in _starts(width, side, overlap)
    ]
    return np.array(found, dtype=np.intp)


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Return where tiles begin, evenly spaced, the first and the last at the borders."""
    step = max(1.0, side * (1 - overlap))
    n = int(np.ceil((length - side) / step)) + 1
    return np.round(np.linspace(0, length - side, n)).astype(int).tolist()


class _LastPicture:
    """Load the pixels of an image, (H, W, 3), and keep the last image, since its tiles are read in sequence."""

    def __init__(self, source: Source) -> None:
        self.source, self.lock = source, threading.Lock()
        self.known: tuple[int, NDArray[np.uint8]] | None = None

    def size(self, i: int) -> tuple[int, int]:
        """Return height and width; 0 and 0 for an unreadable image, whose error is raised when its tile is loaded."""
        try:
            return self(i).shape[:2]
        except ImageReadError:
            return 0, 0

    def __call__(self, i: int) -> NDArray[np.uint8]:
        with self.lock:
            if self.known is None or self.known[0] != i:
                self.known = None  # released first, so that two large images are never in memory
                self.known = (i, np.asarray(as_picture(self.source.load(i)).convert("RGB")))
            return self.known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["source"])  # type: ignore[misc]
