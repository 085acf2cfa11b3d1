"""Detect changes in streams of p-values by conformal test martingales, with a guaranteed false-alarm rate."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skjepa._utils.validation import check_choice, check_integer, check_number
from skjepa.deployment.betting import BETTINGS, bets_on_small, factors, log_martingale, n_bets, next_capital
from skjepa.deployment.drift_alarm import SCORE, DriftAlarm, alarm_of
from skjepa.deployment.state_file import SavedState, numbers_of

HORIZON = 10_000


class DriftMonitor(SavedState):
    """Raise an alarm where p-values stop being independent and uniform, as the p-values of normal samples are.

    Use it where you have such p-values; `ScoreMonitor` makes them from the scores of a detector.

    On each stream the monitor bets against the uniform distribution, with bets that gain nothing on average while it
    holds. Growing capital is evidence of a change (a conformal test martingale). The capital starts at 1. At each of
    the next `horizon` samples an equal part of it enters play, because a change may begin at any of them (a mixture
    over change points, Shiryaev and Roberts). A change late in a long normal stream is then found as fast as an early
    one. After `horizon` samples the capital restarts at 1, and earlier evidence no longer counts.

    **Guarantee.** While p-values are independent and uniform, the probability that any stream raises an alarm within
    the `horizon` samples between two restarts is at most `level`, however often you check (Ville's inequality). Each of
    S streams has the threshold S / level, so the streams may depend on one another. There is no guarantee about how
    soon a change is noticed.

    Plain conformal p-values do not stay independent and uniform for long. All of them come from the same finite set of
    calibration samples, and a martingale finds the deviation of this set from the population in time. Ties also make
    them larger than uniform. `ScoreMonitor` avoids both: it ranks each sample among the calibration samples and all
    samples before it, and breaks ties at random.

    Parameters
    ----------
    level : float in (0, 1)
        Largest probability of a false alarm within `horizon` normal samples, over all streams.
    streams : sequence of str
        Names of the streams: "score", and names of terms.
    betting : {"jumper", "power"}
        "jumper": linear bets of four slopes, between which a hundredth of the capital moves at each sample (the simple
        jumper of Vovk et al., 2021). "power": bets p^(k - 1) and (1 - p)^(k - 1) of four powers k. They find a few
        extreme p-values, at either end, sooner, and a small shift of all p-values later.
    horizon : int
        Number of samples between two restarts.

    Attributes
    ----------
    n : int
        Number of samples since the monitor was made or reset, including samples without a p-value.
    alarms : tuple of DriftAlarm
        The latest alarm of each stream since then, the earliest first.

    Examples
    --------
    >>> import numpy as np
    >>> from skjepa.deployment import DriftMonitor
    >>> rng = np.random.default_rng(0)
    >>> monitor = DriftMonitor(level=0.01)
    >>> monitor.update(rng.random(1000))
    []
    >>> alarm, = monitor.update(rng.beta(1, 2, size=200))
    >>> alarm.stream, alarm.side, abs(alarm.since - 1000) < 50
    ('score', 'low', True)
    """

    STATE = frozenset(("level", "streams", "betting", "horizon", "n", "capital", "gain", "start", "alarms"))

    def __init__(
        self,
        level: float = 0.01,
        *,
        streams: Iterable[str] = (SCORE,),
        betting: str = "jumper",
        horizon: int = HORIZON,
    ) -> None:
        self.level = check_number("level", level, above=0.0, below=1.0)
        self.streams = _names(streams)
        self.betting = check_choice("betting", betting, BETTINGS)
        self.horizon = check_integer("horizon", horizon, minimum=1)
        self.reset()

    def reset(self) -> None:
        """Forget all samples and alarms, as after a new calibration."""
        shape = len(self.streams), n_bets(self.betting)
        self.n = 0
        self._capital = np.zeros(shape)
        self._gain, self._start = np.zeros(shape), np.zeros(shape, dtype=np.int64)  # for Page's estimate of the change
        self._alarms: dict[str, DriftAlarm] = {}

    @property
    def alarms(self) -> tuple[DriftAlarm, ...]:
        return tuple(sorted(self._alarms.values(), key=lambda alarm: alarm.noticed))

    @property
    def alarm(self) -> DriftAlarm | None:
        """The earliest alarm, or None."""
        return next(iter(self.alarms), None)

    @property
    def since(self) -> int | None:
        """Number of the sample at which the change of `alarm` most likely began, or None."""
        return None if self.alarm is None else self.alarm.since

    @property
    def log_martingale(self) -> dict[str, float]:
        """Natural logarithm of the capital of each stream since the last restart."""
        values = log_martingale(self._capital, self._n_since_start, self.horizon)
        return dict(zip(self.streams, values.tolist(), strict=True))

    @property
    def threshold(self) -> float:
        """Natural logarithm of the capital at which a stream raises an alarm."""
        return math.log(len(self.streams) / self.level)

    @property
    def _n_since_start(self) -> int:
        return 0 if self.n == 0 else (self.n - 1) % self.horizon + 1

    def update(self, p: ArrayLike | Mapping[str, ArrayLike]) -> list[DriftAlarm]:
        """Add the p-values of new samples, in the order of the samples.

        Parameters
        ----------
        p : number, array of shape (n,), or dict of stream -> one of these
            p-values in [0, 1]; small = unlike normal samples. A dict must name every stream. NaN, for a sample that
            could not be read, counts as a sample and changes nothing else.

        Returns
        -------
        list of DriftAlarm
            New alarms: at most one per stream between two restarts.

        Raises
        ------
        ValueError
            A p-value lies outside [0, 1], or the streams have other names or different numbers of samples. Then no
            sample is added.
        """
        rows = by_stream(p, self.streams)
        if ((rows < 0) | (rows > 1)).any():
            bad = rows[(rows < 0) | (rows > 1)][0]
            raise ValueError(f"p-values must lie in [0, 1]; got {bad:g}. For scores, use ScoreMonitor")
        return [alarm for row in rows for alarm in self._take(row)]

    def _take(self, p: NDArray[np.float64]) -> list[DriftAlarm]:
        if self.n % self.horizon == 0:
            self._capital[:] = 0.0
        factor = factors(self.betting, p)
        self._capital = next_capital(self._capital, factor, 1 / self.horizon)
        begins = self._gain <= 0
        self._start[begins] = self.n
        self._gain = np.where(begins, 0.0, self._gain) + np.log(factor)
        self.n += 1
        logs = log_martingale(self._capital, self._n_since_start, self.horizon)
        raised = [self._alarm(i, logs[i]) for i in np.flatnonzero(logs >= self.threshold).tolist()]
        new = [alarm for alarm in raised if not self._is_known(alarm.stream)]
        self._alarms.update({alarm.stream: alarm for alarm in new})
        return new

    def _is_known(self, stream: str) -> bool:
        """Whether the stream has raised its alarm since the last restart."""
        known = self._alarms.get(stream)
        return known is not None and known.noticed >= self.n - self._n_since_start

    def _alarm(self, i: int, log_capital: float) -> DriftAlarm:
        best = int(np.argmax(self._gain[i]))
        side = "low" if bets_on_small(self.betting)[best] else "high"
        return DriftAlarm(self.streams[i], int(self._start[i, best]), self.n - 1, float(log_capital), side)

    @property
    def state(self) -> dict[str, Any]:
        """The full state of the monitor, as numbers, text, lists and dicts."""
        return {
            "level": self.level,
            "streams": list(self.streams),
            "betting": self.betting,
            "horizon": self.horizon,
            "n": self.n,
            "capital": self._capital.tolist(),
            "gain": self._gain.tolist(),
            "start": self._start.tolist(),
            "alarms": [asdict(alarm) for alarm in self.alarms],
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
        made = cls(state["level"], streams=state["streams"], betting=state["betting"], horizon=state["horizon"])
        made.n = check_integer("n", state["n"], minimum=0)
        shape = made._capital.shape
        made._capital = numbers_of("capital", state["capital"], shape)
        made._gain = numbers_of("gain", state["gain"], shape)
        made._start = numbers_of("start", state["start"], shape).astype(np.int64)
        if (made._capital < 0).any() or not ((made._start >= 0) & (made._start <= made.n)).all():
            raise ValueError("the capital must not be negative, and a change must start before the last sample")
        made._alarms = {
            alarm.stream: alarm for alarm in (alarm_of(told, made.streams, made.n) for told in state["alarms"])
        }
        return made


def by_stream(values: ArrayLike | Mapping[str, ArrayLike], streams: tuple[str, ...]) -> NDArray[np.float64]:
    """Return the values as an array (n_samples, n_streams), in the order of `streams`.

    Raises
    ------
    ValueError
        The streams have other names or different numbers of samples.
    """
    named = values if isinstance(values, Mapping) else {SCORE if len(streams) > 1 else streams[0]: values}
    if named.keys() != set(streams):
        given = ", ".join(map(repr, named)) if isinstance(values, Mapping) else "no names"
        raise ValueError(f"give a dict with values for each stream ({', '.join(map(repr, streams))}); got {given}")
    columns = [np.atleast_1d(np.asarray(named[stream], dtype=np.float64)) for stream in streams]
    if len({column.shape for column in columns}) > 1 or columns[0].ndim > 1:
        raise ValueError(f"all streams must have one length; got shapes {', '.join(str(c.shape) for c in columns)}")
    return np.stack(columns, axis=1)


def _names(streams: Iterable[str]) -> tuple[str, ...]:
    names = (streams,) if isinstance(streams, str) else tuple(streams)
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"streams must be different names, at least one; got {names!r}")
    return names
