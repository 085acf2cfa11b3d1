"""Tell kinds of data apart, and refuse objects that are not data."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def refuse_what_is_no_data(X: Any) -> None:
    """Raise TypeError for objects that NumPy would misread; the message names what to give instead."""
    instead = None
    if hasattr(X, "toarray"):  # sparse matrices are refused elsewhere
        return
    if isinstance(X, torch.utils.data.DataLoader):
        instead = "give its dataset, X.dataset, since skjepa makes batches itself"
    elif any(np.ma.is_masked(item) for item in (X if isinstance(X, list | tuple) else [X])):
        instead = "fill in masked values (X.filled(...), scikit-learn's SimpleImputer) or leave them out"
    elif isinstance(X, dict | set | frozenset):
        instead = "give an array, a list, a folder or a torch Dataset"
    elif isinstance(X, Iterator):
        instead = "give list(X), since an iterator can be read only once"
    if instead is not None:
        raise TypeError(f"X must hold data that can be read by position; got {type(X).__name__}: {instead}")


PICTURES = ("paths", "PIL images", "bytes of image files")
"""Kinds of single pictures, which may differ in size."""


def is_number(item: Any) -> bool:
    """Return whether a text is a number, as in a column that was read as text because of one bad cell."""
    try:
        float(item)
    except (TypeError, ValueError):
        return False
    return True


def kind_of(item: Any) -> str:
    """Return the kind of one item of a list: "paths", "PIL images", "tensors", "arrays" or "values"."""
    if isinstance(item, str | os.PathLike):
        return "paths"
    if isinstance(item, Image.Image):
        return "PIL images"
    if isinstance(item, bytes | bytearray):
        return "bytes of image files"
    if isinstance(item, Tensor):
        return "tensors"
    return "arrays" if isinstance(item, np.ndarray) else "values"
