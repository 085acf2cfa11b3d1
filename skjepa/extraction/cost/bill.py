"""Report the estimated time of a run before it starts: as a line, a warning, or an error if it exceeds a budget."""

import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from tqdm.auto import tqdm

from skjepa._utils.progress import shows_bar
from skjepa.data.sources import Source
from skjepa.extraction.batches.measurement import Measurement
from skjepa.extraction.cost.pass_cost import FirstLook, PassCost, duration, first_look, measured_cost
from skjepa.extraction.processes.pools import Pool

TOLD_FROM = 10.0
"""Estimated seconds above which a run with a progress bar prints its estimate first."""

WARNED_FROM = 600.0
"""Estimated seconds above which a run without a bar gives a warning."""


_SLOW = 20.0  # GFLOP per second of a slow machine


@dataclass(eq=False)
class Bill:
    """Measure the cost of one run, when it is first needed, and report it.

    Parameters
    ----------
    measurement : Measurement
    function : callable
        What `skjepa.extraction.batches.measurement.scoring` yields on the device.
    source : Source
    positions : sequence of int
        Positions of the samples that are still to be measured.
    device : str
    pool : Pool or None
        Processes that share the samples.
    """

    measurement: Measurement
    function: Callable[[Tensor], Tensor]
    source: Source
    positions: Sequence[int]
    device: str
    pool: Pool | None = None

    @cached_property
    def look(self) -> FirstLook | None:
        """One forward pass of the first readable sample; None if no sample is left, or none can be read."""
        if not self.positions:
            return None
        return first_look(self.measurement, self.function, self.source, self.positions, self.device)

    @cached_property
    def cost(self) -> PassCost | None:
        """Cost for any number of backward passes; None if there is no `look`."""
        return self.measured(has_passes=True)

    def present(self, n_passes: int, time_budget: float | None = None) -> None:
        """Report the estimated time for `n_passes` backward passes per view, if it is long.

        Raises
        ------
        TimeBudgetError
            If the estimate exceeds `time_budget`, in seconds.
        """
        has_bar = shows_bar(self.measurement.run.progress)
        if time_budget is None and not self._may_take(TOLD_FROM if has_bar else WARNED_FROM, n_passes):
            return
        cost = self.cost if n_passes else self.measured(has_passes=False)
        if cost is None:
            return
        if time_budget is not None:
            cost.require(time_budget, n_passes)
        seconds = cost.seconds(n_passes)
        if has_bar and seconds > TOLD_FROM:
            tqdm.write(f"JEPA-SCORE: {_line(cost, n_passes)}", file=sys.stderr)
        elif time_budget is None and not has_bar and seconds > WARNED_FROM:
            warnings.warn(f"this run will take {_line(cost, n_passes)}", stacklevel=3)

    def _may_take(self, seconds: float, n_passes: int) -> bool:
        """Return whether the passes could take so long on a slow machine; timing them itself takes time."""
        gflop = 0.0 if self.look is None else self.look.gflop * (1 + self.measurement.views * n_passes)
        return len(self.positions) * gflop > seconds * _SLOW

    def measured(self, *, has_passes: bool) -> PassCost | None:
        """Return `cost`; without passes only the forward pass is timed."""
        if self.look is None:
            return None
        return measured_cost(
            self.look,
            self.measurement,
            self.function,
            self.source,
            self.positions,
            self.device,
            n_workers=1 if self.pool is None else max(1, self.pool.slots()),
            has_passes=has_passes,
        )


def _line(cost: PassCost, n_passes: int) -> str:
    passes = f"{n_passes} backward passes" if n_passes else "the forward pass alone"
    line = (
        f"about {duration(cost.seconds(n_passes))} for {cost.n_samples} samples, "
        f"{duration(cost.seconds_per_sample(n_passes))} each by {passes}"
    )
    if n_passes == 0:
        return line
    cheaper = [f"method='sketch', n_directions=16: {duration(cost.seconds(16))}"] if n_passes > 16 else []
    cheaper.append(f"method='forward': {duration(cost.seconds(0))}")
    return f"{line} (cheaper: {'; '.join(cheaper)})"
