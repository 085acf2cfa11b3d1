"""Check arguments; errors name the argument, what is allowed and what came."""

from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any

import numpy as np


def check_choice(name: str, value: Any, choices: Iterable[str]) -> str:
    """Return `value` if it is one of `choices`, otherwise raise ValueError that lists them."""
    choices = list(choices)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}; got {value!r}")
    return value


def check_integer(name: str, value: Any, *, minimum: int) -> int:
    """Return `value` as an int of at least `minimum`; raises for bools and floats."""
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be an integer; got {value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}; got {value}")
    return int(value)


def check_number(name: str, value: Any, *, above: float = -np.inf, below: float = np.inf, closed: str = "") -> float:
    """Return `value` as a finite float between the limits; "<" or ">" in `closed` includes the lower or upper limit."""
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
    """Return an integer seed from a scikit-learn style `random_state`.

    ``None`` means 0, so that a resumed run has the same views and splits. A ``numpy.random.RandomState`` or
    ``Generator`` is asked for one number.
    """
    if random_state is None:
        return 0
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if isinstance(random_state, np.random.Generator):
        return int(random_state.integers(2**31 - 1))
    seed = check_integer("random_state", random_state, minimum=0)
    if seed >= 2**32:
        raise ValueError(f"random_state must be below 2**32, like NumPy's seeds; got {seed}")
    return seed
