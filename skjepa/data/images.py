"""One image file, read safely and converted to RGB."""

import io
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


ValueRange = tuple[float, float] | None
_PHOTOMETRIC = 262  # a tag of TIFF
_SIXTEEN_BITS = (0.0, 65535.0)

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


def read_image(path: str | os.PathLike, value_range: ValueRange = None) -> Image.Image:
    """An image file as upright RGB; of several pages the first.

    Parameters
    ----------
    path : path-like
    value_range : (low, high), optional
        Numbers of a file of more than 8 bits that are black and white; by default 0 and 65535, whatever is in it.

    Raises
    ------
    ImageReadError
        Names the file and the reason: it is no image, is cut off, is no regular file (a pipe would be waited for), or
        has more than `MAX_PIXELS`.
    """
    _pass_over_large_cameras()
    try:
        require_file(path)
        return _opened(path, value_range, MAX_PIXELS)
    except UserWarning:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on a broken file
        raise ImageReadError(f"{path_as_text(path)}: {reason(error)}") from error


def image_from_bytes(content: bytes, name: str, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The content of an image file as upright RGB, as `read_image` reads a file.

    Parameters
    ----------
    content : bytes
    name : str
        For the error; nothing of that name is opened.
    max_pixels : int
        Refused, before it is decoded, is what has more.

    Raises
    ------
    ImageReadError
        Names the image and the reason.
    """
    _pass_over_large_cameras()
    try:
        return _opened(io.BytesIO(content), None, max_pixels)
    except UserWarning:
        raise
    except Exception as error:
        why = f"cannot be read as an image (more than {max_pixels:,} pixels)"
        why = why if isinstance(error, Image.DecompressionBombError) else reason(error)
        raise ImageReadError(f"{name}: {why}") from error


def _opened(file: str | os.PathLike | io.BytesIO, value_range: ValueRange, max_pixels: int) -> Image.Image:
    with Image.open(file, formats=_formats()) as image:
        _require_size(image, max_pixels)
        if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
            warnings.warn("a TIFF file holds several pages: the first is read", stacklevel=3)
        return to_rgb(image, value_range)


def _pass_over_large_cameras() -> None:
    """Between Pillow's warning and its error lie their photographs. To catch a warning is not safe in threads.

    The filter is set once: whoever changes filters empties Python's memory of what it has warned of.
    """
    if not any(
        action == "ignore" and kind is Image.DecompressionBombWarning for action, _, kind, *_ in warnings.filters
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def check_value_range(value_range: Any) -> ValueRange:
    """Return two finite numbers, the first smaller, or None; else raise a ValueError."""
    if value_range is None:
        return None
    try:
        low, high = map(float, () if isinstance(value_range, str) else value_range)
    except (TypeError, ValueError) as error:
        raise ValueError(f"value_range must be two numbers, black and white; got {value_range!r}") from error
    if not (np.isfinite([low, high]).all() and low < high):
        raise ValueError(f"value_range must be two finite numbers, the first smaller; got {value_range!r}")
    return low, high


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


def _require_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
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


def to_rgb(image: Image.Image, value_range: ValueRange = None) -> Image.Image:
    """Grey, palette, RGBA, CMYK and 16-bit images as upright RGB; transparency is dropped. RGB itself is not copied.

    Grey of more than 8 bits is scaled by `value_range`, never by what is in the picture.
    """
    if max(image.size) > _LONGEST_STRIP * min(image.size):
        raise ValueError(
            f"{image.width} x {image.height} pixels: a strip of more than {_LONGEST_STRIP} to 1 would fill the memory "
            "when its shorter side is enlarged; cut it"
        )
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" and value_range is None:
        raise ValueError(
            "floating-point pixels have no known range; give value_range=(low, high) to as_source, or convert them to "
            "8 bits"
        )
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.asarray(image)
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0 and image.mode.startswith("I;16"):
            pixels = 65535 - pixels  # white is zero; Pillow turns 8 bits, and leaves 16
        image = _scaled(pixels, value_range)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(pixels: np.ndarray, value_range: ValueRange) -> Image.Image:
    """Grey of any numbers as 8 bits. Pillow would clip 16 bits at 255 instead of scaling them."""
    low, high = value_range or _SIXTEEN_BITS
    if value_range is None and pixels.max() < high / 2:
        warnings.warn(
            "a picture of 16 or 32 bits uses less than half of the range 0 ... 65535, and becomes dark and coarse: "
            "give as_source value_range=(0, 4095) for 12 bits, (0, 255) for 8, or what your camera has",
            stacklevel=2,
        )
    if value_range is None:
        return Image.fromarray((pixels.clip(0, 65535).astype(np.int64) >> 8).astype(np.uint8))
    share = (pixels.astype(np.float64) - low) / (high - low)
    return Image.fromarray(np.rint(255 * share.clip(0, 1)).astype(np.uint8))
