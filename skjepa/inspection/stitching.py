"""Combine the maps and spots of the tiles of a large image into one map of the image."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from skjepa.data.tiles import TiledPictures
from skjepa.encoders.geometry import Axis, Placement
from skjepa.inspection.picture_maps import PictureMap, Spot

_FINER = 2  # grid cells of the image per cell of its smallest tiles, along one side


def stitched(tiles: TiledPictures, picture: int, maps: Mapping[int, PictureMap], *, times: int = 1) -> PictureMap:
    """Combine the maps of an image's tiles into one map without seams, on a grid over the whole image.

    Where tiles overlap, their values are averaged with weights that fall towards the border of each tile. If there are
    tiles of several sides, the most anomalous side counts at each place, and its p-value is multiplied by the number
    of sides. Spots that overlap are merged.

    Parameters
    ----------
    tiles : TiledPictures
    picture : int
        Position of the image among all images.
    maps : dict of int -> PictureMap
        The map of every tile of the image, by the position of the tile among all tiles.
    times : int
        Factor for the p-values of spots: how many times more tiles the image has than the normal images that the
        spots were compared with.

    Raises
    ------
    ValueError
        The encoder crops more off a tile than neighbouring tiles overlap, so parts of the image are in no tile's map.
    """
    size = tuple(tiles.sizes[picture].tolist())
    sides: dict[int, list[int]] = {}
    for i in maps:
        sides.setdefault(int(tiles.boxes[i, 2] - tiles.boxes[i, 0]), []).append(i)
    first = maps[sides[min(sides)][0]]
    rows, columns = (
        _centres(length, min(sides) / (_FINER * n_cells))
        for length, n_cells in zip(size, first.values.shape, strict=True)
    )
    values = [_blended(tiles, {i: maps[i].values for i in own}, maps, rows, columns) for own in sides.values()]
    seen = np.any(np.isfinite(values), axis=0)
    down, across = _range(seen.any(axis=1)), _range(seen.any(axis=0))
    if not seen[down, across].all():
        raise ValueError(
            "the encoder's preprocessing crops each tile by more than its overlap with the next, so parts of the image "
            "are not covered: give an encoder that reads the whole tile (docs/guide/local-defects.md)"
        )
    p_values = None
    if first.p_values is not None:
        logs = [
            _blended(tiles, {i: _log_p(maps[i]) for i in own}, maps, rows, columns)[down, across]
            for own in sides.values()
        ]
        p_values = np.minimum(1.0, len(sides) * np.exp(np.fmin.reduce(logs).astype(np.float64)))
    place = Placement(
        (down.stop - down.start, across.stop - across.start), size, _axis(rows, down), _axis(columns, across)
    )
    combined = np.fmax.reduce(values)[down, across].astype(np.float64)
    return PictureMap(str(tiles.ids[picture]), combined, place, p_values, _spots(tiles, maps, times))


def _centres(length: int, step: float) -> NDArray[np.float64]:
    """Return the centres, in pixels, of cells that divide a side evenly and are about `step` pixels wide."""
    n = max(1, round(length / step))
    return (np.arange(n) + 0.5) * length / n - 0.5


def _axis(centres: NDArray[np.float64], chosen: slice) -> Axis:
    step = float(centres[1] - centres[0]) if len(centres) > 1 else 2 * float(centres[0]) + 1
    return Axis(float(centres[chosen.start]), step)


def _range(seen: NDArray[np.bool_]) -> slice:
    """Return the slice from the first to the last position that is seen."""
    places = np.flatnonzero(seen)
    return slice(int(places[0]), int(places[-1]) + 1)


def _log_p(found: PictureMap) -> NDArray[np.float64]:
    assert found.p_values is not None  # maps of one detector all have p-values, or none has
    return np.log(found.p_values)


def _blended(
    tiles: TiledPictures,
    values: Mapping[int, NDArray[np.float64]],
    maps: Mapping[int, PictureMap],
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
) -> NDArray[np.float32]:
    """Return the weighted mean of tile values at rows and columns of the image; NaN where no tile covers a place.

    All tiles have the same side. The result has the shape (n_rows, n_columns).
    """
    total, weight = np.zeros((2, len(rows), len(columns)), dtype=np.float32)
    for i, own in values.items():
        left, top, right, bottom = tiles.boxes[i].tolist()
        down = slice(*np.searchsorted(rows, (top - 0.5, bottom - 0.5)).tolist())
        across = slice(*np.searchsorted(columns, (left - 0.5, right - 0.5)).tolist())
        place = maps[i].placement
        found = place.at(own, rows[down] - top, columns[across] - left)
        inward = [
            _hat(axis, places, n_input)
            for axis, places, n_input in (
                (place.vertical, rows[down] - top, place.input_size[0]),
                (place.horizontal, columns[across] - left, place.input_size[1]),
            )
        ]
        count = np.where(np.isnan(found), 0, np.multiply.outer(*inward))
        total[down, across] += count * np.nan_to_num(found)
        weight[down, across] += count
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def _hat(axis: Axis, places: NDArray[np.float64], n_input: int) -> NDArray[np.float32]:
    """Return weights that rise from nearly 0 at the borders of the encoder's input to 1 in its centre."""
    in_input = (places - axis.start) / axis.step + 0.5
    return np.maximum(np.minimum(in_input, n_input - in_input) * 2 / n_input, 1e-6).astype(np.float32)


def _spots(tiles: TiledPictures, maps: Mapping[int, PictureMap], times: int) -> list[Spot]:
    found = []
    for i, own in maps.items():
        left, top = tiles.boxes[i, :2].tolist()
        for spot in own.spots:
            moved = (spot.box[0] + left, spot.box[1] + top, spot.box[2] + left, spot.box[3] + top)
            found.append(replace(spot, box=moved, p_value=min(1.0, times * spot.p_value)))
    return _merged(found)


def _merged(spots: list[Spot]) -> list[Spot]:
    """Merge spots whose boxes overlap: the box encloses both, the values are those of the more anomalous spot."""
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
