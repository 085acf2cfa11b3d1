"""Argument checks shared by every layer: one sentence that names the argument, what came and what is allowed."""

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`, else raise a ValueError that lists them."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
    return value


def check_integer(name: str, value: Any, *, minimum: int) -> int:
    """Return `value` as an int of at least `minimum`; bools and floats are refused."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")
    return int(value)


def check_number(name: str, value: Any, *, above: float = -np.inf, below: float = np.inf, closed: str = "") -> float:
    """Return `value` as a finite float inside the interval; `closed` holds "<" and / or ">" for the ends included."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number; got {value!r}")
    number = float(value)
    low = number >= above if "<" in closed else number > above
    high = number <= below if ">" in closed else number < below
    if not (np.isfinite(number) and low and high):
        left, right = "[" if "<" in closed else "(", "]" if ">" in closed else ")"
        raise ValueError(f"{name} must lie in {left}{above:g}, {below:g}{right}; got {value!r}")
    return number


def seed_from(random_state: Any) -> int:
    """One integer seed from an sklearn-style `random_state`.

    ``None`` means 0: views and splits must be the same in a resumed run. A ``numpy.random.RandomState`` or
    ``Generator`` gives one draw.
    """
    if random_state is None:
        return 0
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    seed = check_integer("random_state", random_state, minimum=0)
    if seed >= 2**32:
        raise ValueError(f"random_state must be under 2**32, as NumPy's seeds; got {seed}")
    return seed
