"""Check what a saved object holds against the annotations of its class, before anything is built from it.

A portable class annotates each of its attributes, or a `TypedDict` declares what is written (`declared_by`). Supported
are None, bool, int, float, str, `Literal`, unions, lists, tuples, dicts, `TypedDict`, NumPy arrays, portable classes
and Any. `Annotated` adds what a type cannot express:

- named dimensions of an array, ``Annotated[NDArray[np.float64], "n K"]``: a name stands for one size throughout an
  object, ``_`` for any size; an integer with a name is that size;
- sizes that another object shares with this one, ``Annotated[KNNDensity, "n K=R"]``: its n is our n, its K is our R;
- limits (`Above`), a `Mark`, or the narrower type that can be saved (`Saved`).
"""

import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Literal,
    NamedTuple,
    NotRequired,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
    is_typeddict,
)

import numpy as np

Sizes = dict[str, int]
_LARGEST = 1e150  # of the numbers of an array: squares of larger ones soon overflow
_T = TypeVar("_T")
_Class = TypeVar("_Class", bound=type)


class Mark(Enum):
    """Mark what a declaration allows or requires beyond its type."""

    FINITE = "finite"  # for a number; arrays must be finite unless marked
    MAY_BE_INFINITE = "may be infinite"  # for an array, which may also hold NaN
    MAY_LACK = "may lack"
    UNFITTED = "unfitted"


MayLack = Annotated[_T, Mark.MAY_LACK]
"""An attribute that may be missing."""

Unfitted = Annotated[_T, Mark.UNFITTED]
"""An estimator that may have only its parameters, unfitted."""


@dataclass(frozen=True)
class Above:
    """Require a number, or all of an array, to be finite, above `limit` and below `below`."""

    limit: float
    below: float = np.inf


@dataclass(frozen=True)
class Saved:
    """Name the type of an attribute that can be saved, if its type in use is wider."""

    kind: Any


class Record(NamedTuple):
    """Hold the class and attributes of an object that is not built yet."""

    cls: type
    state: dict[str, Any]


