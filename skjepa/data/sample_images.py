"""Load real images from installed packages: photographs, and scans, digits and terrain as outliers."""

import gzip
from pathlib import Path

import numpy as np
from matplotlib.cbook import get_sample_data
from numpy.typing import NDArray
from sklearn.datasets import load_digits, load_sample_images

from skjepa.data.images import read_image

TILE = 32
_N_FIT, _N_TEST = 320, 200
_BLANK = 10.0  # standard deviation of 8-bit pixels in every channel; below, a tile is blank


def demo_images(seed: int = 0) -> dict[str, NDArray[np.uint8]]:
    """Return small sets of real images for demonstrations, from files of installed packages.

    Parameters
    ----------
    seed : int
        Seed of the order of the images.

    Returns
    -------
    dict of name -> array of shape (n, 32, 32, 3), uint8
        "fit" and "photographs" are disjoint sets of normal images; "MRI scan", "elevation model" and "digits" are
        out-of-distribution.
    """
    rng = np.random.default_rng(seed)
    portrait = np.asarray(read_image(_sample("grace_hopper.jpg")))
    photographs = np.concatenate([_tiles(image) for image in (*load_sample_images().images, portrait)])
    photographs = photographs[rng.permutation(len(photographs))]
    foreign = {"MRI scan": _tiles(_rgb(_scan())), "elevation model": _tiles(_rgb(_terrain())), "digits": _digits()}
    return {
        "fit": photographs[:_N_FIT],
        "photographs": photographs[_N_FIT:][:_N_TEST],
        **{name: images[rng.permutation(len(images))][:_N_TEST] for name, images in foreign.items()},
    }


def _tiles(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cut an image into tiles that do not overlap, without blank ones, (n, 32, 32, 3)."""
    rows, columns = image.shape[0] // TILE, image.shape[1] // TILE
    whole = image[: rows * TILE, : columns * TILE]
    tiles = whole.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    return tiles[tiles.std(axis=(1, 2)).max(axis=-1) > _BLANK]


def _rgb(grey: NDArray) -> NDArray[np.uint8]:
    """Scale values of any range to 8-bit grey in three channels."""
    low, high = float(grey.min()), float(grey.max())
    scaled = np.round(255 * (grey.astype(np.float64) - low) / (high - low)).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, axis=-1)


def _scan() -> NDArray[np.uint16]:
    content = Path(_sample("s1045.ima.gz")).read_bytes()
    return np.frombuffer(gzip.decompress(content), np.uint16).reshape(256, 256)


def _terrain() -> NDArray:
    with np.load(_sample("jacksboro_fault_dem.npz")) as file:
        return file["elevation"]


def _sample(name: str) -> str:
    """Return the path of a file that Matplotlib contains."""
    return str(get_sample_data(name, asfileobj=False))


def _digits() -> NDArray[np.uint8]:
    return _rgb(np.kron(load_digits().images, np.ones((1, 4, 4))))
