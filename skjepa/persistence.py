"""Objects as a folder of JSON and safetensors, without pickle: nothing in such a folder can run when it is read.

A class takes part by the decorator `portable`. Its instances are written as their attributes (or what its method
`portable_state` returns) and made again by setting them (or by its class method `from_portable_state`). Attributes are
numbers, strings, None, arrays, lists, tuples, dicts with string keys, and other portable objects.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

FORMAT = 1
OBJECT_FILE, ARRAY_FILE = "object.json", "arrays.safetensors"
_FILES = {OBJECT_FILE, ARRAY_FILE}
_PORTABLE: dict[str, type] = {}
_Class = TypeVar("_Class", bound=type)
Given = dict[str, Any]


class NotPortableError(TypeError):
    """Something cannot be written without pickle; the message names it."""


def portable(cls: _Class) -> _Class:
    """Let instances of a class be written and read, under its name."""
    _PORTABLE[cls.__name__] = cls
    return cls


def is_portable(value: Any) -> bool:
    """Whether the value is an instance of a portable class."""
    return _PORTABLE.get(type(value).__name__) is type(value)


def write_folder(value: Any, path: str | os.PathLike, *, versions: dict[str, str]) -> Path:
    """Write a portable object as a folder, whole or not at all.

    Parameters
    ----------
    value : portable object
    path : path-like
        Made, or replaced where it is such a folder already.
    versions : dict
        Of packages, for the reader's information.

    Raises
    ------
    NotPortableError
        Names the attribute that cannot be written.
    FileExistsError
        `path` exists and is something else.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not (path.is_dir() and {p.name for p in path.iterdir()} == _FILES)):
        raise FileExistsError(f"{path} exists and is not a saved detector; choose another name")
    arrays: dict[str, NDArray] = {}
    tree = _encode(value, type(value).__name__, arrays)
    packed = save_arrays(arrays)
    document = {"format": FORMAT, "versions": versions, "sha256": _digest(tree, packed), "object": tree}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        (partial / ARRAY_FILE).write_bytes(packed)
        (partial / OBJECT_FILE).write_text(json.dumps(document, indent=1, allow_nan=False))
        partial.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def read_folder(path: str | os.PathLike, given: Given | None = None) -> Any:
    """The object that `write_folder` wrote.

    Parameters
    ----------
    path : path-like
    given : dict, optional
        What `from_portable_state` may need that the folder does not hold, handed to it as it is.

    Raises
    ------
    FileNotFoundError
        No such folder.
    ValueError
        Damaged, changed, of an unknown format, or not such a folder; names the folder.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"no folder {path}")
    for name in _FILES:
        if (path / name).is_symlink() or not (path / name).is_file():
            raise ValueError(f"{path} is not a saved detector: it has no file {name}")
    try:
        document = json.loads((path / OBJECT_FILE).read_text(encoding="utf-8"))
        version, expected, tree = document["format"], document["sha256"], document["object"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {OBJECT_FILE} cannot be read ({error})") from error
    if type(version) is not int or version != FORMAT:
        raise ValueError(f"{path} has format {version!r}; this version of skjepa reads {FORMAT}")
    packed = (path / ARRAY_FILE).read_bytes()
    if _digest(tree, packed) != expected:
        raise ValueError(f"{path} is damaged: {OBJECT_FILE} or {ARRAY_FILE} is not the file that was written")
    try:
        return _decode(tree, load_arrays(packed), given or {})
    except (SafetensorError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def _encode(value: Any, where: str, arrays: dict[str, NDArray]) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"$float": repr(value)}
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiub":
        name = f"{len(arrays)} {where}"
        arrays[name] = np.ascontiguousarray(value)
        return {"$array": name}
    if isinstance(value, np.ndarray) and all(isinstance(item, str) for item in value.flat):
        return {"$names": value.tolist()}
    if isinstance(value, list | tuple):
        items = [_encode(item, f"{where}[{i}]", arrays) for i, item in enumerate(value)]
        return {"$tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict) and all(isinstance(key, str) and not key.startswith("$") for key in value):
        return {key: _encode(item, f"{where}[{key!r}]", arrays) for key, item in value.items()}
    if is_portable(value):
        state = value.portable_state() if hasattr(value, "portable_state") else vars(value)
        inner = {key: _encode(item, f"{where}.{key}", arrays) for key, item in state.items()}
        return {"$class": type(value).__name__, "state": inner}
    raise NotPortableError(
        f"{where} is {value!r}, which cannot be written without pickle (joblib.dump writes it, to be loaded only "
        "where it is trusted)"
    )


def _decode(tree: Any, arrays: dict[str, NDArray], given: Given) -> Any:
    if isinstance(tree, list):
        return [_decode(item, arrays, given) for item in tree]
    if not isinstance(tree, dict):
        return tree
    special: dict[str, Callable[[Any], Any]] = {
        "$float": float,
        "$array": arrays.__getitem__,
        "$names": lambda names: np.array(names, dtype=object),
        "$tuple": lambda items: tuple(_decode(items, arrays, given)),
    }
    for key, make in special.items():
        if tree.keys() == {key}:
            return make(tree[key])
    if "$class" not in tree:
        return {key: _decode(item, arrays, given) for key, item in tree.items()}
    cls: Any = _PORTABLE[tree["$class"]]
    state = {key: _decode(item, arrays, given) for key, item in tree["state"].items()}
    if any(callable(getattr(cls, key, None)) for key in state):
        raise TypeError(f"{tree['$class']} has methods among its attributes")
    if hasattr(cls, "from_portable_state"):
        return cls.from_portable_state(state, given)
    made = cls.__new__(cls)
    made.__dict__.update(state)
    return made


def _digest(tree: Any, packed: bytes) -> str:
    """Of both files: a number changed in the one is no less wrong than in the other."""
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode())
    digest.update(packed)
    return digest.hexdigest()