class SchemaError(ValueError):
    """Raised when an attribute does not match its declaration; the message names it."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where} {what}")
        self.where = where


class _OtherKind(SchemaError):
    def __init__(self, where: str, value: Any, kind: Any) -> None:
        super().__init__(where, f"is {_shown(value)}, must be {_words(kind)}")


def declared_by(state: Any) -> Any:
    """Return a class decorator: the class is written as this `TypedDict` declares, not by its own attributes."""

    def remember(cls: _Class) -> _Class:
        cls.__portable_state__ = state  # type: ignore[attr-defined]
        return cls

    return remember


def check(record: Record) -> None:
    """Raise SchemaError if a record, or one inside it, does not match the declarations of its class."""
    with np.errstate(all="ignore"):  # limits may exceed the range of small number types
        _check(record, record.cls, record.cls.__name__, {}, ())


def _check(value: Any, kind: Any, where: str, sizes: Sizes, marks: tuple) -> None:
    """Raise if a value is not of a kind; named sizes are compared with known ones and recorded."""
    while get_origin(kind) is Annotated:
        kind, *more = get_args(kind)
        marks = (*marks, *more)
    if saved := [mark for mark in marks if isinstance(mark, Saved)]:
        _check(value, saved[0].kind, where, sizes, tuple(mark for mark in marks if mark not in saved))
        return
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        _check_any_of(value, kind, where, sizes, marks)
    elif not _is_kind(value, kind):
        raise _OtherKind(where, value, kind)
    elif isinstance(value, Record):
        within = _check_attributes(value.state, value.cls, where, Mark.UNFITTED in marks)
        _check_shared(within, marks, where, sizes)
    elif is_typeddict(kind):
        _check_shared(_check_attributes(value, kind, where, False), marks, where, sizes)
    elif origin in (list, tuple, dict):
        for place, item, of in _items(value, origin, inner):
            _check(item, of, f"{where}[{place!r}]", sizes, ())
    elif kind is not Any:
        _check_numbers(value, marks, where, sizes)


def _is_kind(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is Literal:
        return isinstance(value, str) and value in inner
    if origin is np.ndarray:
        wanted = np.dtype(get_args(inner[1])[0]).kind
        return isinstance(value, np.ndarray) and value.dtype.kind in ("iu" if wanted in "iu" else wanted)
    if origin is tuple and inner[1:] != (...,):
        return type(value) is tuple and len(value) == len(inner)
    if is_typeddict(kind):
        return type(value) is dict
    if isinstance(value, Record):
        return kind in (Record, value.cls)
    wanted_type = {None: NoneType}.get(kind, origin or kind)
    if type(value) is int and wanted_type in (int, float):  # JSON has one number type, of any size
        return abs(value) < 2**63
    return type(value) is wanted_type


def _check_any_of(value: Any, kind: Any, where: str, sizes: Sizes, marks: tuple) -> None:
    errors = []
    for choice in get_args(kind):
        trial = dict(sizes)
        try:
            _check(value, choice, where, trial, marks)
        except SchemaError as error:
            errors.append(error)
        else:
            sizes.update(trial)
            return
    # Report the error of the choice that matches best: the one that fails deepest inside the value.
    of_the_kind = [error for error in errors if error.where != where or not isinstance(error, _OtherKind)]
    raise max(of_the_kind, key=lambda error: len(error.where), default=_OtherKind(where, value, kind))


def _items(value: Any, origin: Any, inner: tuple) -> Iterator[tuple[Any, Any, Any]]:
    """Yield key or index, item and kind of each item."""
    if origin is dict:
        yield from ((key, item, inner[1]) for key, item in value.items())
    elif origin is tuple and inner[1:] != (...,):
        yield from zip(range(len(inner)), value, inner, strict=True)
    else:
        yield from ((i, item, inner[0]) for i, item in enumerate(value))


def _check_attributes(state: dict[str, Any], declaration: Any, where: str, may_be_unfitted: bool) -> Sizes:
    kinds, required = _declared(getattr(declaration, "__portable_state__", declaration))
    if may_be_unfitted and state.keys() <= (parameters := set(inspect.signature(declaration).parameters)):
        required = required & parameters
    if missing := required - state.keys():
        raise SchemaError(where, f"lacks {min(missing)}")
    if unknown := state.keys() - kinds.keys():
        raise SchemaError(where, f"has no attribute {min(unknown)}")
    sizes: Sizes = {}
    for name, value in state.items():
        place = f"{where}[{name!r}]" if is_typeddict(declaration) else f"{where}.{name}"
        _check(value, kinds[name], place, sizes, ())
    return sizes


@cache
def _declared(declaration: Any) -> tuple[dict[str, Any], set[str]]:
    """Return the kinds of the attributes by name, and which of them are required."""
    hints = get_type_hints(declaration, include_extras=True)
    hints = {name: kind for name, kind in hints.items() if ClassVar not in (kind, get_origin(kind))}
    if is_typeddict(declaration):
        kinds = {name: get_args(kind)[0] if get_origin(kind) is NotRequired else kind for name, kind in hints.items()}
        return kinds, set(declaration.__required_keys__)
    may_lack = {name for name, kind in hints.items() if Mark.MAY_LACK in getattr(kind, "__metadata__", ())}
    return hints, hints.keys() - may_lack


def _check_numbers(value: Any, marks: tuple, where: str, sizes: Sizes) -> None:
    """Check that a number or an array is finite, in range and of the size that its names require."""
    limits = [mark for mark in marks if isinstance(mark, Above)]
    is_array = isinstance(value, np.ndarray)
    must_be_finite = Mark.FINITE in marks or limits or (is_array and Mark.MAY_BE_INFINITE not in marks)
    if must_be_finite and np.asarray(value).dtype.kind == "f" and not np.isfinite(value).all():
        raise SchemaError(where, "is not finite" if not is_array else "holds numbers that are not finite")
    if is_array and must_be_finite and value.dtype.kind == "f" and (np.abs(value) > _LARGEST).any():
        raise SchemaError(where, f"holds numbers beyond {_LARGEST:g}, whose squares overflow")
    for limit in limits:
        if not (np.all(value > limit.limit) and np.all(value < limit.below)):
            raise SchemaError(where, f"must be above {limit.limit:g} and below {limit.below:g}")
    for names in (mark.split() for mark in marks if isinstance(mark, str) and value is not None):
        shape = value.shape if is_array else (value,)
        if len(shape) != len(names):
            raise SchemaError(where, f"has shape {shape}, must be of shape ({', '.join(names)})")
        for name, size in zip(names, shape, strict=True):
            _bind(name, size, sizes, where)


def _check_shared(within: Sizes, marks: tuple, where: str, sizes: Sizes) -> None:
    """Check the sizes that the object in an attribute shares with the outer object."""
    for name in " ".join(mark for mark in marks if isinstance(mark, str)).split():
        theirs, _, ours = name.partition("=")
        if theirs in within:
            _bind(ours or theirs, within[theirs], sizes, where)


def _bind(name: str, size: int, sizes: Sizes, where: str) -> None:
    if name != "_" and size < 1:
        raise SchemaError(where, f"has {name} = {size}")
    if name != "_" and sizes.setdefault(name, size) != size:
        raise SchemaError(where, f"has {name} = {size}, which is {sizes[name]} elsewhere")


def _shown(value: Any) -> str:
    if isinstance(value, Record):
        return f"a {value.cls.__name__}"
    return f"an array of {value.dtype}" if isinstance(value, np.ndarray) else textwrap.shorten(repr(value), 60)


def _words(kind: Any) -> str:
    """Describe a kind in words."""
    if get_origin(kind) is Annotated:
        return _words(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_words, get_args(kind)))
    if get_origin(kind) is np.ndarray:
        return f"an array of {np.dtype(get_args(get_args(kind)[1])[0])}"
    if kind in (None, NoneType):
        return "None"
    return kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind).replace("typing.", "")
