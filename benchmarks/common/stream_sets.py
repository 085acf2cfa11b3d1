"""Real images as a stream: a detector, normal samples it has not seen, and the same kind under other conditions."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageFilter

from benchmarks.common.image_sets import drawn, jpeg, reencoded
from skjepa import JEPAScoreDetector
from skjepa.deployment.stream_values import stream_values
from skjepa.encoders.encoder import Encoder
from skjepa.extraction.extraction import Extraction

Images = list[Image.Image]
Values = dict[str, NDArray[np.float64]]
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blur, sigma 0.5": lambda image: image.filter(ImageFilter.GaussianBlur(0.5)),
    "blur, sigma 1": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "brightness x 0.8": lambda image: ImageEnhance.Brightness(image).enhance(0.8),
    "brightness x 0.5": lambda image: ImageEnhance.Brightness(image).enhance(0.5),
    "JPEG of quality 40": lambda image: jpeg(image, 40),
}


def fitted(encoder: str | Encoder, images: Images) -> JEPAScoreDetector:
    """One forward pass per image, as a stream would be watched."""
    return JEPAScoreDetector(encoder, method="forward").fit(images)


def extracted(detector: JEPAScoreDetector, images: Images) -> Extraction:
    return detector.extract(images)


def values_of(detector: JEPAScoreDetector, images: Images) -> Values:
    return stream_values(detector, images)


def other_source(folder: Path, n: int, rng: np.random.Generator) -> Images:
    """Photographs of another collection, shrunk and compressed like those of CIFAR-10."""
    return [reencoded(image) for image in drawn(folder / "tiny_imagenet", n, rng)[0]]


def chosen_rows(values: Values, rows: NDArray) -> Values:
    return {name: array[rows] for name, array in values.items()}


def joined(*parts: Values) -> Values:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
