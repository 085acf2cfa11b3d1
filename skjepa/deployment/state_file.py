"""What a monitor knows, as one JSON file: written whole or not at all, and looked at before it is believed."""

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
    """Saves and loads what `state` holds and `from_state` takes."""

    STATE: ClassVar[frozenset[str]]

    @property
    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that the object knows, as numbers, text, lists and dicts, under the names of `STATE`."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The object of a `state`; raises ValueError or TypeError where it is damaged."""

    @classmethod
    def _require_names(cls, state: Any) -> None:
        if not isinstance(state, dict) or state.keys() != cls.STATE:
            raise ValueError(f"the state of a monitor holds {', '.join(sorted(cls.STATE))}")

    def save(self, path: str | os.PathLike) -> Path:
        """Write the monitor to a JSON file, whole or not at all."""
        return write_state(path, type(self).__name__, self.state)

    @classmethod
    def load(cls, path: str | os.PathLike) -> Self:
        """Read a monitor that `save` wrote: it goes on as if it had not been away.

        Raises
        ------
        FileNotFoundError, ValueError, TypeError
            No such file, or a damaged one.
        """
        return cls.from_state(read_state(path, cls.__name__, set(cls.STATE)))


def write_state(path: str | os.PathLike, kind: str, state: dict[str, Any]) -> Path:
    """Write the state of an object of class `kind`; no NaN."""
    path = Path(path)
    text = json.dumps({"format": FORMAT, "class": kind, **state}, allow_nan=False)
    with written_whole(path) as partial:
        partial.write_text(text + "\n", encoding="utf-8")
    return path


def read_state(path: str | os.PathLike, kind: str, names: set[str]) -> dict[str, Any]:
    """What `write_state` wrote, with exactly these names.

    Raises
    ------
    FileNotFoundError, ValueError
        No such file; no JSON, another class or format, or other names.
    """
    try:
        state = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no file {path}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if not isinstance(state, dict) or state.pop("class", None) != kind:
        raise ValueError(f"{path} holds no {kind}")
    if (found := state.pop("format", None)) != FORMAT:
        raise ValueError(f"{path} is of format {found!r}; this version reads {FORMAT}")
    if state.keys() != names:
        raise ValueError(
            f"{path} is damaged: it should hold {', '.join(sorted(names))}; got {', '.join(sorted(state))}"
        )
    return state


def numbers_of(name: str, values: Any, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Finite numbers of a state, of that shape; -1 stands for any length.

    Raises
    ------
    ValueError
    """
    try:
        array = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} must be numbers") from None
    fits = array.ndim == len(shape) and all(a in (b, -1) or b == -1 for a, b in zip(array.shape, shape, strict=True))
    if not fits or not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite numbers of shape {shape}; got shape {array.shape}")
    return array
