"""Measure the cost of a run on a few of its samples, before any expensive work."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skjepa.data.sources import Source
from skjepa.encoders.probe import EncoderError, call_and_count_operations
from skjepa.extraction.batches.loader import Loader
from skjepa.extraction.batches.measurement import Measurement, OnPass
from skjepa.jacobian.directions import random_directions
from skjepa.jacobian.spectrum import singular_values

_BATCH = 16  # samples that are timed together if a single one is too quick to time
_TRIED = 32  # samples that are tried until one can be read
_QUICK = 0.25  # seconds; shorter measurements are repeated for a better estimate
_SOME_ROWS = 64  # most rows of the Jacobian on which singular values are timed


class TimeBudgetError(ValueError):
    """Raised before a run starts that would take longer than its time budget."""


@dataclass(frozen=True)
class PassCost:
    """Hold the seconds that a run takes on this machine, measured on its first samples.

    Attributes
    ----------
    n_samples : int
        Number of samples that are still to be measured.
    n_components : int
        Number K of encoder outputs.
    forward : float
        Seconds per sample for reading it and for the forward pass.
    graph : float
        Seconds per sample for the second forward pass, from which backward passes start; not needed for 0 passes.
    backward : float
        Seconds per sample and backward pass.
    spectrum : float
        Seconds per sample for the singular values, divided by the square of the number of passes.
    gflop : float
        10^9 operations of the forward pass per sample; 0 if they cannot be counted.
    n_views : int
        Number of random views per sample.
    n_workers : int
        Number of processes that share the samples.
    """

    n_samples: int
    n_components: int
    forward: float
    graph: float
    backward: float
    spectrum: float
    gflop: float = 0.0
    n_views: int = 1
    n_workers: int = 1

    def seconds_per_sample(self, n_passes: int) -> float:
        """Return the seconds per sample in one process, with `n_passes` backward passes per view."""
        if n_passes == 0:
            return self.forward
        return self.forward + self.n_views * (self.graph + n_passes * self.backward + n_passes**2 * self.spectrum)

    def seconds(self, n_passes: int) -> float:
        """Return the seconds for all samples, with `n_passes` backward passes per view."""
        return self.n_samples * self.seconds_per_sample(n_passes) / self.n_workers

    def of(self, n_samples: int) -> "PassCost":
        """Return the cost for another number of similar samples."""
        return replace(self, n_samples=n_samples)

    def require(self, time_budget: float, n_passes: int) -> None:
        """Raise TimeBudgetError if `n_passes` backward passes take longer than the budget in seconds."""
        seconds = self.seconds(n_passes)
        if seconds <= time_budget:
            return
        passes = f"{n_passes} backward passes each" if n_passes else "the forward pass alone"
        cheaper = f", or fewer passes (method='forward': {duration(self.seconds(0))})" if n_passes else ""
        raise TimeBudgetError(
            f"{self.n_samples} samples with {passes} take about {duration(seconds)} on this machine; time_budget is "
            f"{duration(time_budget)}. Give fewer samples, a larger time_budget{cheaper}"
        )


@dataclass(frozen=True, eq=False)
class FirstLook:
    """Hold the result of one forward pass of one sample, which is measured first.

    Attributes
    ----------
    x : Tensor of shape (1, ...)
        The first sample that could be read, as the encoder receives it.
    n_components : int
        Number K of encoder outputs.
    gflop : float
        See `PassCost`.
    seconds : float
        Seconds of the forward pass.
    reading : float
        Seconds that reading the sample took.
    """

    x: Tensor
    n_components: int
    gflop: float
    seconds: float
    reading: float


def first_look(
    measurement: Measurement,
    function: Callable[[Tensor], Tensor],
    source: Source,
    positions: Sequence[int],
    device: str,
) -> FirstLook | None:
    """Time one forward pass; returns None if no sample can be read or the encoder fails, which the run reports."""
    x, reading = _first_batch(measurement, source, positions, 1, device)
    if x is None:
        return None
    started = time.perf_counter()
    try:
        with torch.no_grad():
            output, gflop = call_and_count_operations(function, x)
    except EncoderError:
        return None
    seconds = time.perf_counter() - started
    return FirstLook(x, output.shape[1], gflop, seconds, reading) if output.ndim == 2 else None


def measured_cost(
    look: FirstLook,
    measurement: Measurement,
    function: Callable[[Tensor], Tensor],
    source: Source,
    positions: Sequence[int],
    device: str,
    *,
    n_workers: int = 1,
    has_passes: bool = True,
) -> PassCost:
    """Measure what the samples at some positions cost.

    One sample is timed with a forward pass and two backward passes. If that was quick, a batch is timed as well.

    Parameters
    ----------
    look : FirstLook
        Result of `first_look` for the same samples.
    measurement : Measurement
        Encoder, views and options; its number of passes and its directions are not used.
    function : callable
        What `skjepa.extraction.batches.measurement.scoring` yields on the device.
    has_passes : bool
        If False, only the forward pass is timed, and backward passes cost NaN.
    """
    cost = _of_one(look, measurement, function, device, has_passes=has_passes)
    expected = cost.seconds_per_sample(look.n_components if has_passes else 0)
    reading = look.reading
    if len(positions) > 1 and _BATCH * expected < 8 * _QUICK:
        batch, seconds = _first_batch(measurement, source, positions, _BATCH, device)
        if batch is not None:
            cost = _of_batch(measurement, function, batch, cost, device, has_passes=has_passes)
            reading = seconds / len(batch)
    return replace(
        cost,
        forward=cost.forward + reading,
        n_samples=len(positions),
        n_views=measurement.views,
        n_workers=n_workers,
    )


def _first_batch(
    measurement: Measurement, source: Source, positions: Sequence[int], size: int, device: str
) -> tuple[Tensor | None, float]:
    """Return the first readable samples as the encoder receives them, and the seconds that reading them took."""
    encoder, run = measurement.encoder, replace(measurement.run, on_error="skip")
    layout = encoder.channels_last
    loader = Loader(source, encoder.preprocessing, encoder.dtype, device, channels_last=layout, run=run, is_quiet=True)
    started = time.perf_counter()
    x = next((x for _, x, _ in loader.batches(list(positions[:_TRIED]), lambda: size)), None)
    return x, time.perf_counter() - started


def _of_one(
    look: FirstLook,
    measurement: Measurement,
    function: Callable[[Tensor], Tensor],
    device: str,
    *,
    has_passes: bool,
) -> PassCost:
    x, k = look.x, look.n_components
    forward = look.seconds
    if forward < _QUICK:  # the first call of a process is slow
        forward = _seconds(lambda: _arrays(measurement, function, x, 0, None, device))
    if not has_passes:
        return PassCost(1, k, forward, np.nan, np.nan, np.nan, look.gflop)
    moments: list[float] = []
    m = min(2, k)
    directions = torch.from_numpy(random_directions(k, m, seed=0).components).to(measurement.encoder.dtype)
    started = time.perf_counter()
    _arrays(measurement, function, x, m, directions, device, lambda *_: moments.append(time.perf_counter() - started))
    backward = moments[-1] - moments[0] if len(moments) > 1 else moments[0] / 2
    graph = max(0.0, moments[0] - forward - backward)
    return PassCost(1, k, forward, graph, backward, _of_spectrum(x, k), look.gflop)


def _of_batch(
    measurement: Measurement,
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    one: PassCost,
    device: str,
    *,
    has_passes: bool,
) -> PassCost:
    """Measure the cost per sample in batches, for quick encoders, by timing all exact passes together."""
    forward = _seconds(lambda: _arrays(measurement, function, x, 0, None, device)) / len(x)
    if not has_passes:
        return replace(one, forward=forward)
    exact = _seconds(lambda: _arrays(measurement, function, x, one.n_components, None, device)) / len(x)
    passes = one.graph + one.n_components * one.backward
    share = max(0.0, exact - forward) / passes if passes > 0 else 1.0
    return replace(one, forward=forward, graph=one.graph * share, backward=one.backward * share, spectrum=0.0)


def _arrays(
    measurement: Measurement,
    function: Callable[[Tensor], Tensor],
    x: Tensor,
    n_passes: int,
    directions: Tensor | None,
    device: str,
    on_pass: OnPass | None = None,
) -> Any:
    chosen = replace(measurement, n_passes=n_passes, directions=directions, views=1, transform=None)
    return chosen.arrays(function, device, on_pass=on_pass)(x, [], 1)


def _of_spectrum(x: Tensor, n_components: int) -> float:
    """Time the singular values per sample and squared number of rows; the Gram matrix takes most of it."""
    rows = min(_SOME_ROWS, n_components)
    jacobian = torch.rand(1, rows, x[0].numel(), dtype=x.dtype, device=x.device)
    return _seconds(lambda: singular_values(jacobian).cpu()) / rows**2


def _seconds(call: Callable[[], Any]) -> float:
    """Time a call that returns results on the CPU; a quick call is timed twice and the shorter time returned."""
    started = time.perf_counter()
    call()
    seconds = time.perf_counter() - started
    if seconds > _QUICK:
        return seconds
    started = time.perf_counter()
    call()
    return min(seconds, time.perf_counter() - started)


def duration(seconds: float) -> str:
    """Format seconds in words with two digits: "0.3 s", "45 s", "12 min", "8.3 h", "4 days"."""
    for limit, unit, name in ((100, 1, "s"), (100 * 60, 60, "min"), (72 * 3600, 3600, "h")):
        if seconds < limit:
            return f"{_two_digits(seconds / unit)} {name}"
    return f"{seconds / 86400:,.0f} days"


def _two_digits(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
