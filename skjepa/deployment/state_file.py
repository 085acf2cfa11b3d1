"""Save the state of a monitor as one JSON file, and check it when it is loaded."""

import json
import os
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from skjepa._utils.files import written_whole

FORMAT = 1


class SavedState(ABC):
    """Base class of objects that are saved by `state` and loaded by `from_state`."""

    STATE: ClassVar[frozenset[str]]

    @property
    @abstractmethod
    def state(self) -> dict[str, Any]:
        """The full state of the object, as numbers, text, lists and dicts, under the names of `STATE`."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Make an object from its `state`; raise ValueError or TypeError where the state is damaged."""

    @classmethod
    def _require_names(cls, state: Any) -> None:
        if not isinstance(state, dict) or state.keys() != cls.STATE:
            raise ValueError(f"the state of a monitor must be a dict with {', '.join(sorted(cls.STATE))}")

    def save(self, path: str | os.PathLike) -> Path:
        """Write the monitor to a JSON file, whole or not at all."""
        return write_state(path, type(self).__name__, self.state)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Load a monitor that `save` wrote; it continues where it was saved.

        Raises
        ------
        FileNotFoundError, ValueError, TypeError
            There is no such file, or it is damaged.
        """
        return cls.from_state(read_state(path, cls.__name__, set(cls.STATE)))


def write_state(path: str | os.PathLike, kind: str, state: dict[str, Any]) -> Path:
    """Write the state of an object of class `kind`, which must not hold NaN."""
    path = Path(path)
    text = json.dumps({"format": FORMAT, "class": kind, **state}, allow_nan=False)
    with written_whole(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return path


def read_state(path: str | os.PathLike, kind: str, names: set[str]) -> dict[str, Any]:
    """Read a state that `write_state` wrote, with exactly these names.

    Raises
    ------
    FileNotFoundError, ValueError
        There is no such file, or it is not JSON or has another class, format or other names.
    """
    try:
        state = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no file {path}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(state, dict) or state.pop("class", None) != kind:
        raise ValueError(f"{path} does not hold a {kind}")
    if (found := state.pop("format", None)) != FORMAT:
        raise ValueError(
            f"{path} has format {found!r}, and this version of skjepa reads {FORMAT}: load it with the version that "
            "wrote it"
        )
    if state.keys() != names:
        raise ValueError(f"{path} is damaged: it must hold {', '.join(sorted(names))}; got {', '.join(sorted(state))}")
    return state


def numbers_of(name: str, values: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Return finite numbers of a state as an array of this shape, where -1 stands for any length.

    Raises
    ------
    ValueError
        The values are not numbers, not finite, or have another shape.
    """
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers") from None
    fits = array.ndim == len(shape) and all(a in (b, -1) or b == -1 for a, b in zip(array.shape, shape, strict=True))
    if not fits or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite numbers of shape {shape}; got shape {array.shape}")
    return array
