"""The images of the demo: cut from photographs, with nothing shared between the fit and the rest."""

import numpy as np
from skimage import data

from skjepa.data.gravel import _LAST_FIT_ROW, SIDE, _coins, gravel_images


def test_kinds_shapes_and_masks():
    images = gravel_images(seed=0)
    assert {name: len(kind.images) for name, kind in images.items()} == {
        "fit": 240, "gravel": 100, "coins": 40, "bricks": 40, "grass": 40,
    }  # fmt: skip
    for name, kind in images.items():
        assert kind.images.dtype == np.uint8
        assert kind.images.shape[1:] == (SIDE, SIDE, 3)
        covered = kind.masks.mean(axis=(1, 2))
        assert (covered == 0).all() if name in ("fit", "gravel") else ((covered > 0.04) & (covered < 0.5)).all()


def test_no_pixel_is_in_both_the_fit_and_the_rest():
    gravel = data.gravel()

    def rows_of(square):
        """Where the square was cut: compared in all eight positions."""
        views = [np.rot90(half, k) for half in (square, square.T) for k in range(4)]
        windows = np.lib.stride_tricks.sliding_window_view(gravel, (1, SIDE))[:, :, 0]
        for view in views:
            for row, column in np.argwhere((windows[: 512 - SIDE + 1] == view[0]).all(axis=-1)):
                if (gravel[row : row + SIDE, column : column + SIDE] == view).all():
                    return row
        raise AssertionError("not cut from the photograph")

    images = gravel_images(seed=1)
    assert all(rows_of(image[..., 0]) + SIDE <= _LAST_FIT_ROW for image in images["fit"].images[:4])
    assert all(rows_of(image[..., 0]) >= _LAST_FIT_ROW for image in images["gravel"].images[:4])


def test_only_the_object_differs_from_gravel():
    assert len(_coins()) == 24
    kind = gravel_images(seed=0)["bricks"]
    gravel_edges = np.abs(np.diff(kind.images[..., 0].astype(int), axis=2)).mean(axis=(1, 2))
    inside = [np.abs(np.diff(image[..., 0].astype(int), axis=1))[mask[:, 1:] & mask[:, :-1]].mean()
              for image, mask in zip(kind.images, kind.masks, strict=True)]  # fmt: skip
    assert np.mean(inside) < 0.5 * np.mean(gravel_edges)  # bricks are smooth, gravel is not


def test_the_seed_decides():
    assert np.array_equal(gravel_images(3)["coins"].images, gravel_images(3)["coins"].images)
    assert not np.array_equal(gravel_images(3)["fit"].images, gravel_images(4)["fit"].images)
