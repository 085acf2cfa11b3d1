"""Monitor the scores of a detector for drift, by ranking each sample among normal and earlier samples."""

import math
from bisect import bisect_left, bisect_right, insort
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skjepa._utils.validation import seed_from
from skjepa.deployment.drift import DriftMonitor, by_stream
from skjepa.deployment.drift_alarm import DriftAlarm
from skjepa.deployment.state_file import SavedState, numbers_of
from skjepa.deployment.stream_values import AXES, normal_values
from skjepa.detectors.base import CalibratedDetector

FIRST = 500
"""Number of first samples of a stream that serve as its normal samples if it has no others."""

_BLOCK = 1024  # samples for which random numbers are drawn together


class ScoreMonitor(SavedState):
    """Raise an alarm where the score of a detector, or a term of it, drifts away from its values for normal samples.

    Use it to watch a stream of new samples. Within `horizon` normal samples it raises a false alarm with probability at
    most `level`, over draws of the normal samples as well.

    Each value is ranked among the normal values and all values of the stream before it. Its p-value is the share of
    these that lies below, plus a random part of the share that is equal, the new value included. While the stream is
    exchangeable with the normal samples, these p-values are exactly independent and uniform for any scores, as
    `DriftMonitor` requires. Without the random part, ties would make p-values larger than uniform, and a bet on large
    p-values would win. After `horizon` samples the ranks restart from the normal values, which bounds the memory.

    A stream without normal values is ranked among its own. An alarm then means that the stream changed, but not that it
    differed from the fit from the start. Its first 500 samples serve as its normal values after a restart.

    Parameters
    ----------
    normal : dict of name -> array of shape (n,)
        The result of `normal_values`: values of normal samples that the detector was not fitted on, or n = 0 values.
    level, betting, horizon
        See `DriftMonitor`.
    random_state : int, RandomState or Generator, optional
        Seeds how ties are broken; None means 0. A monitor that is saved and loaded continues with the same numbers.

    Attributes
    ----------
    monitor : DriftMonitor
        The monitor of the p-values, with `log_martingale` and `n`.
    p_values : dict of name -> array of shape (n,)
        p-values of the last `update`; NaN where there was no value.

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa.deployment import ScoreMonitor
    >>> rng = np.random.default_rng(0)
    >>> monitor = ScoreMonitor({"score": rng.normal(size=200)})
    >>> monitor.update({"score": rng.normal(size=500)})
    []
    >>> alarm, = monitor.update({"score": rng.normal(size=200) - 1})
    >>> abs(alarm.since - 500) < 30
    True
    """

    STATE = frozenset(("monitor", "seed", "normal", "first", "since_start"))

    def __init__(
        self,
        normal: Mapping[str, ArrayLike],
        level: float = 0.01,
        *,
        betting: str = "jumper",
        horizon: int = 10_000,
        random_state: Any = None,
    ) -> None:
        self.monitor = DriftMonitor(level, streams=normal, betting=betting, horizon=horizon)
        self._seed = seed_from(random_state)
        self._block, self._drawn = -1, np.zeros((0, 0))
        self._normal = [numbers_of(f"normal values of {name!r}", values, (-1,)) for name, values in normal.items()]
        self.reset()

    @classmethod
    def of(
        cls,
        detector: CalibratedDetector,
        X_normal: Any = None,
        level: float = 0.01,
        *,
        axes: int = AXES,
        **options: Any,
    ) -> Self:
        """Make the monitor of a fitted detector, whose `update` takes the result of `stream_values`.

        Parameters
        ----------
        detector : CalibratedDetector
            Fitted detector.
        X_normal : images, vectors or Extraction, optional
            Normal samples that the detector was not fitted on; for the default see `normal_values`.
        level : float
            Largest probability of a false alarm within `horizon` normal samples.
        axes : int
            Axes per layer, see `stream_values`. With 0, changes after which each sample still looks normal by itself
            are not detected.
        **options
            betting, horizon and random_state.
        """
        return cls(normal_values(detector, X_normal, axes), level, **options)

    def reset(self) -> None:
        """Forget all samples and alarms, and keep the normal values."""
        self.monitor.reset()
        self._earliest: list[list[float]] = [[] for _ in self._normal]
        self._since_start: list[list[float]] = [[] for _ in self._normal]
        self._rank_anew(with_earliest=False)
        self.p_values = {name: np.zeros(0) for name in self.monitor.streams}

    @property
    def alarms(self) -> tuple[DriftAlarm, ...]:
        return self.monitor.alarms

    @property
    def alarm(self) -> DriftAlarm | None:
        """The earliest alarm, or None."""
        return self.monitor.alarm

    def update(self, values: Mapping[str, ArrayLike]) -> list[DriftAlarm]:
        """Add the values of new samples, in the order of the samples.

        Parameters
        ----------
        values : dict of name -> number or array of shape (n,)
            The result of `stream_values`: values of every stream, higher = more normal. NaN counts as a sample and
            changes nothing else.

        Returns
        -------
        list of DriftAlarm
            New alarms.

        Raises
        ------
        ValueError
            The streams have other names or different numbers of samples, or a value is infinite. Then no sample is
            added.
        """
        rows = by_stream(values, self.monitor.streams)
        if np.isinf(rows).any():
            raise ValueError("values must be finite, or NaN for a sample that could not be read; got infinity")
        ranked = [self._ranked(row, self.monitor.n + i) for i, row in enumerate(rows)]
        p = np.array(ranked, dtype=np.float64).reshape(rows.shape)
        self.p_values = dict(zip(self.monitor.streams, p.T, strict=True))
        return self.monitor.update(self.p_values)

    def _ranked(self, row: NDArray[np.float64], n: int) -> list[float]:
        """Return the p-values of sample number n, one per stream, and add it to the values for later ranks."""
        if n and n % self.monitor.horizon == 0:
            self._since_start = [[] for _ in self._normal]
            self._rank_anew(with_earliest=True)
        p = [math.nan] * len(row)
        for j, (value, part) in enumerate(zip(row.tolist(), self._parts(n), strict=True)):
            if value == value:  # not NaN
                known = self._known[j]
                below, up_to = bisect_left(known, value), bisect_right(known, value)
                p[j] = (below + part * (up_to - below + 1)) / (len(known) + 1)
                insort(known, value)
                self._since_start[j].append(value)
                if not len(self._normal[j]) and len(self._earliest[j]) < FIRST:
                    self._earliest[j].append(value)
        return p

    def _parts(self, n: int) -> list[float]:
        """Return the random part of equal values that counts as lower, per stream; it depends on seed and n alone."""
        block = n // _BLOCK
        if block != self._block:
            shape = (_BLOCK, len(self._normal))
            self._drawn, self._block = np.random.default_rng([self._seed, block]).random(shape), block
        return self._drawn[n % _BLOCK].tolist()

    def _rank_anew(self, *, with_earliest: bool) -> None:
        """Rank new values among the normal values and the values since the last restart.

        `with_earliest` adds the first values of streams without normal values, once a restart has removed them from the
        values since the last restart.
        """
        self._known = [
            sorted([*normal.tolist(), *(first if with_earliest else []), *since])
            for normal, first, since in zip(self._normal, self._earliest, self._since_start, strict=True)
        ]

    @property
    def state(self) -> dict[str, Any]:
        """The full state of the monitor, as numbers, text, lists and dicts."""
        return {
            "monitor": self.monitor.state,
            "seed": self._seed,
            "normal": [values.tolist() for values in self._normal],
            "first": self._earliest,
            "since_start": self._since_start,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Make a monitor from its `state`.

        Raises
        ------
        ValueError, TypeError
            The state is damaged; the message names the damaged part.
        """
        cls._require_names(state)
        inner = DriftMonitor.from_state(state["monitor"])
        lists = {name: _lists(name, state[name], len(inner.streams)) for name in ("normal", "first", "since_start")}
        normal = dict(zip(inner.streams, lists["normal"], strict=True))
        made = cls(normal, inner.level, betting=inner.betting, horizon=inner.horizon, random_state=state["seed"])
        made.monitor, made._earliest, made._since_start = inner, lists["first"], lists["since_start"]
        if any(len(values) > inner.horizon for values in made._since_start):
            raise ValueError(f"since_start must hold at most {inner.horizon} values of a stream")
        made._rank_anew(with_earliest=inner.n > inner.horizon)
        return made


def _lists(name: str, told: Any, n_streams: int) -> list[list[float]]:
    if not isinstance(told, list) or len(told) != n_streams:
        raise ValueError(f"{name} must hold one list for each of {n_streams} streams")
    return [numbers_of(name, values, (-1,)).tolist() for values in told]
