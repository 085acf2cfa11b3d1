"""A module while it is scored: one thread at a time calls it, and afterwards it is as it was before."""

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn

_LARGEST_COPY = 1 << 20  # entries of a plain tensor that is copied, to be put back
_CHECKPOINTING = {"grad_checkpointing", "gradient_checkpointing"}  # of timm, of transformers
_CONTAINERS = ("dict", "OrderedDict", "defaultdict", "list", "set", "deque")


class _Use:
    """Of one module, whoever scores it: several encoders may be made of one, or of parts of it."""

    _serial = itertools.count()

    def __init__(self) -> None:
        self.serial = next(self._serial)  # locks are taken in this order, and so never wait for one another
        self.lock = threading.RLock()
        self.users = 0
        self.before = _Before({})


_USES: "weakref.WeakKeyDictionary[nn.Module, _Use]" = weakref.WeakKeyDictionary()
_FINDING = threading.Lock()


@contextmanager
def alone_with(module: nn.Module) -> Iterator[None]:
    """Context in which no other thread calls the module, or any part of it, through an encoder."""
    held: list[_Use] = []
    try:
        for _, use in _uses(module):
            use.lock.acquire()
            held.append(use)
        yield
    finally:
        for use in reversed(held):
            use.lock.release()


@contextmanager
def in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Context in which the module is in eval mode; the last one out puts back modes and attributes.

    Passes leave things behind: caches in the arithmetic of the pass, weights that a hook computed, counters.
    """
    with alone_with(module):
        uses = _uses(module)
        for part, use in uses:
            if use.users == 0:
                use.before = _Before(vars(part))
            use.users += 1
        with suppress(NotImplementedError):  # an exported program has no modes
            module.eval()
        for part, _ in uses:
            for switch in _CHECKPOINTING & vars(part).keys():
                setattr(part, switch, False)  # it saves memory in training, and computes anew in every pass
    try:
        yield
    finally:
        with alone_with(module):
            for part, use in uses:
                use.users -= 1
                if use.users == 0:
                    use.before.put_back(vars(part))
                    use.before = _Before({})


def settled_attributes(part: nn.Module) -> dict[str, Any]:
    """Attributes of one module as they are outside passes, whether or not one is running."""
    use = _USES.get(part)
    if use is None or use.users == 0:
        return vars(part)
    return use.before.attributes | use.before.contents


def _uses(module: nn.Module) -> list[tuple[nn.Module, _Use]]:
    with _FINDING:
        uses = [(part, _USES.setdefault(part, _Use())) for part in module.modules()]
    return sorted(uses, key=lambda pair: pair[1].serial)


class _Before:
    """The attributes of a module, what lies in their containers, and the values of plain tensors."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes = dict(attributes)
        self.contents = {key: _shallow(value) for key, value in attributes.items() if not key.endswith("_hooks")}
        self.contents = {key: value for key, value in self.contents.items() if value is not None}
        self.tensors = {
            key: (value, value._version, value.detach().clone())
            for key, value in attributes.items()
            if isinstance(value, Tensor) and not value.is_inference() and value.numel() <= _LARGEST_COPY
        }

    def put_back(self, attributes: dict[str, Any]) -> None:
        for key in attributes.keys() - self.attributes.keys():
            del attributes[key]
        for key, value in self.attributes.items():
            if attributes.get(key) is not value:
                attributes[key] = value
        for key, content in self.contents.items():
            _fill(self.attributes[key], content)
        for tensor, version, value in self.tensors.values():
            if tensor._version != version:
                tensor.detach().copy_(value)


def _shallow(value: Any) -> Any:
    return value.copy() if type(value).__name__ in _CONTAINERS and hasattr(value, "copy") else None


def _fill(container: Any, content: Any) -> None:
    """What lies in the container is made to be the content again, where it is not."""
    if isinstance(container, dict):
        if not _identical_items(container, content):
            container.clear()
            container.update(content)
    elif isinstance(container, list | deque):
        if list(map(id, container)) != list(map(id, content)):
            container.clear()
            container.extend(content)
    elif container != content:
        container.clear()
        container.update(content)


def _identical_items(one: dict, other: dict) -> bool:
    return list(one) == list(other) and all(one[key] is other[key] for key in one)
