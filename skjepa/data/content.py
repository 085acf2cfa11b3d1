"""Hash the content of samples, so that copies are recognised under any name."""

import hashlib
import os
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skjepa.data.images import require_file


def hash_of_bytes(content: bytes | bytearray) -> str:
    """The same as `file_hash` of a file with this content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def file_hash(path: str | os.PathLike) -> str:
    """Return the hash of a file's bytes; "" if it cannot be read."""
    try:
        require_file(path)
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
    except (OSError, ValueError):  # ValueError: a path that no file can have
        return ""  # `load` reports the problem


def hash_of(sample: Any) -> str:
    """Return the hash of a loaded sample; a PIL image and the array of its pixels have the same."""
    if isinstance(sample, Tensor):
        sample = (sample.float() if sample.dtype == torch.bfloat16 else sample).numpy()
    return hash_of_array(np.asarray(sample))


def hash_of_array(array: np.ndarray) -> str:
    """Return the hash of an array's type, shape and numbers."""
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{array.dtype.str}{array.shape}".encode())
    digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()
