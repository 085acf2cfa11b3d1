"""Has the stream changed? Conformal test martingales on streams of p-values, with an alarm that holds its level."""

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
    """Raise an alarm where p-values stop being those of normal samples: uniform, each independent of those before.

    On each stream a player bets against the uniform distribution, with bets that gain nothing on average while it
    holds. The capital starts at 1; at each of the next `horizon` samples an equal part of it enters play, because the
    change may begin at any of them (a mixture over change points, Shiryaev and Roberts), so that a change late in a
    long normal stream is found as fast as an early one. After `horizon` samples the capital starts anew at 1.

    **What is promised.** While p-values are independent and uniform, the probability that any stream raises an alarm
    within the `horizon` samples from one start to the next is at most `level`, whenever and however often one looks
    (Ville's inequality; each of S streams has the threshold S / level, so the streams may depend on one another).
    Nothing is promised of how soon a change is noticed. Evidence from before a start does not count after it.

    Plain conformal p-values do not meet the condition for long: all are taken from the same finite set of calibration
    samples, whose own deviation from the population a martingale finds in time, and their ties make them larger than
    uniform. `ScoreMonitor` makes p-values that meet it exactly, by ranking each sample among the calibration samples
    and all samples before it, with ties broken at random.

    Parameters
    ----------
    level : float in (0, 1)
        Probability of a false alarm within `horizon` normal samples, over all streams.
    streams : sequence of str
        Names of the streams: "score", and terms.
    betting : {"jumper", "power"}
        "jumper": linear bets of four slopes, a hundredth of the capital changing between them at each sample (the
        simple jumper of Vovk et al., 2021). "power": bets p^(k - 1) and (1 - p)^(k - 1) of four powers, which find few
        extreme p-values, and both ends at once, sooner, and a small shift of all later.
    horizon : int

    Attributes
    ----------
    n : int
        Samples seen since the monitor was made or reset, those without a p-value too.
    alarms : tuple of DriftAlarm
        The latest of each stream since then, the first noticed first.

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
        self._gain, self._start = np.zeros(shape), np.zeros(shape, dtype=np.int64)  # of Page's estimate
        self._alarms: dict[str, DriftAlarm] = {}

    @property
    def alarms(self) -> tuple[DriftAlarm, ...]:
        return tuple(sorted(self._alarms.values(), key=lambda alarm: alarm.noticed))

    @property
    def alarm(self) -> DriftAlarm | None:
        """The alarm noticed first, or None."""
        return next(iter(self.alarms), None)

    @property
    def since(self) -> int | None:
        """Number of the sample at which the change of `alarm` most likely began, or None."""
        return None if self.alarm is None else self.alarm.since

    @property
    def log_martingale(self) -> dict[str, float]:
        """Name of a stream -> natural logarithm of its capital, since the last start."""
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
        """Take the p-values of new samples, in their order.

        Parameters
        ----------
        p : number, array of shape (n,), or dict of stream -> one of these
            In [0, 1]; small = unlike normal samples. A dict names every stream. NaN (a sample that could not be read)
            counts as a sample and changes nothing.

        Returns
        -------
        list of DriftAlarm
            Those newly raised: of each stream at most one from one start to the next.

        Raises
        ------
        ValueError
            A p-value outside [0, 1], other streams, or different numbers of samples; then nothing is taken.
        """
        rows = by_stream(p, self.streams)
        if ((rows < 0) | (rows > 1)).any():
            bad = rows[(rows < 0) | (rows > 1)][0]
            raise ValueError(f"p-values must lie in [0, 1]; got {bad:g}. Of scores, see ScoreMonitor")
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
        """Whether the stream has had its alarm since the last start."""
        known = self._alarms.get(stream)
        return known is not None and known.noticed >= self.n - self._n_since_start

    def _alarm(self, i: int, log_capital: float) -> DriftAlarm:
        best = int(np.argmax(self._gain[i]))
        side = "low" if bets_on_small(self.betting)[best] else "high"
        return DriftAlarm(self.streams[i], int(self._start[i, best]), self.n - 1, float(log_capital), side)

    @property
    def state(self) -> dict[str, Any]:
        """All that the monitor knows, as numbers, text, lists and dicts."""
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
        """The monitor of a `state`.

        Raises
        ------
        ValueError, TypeError
            Damaged; names what is wrong.
        """
        cls._require_names(state)
        made = cls(state["level"], streams=state["streams"], betting=state["betting"], horizon=state["horizon"])
        made.n = check_integer("n", state["n"], minimum=0)
        shape = made._capital.shape
        made._capital = numbers_of("capital", state["capital"], shape)
        made._gain = numbers_of("gain", state["gain"], shape)
        made._start = numbers_of("start", state["start"], shape).astype(np.int64)
        if (made._capital < 0).any() or not ((made._start >= 0) & (made._start <= made.n)).all():
            raise ValueError("capital must not be negative, and no change starts after the last sample")
        made._alarms = {
            alarm.stream: alarm for alarm in (alarm_of(told, made.streams, made.n) for told in state["alarms"])
        }
        return made


def by_stream(values: ArrayLike | Mapping[str, ArrayLike], streams: tuple[str, ...]) -> NDArray[np.float64]:
    """One row a sample, one column a stream, (n_samples, n_streams), in the order of `streams`.

    Raises
    ------
    ValueError
        Other streams than these, or different numbers of samples.
    """
    named = values if isinstance(values, Mapping) else {SCORE if len(streams) > 1 else streams[0]: values}
    if named.keys() != set(streams):
        given = ", ".join(map(repr, named)) if isinstance(values, Mapping) else "no names"
        raise ValueError(f"give a dict with values of each stream ({', '.join(map(repr, streams))}); got {given}")
    columns = [np.atleast_1d(np.asarray(named[stream], dtype=np.float64)) for stream in streams]
    if len({column.shape for column in columns}) > 1 or columns[0].ndim > 1:
        raise ValueError(f"streams must be of one length; got shapes {', '.join(str(c.shape) for c in columns)}")
    return np.stack(columns, axis=1)


def _names(streams: Iterable[str]) -> tuple[str, ...]:
    names = (streams,) if isinstance(streams, str) else tuple(streams)
    if not names or len(set(names)) < len(names) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"streams must be different names, at least one; got {names!r}")
    return names
