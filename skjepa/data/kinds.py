"""What a user gives as data, by kind; and what to give in the place of what is no data."""

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def refuse_what_is_no_data(X: Any) -> None:
    """Raise TypeError that says what to give in the place of what NumPy would make an object of, or worse."""
    instead = None
    if hasattr(X, "toarray"):  # sparse: refused elsewhere
        return
    if isinstance(X, torch.utils.data.DataLoader):
        instead = "give its dataset, X.dataset: batches are made here"
    elif any(np.ma.is_masked(item) for item in (X if isinstance(X, list | tuple) else [X])):
        instead = "fill in or leave out what is masked (X.filled(...), scikit-learn's SimpleImputer): its numbers count"
    elif isinstance(X, dict | set | frozenset | bytes | bytearray):
        instead = "give an array, a list, a folder or a torch Dataset"
    elif isinstance(X, Iterator):
        instead = "which can be read only once: give list(X)"
    if instead is not None:
        raise TypeError(f"X must hold data that can be looked at by position; got {type(X).__name__}: {instead}")


def is_number(item: Any) -> bool:
    """Whether a text is a number: tables are read so where one cell of a column is none."""
    try:
        float(item)
    except (TypeError, ValueError):
        return False
    return True


def kind_of(item: Any) -> str:
    if isinstance(item, str | os.PathLike):
        return "paths"
    if isinstance(item, Image.Image):
        return "PIL images"
    if isinstance(item, Tensor):
        return "tensors"
    return "arrays" if isinstance(item, np.ndarray) else "values"
