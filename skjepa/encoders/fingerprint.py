"""What decides an embedding, as text and as a hash: code, parameters and attributes."""

import enum
import functools
import hashlib
import inspect
import json
import re
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor, nn


def plain_attributes(module: nn.Module) -> dict[str, str]:
    """Numbers, words and functions that modules keep as plain attributes: they decide the output as weights do.

    Taken once, when the encoder is made: some modules count their calls in them.
    """
    kinds = (bool, int, float, complex, str, tuple, types.FunctionType)
    return {
        f"{name}.{key}": describe(value)
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, kinds) and not key.startswith("_") and key != "training"
    }


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


def describe(value: Any) -> str:
    """What a function does or a value is, for a fingerprint: source code, parameters, and what it carries, in depth."""
    return _describe(value, depth=8)


def _describe(value: Any, depth: int) -> str:
    if depth == 0 or value is None or isinstance(value, bool | int | float | complex | str | bytes | enum.Enum):
        return without_addresses(repr(value))
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    if isinstance(value, np.ndarray):
        return f"array({value.dtype}, {value.shape}, {hashlib.sha256(np.ascontiguousarray(value)).hexdigest()})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_describe(item, depth - 1)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return f"[{', '.join(_describe(item, depth - 1) for item in items)}]"
    if isinstance(value, functools.partial):
        return f"partial{_describe([value.func, value.args, value.keywords], depth - 1)}"
    carried = _carried(value)
    inside = _describe(carried, depth - 1) if carried else ""
    if hasattr(value, "__qualname__"):
        return _source_code(value) + inside
    return _source_code(type(value)) + (inside or without_addresses(repr(value)))


def _carried(value: Any) -> list[Any]:
    """What a function, a bound method or an object brings along beside its code."""
    if not hasattr(value, "__code__") and hasattr(value, "__qualname__"):
        return []  # a class, or a function that is not written in Python
    if not hasattr(value, "__code__"):
        state = {key: item for key, item in getattr(value, "__dict__", {}).items() if key != "training"}
        return [state] if state else []
    cells = [cell.cell_contents for cell in value.__closure__ or ()]
    defaults = [*(value.__defaults__ or ()), *sorted((value.__kwdefaults__ or {}).items())]
    owner = getattr(value, "__self__", None)
    return [*cells, *defaults, *([] if owner is None else [owner])]


def _source_code(code: Any) -> str:
    name = f"{getattr(code, '__module__', '')}.{getattr(code, '__qualname__', repr(code))}"
    if name.startswith(("torch", "timm.", "PIL.", "numpy.", "builtins.")):
        return name  # of a library: its name says it
    try:
        source = inspect.getsource(code)
        # The source of a lambda is its whole line, which it may share with another.
        inside = (code.__code__.co_code, code.__code__.co_consts) if "<lambda>" in name else ""
        return source + without_addresses(repr(inside))
    except (OSError, TypeError):  # typed at a prompt
        return without_addresses(name)


def without_addresses(text: str) -> str:
    """A repr that is the same in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text)
