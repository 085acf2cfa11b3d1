"""Make a `Source` from a map-style torch Dataset, and check the pixels of arrays and tensors."""

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from skjepa.data.images import ImageReadError, ValueRange, loaded_rgb
from skjepa.data.source import Source


def dataset_source(dataset: torch.utils.data.Dataset, value_range: ValueRange = None) -> Source:
    if isinstance(dataset, torch.utils.data.IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError("got an iterable Dataset, which has no length and no positions: give a map-style torch Dataset")

    def load(i: int) -> Any:
        item = dataset[i]
        image = item[0] if isinstance(item, tuple | list) else item
        if isinstance(image, Image.Image):
            return loaded_rgb(image, i, "dataset item", value_range=value_range)
        is_picture = isinstance(image, Tensor) and image.ndim == 3 and image.shape[0] == 3
        if is_picture and image.dtype == torch.uint8:  # as torchvision's decoders give it
            return image.detach().cpu().movedim(0, 2).contiguous().numpy()
        if not is_picture or not image.is_floating_point():
            found = f"{image.dtype} {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
            raise ImageReadError(
                f"dataset item {i} must be a tensor (3, H, W), float in [0, 1] or uint8, or a PIL image; got {found}"
            )
        image = image.detach().cpu()
        try:
            check_pixels(image.float().numpy()[np.newaxis], "dataset item", i)
        except ValueError as error:
            raise ImageReadError(str(error)) from error
        return image

    return Source(np.arange(len(dataset)).astype(np.str_), load, stable_ids=False)


def check_pixels(images: np.ndarray, what: str, first: int = 0) -> None:
    """Raise if float images (N, ...) are not in [0, 1]; the message names the first, counting from `first`."""
    if images.dtype.kind != "f":
        raise TypeError(f"pixels must be uint8 or float in [0, 1]; got dtype {images.dtype}")
    for i, image in enumerate(images, start=first):
        low, high = image.min(), image.max()
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(f"{what} {i}: NaN or infinite pixels")
        if low < 0 or high > 1:
            raise ValueError(f"{what} {i}: float pixels must lie in [0, 1]; got values from {low:g} to {high:g}")
