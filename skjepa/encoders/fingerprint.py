"""What decides an embedding, as a hash: settings, architecture, parameters, and what `description` tells."""

import hashlib
import json
from collections.abc import Iterator
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
    for name, first in _second_names(module):
        digest.update(f"{name} is {first}".encode())
    return digest.hexdigest()


def _second_names(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of modules, parameters and buffers that are there under another name already, with that name."""
    named = (
        module.named_modules(remove_duplicate=False),
        module.named_parameters(remove_duplicate=False),
        module.named_buffers(remove_duplicate=False),
    )
    for pairs in named:
        first: dict[int, str] = {}
        for name, item in pairs:
            if first.setdefault(id(item), name) != name:
                yield name, first[id(item)]
