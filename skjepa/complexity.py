"""How much an image says, whatever it says: compressed size, the control that any score of images should be set beside.

JEPA-SCORE falls with complexity, as likelihoods of generative models do (Serra et al., Input complexity and
out-of-distribution detection, ICLR 2020): a detector that does no better than file size has learned nothing of content.
"""

import io
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skjepa._validation import check_integer
from skjepa.sources import Source, as_source


def bits_per_pixel(X: Any, *, image_size: int = 32, n_jobs: int | None = None) -> NDArray[np.float64]:
    """Size of each image as a PNG, over its number of pixels.

    Parameters
    ----------
    X : images
        See `skjepa.sources.as_source`.
    image_size : int
        Side in pixels that all images are brought to first: larger pictures of the same thing take fewer bits a pixel.
    n_jobs : int, optional
        Threads.

    Returns
    -------
    array of shape (n_samples,), float64

    Raises
    ------
    ValueError
        Vectors, or an image that cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> noise = np.random.default_rng(0).integers(0, 256, size=(32, 32, 3), dtype=np.uint8)
    >>> flat, busy = bits_per_pixel([np.zeros_like(noise), noise])
    >>> bool(flat < 1 < 20 < busy)
    True
    """
    check_integer("image_size", image_size, minimum=1)
    source = as_source(X)
    if source.is_vector:
        raise ValueError("X holds vectors; complexity is of images")
    sizes = joblib.Parallel(n_jobs, prefer="threads")(
        joblib.delayed(_compressed_size)(source, i, image_size) for i in range(len(source))
    )
    return 8.0 * np.array(sizes, dtype=np.float64) / image_size**2


def _compressed_size(source: Source, position: int, image_size: int) -> int:
    image = _picture(source.load(position)).resize((image_size, image_size), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "PNG", compress_level=9)
    return file.tell()


def _picture(sample: Any) -> Image.Image:
    """An image as a `Source` loads it, as a picture of 8 bits."""
    if isinstance(sample, Image.Image):
        return sample
    pixels = np.asarray(sample) if isinstance(sample, np.ndarray) else sample.float().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels if pixels.dtype == np.uint8 else (pixels * 255).round().astype(np.uint8))
