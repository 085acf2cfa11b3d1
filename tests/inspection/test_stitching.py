import numpy as np
import pytest

from skjepa.data import tile_pictures
from skjepa.encoders.geometry import Axis, Placement
from skjepa.inspection.picture_maps import PictureMap, Spot
from skjepa.inspection.stitching import stitched


def whole(side):
    return Placement((side, side), (side, side), Axis(0.0, 1.0), Axis(0.0, 1.0))


@pytest.mark.parametrize("size", [(100, 160), (64, 64), (65, 300)])
def test_tiles_cover_the_picture_and_overlap(size):
    tiles = tile_pictures(np.zeros((1, *size, 3), dtype=np.uint8), 64, overlap=0.25)
    seen = np.zeros(size, dtype=int)
    for left, top, right, bottom in tiles.boxes:
        assert (right - left, bottom - top) == (64, 64)
        seen[top:bottom, left:right] += 1
    assert seen.min() >= 1
    lefts = np.unique(tiles.boxes[:, 0])
    assert (np.diff(lefts) <= 48).all()


def test_tiles_hold_the_pixels_of_their_places():
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    tiles = tile_pictures([picture], 32)
    for i, (left, top, right, bottom) in enumerate(tiles.boxes):
        np.testing.assert_array_equal(tiles.source.load(i), picture[top:bottom, left:right])


def of_plane(tiles, plane, place=None, cells=64):
    """Maps of tiles of 64 that show a plane, at the middles of so many cells a side."""
    found = {}
    for i, (left, top, right, bottom) in enumerate(tiles.boxes):
        own = plane[top:bottom, left:right]
        step = own.shape[0] // cells
        found[i] = PictureMap("", own.reshape(cells, step, cells, step).mean(axis=(1, 3)), place or whole(own.shape[0]))
    return found


@pytest.mark.parametrize("cells", [64, 8])
def test_a_smooth_map_is_stitched_without_seams(cells):
    tiles = tile_pictures(np.zeros((1, 100, 160, 3), dtype=np.uint8), 64)
    plane = np.add.outer(np.arange(100.0), 2 * np.arange(160.0))
    found = stitched(tiles, 0, of_plane(tiles, plane, cells=cells)).pixels()
    edge = 64 // cells  # beyond the middle of the outermost cell a map goes on as it is
    np.testing.assert_allclose(found[edge:-edge, edge:-edge], plane[edge:-edge, edge:-edge], atol=2.5 * edge)
    jumps = np.abs(np.diff(found, axis=1)).max(), np.abs(np.diff(found, axis=0)).max()
    assert max(jumps) < 4  # the plane rises by 2 a pixel: no step where tiles begin


def test_what_is_cropped_off_tiles_is_seen_by_their_neighbours():
    tiles = tile_pictures(np.zeros((1, 100, 160, 3), dtype=np.uint8), 64)
    cropped = Placement((56, 56), (64, 64), Axis(4.0, 1.0), Axis(4.0, 1.0))
    maps = {i: PictureMap("", np.ones((7, 7)), cropped) for i in range(len(tiles.source))}
    found = stitched(tiles, 0, maps).pixels()
    np.testing.assert_allclose(found[7:-7, 7:-7], 1, rtol=1e-6)  # half a cell of the grid is lost
    assert np.isnan(found[:3]).all()
    assert np.isnan(found[:, -3:]).all()

    narrow = Placement((40, 40), (64, 64), Axis(12.0, 1.0), Axis(12.0, 1.0))
    with pytest.raises(ValueError, match="crops each tile by more than its overlap with the next"):
        stitched(tiles, 0, {i: PictureMap("", np.ones((5, 5)), narrow) for i in range(len(tiles.source))})


def test_of_tiles_of_two_sides_the_odder_counts():
    tiles = tile_pictures(np.zeros((1, 64, 128, 3), dtype=np.uint8), [32, 64])
    sides = tiles.boxes[:, 2] - tiles.boxes[:, 0]
    assert sorted(set(sides.tolist())) == [32, 64]
    maps = {
        i: PictureMap("", np.full((8, 8), side / 32.0), whole(side), np.full((8, 8), 0.04 / (side / 32)))
        for i, side in enumerate(sides.tolist())
    }
    found = stitched(tiles, 0, maps)
    np.testing.assert_allclose(found.pixels(), 2, rtol=1e-6)
    np.testing.assert_allclose(found.pixel_p_values(), 0.04, rtol=1e-5)  # twice 0.02: the smaller of two


def test_spots_of_neighbouring_tiles_are_one_with_a_p_value_of_the_picture():
    tiles = tile_pictures(np.zeros((2, 64, 112, 3), dtype=np.uint8), 64)
    assert len(tiles.source) == 4
    spots = [[Spot((50, 10, 60, 20), 0.01, 5.0)], [Spot((2, 12, 14, 22), 0.02, 4.0)], [], []]
    maps = {i: PictureMap("", np.zeros((4, 4)), whole(64), np.ones((4, 4)), own) for i, own in enumerate(spots)}
    first = stitched(tiles, 0, {0: maps[0], 1: maps[1]}, times=2)
    assert first.spots == [Spot((50, 10, 62, 22), 0.02, 5.0)]
    assert stitched(tiles, 1, {2: maps[2], 3: maps[3]}, times=2).spots == []
