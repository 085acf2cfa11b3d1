"""Maps and spots of the tiles of a large picture put together to those of the picture."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from skjepa.data.tiles import TiledPictures
from skjepa.encoders.geometry import Axis, Placement
from skjepa.inspection.picture_maps import PictureMap, Spot

_FINER = 2  # times: cells of the picture's grid in a cell of the smallest tiles


def stitched(tiles: TiledPictures, picture: int, maps: Mapping[int, PictureMap], *, times: int = 1) -> PictureMap:
    """The map of one picture from the maps of its tiles, without seams, on a grid over the whole picture.

    Where tiles overlap, each counts by how far a place lies from its border. Of tiles of several sides the oddest side
    counts at each place, and its p-value times the number of sides. Spots that overlap are one.

    Parameters
    ----------
    tiles : TiledPictures
    picture : int
        Position among the pictures.
    maps : dict of int -> PictureMap
        Of all tiles of the picture, by their position among the tiles.
    times : int
        What the p-values of spots are multiplied by: so many times more tiles the picture has than those had whose
        hottest positions they were compared with.

    Raises
    ------
    ValueError
        The encoder crops more off a tile than neighbours overlap, so that places between them are not seen.
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
            "the encoder's preprocessing crops more off each tile than its neighbours show: give an encoder that is "
            "shown the whole tile (docs/guide/local-defects.md)"
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
    """Middles of cells of about this step that divide a side evenly, in pixels."""
    n = max(1, round(length / step))
    return (np.arange(n) + 0.5) * length / n - 0.5


def _axis(centres: NDArray[np.float64], chosen: slice) -> Axis:
    step = float(centres[1] - centres[0]) if len(centres) > 1 else 2 * float(centres[0]) + 1
    return Axis(float(centres[chosen.start]), step)


def _range(seen: NDArray[np.bool_]) -> slice:
    """From the first to the last."""
    places = np.flatnonzero(seen)
    return slice(int(places[0]), int(places[-1]) + 1)


def _log_p(found: PictureMap) -> NDArray[np.float64]:
    assert found.p_values is not None  # of one detector all maps have some, or none
    return np.log(found.p_values)


def _blended(
    tiles: TiledPictures,
    values: Mapping[int, NDArray[np.float64]],
    maps: Mapping[int, PictureMap],
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
) -> NDArray[np.float32]:
    """What tiles of one side say at some rows and columns of the picture, (n_rows, n_columns); NaN where nothing."""
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
    """From nearly 0 at the borders of what the encoder sees of a tile to 1 in its midst."""
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
