"""Save objects as a folder of JSON and safetensors, without pickle, so that reading one runs no code from it.

A class takes part by the decorator `portable`. Its instances are written as their attributes (or what its method
`portable_state` returns) and rebuilt by setting them (or by its class method `from_portable_state`). Attributes are
numbers, strings, None, arrays, lists, tuples, dicts with string keys, and other portable objects. The class declares
them, see ``persistence.schema``, and a folder with other attributes is refused. A method `portable_check` may raise
ValueError for attributes that do not fit together, which declarations cannot express.

A folder holds two files of fixed names and no path that is opened. The checksum detects damage, not who wrote it.
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
import textwrap
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from skjepa.persistence.schema import Record, SchemaError, check

FORMAT = 2
OBJECT_FILE, ARRAY_FILE = "object.json", "arrays.safetensors"
LARGEST_JSON = 1 << 26
"""Most bytes of the JSON file; long values are arrays, in the other file."""

_FILES = {OBJECT_FILE, ARRAY_FILE}
_PORTABLE: dict[str, type] = {}
_Class = TypeVar("_Class", bound=type)
_Instance = TypeVar("_Instance")
Given = dict[str, Any]


class NotPortableError(TypeError):
    """Raised when something cannot be written without pickle; the message names it."""


class NotHereError(ValueError):
    """Raised when a saved object is intact but needs something that is missing or different here."""


def portable(cls: _Class) -> _Class:
    """Register a class, under its name, so that its instances can be written and read without pickle."""
    _PORTABLE[cls.__name__] = cls
    return cls


def is_portable(value: Any) -> bool:
    """Return whether the value is an instance of a portable class."""
    return _PORTABLE.get(type(value).__name__) is type(value)


def write_folder(value: Any, path: str | os.PathLike, *, versions: dict[str, str]) -> Path:
    """Write a portable object as a folder, whole or not at all.

    Parameters
    ----------
    value : portable object
    path : path-like
        Folder to create; a folder of a saved object is replaced.
    versions : dict
        Versions of packages, as information for the reader.

    Returns
    -------
    Path
        The folder.

    Raises
    ------
    NotPortableError
        If an attribute cannot be written or could not be read again; the message names it.
    FileExistsError
        If `path` exists and is not a saved object.
    """
    path = Path(path)
    if path.is_symlink() or (path.exists() and not (path.is_dir() and {p.name for p in path.iterdir()} == _FILES)):
        raise FileExistsError(f"{path} exists and is not a saved detector: choose another name")
    arrays: dict[str, NDArray] = {}
    try:
        tree = _encode(value, type(value).__name__, arrays)
        check(_decode(tree, arrays))
    except ValueError as error:
        raise NotPortableError(f"{error}, to be written without pickle") from error
    packed = save_arrays(arrays)
    document = {"format": FORMAT, "versions": versions, "sha256": _digest(tree, packed), "object": tree}
    text = json.dumps(document, indent=1, allow_nan=False)
    if len(text) > LARGEST_JSON:
        raise NotPortableError(f"{OBJECT_FILE} would have {len(text)} bytes; at most {LARGEST_JSON} are allowed")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        (partial / ARRAY_FILE).write_bytes(packed)
        (partial / OBJECT_FILE).write_text(text)
        partial.chmod(0o755)
        if path.exists():
            shutil.rmtree(path)
        partial.rename(path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def read_folder(path: str | os.PathLike, given: Given | None = None) -> Any:
    """Read an object that `write_folder` wrote, without running code from the folder.

    Parameters
    ----------
    path : path-like
    given : dict, optional
        Objects that the folder does not hold, such as an encoder; passed to `from_portable_state`.

    Returns
    -------
    object
        An instance of the portable class that was written.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    NotHereError
        If it needs an encoder that is not given, or a different one is given.
    ValueError
        If it is not such a folder, is damaged, changed or of another format, or does not hold what the classes declare;
        the message names the folder and, if possible, the attribute.
    """
    path = Path(path)
    if not path.is_dir():
        raise FileNotFoundError(f"there is no folder {path}: give the folder of a saved detector")
    for name in _FILES:
        if (path / name).is_symlink() or not (path / name).is_file():
            raise ValueError(f"{path} is not a saved detector: it has no file {name}")
    if (size := (path / OBJECT_FILE).stat().st_size) > LARGEST_JSON:
        raise ValueError(f"{path} is damaged: {OBJECT_FILE} has {size} bytes; at most {LARGEST_JSON} are allowed")
    try:
        document = json.loads((path / OBJECT_FILE).read_text(encoding="utf-8"), parse_constant=_refuse)
        version, expected, tree = document["format"], document["sha256"], document["object"]
        found = _digest(tree, packed := (path / ARRAY_FILE).read_bytes())
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {OBJECT_FILE} cannot be read ({error!r})") from error
    if type(version) is not int or version != FORMAT:
        raise ValueError(
            f"{path} has format {version!r}; this version of skjepa reads format {FORMAT}: fit and save again, or read "
            "it with the version that wrote it"
        )
    if found != expected:
        raise ValueError(f"{path} is damaged: {OBJECT_FILE} or {ARRAY_FILE} is not the file that was written")
    try:
        record = _decode(tree, load_arrays(packed))
        if not isinstance(record, Record):
            raise ValueError(f"{OBJECT_FILE} holds no object")
        check(record)
        with np.errstate(all="ignore"):  # forged numbers may overflow; what they make is checked
            return _built(record, record.cls.__name__, given or {})
    except NotHereError:
        raise
    except (ValueError, TypeError, KeyError, ArithmeticError, RecursionError, SafetensorError) as error:
        raise ValueError(f"{path} is damaged or forged: {error}") from error


def read_instance(cls: type[_Instance], path: str | os.PathLike, given: Given | None = None) -> _Instance:
    """The object of a folder, see `read_folder`, where it is one of the class; else a ValueError that names both."""
    made = read_folder(path, given)
    if not isinstance(made, cls):
        raise ValueError(f"{path} holds a {type(made).__name__}, not a {cls.__name__}")
    return made


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
        if hasattr(value, "portable_check"):
            value.portable_check()
        state = value.portable_state() if hasattr(value, "portable_state") else vars(value)
        inner = {key: _encode(item, f"{where}.{key}", arrays) for key, item in state.items()}
        return {"$class": type(value).__name__, "state": inner}
    raise NotPortableError(
        f"{where} is {value!r}, which cannot be written without pickle: use joblib.dump, and load its file only where "
        "you trust it"
    )


def _decode(tree: Any, arrays: dict[str, NDArray]) -> Any:
    """Decode a tree of JSON values, with a `Record` for each object."""
    if isinstance(tree, list):
        return [_decode(item, arrays) for item in tree]
    if not isinstance(tree, dict):
        return tree
    if not any(key.startswith("$") for key in tree):
        return {key: _decode(item, arrays) for key, item in tree.items()}
    match tree:
        case {"$class": str(name), "state": dict(state), **more} if not more and name in _PORTABLE:
            return Record(_PORTABLE[name], {key: _decode(item, arrays) for key, item in state.items()})
        case {"$float": "inf" | "-inf" | "nan" as text, **more} if not more:
            return float(text)
        case {"$array": str(name), **more} if not more and name in arrays:
            return arrays[name]
        case {"$names": list(names), **more} if not more and all(isinstance(name, str) for name in names):
            return np.array(names, dtype=object)
        case {"$tuple": list(items), **more} if not more:
            return tuple(_decode(item, arrays) for item in items)
    raise ValueError(f"{OBJECT_FILE} has an unknown entry: {textwrap.shorten(repr(tree), 60)}")


def _built(value: Any, where: str, given: Given) -> Any:
    """Build the objects of all records in a value, the innermost first."""
    if isinstance(value, list | tuple) and not isinstance(value, Record):
        return type(value)(_built(item, f"{where}[{i}]", given) for i, item in enumerate(value))
    if isinstance(value, dict):
        return {key: _built(item, f"{where}[{key!r}]", given) for key, item in value.items()}
    if not isinstance(value, Record):
        return value
    cls: Any = value.cls
    state = {key: _built(item, f"{where}.{key}", given) for key, item in value.state.items()}
    try:
        if hasattr(cls, "from_portable_state"):
            made = cls.from_portable_state(state, given)
        else:
            made = cls.__new__(cls)
            made.__dict__.update(state)
        if hasattr(cls, "portable_check"):
            made.portable_check()
    except NotHereError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, ArithmeticError, RuntimeError) as error:
        raise SchemaError(where, f"cannot be what was saved: {error}") from error
    return made


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _digest(tree: Any, packed: bytes) -> str:
    """Return one hash of both files, so that a change in either is detected."""
    digest = hashlib.sha256(json.dumps(tree, sort_keys=True).encode())
    digest.update(packed)
    return digest.hexdigest()
