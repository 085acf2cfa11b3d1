"""What decides an embedding, as a hash: settings, architecture, parameters, and what `description` tells."""

import hashlib
import json
from typing import Any

import torch
import xxhash
from torch import nn

from skjepa.encoders.description import without_addresses


def fingerprint_of(module: nn.Module, settings: dict[str, Any]) -> str:
    """SHA-256 of settings, architecture, parameters and buffers, as 64 hexadecimal digits."""
    return _digest(hashlib.sha256(), module, settings)


def content_of(module: nn.Module, settings: dict[str, Any]) -> str:
    """A checksum of the same bytes at the speed of memory: where it is the same, so is `fingerprint_of`.

    torch's version counters would cost nothing, but miss what is written through ``.data`` or a shared NumPy array.
    """
    return _digest(xxhash.xxh3_128(), module, settings)


def _digest(digest: Any, module: nn.Module, settings: dict[str, Any]) -> str:
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(without_addresses(repr(module)).encode())
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
