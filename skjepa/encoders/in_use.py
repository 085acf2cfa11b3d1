"""A module while it is scored: one thread at a time calls it, and afterwards it is as it was before."""

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
from torch import Tensor, nn

_LARGEST_COPY = 1 << 20  # entries of a plain tensor that is copied, to be put back
_CHECKPOINTING = {"grad_checkpointing", "gradient_checkpointing"}  # of timm, of transformers
_STRUCTURE = {"_parameters", "_buffers", "_modules"}
_SEALED = (
    "builtins",
    "torch",
    "numpy",
    "threading",
    "_thread",
    "types",
    "functools",
    "re",
    "enum",
    "pathlib",
    "weakref",
)
_PLAIN = frozenset({bool, int, float, str, type(None)})  # nothing inside can change
_CONTAINERS = ("dict", "OrderedDict", "defaultdict", "list", "set", "deque")


_EMPTY: dict[str, Any] = {}  # of hooks there are a dozen kinds, and hardly ever any


class _Use:
    """Of one module, whoever scores it: several encoders may be made of one, or of parts of it."""

    _serial = itertools.count()

    def __init__(self) -> None:
        self.serial = next(self._serial)  # locks are taken in this order, and so never wait for one another
        self.lock = threading.RLock()
        self.users = 0
        self.before = _NOTHING


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
                    use.before = _NOTHING


def settled_attributes(part: nn.Module) -> dict[str, Any]:
    """Attributes of one module as they are outside passes, whether or not one is running."""
    use = _USES.get(part)
    if use is None or use.users == 0:
        return vars(part)
    return use.before.attributes | use.before.contents


def _uses(module: nn.Module) -> list[tuple[nn.Module, _Use]]:
    with _FINDING:
        uses = [(part, _USES.get(part) or _USES.setdefault(part, _Use())) for part in _parts_of(module)]
    return sorted(uses, key=lambda pair: pair[1].serial)


def _parts_of(module: nn.Module) -> list[nn.Module]:
    """As ``module.modules()``, in another order and in a fifth of the time: each pass asks several times."""
    found: dict[int, nn.Module] = {}
    waiting = [module]
    while waiting:
        part = waiting.pop()
        if id(part) not in found:
            found[id(part)] = part
            waiting += [inner for inner in part._modules.values() if inner is not None]
    return list(found.values())


class _Before:
    """The attributes of a module, what lies in their containers and objects, and the numbers of arrays."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self.attributes = dict(attributes)
        self.contents: dict[str, Any] = {}
        self.kept: list[tuple[Any, Any]] = []
        for key, value in attributes.items():
            if type(value) in _PLAIN:
                continue
            if not key.endswith("_hooks") and key not in _STRUCTURE:
                self._keep(value, depth=4)
            if type(value).__name__ in _CONTAINERS:
                self.contents[key] = value.copy() if value or not isinstance(value, dict) else _EMPTY
        # Of these only what they are made of: weights and modules are looked at where they are.
        self.kept += [(attributes[key], attributes[key].copy()) for key in _STRUCTURE & attributes.keys()]

    def _keep(self, value: Any, depth: int) -> None:
        if depth == 0 or isinstance(value, nn.Module):
            return
        inside: Any = ()
        if type(value).__name__ in _CONTAINERS:
            self.kept.append((value, value.copy()))
            inside = value.values() if isinstance(value, dict) else value
        elif isinstance(value, tuple):
            inside = value
        elif isinstance(value, Tensor | np.ndarray):
            self._keep_numbers(value)
        elif type(value).__module__.partition(".")[0] not in _SEALED and hasattr(value, "__dict__"):
            self.kept.append((vars(value), dict(vars(value))))
            inside = vars(value).values()
        for item in list(inside):
            self._keep(item, depth - 1)

    def _keep_numbers(self, value: Any) -> None:
        if isinstance(value, np.ndarray):
            self.kept += [(value, value.copy())] * (value.size <= _LARGEST_COPY)
        elif not value.is_inference() and value.numel() <= _LARGEST_COPY:
            self.kept.append((value, (value._version, value.detach().clone())))

    def put_back(self, attributes: dict[str, Any]) -> None:
        for key in attributes.keys() - self.attributes.keys():
            del attributes[key]
        for key, value in self.attributes.items():
            if attributes.get(key) is not value:
                attributes[key] = value
        for value, before in self.kept:
            _fill(value, before)


def _fill(value: Any, before: Any) -> None:
    """What the value holds is made to be what it held before, where it is not."""
    if isinstance(value, Tensor):
        version, numbers = before
        if value._version != version:
            value.detach().copy_(numbers)
    elif isinstance(value, np.ndarray):
        if value.flags.writeable and not np.array_equal(value, before):
            value[...] = before
    elif isinstance(value, dict):
        if list(value) != list(before) or any(value[key] is not before[key] for key in before):
            value.clear()
            value.update(before)
    elif isinstance(value, list | deque):
        if list(map(id, value)) != list(map(id, before)):
            value.clear()
            value.extend(before)
    elif value != before:
        value.clear()
        value.update(before)


_NOTHING = _Before({})
