"""An alarm of drift: which stream, since when, and what to do, in words."""

from dataclasses import dataclass
from typing import Any

from skjepa._utils.validation import check_choice, check_integer, check_number
from skjepa.inspection.terms import meaning

SCORE = "score"
"""Name of the stream of a detector's own p-values."""


@dataclass(frozen=True)
class DriftAlarm:
    """A stream of p-values that is no longer that of normal samples.

    Attributes
    ----------
    stream : str
        "score", or the name of a term.
    since : int
        Number of the sample, counted from 0, at which the change most likely began: where the bet that gained most
        last stood at its lowest (Page, Biometrika 41, 1954). An estimate without a promise.
    noticed : int
        Number of the sample at which the alarm was raised.
    log_martingale : float
        Natural logarithm of the capital at that sample.
    side : {"low", "high"}
        Whether values became lower (small p-values, less normal) or higher.
    """

    stream: str
    since: int
    noticed: int
    log_martingale: float
    side: str

    def __str__(self) -> str:
        what = "the score" if self.stream == SCORE else f"the term {self.stream!r}"
        seen = f"drift since about sample {self.since}, noticed at sample {self.noticed}: {what} is {self.side}er than"
        return f"{seen} that of normal samples ({self._means()}). Look at the samples since then: {self._advice()}"

    def _means(self) -> str:
        if self.side == "high":
            return "the samples are unusually typical, as from a camera that stands still, or copies of few samples"
        if self.stream == SCORE:
            return "the samples are less normal as a whole"
        return meaning(self.stream)

    def _advice(self) -> str:
        wrong = "more than its share" if self.side == "low" else "less than its share"
        return (
            f"if they are normal under new conditions, the threshold now flags {wrong}, so call calibrate with fresh "
            "normal samples (or fit anew) and start a new monitor; if not, mend what changed and call reset"
        )


def alarm_of(told: Any, streams: tuple[str, ...], n: int) -> DriftAlarm:
    """The alarm that a dict tells of, of one of `streams` within n samples; ValueError or TypeError for another."""
    try:
        alarm = DriftAlarm(**told)
    except TypeError:
        raise ValueError(f"{told!r} is no alarm") from None
    check_choice("stream", alarm.stream, streams)
    check_choice("side", alarm.side, ("low", "high"))
    check_number("log_martingale", alarm.log_martingale)
    if check_integer("noticed", alarm.noticed, minimum=0) >= n:
        raise ValueError(f"an alarm at sample {alarm.noticed} of {n}")
    if check_integer("since", alarm.since, minimum=0) > alarm.noticed:
        raise ValueError(f"an alarm noticed at sample {alarm.noticed} of a change at {alarm.since}")
    return alarm
