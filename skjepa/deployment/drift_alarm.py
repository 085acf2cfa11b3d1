"""Describe an alarm of drift in words: which stream, since when, and what to do."""

import re
from dataclasses import dataclass
from typing import Any

from skjepa._utils.validation import check_choice, check_integer, check_number
from skjepa.inspection.terms import meaning

SCORE = "score"
"""Name of the stream of a detector's scores."""


_PLACE = re.compile(r"(?P<layer>.+) (?:size|axis (?P<axis>\d+))")


def axis_stream(layer: str, i: int) -> str:
    """Name of the stream of a layer's axis number i, counted from 0."""
    return f"{layer} axis {i + 1}"


def size_stream(layer: str) -> str:
    """Name of the stream of the size of all that a layer sees."""
    return f"{layer} size"


@dataclass(frozen=True)
class DriftAlarm:
    """Report that a stream no longer has the values of normal samples.

    Print it for the alarm in words, with advice.

    Attributes
    ----------
    stream : str
        "score", the name of a term, or that of a layer with "size" or one of its axes, such as "stage 1 axis 2".
    since : int
        Number of the sample, counted from 0, at which the change most likely began. It is where the bet with the
        largest gain was last at its lowest (Page, Biometrika 41, 1954), an estimate without a guarantee.
    noticed : int
        Number of the sample at which the alarm was raised.
    log_martingale : float
        Natural logarithm of the capital at that sample.
    side : {"low", "high"}
        Whether values became lower (small p-values, of score and terms less normal) or higher.
    """

    stream: str
    since: int
    noticed: int
    log_martingale: float
    side: str

    def __str__(self) -> str:
        seen = f"drift since about sample {self.since}, noticed at sample {self.noticed}: {self._what()}"
        return f"{seen} ({self._means()}). Look at the samples since then: {self._advice()}"

    @property
    def _place(self) -> re.Match[str] | None:
        """Layer and axis, where the stream is no score and no term."""
        return None if self.stream.startswith("layer ") else _PLACE.fullmatch(self.stream)

    def _what(self) -> str:
        if found := self._place:
            how = f"moved along its axis {found['axis']}"
            how = how if found["axis"] else f"become {'weaker' if self.side == 'low' else 'stronger'}"
            return f"what the layer {found['layer']!r} sees has {how}"
        what = "the score" if self.stream == SCORE else f"the term {self.stream!r}"
        return f"{what} is {self.side}er than that of normal samples"

    def _means(self) -> str:
        if self._place:
            return "a change that samples share and that may leave each of them normal, as of light, colour or focus"
        if self.side == "high":
            return "the samples are unusually typical, as from a frozen camera image, or copies of few samples"
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
