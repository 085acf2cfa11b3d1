"""Large pictures as overlapping tiles at their own resolution, each a sample of its own."""

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skjepa._utils.validation import check_integer, check_number
from skjepa.data.images import as_picture
from skjepa.data.sources import Source, as_source


@dataclass(frozen=True, eq=False)
class TiledPictures:
    """The tiles of some pictures.

    Attributes
    ----------
    source : Source
        Of all tiles, picture by picture; ids are ``"PICTURE [left,top]"``. Any detector fits on it and scores it.
    groups : array of shape (n_tiles,)
        Position of the picture that a tile is of: give it to `fit` as ``groups=``.
    boxes : array of shape (n_tiles, 4)
        Left, top, right and bottom of each tile in its picture; right and bottom are exclusive.
    ids : array of shape (n_pictures,), str
    sizes : array of shape (n_pictures, 2)
        Height and width.
    """

    source: Source
    groups: NDArray[np.intp]
    boxes: NDArray[np.intp]
    ids: NDArray[np.str_]
    sizes: NDArray[np.intp]

    def __len__(self) -> int:
        return len(self.ids)

    def least_normal(self, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """The lowest score among the tiles of each picture, (n_pictures,); NaN where a tile could not be read."""
        found = np.full(len(self), np.inf)
        np.minimum.at(found, self.groups, scores)
        return found

    def p_values(self, p_values: NDArray[np.float64]) -> NDArray[np.float64]:
        """A p-value of each picture from those of its tiles, (n_pictures,): the smallest, times how many there are."""
        return np.minimum(1.0, self.least_normal(p_values) * np.bincount(self.groups, minlength=len(self)))


def tile_pictures(X: Any, size: int, *, overlap: float = 0.25) -> TiledPictures:
    """Cut pictures into overlapping squares of one size, at their own resolution.

    A defect of 40 pixels in a photograph of 5,000 is less than two pixels wide where the whole photograph is brought to
    224; in tiles of 224 it is 40.

    Parameters
    ----------
    X : images
        As `as_source` takes them. Each is read once for its size, and once more when its tiles are.
    size : int
        Side of a tile in pixels; where the encoder takes so many, nothing is resized. A picture with a shorter side is
        covered by tiles of that side.
    overlap : float in [0, 1)
        Share of a tile's side by which neighbours overlap, at least: a defect on a border is whole in one of them.

    Raises
    ------
    ValueError, TypeError
        X holds vectors, or the parameters are not of these kinds.

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
        raise ValueError("X holds vectors, which have no tiles: give pictures")
    size = check_integer("size", size, minimum=1)
    overlap = check_number("overlap", overlap, above=0.0, below=1.0, closed="<")
    pictures = _LastPicture(source)
    sizes = np.array([pictures(i).shape[:2] for i in range(len(source))], dtype=np.intp)
    boxes = [_boxes(height, width, size, overlap) for height, width in sizes.tolist()]
    groups = np.repeat(np.arange(len(source)), [len(own) for own in boxes])
    all_boxes = np.concatenate(boxes)
    names = [
        f"{source.ids[group]} [{left},{top}]" for group, (left, top, *_) in zip(groups, all_boxes.tolist(), strict=True)
    ]

    def load(i: int) -> NDArray[np.uint8]:
        left, top, right, bottom = all_boxes[i]
        return pictures(int(groups[i]))[top:bottom, left:right]

    tiles = Source(np.array(names, dtype=np.str_), load, stable_ids=source.stable_ids)
    return TiledPictures(tiles, groups, all_boxes, source.ids, sizes)


def _boxes(height: int, width: int, size: int, overlap: float) -> NDArray[np.intp]:
    side = min(size, height, width)
    return np.array(
        [
            (left, top, left + side, top + side)
            for top in _starts(height, side, overlap)
            for left in _starts(width, side, overlap)
        ],
        dtype=np.intp,
    )


def _starts(length: int, side: int, overlap: float) -> list[int]:
    """Where tiles begin, at even distances, the first and the last at the borders."""
    step = max(1.0, side * (1 - overlap))
    n = int(np.ceil((length - side) / step)) + 1
    return np.round(np.linspace(0, length - side, n)).astype(int).tolist()


class _LastPicture:
    """Pixels of a picture, (H, W, 3); the last one is kept, for its tiles are read one after the other."""

    def __init__(self, source: Source) -> None:
        self.source, self.lock = source, threading.Lock()
        self.known: tuple[int, NDArray[np.uint8]] | None = None

    def __call__(self, i: int) -> NDArray[np.uint8]:
        with self.lock:
            if self.known is None or self.known[0] != i:
                self.known = None  # before the next one is read: two large pictures need not be in memory
                self.known = (i, np.asarray(as_picture(self.source.load(i)).convert("RGB")))
            return self.known[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(state["source"])  # type: ignore[misc]
