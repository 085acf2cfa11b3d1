"""Sets of images for the image suite: folders at hand, noise, corruptions, and public sets by download."""

import io
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from skjepa.data.images import read_image
from skjepa.data.sources import folder_source

FOREIGN = ("mnist", "fashion_mnist", "tiny_imagenet")
NOISE = "uniform noise"
STRENGTHS = 5
SIDE = 32
JPEG_QUALITY = 75
DOWNLOADS = ("SVHN", "CIFAR100", "DTD")
Images = list[Image.Image]


@contextmanager
def folders_of(data: Path, *others: str) -> Iterator[Path]:
    """The folder that holds the sets: `data` itself, or where its zip files are unpacked for as long as it takes."""
    if (data / "cifar10").is_dir():
        yield data
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in ("cifar10", *FOREIGN, *others):
            with zipfile.ZipFile(data / f"{name}.zip") as archive:
                archive.extractall(folder)
        yield Path(folder)


def drawn(folder: Path, n: int, rng: np.random.Generator) -> tuple[Images, list[str]]:
    """n images of a folder of class folders, at random, and their classes."""
    ids = rng.choice(folder_source(folder).ids, n, replace=False)
    return [read_image(folder / name) for name in ids], [str(name).partition("/")[0] for name in ids]


def uniform_noise(n: int, rng: np.random.Generator, side: int = SIDE) -> Images:
    return [Image.fromarray(pixels) for pixels in rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)]


def reencoded(image: Image.Image) -> Image.Image:
    """At 32 pixels through one JPEG compression: CIFAR-10 here is JPEG, the other sets are not."""
    return jpeg(image.resize((SIDE, SIDE), Image.Resampling.BICUBIC), JPEG_QUALITY)


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return Image.open(buffer).convert("RGB")


def with_noise(image: Image.Image, deviation: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.asarray(image) / 255 + rng.normal(scale=deviation, size=(*image.size[::-1], 3))
    return Image.fromarray(np.round(255 * pixels.clip(0, 1)).astype(np.uint8))


Corruption = Callable[[Image.Image, int, np.random.Generator], Image.Image]
CORRUPTIONS: dict[str, Corruption] = {
    "blur": lambda image, i, _: image.filter(ImageFilter.GaussianBlur((0.4, 0.7, 1.0, 1.5, 2.0)[i])),
    "gaussian noise": lambda image, i, rng: with_noise(image, (0.02, 0.05, 0.1, 0.15, 0.25)[i], rng),
    "JPEG": lambda image, i, _: jpeg(image, (60, 40, 25, 15, 8)[i]),
    "contrast": lambda image, i, _: ImageEnhance.Contrast(image).enhance((0.75, 0.6, 0.45, 0.3, 0.15)[i]),
}


BLIND: dict[str, Corruption] = {
    "pixelated": lambda image, i, _: pixelated(image, (1 / 2, 1 / 3, 1 / 4, 1 / 6, 1 / 8)[i]),
    "brightness": lambda image, i, _: ImageEnhance.Brightness(image).enhance((0.8, 0.65, 0.5, 0.4, 0.3)[i]),
    "colour": lambda image, i, _: ImageEnhance.Color(image).enhance((0.6, 0.4, 0.25, 0.1, 0.0)[i]),
    "salt and pepper": lambda image, i, rng: with_salt(image, (0.01, 0.02, 0.04, 0.07, 0.12)[i], rng),
    "occlusion": lambda image, i, rng: occluded(image, (0.2, 0.3, 0.4, 0.5, 0.6)[i], rng),
}
"""Kinds that nobody has looked at while the score was made."""


def pixelated(image: Image.Image, share: float) -> Image.Image:
    """On a coarser grid, of so many of its rows and columns."""
    coarse = tuple(round(share * side) for side in image.size)
    return image.resize(coarse, Image.Resampling.BOX).resize(image.size, Image.Resampling.NEAREST)


def with_salt(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    pixels = np.array(image)
    hit = rng.random(pixels.shape[:2]) < share
    pixels[hit] = rng.choice(np.array([0, 255], dtype=np.uint8), size=(hit.sum(), 1))
    return Image.fromarray(pixels)


def occluded(image: Image.Image, share: float, rng: np.random.Generator) -> Image.Image:
    """A grey square somewhere, of that share of the shorter side."""
    side = round(share * min(image.size))
    left, top = rng.integers(0, np.array(image.size) - side + 1)
    covered = image.copy()
    covered.paste((128, 128, 128), (int(left), int(top), int(left) + side, int(top) + side))
    return covered


def corrupted(images: Images, kind: str, rng: np.random.Generator) -> Images:
    """Each image at one of the five strengths, in turn: the i-th at strength i mod 5."""
    return [(CORRUPTIONS | BLIND)[kind](image, i % STRENGTHS, rng) for i, image in enumerate(images)]


def downloaded(root: Path, n: int, rng: np.random.Generator) -> dict[str, Images]:
    """SVHN, CIFAR-100 and DTD (test images) by torchvision, which fetches them into `root`.

    Raises
    ------
    ImportError
        torchvision is absent or does not load beside this torch.
    """
    try:
        from torchvision import datasets
    except Exception as error:  # a wheel for another torch fails with whatever its libraries raise
        raise ImportError(
            f"--download needs a torchvision that loads beside this torch ({error}): install the matching pair, or "
            "unpack the sets yourself and use `skjepa bench`"
        ) from error
    sets = {
        "SVHN": lambda: datasets.SVHN(root, split="test", download=True),
        "CIFAR100": lambda: datasets.CIFAR100(root, train=False, download=True),
        "DTD": lambda: datasets.DTD(root, split="test", download=True),
    }
    images = {}
    for name in DOWNLOADS:
        found = sets[name]()
        images[name] = [found[int(i)][0].convert("RGB") for i in rng.choice(len(found), n, replace=False)]
    return images
