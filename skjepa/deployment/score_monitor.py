"""From scores to an alarm: each sample is ranked among the calibration samples and all samples before it."""

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
from skjepa.deployment.stream_values import normal_values
from skjepa.detectors.base import CalibratedDetector

FIRST = 500
"""So many samples of the stream itself are the normal ones of a stream that has none."""

_BLOCK = 1024  # samples whose random numbers are drawn together


class ScoreMonitor(SavedState):
    """Raise an alarm where the score of a detector, or a term of it, is no longer that of normal samples.

    Each value is ranked among the normal values and all values of the stream before it: p is the share that lies below,
    and of those that are equal (the new one among them) a random part. While the stream is exchangeable with the normal
    samples, p-values so made are independent and uniform, exactly and whatever the scores are, so that the promise of
    `DriftMonitor` holds: a false alarm within `horizon` normal samples with probability at most `level`, over draws of
    the normal samples too. The random part is needed: without it ties make p-values larger than uniform, and a bet on
    large ones would win. After `horizon` samples the ranks, too, start anew from the normal values, so memory is
    bounded.

    A stream without normal values is ranked among its own: an alarm then says that it changed, not that it was unlike
    the fit from the start. Its first 500 samples are its normal values at later starts.

    Parameters
    ----------
    normal : dict of name -> array of shape (n,)
        What `normal_values` returns: values of normal samples that the detector has not learned from, or of n = 0.
    level, betting, horizon
        See `DriftMonitor`.
    random_state : int, RandomState or Generator, optional
        Seeds how ties are broken; None means 0. A monitor that is saved and loaded goes on with the same numbers.

    Attributes
    ----------
    monitor : DriftMonitor
        Its `alarms`, `log_martingale` and `n`.
    p_values : dict of name -> array of shape (n,)
        Those of the last `update`; NaN where there was no value.

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
    def of(cls, detector: CalibratedDetector, X_normal: Any = None, level: float = 0.01, **options: Any) -> Self:
        """The monitor of a fitted detector, see `normal_values`; give it what `stream_values` returns of new samples.

        Parameters
        ----------
        detector : CalibratedDetector
        X_normal : images, vectors or Extraction, optional
            Normal samples that the detector has not learned from.
        level : float
        **options
            betting, horizon, random_state.
        """
        return cls(normal_values(detector, X_normal), level, **options)

    def reset(self) -> None:
        """Forget all samples and alarms but not the normal values."""
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
        """The alarm noticed first, or None."""
        return self.monitor.alarm

    def update(self, values: Mapping[str, ArrayLike]) -> list[DriftAlarm]:
        """Take the values of new samples, in their order.

        Parameters
        ----------
        values : dict of name -> number or array of shape (n,)
            What `stream_values` returns: every stream, higher = more normal. NaN counts as a sample and changes
            nothing.

        Returns
        -------
        list of DriftAlarm
            Those newly raised.

        Raises
        ------
        ValueError
            Other streams, different numbers of samples, or infinite values; then nothing is taken.
        """
        rows = by_stream(values, self.monitor.streams)
        if np.isinf(rows).any():
            raise ValueError("values must be finite, or NaN for a sample that could not be read")
        ranked = [self._ranked(row, self.monitor.n + i) for i, row in enumerate(rows)]
        p = np.array(ranked, dtype=np.float64).reshape(rows.shape)
        self.p_values = dict(zip(self.monitor.streams, p.T, strict=True))
        return self.monitor.update(self.p_values)

    def _ranked(self, row: NDArray[np.float64], n: int) -> list[float]:
        """P-values of sample number n, one a stream; it joins those that later ones are ranked among."""
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
        """Of what is equal, the part that counts as lower, a number a stream: known from seed and sample alone."""
        block = n // _BLOCK
        if block != self._block:
            shape = (_BLOCK, len(self._normal))
            self._drawn, self._block = np.random.default_rng([self._seed, block]).random(shape), block
        return self._drawn[n % _BLOCK].tolist()

    def _rank_anew(self, *, with_earliest: bool) -> None:
        """Rank what comes among normal values and those since the last start.

        `with_earliest`: after the first start, so that the earliest values are not among those since the last.
        """
        self._known = [
            sorted([*normal.tolist(), *(first if with_earliest else []), *since])
            for normal, first, since in zip(self._normal, self._earliest, self._since_start, strict=True)
        ]

    @property
    def state(self) -> dict[str, Any]:
        """All that the monitor knows, as numbers, text, lists and dicts."""
        return {
            "monitor": self.monitor.state,
            "seed": self._seed,
            "normal": [values.tolist() for values in self._normal],
            "first": self._earliest,
            "since_start": self._since_start,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """The monitor of a `state`.

        Raises
        ------
        ValueError, TypeError
            Damaged; names what is wrong.
        """
        cls._require_names(state)
        inner = DriftMonitor.from_state(state["monitor"])
        lists = {name: _lists(name, state[name], len(inner.streams)) for name in ("normal", "first", "since_start")}
        normal = dict(zip(inner.streams, lists["normal"], strict=True))
        made = cls(normal, inner.level, betting=inner.betting, horizon=inner.horizon, random_state=state["seed"])
        made.monitor, made._earliest, made._since_start = inner, lists["first"], lists["since_start"]
        if any(len(values) > inner.horizon for values in made._since_start):
            raise ValueError(f"since_start holds more than {inner.horizon} values of a stream")
        made._rank_anew(with_earliest=inner.n > inner.horizon)
        return made


def _lists(name: str, told: Any, n_streams: int) -> list[list[float]]:
    if not isinstance(told, list) or len(told) != n_streams:
        raise ValueError(f"{name} must hold a list for each of {n_streams} streams")
    return [numbers_of(name, values, (-1,)).tolist() for values in told]
