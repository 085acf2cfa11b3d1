"""Combine the anomaly maps and spots of tiles into maps and spots of whole images."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from skjepa.data.tiles import TiledPictures
from skjepa.inspection.picture_maps import PictureMap, Spot


def stitched_map(tiles: TiledPictures, maps: Sequence[PictureMap | None], picture: int) -> NDArray[np.float32]:
    """Combine the maps of the tiles of one image into its anomaly map, (H, W), without seams.

    Where tiles overlap, the weight of each grows with the distance of a pixel from the border of the tile.

    Parameters
    ----------
    tiles : TiledPictures
    maps : sequence of PictureMap or None
        Maps of all tiles, as `JEPAScoreDetector.picture_maps` returns them for ``tiles.source``.
    picture : int
        Position of the image.

    Returns
    -------
    array of shape (H, W), float32
        Higher = more anomalous; NaN where no tile has a value.

    Raises
    ------
    ValueError
        The number of maps differs from the number of tiles.
    """
    _require_all(tiles, maps)
    height, width = tiles.sizes[picture]
    total, weight = np.zeros((2, height, width), dtype=np.float32)
    for i in np.flatnonzero(tiles.groups == picture).tolist():
        found = maps[i]
        if found is None:
            continue
        left, top, right, bottom = tiles.boxes[i]
        values = found.pixels()
        count = np.where(np.isnan(values), 0, _hat(bottom - top)[:, None] * _hat(right - left))
        total[top:bottom, left:right] += count * np.nan_to_num(values)
        weight[top:bottom, left:right] += count
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def stitched_spots(tiles: TiledPictures, maps: Sequence[PictureMap | None], *, level: float = 0.05) -> list[list[Spot]]:
    """Combine the spots of tiles into the spots of each image, in its coordinates, the most anomalous first.

    The p-value of a tile's spot is multiplied by the number of tiles of its image. A normal image then has a spot with
    a probability of at most `level`, however many tiles it has. The smallest p-value is about 1 / n for a fit on n
    tiles, so fit on more than (tiles per image) / `level` tiles. Spots that overlap are merged.

    Parameters
    ----------
    tiles : TiledPictures
    maps : sequence of PictureMap or None
        Maps of all tiles, with spots at a level of at least ``level`` / (tiles per image).
    level : float in (0, 1)
        Expected share of normal images in which a spot is found.

    Returns
    -------
    list of list of Spot
        One list per image.

    Raises
    ------
    ValueError
        The number of maps differs from the number of tiles.
    """
    _require_all(tiles, maps)
    n_tiles = np.bincount(tiles.groups, minlength=len(tiles))
    found: list[list[Spot]] = [[] for _ in range(len(tiles))]
    for own, group, (left, top, *_) in zip(maps, tiles.groups.tolist(), tiles.boxes.tolist(), strict=True):
        for spot in () if own is None else own.spots:
            p = min(1.0, spot.p_value * int(n_tiles[group]))
            if p <= level:
                moved = (spot.box[0] + left, spot.box[1] + top, spot.box[2] + left, spot.box[3] + top)
                found[group].append(replace(spot, box=moved, p_value=p))
    return [_merged(spots) for spots in found]


def _merged(spots: list[Spot]) -> list[Spot]:
    """Merge spots whose boxes overlap, with the box of both and the values of the more anomalous spot."""
    merged: list[Spot] = []
    for spot in sorted(spots, key=lambda spot: -spot.surprise):
        near = [other for other in merged if _overlap(spot.box, other.box)]
        merged = [other for other in merged if other not in near]
        boxes = np.array([spot.box, *(other.box for other in near)])
        left, top = boxes[:, :2].min(axis=0).tolist()
        right, bottom = boxes[:, 2:].max(axis=0).tolist()
        first = min([*near, spot], key=lambda own: (own.p_value, -own.surprise))
        merged.append(replace(first, box=(left, top, right, bottom)))
    return sorted(merged, key=lambda spot: -spot.surprise)


def _overlap(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _hat(n: int) -> NDArray[np.float32]:
    """Return weights of n pixels that rise from nearly 0 at the borders to 1 in the middle."""
    places = np.arange(n, dtype=np.float32)
    return ((np.minimum(places, n - 1 - places) + 1) / ((n + 1) // 2)).astype(np.float32)


def _require_all(tiles: TiledPictures, maps: Sequence[PictureMap | None]) -> None:
    if len(maps) != len(tiles.source):
        raise ValueError(
            f"maps must hold one map per tile: there are {len(tiles.source)} tiles and {len(maps)} maps; give "
            "detector.picture_maps(tiles.source)"
        )
