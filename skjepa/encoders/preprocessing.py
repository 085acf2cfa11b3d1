"""Turn images of any size into a module's input: resize and crop on the CPU, normalise on the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize

from skjepa.encoders.description import describe


@dataclass(frozen=True)
class Preprocessing:
    """Turn images into tensors of one size and normalise them.

    Attributes
    ----------
    size : (int, int)
        Height and width of the module's input.
    mean, std : tuple of float
        Statistics per channel of pixels in [0, 1].
    resize : callable
        From a PIL image or a float tensor (3, H, W) in [0, 1] to ``(3, *size)``, uint8 for a PIL image and float for a
        tensor.
    settings : dict
        Description of all of these for the fingerprint.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Callable[[Any], Tensor] = field(repr=False, compare=False)
    settings: dict[str, Any] = field(default_factory=dict, repr=False)

    normalises_first: ClassVar[bool] = False
    """Whether `load` returns normalised pixels, so that random views of images in [0, 1] are not possible."""

    def load(self, image: Image.Image | Tensor | np.ndarray, dtype: torch.dtype) -> Tensor:
        """Return one image as ``(3, *size)`` of `dtype` in [0, 1]; uint8 arrays give the same bits as PIL images."""
        if isinstance(image, np.ndarray):
            # A copy in native order: torch takes neither read-only nor byte-swapped arrays.
            image = (
                Image.fromarray(image)
                if image.dtype == np.uint8
                else torch.from_numpy(np.array(image.transpose(2, 0, 1), dtype=np.float64, order="C"))
            )
        if isinstance(image, Tensor):
            # Bicubic interpolation overshoots, and pixels must stay in [0, 1].
            return self.resize(image.to(dtype)).clamp(0, 1)
        return self.resize(image).to(dtype) / 255

    def normalise(self, batch: Tensor) -> Tensor:
        """Normalise a batch ``(B, 3, H, W)`` in [0, 1] by mean and std."""
        mean, std = (batch.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (batch - mean) / std


def plain_preprocessing(image_size: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> Preprocessing:
    """Return preprocessing to squares: shorter side to `image_size`, centre crop, then (x - mean) / std.

    Resizing is bicubic with antialiasing. None as mean and std leaves pixels in [0, 1].
    """
    resize = Compose([Resize(image_size, interpolation=InterpolationMode.BICUBIC), CenterCrop(image_size), _ToTensor()])
    return _square(image_size, mean, std, resize, "shorter side, bicubic, centre crop")


def whole_image_preprocessing(
    image_size: int, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Preprocessing:
    """Both sides to `image_size` (bicubic, antialiased), then (x - mean) / std: nothing of the image is cut off."""
    resize = Compose([Resize((image_size, image_size), interpolation=InterpolationMode.BICUBIC), _ToTensor()])
    return _square(image_size, mean, std, resize, "both sides, bicubic")


def _square(image_size, mean, std, resize, description: str) -> Preprocessing:
    mean, std = channel_statistics(mean, std)
    settings = {"resize": description, "size": [image_size, image_size], "mean": list(mean), "std": list(std)}
    return Preprocessing((image_size, image_size), mean, std, resize, settings)


def callable_preprocessing(function: Callable[[Image.Image], Tensor], image_size: int | None) -> Preprocessing:
    """Return preprocessing by a user's function from a PIL image to a normalised tensor, after a test call."""
    try:
        result = function(Image.new("RGB", (320, 240)))
    except Exception as error:
        raise ValueError(f"preprocess fails on an RGB image of 320x240: {error}") from error
    if not isinstance(result, Tensor) or result.ndim != 3 or len(result) != 3 or not result.is_floating_point():
        found = f"{result.dtype} {tuple(result.shape)}" if isinstance(result, Tensor) else type(result).__name__
        raise ValueError(f"preprocess must return a normalised float tensor (3, H, W); got {found}")
    size = (result.shape[1], result.shape[2])
    if image_size is not None and size != (image_size, image_size):
        raise ValueError(f"preprocess returns {size[0]}x{size[1]} images, image_size is {image_size}: leave it out")
    settings = {"resize": describe(function), "size": list(size)}
    return _CallablePreprocessing(size, (0.0,) * 3, (1.0,) * 3, function, settings)


class _CallablePreprocessing(Preprocessing):
    """Preprocess PIL images by a function that also normalises."""

    normalises_first = True

    def load(self, image: Image.Image | Tensor | np.ndarray, dtype: torch.dtype) -> Tensor:
        if isinstance(image, Tensor):
            image = image.movedim(0, 2).numpy()
        if isinstance(image, np.ndarray):
            image = Image.fromarray(image if image.dtype == np.uint8 else np.rint(image * 255.0).astype(np.uint8))
        result = self.resize(image)
        if tuple(result.shape) != (3, *self.size):
            raise ValueError(
                f"preprocess returned shape {tuple(result.shape)} for an image of {image.width}x{image.height}, and "
                f"{(3, *self.size)} for another; it must return one size: end it with a centre crop"
            )
        return result.to(dtype)


def _three(name: str, values: Any, default: float) -> tuple[float, ...]:
    if values is None:
        return (default,) * 3
    try:
        return tuple(float(value) for value in values)
    except (TypeError, ValueError) as error:
        hint = f": write ({values}, {values}, {values})" if isinstance(values, int | float) else ""
        raise TypeError(f"{name} must be three numbers, one per channel; got {values!r}{hint}") from error


def channel_statistics(
    mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Check and return (mean, std) of three channels each; None means 0 and 1."""
    mean, std = _three("mean", mean, 0.0), _three("std", std, 1.0)
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"mean and std need three values, one per channel; got {mean} and {std}")
    if not np.isfinite((*mean, *std)).all():
        raise ValueError(f"mean and std must be finite; got {mean} and {std}")
    if min(mean) < 0 or max(mean) > 1:
        raise ValueError(
            f"mean must be of pixels in [0, 1]; got {mean}. Divide mean and std of pixels in 0 ... 255 by 255"
        )
    if min(std) <= 0:
        raise ValueError(f"std must be positive; got {std}")
    return mean, std


class _ToTensor:
    """Convert PIL images to uint8 tensors and return tensors unchanged."""

    def __init__(self) -> None:
        self._convert = PILToTensor()

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        return image if isinstance(image, Tensor) else self._convert(image)
