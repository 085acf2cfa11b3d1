"""Turn a single image, or an iterator of samples, into a list of samples."""

import io
import os
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from skjepa._utils.hardware import default_budget
from skjepa.data.folders import NO_PICTURES
from skjepa.data.kinds import kind_of


def listed(X: Any) -> Any:
    """Return a single image as a list of one, the items of an iterator as a list, and anything else unchanged.

    A single image is a PIL image, the path of an image file, such a file's content in bytes, an array (H, W, 3) or a
    tensor (3, H, W). An iterator is read to its end, once.

    Raises
    ------
    TypeError
        An open file; an iterator whose items are of several kinds.
    MemoryError
        The items of an iterator take more than half of the free memory.
    """
    if isinstance(X, io.IOBase):  # which would yield the lines of the file
        raise TypeError(f"X is an open file ({type(X).__name__}); give its path, or its content X.read()")
    if isinstance(X, Iterator):
        return _all_of(X)
    return [X] if _is_one_picture(X) else X


def _is_one_picture(X: Any) -> bool:
    if isinstance(X, Image.Image | bytes | bytearray):
        return True
    if isinstance(X, str | os.PathLike):
        return os.path.isfile(X) and os.path.splitext(X)[1].lower() not in NO_PICTURES
    if isinstance(X, Tensor):
        return X.ndim == 3 and X.shape[0] == 3
    return isinstance(X, np.ndarray) and X.ndim == 3 and X.shape[-1] == 3


def _all_of(X: Iterator) -> list[Any]:
    items: list[Any] = []
    taken, most = 0, default_budget("cpu")
    for item in X:
        if items and kind_of(item) != kind_of(items[0]):
            kinds = " and ".join(sorted({kind_of(items[0]), kind_of(item)}))
            raise TypeError(f"the {type(X).__name__} X mixes {kinds}; yield one kind")
        taken += _size(item)
        if taken > most:
            raise MemoryError(
                f"the first {len(items):,} items of the {type(X).__name__} X take {most / 1e9:.1f} GB, half of the "
                "free memory; give paths or a torch Dataset, whose images are loaded as they are needed"
            )
        items.append(item)
    return items


def _size(item: Any) -> int:
    """Return the bytes that an item takes in memory; a PIL image counts as decoded."""
    if isinstance(item, Image.Image):
        return item.width * item.height * len(item.getbands())
    return int(getattr(item, "nbytes", 0)) or sys.getsizeof(item)
