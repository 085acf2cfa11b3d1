"""Describe a drift alarm in words: which stream, since when, and what to do."""

import re
from dataclasses import dataclass
from typing import Any

from skjepa._utils.validation import check_choice, check_integer, check_number
from skjepa.inspection.terms import meaning

SCORE = "score"
"""Name of the stream of a detector's scores."""


_PLACE = re.compile(r"(?P<layer>.+) (?:size|axis (?P<axis>\d+))")


def axis_stream(layer: str, i: int) -> str:
    """Return the name of the stream for axis number i of a layer, counted from 0."""
    return f"{layer} axis {i + 1}"


def size_stream(layer: str) -> str:
    """Return the name of the stream for the size of a layer, which is the length of its vector."""
    return f"{layer} size"


@dataclass(frozen=True)
class DriftAlarm:
    """Alarm that the values of a stream no longer look like values of normal samples.

    Print it to read the alarm in words, with advice.

    Attributes
    ----------
    stream : str
        "score", the name of a term, or a layer with "size" or an axis, such as "stage 1 size" or "stage 1 axis 2".
    since : int
        Number of the sample, counted from 0, at which the change most likely began. This is an estimate without a
        guarantee: where the capital of the most successful bet was last at its minimum (Page, Biometrika 41, 1954).
    noticed : int
        Number of the sample at which the alarm was raised.
    log_martingale : float
        Natural logarithm of the capital at that sample, see `DriftMonitor`.
    side : {"low", "high"}
        Whether values became lower or higher. Lower values have small p-values; a lower score or term is less normal.
    """

    stream: str
    since: int
    noticed: int
    log_martingale: float
    side: str

    def __str__(self) -> str:
        seen = f"drift since about sample {self.since}, noticed at sample {self.noticed}: {self._what()}"
        return f"{seen} ({self._means()}). Inspect the samples since then: {self._advice()}"

    @property
    def _place(self) -> re.Match[str] | None:
        """Match of layer and axis for a stream of sizes or coordinates; None for the score and its terms."""
        return None if self.stream.startswith("layer ") else _PLACE.fullmatch(self.stream)

    def _what(self) -> str:
        if found := self._place:
            how = f"have moved along axis {found['axis']}"
            how = how if found["axis"] else f"have become {'weaker' if self.side == 'low' else 'stronger'}"
            return f"the features of layer {found['layer']!r} {how}"
        what = "the score" if self.stream == SCORE else f"the term {self.stream!r}"
        return f"{what} is {self.side}er than for normal samples"

    def _means(self) -> str:
        if self._place:
            return "a change that samples share, such as light, colour or focus; each sample may still look normal"
        if self.side == "high":
            return "the samples are unusually typical, as when a camera image is frozen or few samples are repeated"
        if self.stream == SCORE:
            return "the samples are less normal as a whole"
        return meaning(self.stream)

    def _advice(self) -> str:
        wrong = "too many samples" if self.side == "low" else "too few samples"
        wrong = "too many or too few samples" if self._place else wrong
        return (
            f"if they are normal under new conditions, the threshold now flags {wrong}, so call calibrate with fresh "
            "normal samples (or fit again) and start a new monitor; if not, fix the cause of the change and call reset"
        )


def alarm_of(told: Any, streams: tuple[str, ...], n: int) -> DriftAlarm:
    """Read an alarm of one of `streams` within n samples from a dict; raise ValueError or TypeError for others."""
    try:
        alarm = DriftAlarm(**told)
    except TypeError:
        raise ValueError(f"{told!r} is not an alarm") from None
    check_choice("stream", alarm.stream, streams)
    check_choice("side", alarm.side, ("low", "high"))
    check_number("log_martingale", alarm.log_martingale)
    if check_integer("noticed", alarm.noticed, minimum=0) >= n:
        raise ValueError(f"an alarm is noticed at sample {alarm.noticed}, and there are only {n} samples")
    if check_integer("since", alarm.since, minimum=0) > alarm.noticed:
        raise ValueError(f"an alarm is noticed at sample {alarm.noticed}, before its change at {alarm.since}")
    return alarm
