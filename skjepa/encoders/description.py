"""Describe functions, values and modules as text that is the same in every process, for fingerprints."""

import dis
import enum
import functools
import hashlib
import inspect
import re
import sys
import threading
import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skjepa.encoders.in_use import settled_attributes

_LIBRARIES = ("torch", "torchvision", "timm", "transformers", "PIL", "numpy", "builtins", "skjepa", "functools", "math")
_BASE = frozenset(vars(nn.Module())) | {"training"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# Attributes of library modules that do not decide the output: origin, configuration, caches.
_PAPERS = re.compile(r"config|cfg|info|cache|hf_|generation")
_KINDS = (bool, int, float, complex, str, tuple, types.FunctionType)
_DATA = (tuple, list, dict, set, Tensor, np.ndarray)
_CONTENTS = (Tensor, np.ndarray, dict, list, set, types.MethodType, functools.partial)
_TELL_NOTHING = (type(threading.Lock()), type(threading.RLock()))
_NUMBERS = frozenset({bool, int, float, type(None)})
_SIMPLE = (bool, int, float, complex, str, bytes, enum.Enum, type(None))


def plain_attributes(module: nn.Module) -> dict[str, str]:
    """Describe numbers, strings and functions in plain attributes of modules, which affect the output as weights do."""
    return {
        f"{name}.{key}": describe(value)
        for name, part in module.named_modules()
        for key, value in settled_attributes(part).items()
        if key not in _BASE and isinstance(value, _KINDS) and not key.startswith("_")
    }


def code_and_state(module: nn.Module) -> tuple[dict[str, str], list[str]]:
    """Describe what affects the output of a module beside architecture, parameters and `plain_attributes`.

    For classes of the user, these are the source code and every attribute. For library classes, these are changes to
    the instance: hooks, a replaced `forward`, tensors and containers.

    Returns
    -------
    dict of name -> text
        Empty if there is nothing of that kind.
    list of str
        Names of attributes that cannot be described, because their text differs each time or shows no content.
    """
    names = {id(part): name for name, part in module.named_modules()}
    found, unknown = {}, []
    for name, part in module.named_modules():
        is_own = not _is_of_library(type(part))
        parts: dict[str, Any] = {}
        forward = getattr(type(part), "forward", None)  # TorchScript has none
        if is_own or (forward is not None and not _is_of_library(forward)):
            parts["class"] = type(part) if is_own else forward
        attributes = settled_attributes(part)
        for key in _HOOKS:
            if attributes.get(key):
                parts[key] = [_without_containers(hook) for hook in attributes[key].values()]
        for key, value in attributes.items():
            if key in _BASE:
                continue
            is_plain = isinstance(value, _KINDS) and not key.startswith("_")
            if is_plain and not (isinstance(value, types.FunctionType) and _globals_of(value)):
                continue
            changed = isinstance(value, _CONTENTS) and not key.startswith("_") and not _PAPERS.search(key)
            if is_own or (changed and not type(part).__module__.startswith("skjepa.")):
                parts[key] = value
        for key, value in parts.items():
            writer = _Writer(names)
            found[f"{name}.{key}"] = writer.text(value, 8)
            unknown += [f"{name}.{key}".lstrip(".")] * bool(writer.unknown)
    return found, unknown


def describe(value: Any) -> str:
    """Describe a function or value for a fingerprint: source code, parameters and everything it refers to."""
    if type(value) in _NUMBERS:  # a shortcut for the most frequent values
        return repr(value)
    if type(value) is tuple and all(type(item) in _NUMBERS for item in value):
        return repr(list(value))
    return _Writer({}).text(value, 10)


class _Writer:
    """Write one description, in which a user's functions include the globals that they use.

    Parameters
    ----------
    names : dict
        Names, by `id`, of modules that are described elsewhere.
    """

    def __init__(self, names: dict[int, str]) -> None:
        self.names = names
        self.inside: set[int] = set()
        self.unknown = False

    def text(self, value: Any, depth: int) -> str:
        if depth == 0 or isinstance(value, _SIMPLE):
            return without_addresses(repr(value))
        if id(value) in self.names:
            return f"<module {self.names[id(value)]}>"
        if id(value) in self.inside:
            return "<itself>"
        self.inside.add(id(value))
        try:
            return self._text(value, depth - 1)
        finally:
            self.inside.discard(id(value))

    def _text(self, value: Any, depth: int) -> str:
        if isinstance(value, Tensor):
            value = value.detach().cpu()
            value = (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        if isinstance(value, np.ndarray):
            return f"array({value.dtype}, {value.shape}, {hashlib.sha256(np.ascontiguousarray(value)).hexdigest()})"
        if isinstance(value, Mapping):
            return "{" + ", ".join(f"{key!r}: {self.text(item, depth)}" for key, item in value.items()) + "}"
        if isinstance(value, list | tuple | set | frozenset):
            items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
            return f"[{', '.join(self.text(item, depth) for item in items)}]"
        if isinstance(value, functools.partial):
            return f"partial{self.text([value.func, value.args, value.keywords], depth)}"
        if isinstance(value, type) and not _is_of_library(value):
            return self._class(value, depth)
        if isinstance(value, types.ModuleType):
            return f"{value.__name__}{self.text(_plain_names(value), depth)}"
        carried = [*_carried(value), *_globals_of(value)]
        inside = self.text(carried, depth) if carried else ""
        if callable(value) and hasattr(value, "__qualname__"):  # not generators
            return _source_code(value) + inside
        return self._object(value, inside)

    def _object(self, value: Any, inside: str) -> str:
        """Describe an object that is not a function: its class with its state, or else its repr."""
        code = _source_code(type(value))
        if inside:
            return code + inside
        said = repr(value)
        if " at 0x" in said and not isinstance(value, _TELL_NOTHING):
            try:
                return code + self.text(value.__reduce_ex__(2)[1:3], 4)
            except Exception:  # an object that cannot be pickled may raise anything
                self.unknown = True
        return code + without_addresses(said)

    def _class(self, cls: type, depth: int) -> str:
        """Describe the current functions and plain attributes of a class and its bases; its source may be older."""
        found = [cls.__qualname__]
        for base in cls.__mro__:
            if _is_of_library(base):
                continue
            for key, item in sorted(vars(base).items()):
                function = getattr(item, "__func__", getattr(item, "fget", item))
                if key.startswith("__") and key not in ("__call__", "__getattr__", "__getattribute__"):
                    continue  # other special methods do not decide the output
                if isinstance(function, types.FunctionType) or isinstance(item, (*_SIMPLE, tuple, *_CONTENTS)):
                    found.append(f"{key}: {self.text(function, depth)}")
        return "\n".join(found)


def _without_containers(hook: Any) -> Any:
    """Return a hook's code with the numbers, tensors and objects it refers to, without lists, which it may fill."""
    function = getattr(hook, "__func__", hook)
    if not isinstance(function, types.FunctionType):
        return hook
    carried = [_numbers_in(item) for item in _carried(function) if not isinstance(item, list | set)]
    named = [(name, _numbers_in(item)) for name, item in _globals_of(function) if not isinstance(item, list | set)]
    owner = getattr(hook, "__self__", None)
    its = None if owner is None else [type(owner), _numbers_in(getattr(owner, "__dict__", {}))]
    return [_source_code(function), carried, its, named]


def _numbers_in(item: Any) -> Any:
    """Keep of a dict only numbers and strings, which are settings, not what a hook stores in it."""
    return {key: value for key, value in item.items() if isinstance(value, _SIMPLE)} if isinstance(item, dict) else item


def _is_of_library(code: Any) -> bool:
    return (getattr(code, "__module__", None) or "").partition(".")[0] in _LIBRARIES


def _globals_of(function: Any) -> list[Any]:
    """Return the globals that a user's function uses: numbers, tensors, and other functions of the user's."""
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType) or _is_of_library(function):
        return []
    named = [
        (name, function.__globals__[name]) for name in _names_in(function.__code__) if name in function.__globals__
    ]
    return [(name, value) for name, value in named if isinstance(value, (*_SIMPLE, *_DATA)) or _is_the_users(value)]


def _is_the_users(value: Any) -> bool:
    """Return whether a global is a function, class, module or object of the user, and not a network."""
    if isinstance(value, types.ModuleType):
        is_installed = "site-packages" in (getattr(value, "__file__", None) or "")
        return not is_installed and value.__name__.partition(".")[0] not in (*_LIBRARIES, *sys.stdlib_module_names)
    if isinstance(value, nn.Module):
        return False
    kind = value if isinstance(value, type | types.FunctionType) else type(value)
    if (getattr(kind, "__module__", None) or "").partition(".")[0] in sys.stdlib_module_names:
        return isinstance(value, types.SimpleNamespace)
    return not _is_of_library(kind)


def _plain_names(module: types.ModuleType) -> dict[str, Any]:
    return {name: value for name, value in vars(module).items() if isinstance(value, _SIMPLE) and name[:2] != "__"}


@functools.lru_cache(maxsize=4096)
def _names_in(code: types.CodeType) -> tuple[str, ...]:
    """Return the global names that code and its inner functions load, without names of attributes."""
    own = [step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")]
    inner = [name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names_in(const)]
    return tuple(dict.fromkeys([*own, *inner]))


def _carried(value: Any) -> list[Any]:
    """Return what a function, a bound method or an object refers to beside its code: closure, defaults, state."""
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
        return name  # for library code the name is enough
    try:
        source = _source(getattr(code, "__code__", code))
        # The source of a lambda is its whole line, which may hold another lambda.
        inside = (code.__code__.co_code, code.__code__.co_consts) if "<lambda>" in name else ""
        return source + without_addresses(repr(inside))
    except (OSError, TypeError):  # typed at a prompt
        return without_addresses(name + _byte_code(getattr(code, "__code__", None)))


@functools.lru_cache(maxsize=4096)
def _source(code: Any) -> str:
    return inspect.getsource(code)


def _byte_code(code: types.CodeType | None) -> str:
    """Describe a function without source by its byte code, which depends on the version of Python."""
    if code is None:
        return ""
    inner = [_byte_code(const) if isinstance(const, types.CodeType) else repr(const) for const in code.co_consts]
    return repr((code.co_code, code.co_names, inner))


def without_addresses(text: str) -> str:
    """Remove memory addresses from a repr, so that it is the same in every process."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", text) if " at 0x" in text else text
