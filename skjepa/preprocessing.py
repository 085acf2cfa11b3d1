"""From a picture of any size to the tensor a module receives: resize and crop on the CPU, normalise on the device."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, PILToTensor, Resize


@dataclass(frozen=True)
class Preprocessing:
    """Fixed size, pixel statistics and the resizing that leads there.

    Attributes
    ----------
    size : (int, int)
        Height and width the module receives.
    mean, std : tuple of float
        Per channel, of pixels in [0, 1].
    resize : callable
        PIL image or float tensor (3, H, W) in [0, 1] to ``(3, *size)``: uint8 from a PIL image, float from a tensor.
    settings : dict
        The whole of it in words, for the fingerprint.
    """

    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resize: Callable[[Any], Tensor] = field(repr=False, compare=False)
    settings: dict[str, Any] = field(default_factory=dict, repr=False)

    def load(self, image: Image.Image | Tensor | np.ndarray, dtype: torch.dtype) -> Tensor:
        """One image to ``(3, *size)`` of `dtype` in [0, 1]; uint8 arrays take the path of PIL images, bit for bit."""
        if isinstance(image, np.ndarray):
            if image.dtype == np.uint8:
                image = Image.fromarray(image)
            else:
                image = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
        if isinstance(image, Tensor):
            # Bicubic interpolation overshoots; a pixel outside [0, 1] is not a picture.
            return self.resize(image.to(dtype)).clamp(0, 1)
        return self.resize(image).to(dtype) / 255

    def normalise(self, batch: Tensor) -> Tensor:
        """``(B, 3, H, W)`` in [0, 1] to zero mean and unit variance, as the module was trained."""
        mean, std = (batch.new_tensor(values)[:, None, None] for values in (self.mean, self.std))
        return (batch - mean) / std


def plain_preprocessing(image_size: int, mean: Sequence[float] | None, std: Sequence[float] | None) -> Preprocessing:
    """Shorter side to `image_size` (bilinear, antialiased), centre crop, then (x - mean) / std; None leaves [0, 1]."""
    mean, std = channel_statistics(mean, std)
    resize = Compose(
        [Resize(image_size, interpolation=InterpolationMode.BILINEAR), CenterCrop(image_size), _ToTensor()]
    )
    settings = {"resize": "shorter side, bilinear, centre crop", "size": [image_size, image_size]}
    return Preprocessing(
        (image_size, image_size), mean, std, resize, {**settings, "mean": list(mean), "std": list(std)}
    )


def channel_statistics(
    mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Checked (mean, std) of three channels each; None means 0 and 1."""
    mean = (0.0, 0.0, 0.0) if mean is None else tuple(float(m) for m in mean)
    std = (1.0, 1.0, 1.0) if std is None else tuple(float(s) for s in std)
    if len(mean) != 3 or len(std) != 3:
        raise ValueError(f"mean and std need one value for each of 3 channels; got {mean} and {std}")
    if min(std) <= 0:
        raise ValueError(f"std must be positive; got {std}")
    return mean, std


class _ToTensor:
    """PIL images become uint8 tensors, tensors stay: the last step of a resize that takes both."""

    def __init__(self) -> None:
        self._convert = PILToTensor()

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        return image if isinstance(image, Tensor) else self._convert(image)
