"""Maps as small pictures: red where a sample is less normal, blue where it is more normal."""

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

_RED, _BLUE, _WHITE = np.array([178, 24, 43]), np.array([33, 102, 172]), np.array([255, 255, 255])
_SIDE = 128  # pixels, about, of the longer side


def heat_picture(values: ArrayLike, limit: float) -> Image.Image:
    """Return a map (rows, columns) as a picture; +limit, less normal, is the deepest red, -limit the deepest blue.

    NaN and 0 are white.
    """
    depth = np.clip(np.nan_to_num(np.asarray(values, dtype=np.float64)) / (limit or 1.0), -1, 1)[..., None]
    colours = _WHITE + np.abs(depth) * (np.where(depth > 0, _RED, _BLUE) - _WHITE)
    times = max(1, _SIDE // max(depth.shape[:2]))
    picture = Image.fromarray(colours.round().astype(np.uint8))
    return picture.resize((picture.width * times, picture.height * times), Image.Resampling.NEAREST)
