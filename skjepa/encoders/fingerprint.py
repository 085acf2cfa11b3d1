"""Hash everything that decides an embedding: settings, architecture, parameters and the description of code."""

import hashlib
import json
from collections.abc import Iterator
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

from skjepa.encoders.description import without_addresses


def fingerprint_of(module: nn.Module, settings: dict[str, Any]) -> str:
    """Return the SHA-256 of settings, architecture, parameters and buffers, as 64 hexadecimal digits."""
    return _digest(hashlib.sha256(), module, settings)


def content_of(module: nn.Module, settings: dict[str, Any]) -> str:
    """Return a faster checksum of the same bytes; if it is unchanged, so is `fingerprint_of`.

    torch's version counters would be faster still, but miss writes through ``.data`` or a shared NumPy array.
    """
    return _digest(xxhash.xxh3_128(), module, settings)


def _digest(digest: Any, module: nn.Module, settings: dict[str, Any]) -> str:
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    digest.update(without_addresses(repr(module)).encode())
    names = Names(module)
    for name, tensor in [*once(names.parameters), *once(names.buffers)]:
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_numbers_of(tensor))
    for name, first in _second_names(names):
        digest.update(f"{name} is {first}".encode())
    return digest.hexdigest()


def _numbers_of(tensor: Tensor) -> Any:
    """The numbers of a tensor side by side, for a hash; where they lie, if they lie so."""
    if type(tensor) in (Tensor, nn.Parameter) and tensor.dtype == torch.float32 and tensor.device.type == "cpu":
        numbers = tensor.detach().numpy()
        if numbers.flags.c_contiguous:
            return numbers
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


class Names:
    """Collect every name of a module's submodules, parameters and buffers in one walk over the module.

    Attributes
    ----------
    modules, parameters, buffers : list of (str, object)
        As ``named_modules``, ``named_parameters`` and ``named_buffers`` with ``remove_duplicate=False``.
    """

    def __init__(self, module: nn.Module) -> None:
        self.modules = list(module.named_modules(remove_duplicate=False))
        self.parameters = _members(self.modules, "_parameters")
        self.buffers = _members(self.modules, "_buffers")


def _members(modules: list[tuple[str, nn.Module]], kind: str) -> list[tuple[str, Tensor]]:
    return [
        (f"{prefix}.{name}" if prefix else name, tensor)
        for prefix, module in modules
        for name, tensor in getattr(module, kind).items()
        if tensor is not None
    ]


def once(pairs: list[tuple[str, Tensor]]) -> list[tuple[str, Tensor]]:
    """Return each tensor under its first name."""
    first: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in pairs:
        first.setdefault(id(tensor), (name, tensor))
    return list(first.values())


def _second_names(names: Names) -> Iterator[tuple[str, str]]:
    """Yield the second names of shared modules, parameters and buffers, with their first names."""
    found: list[list[tuple[str, Any]]] = [list(names.modules), list(names.parameters), list(names.buffers)]
    for pairs in found:
        first: dict[int, str] = {}
        for name, item in pairs:
            if first.setdefault(id(item), name) != name:
                yield name, first[id(item)]
