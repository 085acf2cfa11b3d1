"""Hashes of content, by which copies are known whatever they are called."""

import hashlib
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skjepa.data.images import require_file


def file_hash(path: str | os.PathLike) -> str:
    try:
        require_file(path)
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except (OSError, ValueError):  # of a path that no file can have
        return ""  # `load` says what is wrong with it


def hash_of(sample: Any) -> str:
    """The hash of a loaded sample: the same of a PIL image and of the array of its pixels."""
    if isinstance(sample, Tensor):
        sample = (sample.float() if sample.dtype == torch.bfloat16 else sample).numpy()
    return hash_of_array(np.asarray(sample))


def hash_of_array(array: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
