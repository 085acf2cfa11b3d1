"""Read one image file safely and convert it to RGB."""

import io
import os
import stat
import warnings
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError


def as_picture(sample: Any) -> Image.Image:
    """Convert a loaded image, PIL, uint8 or float array (H, W, 3) or tensor (3, H, W), to a PIL image."""
    if isinstance(sample, Image.Image):
        return sample
    pixels = np.asarray(sample)
    if pixels.dtype.kind == "f":
        pixels = np.round(255 * pixels).astype(np.uint8)
    return Image.fromarray(np.moveaxis(pixels, 0, -1) if pixels.shape[-1] != 3 else pixels)


ValueRange = tuple[float, float] | None
_PHOTOMETRIC = 262  # a TIFF tag
_SIXTEEN_BITS = (0.0, 65535.0)

MAX_PIXELS = 178_956_970
"""Most pixels of an image file; a larger file is refused before it is decoded. The largest cameras make 151 million.

Pillow uses four bytes per pixel, so a reading thread takes up to 0.7 GB, and twice that to turn a photograph upright.
Pillow itself refuses images above the same number; a program that needs larger ones has to raise both limits.
"""
_LONGEST_STRIP = 200
_RUN_PROGRAMS = frozenset(["EPS", "WMF"])
"""Formats that are refused under any file name, since Pillow runs them as programs by Ghostscript or the system."""


class ImageReadError(ValueError):
    """Raised when an image cannot be read; the message names it."""


def read_image(path: str | os.PathLike, value_range: ValueRange = None) -> Image.Image:
    """Read an image file as upright RGB; of several pages it reads the first.

    Parameters
    ----------
    path : path-like
    value_range : (low, high), optional
        Values of black and white in a file of more than 8 bits; by default 0 and 65535, whatever the file holds.

    Returns
    -------
    PIL.Image.Image
        In mode RGB, turned as its EXIF orientation says.

    Raises
    ------
    ImageReadError
        If the file is not an image, is cut off, is not a regular file (reading a pipe could wait forever), or has more
        than 178,956,970 pixels; the message names the file and the reason.
    """
    _pass_over_large_cameras()
    try:
        require_file(path)
        return _opened(path, value_range, MAX_PIXELS)
    except UserWarning:
        raise
    except Exception as error:  # Pillow's plugins may raise anything on a broken file
        raise ImageReadError(f"{path_as_text(path)}: {reason(error)}") from error


def image_from_bytes(
    content: bytes | bytearray, name: str, *, value_range: ValueRange = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode the content of an image file as upright RGB, as `read_image` reads a file.

    Parameters
    ----------
    content : bytes
    name : str
        Name for the error message; no file of that name is opened.
    value_range : (low, high), optional
        As for `read_image`.
    max_pixels : int
        Most pixels; larger images are refused before they are decoded.

    Raises
    ------
    ImageReadError
        If it cannot be decoded; the message names the image and the reason.
    """
    _pass_over_large_cameras()
    try:
        return _opened(io.BytesIO(content), value_range, max_pixels)
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
            warnings.warn("a TIFF file holds several pages: only the first is read", stacklevel=3)
        return to_rgb(image, value_range)


def _pass_over_large_cameras() -> None:
    """Ignore Pillow's warning about large images, since large cameras exceed its limit.

    Catching a warning is not safe in threads. The filter is set only once, since changing filters resets Python's
    record of warnings already shown.
    """
    if not any(
        action == "ignore" and kind is Image.DecompressionBombWarning for action, _, kind, *_ in warnings.filters
    ):
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def check_value_range(value_range: Any) -> ValueRange:
    """Return two finite numbers, the first smaller, or None; otherwise raise ValueError."""
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
    """Return a path as text, with escapes for bytes that are not valid text, since tables hold only text."""
    return os.fspath(path).encode("utf-8", "backslashreplace").decode()


def require_file(path: str | os.PathLike) -> None:
    """Raise for a folder, and for pipes, sockets and devices, which could be read forever."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(None, "a folder")
    if not stat.S_ISREG(mode):
        raise OSError(None, "a pipe, a socket or a device")


def _formats() -> list[str]:
    """Return the formats that Pillow and its plugins read, except those that run programs."""
    Image.init()
    return [name for name in Image.ID if name not in _RUN_PROGRAMS]


def _require_size(image: Image.Image, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise Image.DecompressionBombError


def reason(error: Exception) -> str:
    """Return the reason of an error in words, without the path, which the message begins with."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, Image.DecompressionBombError):
        return f"has more than {MAX_PIXELS:,} pixels, which would fill the memory: make it smaller"
    if isinstance(error, UnidentifiedImageError):
        why = "unknown format"
    else:
        why = (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__
    return f"cannot be read as an image ({path_as_text(why)})"


def to_rgb(image: Image.Image, value_range: ValueRange = None) -> Image.Image:
    """Convert grey, palette, RGBA, CMYK and 16-bit images to upright RGB, dropping transparency.

    An upright RGB image is returned as it is. Grey of more than 8 bits is scaled by `value_range`, never by the content
    of the image.
    """
    if max(image.size) > _LONGEST_STRIP * min(image.size):
        raise ValueError(
            f"it has {image.width} x {image.height} pixels; more than {_LONGEST_STRIP} to 1 would fill the memory when "
            "the shorter side is enlarged: cut it into parts"
        )
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "F" and value_range is None:
        raise ValueError(
            "floating-point pixels have no known range: give value_range=(low, high) to as_source, or convert them to "
            "8 bits"
        )
    if image.mode == "F" or image.mode.startswith("I"):
        pixels = np.asarray(image)
        if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == 0 and image.mode.startswith("I;16"):
            pixels = 65535 - pixels  # white is zero; Pillow inverts 8 bits but not 16
        image = _scaled(pixels, value_range)
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    image.load()
    return image if image.mode == "RGB" else image.convert("RGB")


def loaded_rgb(
    image: Image.Image, position: int, what: str = "image", *, value_range: ValueRange = None
) -> Image.Image:
    """A PIL image as upright RGB of its own; raises ImageReadError, which names it by its place and its file."""
    try:
        rgb = to_rgb(image, value_range)
        return rgb.copy() if rgb is image else rgb  # the caller's own may be changed, or closed
    except UserWarning:
        raise
    except Exception as error:  # a lazily opened image is read here
        file = getattr(image, "filename", "")
        name = f"{what} {position} ({path_as_text(file)})" if file else f"{what} {position}"
        raise ImageReadError(f"{name}: {reason(error)}") from error


def _scaled(pixels: np.ndarray, value_range: ValueRange) -> Image.Image:
    """Scale grey values to 8 bits; Pillow would clip 16 bits at 255 instead."""
    low, high = value_range or _SIXTEEN_BITS
    if value_range is None and pixels.max() < high / 2:
        warnings.warn(
            "an image of 16 or 32 bits uses less than half of the range 0 ... 65535, and becomes dark and coarse: give "
            "as_source value_range=(0, 4095) for 12 bits, (0, 255) for 8 bits, or the range of your camera",
            stacklevel=2,
        )
    if value_range is None:
        return Image.fromarray((pixels.clip(0, 65535).astype(np.int64) >> 8).astype(np.uint8))
    share = (pixels.astype(np.float64) - low) / (high - low)
    return Image.fromarray(np.rint(255 * share.clip(0, 1)).astype(np.uint8))
