"""Choose the encoder for ``encoder="auto"`` by the size of the images."""

from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from skjepa.data.images import ImageReadError
from skjepa.data.sources import Source
from skjepa.encoders.encoder import Encoder, load_encoder
from skjepa.encoders.geometry import picture_size
from skjepa.encoders.lite0 import LITE0

AUTO_ENCODERS = ("bundled", LITE0)
_LARGEST_SMALL = 64
_N_READ = 9
_DESCRIPTIONS = {
    "bundled": f"'bundled' (a small JEPA, 32 x 32 pixels), for images of at most {_LARGEST_SMALL} pixels",
    LITE0: f"'lite0' (EfficientNet-Lite0 with ImageNet weights, 224 x 224 pixels), for images of more than "
    f"{_LARGEST_SMALL} pixels",
}


def is_auto(encoder: Any) -> bool:
    """Whether `encoder` is "auto": by the size of images "bundled" or "lite0", for vectors a `VectorJEPA`."""
    return isinstance(encoder, str) and encoder == "auto"


def automatic_encoder_name(source: Source) -> str:
    """Return "lite0" where the images have more than 64 pixels on their shorter side, else "bundled".

    The median size of nine evenly spaced samples decides. Files are opened for their size and not decoded.

    Raises
    ------
    ValueError
        The source holds vectors, for which there is no pretrained encoder.
    """
    if source.is_vector:
        raise ValueError(
            "encoder='auto' has no pretrained encoder for vectors: fit a JEPAScoreDetector, which trains one, or give "
            "a VectorJEPA's encoder_"
        )
    places = np.unique(np.linspace(0, len(source) - 1, _N_READ).round().astype(int)).tolist()
    sides = [side for i in places if (side := _shorter_side(source, i)) is not None]
    return LITE0 if sides and median(sides) > _LARGEST_SMALL else "bundled"


def automatic_encoder(encoder: Any, source: Source) -> Encoder:
    """Load the encoder; "auto" is replaced by a choice for the images of the source."""
    return load_encoder(automatic_encoder_name(source) if is_auto(encoder) else encoder)


def describe_automatic_encoder(name: str, option: str = "encoder=") -> str:
    """Return one line for the user: which encoder was chosen, why, and how to choose another."""
    return f"encoder: {_DESCRIPTIONS[name]}; {option} chooses another"


def _shorter_side(source: Source, i: int) -> int | None:
    try:
        if (file := source.file(i)) is not None:
            with Image.open(file) as image:
                return min(image.size)
        sample = source.load(i)
    except (ImageReadError, OSError, ValueError):
        return None  # unreadable images are reported by the pass
    return min(picture_size(sample))
