"""One image file, read safely and converted to RGB."""

import os
import stat
import warnings
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError


def as_picture(sample: Any) -> Image.Image:
    """A loaded sample of images as a PIL image: PIL, uint8 or float (H, W, 3), or a tensor (3, H, W)."""
    if isinstance(sample, Image.Image):
        return sample
    pixels = np.asarray(sample)
    if pixels.dtype.kind == "f":
        pixels = np.round(255 * pixels).astype(np.uint8)
    return Image.fromarray(np.moveaxis(pixels, 0, -1) if pixels.shape[-1] != 3 else pixels)


MAX_PIXELS = 178_956_970
"""An image file of more is a row with this reason, before it is decoded. The largest cameras make 151 million.

Pillow takes four bytes a pixel, so that a thread that reads takes up to 0.7 GB, and twice that to turn a photograph
upright. It is the number at which Pillow refuses, too; a program of yours that knows better raises both.
"""
_LONGEST_STRIP = 200
_RUN_PROGRAMS = frozenset(["EPS", "WMF"])
"""Formats of Pillow that are programs to run, by Ghostscript or by the system, whatever the file is called."""


class ImageReadError(ValueError):
    """An image cannot be read or is not a picture; the message names it."""


def read_image(path: str | os.PathLike) -> Image.Image:
    """An image file as upright RGB.

    Raises
    ------
    ImageReadError
        Names the file and the reason: it is no image, is cut off, is no regular file (a pipe would be waited for), or
        has more than `MAX_PIXELS`.
    """
    # Between its warning and its error lie the photographs of large cameras. To catch a warning is not safe in threads.
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    try:
        require_file(path)
        with Image.open(path, formats=_formats()) as image:
            _require_size(image)
            return to_rgb(image)
    except Exception as error:  # Pillow's plugins raise nearly anything on a broken file
        raise ImageReadError(f"{path_as_text(path)}: {reason(error)}") from error


def path_as_text(path: str | os.PathLike) -> str:
    """A path as an id or in a sentence: bytes in it that are no text are escapes, for tables hold text only."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def require_file(path: str | os.PathLike) -> None:
    """Raise for what would never end, or never begin, to be read."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(None, "a folder")
    if not stat.S_ISREG(mode):
        raise OSError(None, "a pipe, a socket or a device")


def _formats() -> list[str]:
    """What a file may hold: all that Pillow knows, plugins too, less what runs programs."""
    Image.init()
    return [name for name in Image.ID if name not in _RUN_PROGRAMS]


def _require_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        raise Image.DecompressionBombError


def reason(error: Exception) -> str:
    """In words, without the path: the sentence begins with it."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS:,} pixels would fill the memory; make it smaller"
    if isinstance(error, UnidentifiedImageError):
        why = "no format that is known"
    else:
        why = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return f"cannot be read as an image ({path_as_text(why)})"


def to_rgb(image: Image.Image) -> Image.Image:
    """Grey, palette, RGBA, CMYK and 16-bit images as upright RGB; transparency is dropped. RGB itself is not copied."""
    if max(image.size) > _LONGEST_STRIP * min(image.size):
        raise ValueError(
            f"{image.width} x {image.height} pixels: a strip of more than {_LONGEST_STRIP} to 1 would fill the memory "
            "when its shorter side is enlarged; cut it"
        )
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range; convert them to 8 bits")
    if image.mode.startswith("I"):
        # Pillow would clip 16 bits at 255 instead of scaling them. Mode I is 32 bits wide and may hold 8 or 16.
        pixels = np.asarray(image).clip(0, 65535)
        image = Image.fromarray((pixels >> (0 if image.mode == "I" and pixels.max() < 256 else 8)).astype(np.uint8))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")
