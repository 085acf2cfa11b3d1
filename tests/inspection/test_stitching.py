import numpy as np
import pytest

from skjepa import JEPAScoreDetector
from skjepa.data import tile_pictures
from skjepa.encoders.geometry import Axis, Placement
from skjepa.inspection.picture_maps import PictureMap, Spot
from skjepa.inspection.stitching import stitched_map, stitched_spots


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


def test_a_smooth_map_is_stitched_without_seams():
    tiles = tile_pictures(np.zeros((1, 100, 160, 3), dtype=np.uint8), 64)
    plane = np.add.outer(np.arange(100.0), 2 * np.arange(160.0))
    maps = [PictureMap("", plane[top:bottom, left:right], whole(64)) for left, top, right, bottom in tiles.boxes]
    np.testing.assert_allclose(stitched_map(tiles, maps, 0), plane, rtol=1e-5, atol=1e-3)


def test_spots_of_neighbouring_tiles_are_one_with_a_p_value_of_the_picture():
    tiles = tile_pictures(np.zeros((2, 64, 112, 3), dtype=np.uint8), 64)
    assert len(tiles.source) == 4
    spots = [
        [Spot((50, 10, 60, 20), 0.01, 5.0)],
        [Spot((2, 12, 14, 22), 0.02, 4.0)],
        [],
        [Spot((0, 0, 9, 9), 0.2, 3.0)],
    ]
    maps = [PictureMap("", np.zeros((4, 4)), whole(64), np.ones((4, 4)), own) for own in spots]
    assert stitched_spots(tiles, maps) == [[Spot((50, 10, 62, 22), 0.02, 5.0)], []]


def test_a_small_scratch_is_found_in_a_large_picture():
    rng = np.random.default_rng(0)
    normal = rng.integers(100, 156, (6, 160, 160, 3), dtype=np.uint8)
    fit = tile_pictures(normal, 32)
    detector = JEPAScoreDetector(method="forward", local=True).fit(fit.source, groups=fit.groups)

    scratched = rng.integers(100, 156, (2, 160, 160, 3), dtype=np.uint8)
    scratched[0, 70:74, 100:124] = 255
    new = tile_pictures(scratched, 32)
    maps = detector.picture_maps(new.source)
    spots = stitched_spots(new, maps, level=0.5)  # 216 tiles of 6 pictures tell no smaller p-values of 36 tiles
    left, top, right, bottom = spots[0][0].box
    assert left <= 112 <= right
    assert top <= 72 <= bottom
    found = stitched_map(new, maps, 0)
    assert found[70:74, 100:124].mean() > 5 * np.nanmean(found)
    assert new.least_normal(detector.score_samples(new.source)).argmin() == 0


def test_maps_of_other_tiles_are_refused():
    tiles = tile_pictures(np.zeros((1, 64, 64, 3), dtype=np.uint8), 64)
    with pytest.raises(ValueError, match="there are 1 tiles and 2 maps"):
        stitched_map(tiles, [None, None], 0)
