"""Loop over the samples of a source: measure, keep finished rows, report bad samples, show progress."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from tqdm.auto import tqdm

from skjepa._utils import hardware
from skjepa._utils.hardware import default_budget
from skjepa._utils.progress import progress_bar
from skjepa.data.sources import Source
from skjepa.encoders.probe import EncoderError
from skjepa.extraction.batches.measurement import Arrays, Here, Measurement, Observer, ignored
from skjepa.extraction.batches.options import RunOptions
from skjepa.extraction.processes.dispatch import Spread
from skjepa.extraction.processes.pools import Pool
from skjepa.extraction.resume import ResumedStore, first_positions

_BEAT = 0.5  # seconds between two updates of the bar within a batch


def measuring(
    pool: Pool | None,
    measurement: Measurement,
    function: Callable[[Tensor], Tensor],
    source: Source,
    observe: Observer | None = None,
) -> Here | Spread:
    """Return what measures batches: this process, or the processes of a pool."""
    if pool is not None:
        spread = Spread(pool, measurement, source)
        if not (pool.is_here and len(source) <= spread.batch_size):  # one batch is not worth a process
            return spread
    device = hardware.resolve_device(measurement.run.device)
    budget = measurement.run.memory_budget or default_budget(device)
    return Here(
        measurement,
        function,
        source,
        device,
        measurement.batch_size(budget, device, is_vector=source.is_vector),
        observe,
    )


def run_through(
    source: Source, measured: Here | Spread, run: RunOptions, kept: ResumedStore | None = None
) -> dict[str, Arrays]:
    """Measure every sample once and return its row of each array by id; equal ids mean equal content."""
    first = first_positions(source)
    rows = {} if kept is None else kept.rows
    noted: set[int] = set()
    missing = [name for name in first if name not in rows]
    if kept is not None and missing:
        missing = kept.in_turn(missing)
        kept.store.claim()
    with (
        progress_bar(
            run.progress,
            total=len(first),
            initial=len(first) - len(missing),
            unit="row" if source.is_vector else "img",
            desc="JEPA-SCORE",
        ) as bar,
        _watched(measured, bar),
        closing(measured([first[name] for name in missing])) as batches,
    ):
        for positions, arrays in batches:
            parts, n = _finite(arrays), len(positions)
            finite = parts.all(axis=0)
            broken = not_finite(source, positions, parts)
            names = [str(source.ids[i]) for i in positions if i not in broken]
            arrays = tuple(array[finite] for array in arrays)
            if run.on_error == "skip":
                skip(broken, measured.skipped)
            if kept is not None:
                kept.append(names, arrays, _news(source, measured.skipped, noted))
            if broken and run.on_error == "raise":
                raise EncoderError(next(iter(broken.values())))
            rows.update(zip(names, zip(*arrays, strict=True), strict=True))
            bar.update(n)
    if kept is not None and (unreadable := _news(source, measured.skipped, noted)):
        kept.append([], ([], [], None), unreadable)
    return rows


@contextmanager
def _watched(measured: Here | Spread, bar: tqdm) -> Iterator[None]:
    """Let the bar show the backward passes within a batch, which may take minutes, or that workers are busy."""
    shown = time.monotonic()

    def show(done: int, n: int) -> None:
        nonlocal shown
        if time.monotonic() - shown >= _BEAT:
            bar.set_postfix_str(f"pass {done} of {n}" if n else "")
            shown = time.monotonic()

    measured.on_pass = show
    try:
        yield
    finally:
        measured.on_pass = ignored


def _news(source: Source, skipped: dict[int, str], noted: set[int]) -> dict[str, str]:
    """Return id -> reason for samples skipped since the last call."""
    new = skipped.keys() - noted
    noted |= new
    return {str(source.ids[i]): skipped[i] for i in sorted(new)}


def _finite(arrays: Arrays) -> NDArray[np.bool_]:
    """Return which samples are finite in each of embeddings, singular values and layers, (3, n)."""
    return np.array([np.isfinite(array).reshape(len(array), -1).all(axis=1) for array in arrays])


def not_finite(source: Source, positions: Sequence[int], parts: NDArray[np.bool_]) -> dict[int, str]:
    """Return position -> reason for samples that are not finite in embedding, singular values or layers.

    `parts`, (3, n), says which are.
    """
    what = ("the encoder's output", "the encoder's Jacobian", "a hidden layer of the encoder")
    return {
        i: f"{what[int(np.argmin(is_finite))]} is not finite at sample {source.ids[i]}"
        for i, is_finite in zip(positions, parts.T, strict=True)
        if not is_finite.all()
    }


def skip(broken: dict[int, str], skipped: dict[int, str]) -> None:
    """Treat samples that were read but cannot be scored like samples that cannot be read."""
    for reason in broken.values():
        warnings.warn(f"skipped: {reason}", stacklevel=4)
    skipped |= broken
