"""Collect the maps of images one at a time, or those of their tiles, which are stitched as soon as all are there."""

from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from skjepa.data.source import Source
from skjepa.data.tiles import TiledPictures
from skjepa.encoders.geometry import Placement, noting_sizes, placement
from skjepa.encoders.preprocessing import Preprocessing
from skjepa.inspection.picture_maps import PictureMap
from skjepa.inspection.stitching import stitched


class CollectedMaps:
    """Collect the map of each image.

    Attributes
    ----------
    samples : Source
        What is mapped: images or tiles. Their sizes are noted when they are loaded from it.
    """

    def __init__(self, preprocessing: Preprocessing, source: Source, level: float) -> None:
        self.samples, self._size_of = noting_sizes(source)
        self._placement = cache(partial(placement, preprocessing))
        self._level = level
        self._found: list[PictureMap | None] = [None] * len(source)

    def add(self, i: int, made: PictureMap) -> None:
        """Add the map of sample `i`."""
        self._found[i] = made

    def found(self) -> list[PictureMap | None]:
        """Return one map per image; None for images that could not be read."""
        return self._found

    def placement(self, i: int) -> Placement:
        """Return where the encoder's input lies in sample `i`."""
        return self._placement(self._size_of(i))

    def level(self, i: int) -> float:
        """Return the largest p-value of a spot of sample `i`."""
        return self._level


class CollectedTileMaps(CollectedMaps):
    """Collect the maps of tiles, and discard them when the map of their image is stitched.

    Parameters
    ----------
    preprocessing : Preprocessing
    tiles : TiledPictures
    level : float
        Of whole images.
    times : array of shape (n_pictures,)
        How many times more tiles each image has than the normal images that its spots are compared with.
    """

    def __init__(
        self, preprocessing: Preprocessing, tiles: TiledPictures, level: float, times: NDArray[np.intp]
    ) -> None:
        super().__init__(preprocessing, tiles.source, level)
        self.samples, self.tiles, self.times = tiles.source, tiles, times
        self._found = [None] * len(tiles)
        self._waiting: list[dict[int, PictureMap]] = [{} for _ in range(len(tiles))]

    def add(self, i: int, made: PictureMap) -> None:
        picture = int(self.tiles.groups[i])
        waiting = self._waiting[picture]
        waiting[i] = made
        if len(waiting) == self.tiles.counts[picture]:
            self._found[picture] = stitched(self.tiles, picture, waiting, times=int(self.times[picture]))
            waiting.clear()

    def placement(self, i: int) -> Placement:
        left, top, right, bottom = self.tiles.boxes[i].tolist()
        return self._placement((bottom - top, right - left))

    def level(self, i: int) -> float:
        return self._level / int(self.times[self.tiles.groups[i]])
