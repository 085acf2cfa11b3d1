"""Hand the batches of one run to several processes, and retry batches whose worker process ended."""

import hashlib
import os
import pickle
import warnings
from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

import torch

from skjepa.data.images import ImageReadError
from skjepa.data.sources import Source
from skjepa.extraction.batches.measurement import Measured, Measurement, OnPass, ignored
from skjepa.extraction.processes import worker
from skjepa.extraction.processes.pools import Pool, losses

_IN_FLIGHT = 2  # parts per task slot: one is measured while the next one waits
_BEAT = 1.0  # seconds between two calls of `on_pass`
_LOSSES = 2  # a part that lost so many workers runs alone, to find out whether it is the cause


class WorkerLostError(OSError):
    """Raised when every process that measures one sample ends unexpectedly."""


@dataclass(frozen=True)
class _Part:
    """Hold the positions of one batch and how many workers were lost with it."""

    positions: Sequence[int]
    losses: int = 0
    alone: bool = False


class Spread:
    """Measure the samples of one source in other processes.

    The batches are those of ``extraction.batches.measurement.Here``.

    Parameters
    ----------
    pool : Pool
    measurement : Measurement
        If it has no memory budget, the budget of the pool limits the batches.
    source : Source
        Workers read files themselves. Samples that are not files are loaded here and sent with their batch.

    Raises
    ------
    TypeError
        If the encoder cannot be pickled.
    VersionMismatchError
        If a worker runs other package versions.
    """

    def __init__(self, pool: Pool, measurement: Measurement, source: Source) -> None:
        self.pool, self.measurement, self.source = pool, measurement, source
        budget = measurement.run.memory_budget
        self.is_budget_given = budget is not None
        self.batch_size = measurement.batch_size(budget or pool.budget(), pool.device, is_vector=source.is_vector)
        self.on_pass: OnPass = ignored
        self.skipped: dict[int, str] = {}
        self.devices: set[str] = set()

    def __call__(self, positions: Sequence[int]) -> Measured:
        """Yield positions and arrays as `Here` does, in the order in which batches are finished."""
        starts = range(0, len(positions), self.batch_size)
        todo = deque(_Part(positions[start : start + self.batch_size]) for start in starts)
        if not todo:
            return
        parcel = worker.packed(self.measurement)
        self.pool.open(parcel)
        is_done = False
        try:
            with ThreadPoolExecutor(self.measurement.run.reading_threads) as readers:
                yield from self._measured(todo, hashlib.sha256(parcel).hexdigest(), readers)
            is_done = True
        finally:
            self.pool.close(at_once=not is_done)

    def _measured(self, todo: deque[_Part], key: str, readers: Executor) -> Measured:
        waiting: dict[Future, _Part] = {}
        while todo or waiting:
            while todo and _may_start(todo[0], waiting.values(), self.pool.slots()):
                part = todo.popleft()
                waiting[self._submitted(key, self._pickled(part.positions, readers))] = part
            lost = []
            while not (done := wait(waiting, timeout=_BEAT, return_when=FIRST_COMPLETED).done):
                self.on_pass(0, 0)
            for future in sorted(done, key=_has_failed):  # keep finished batches before raising
                part = waiting.pop(future)
                try:
                    outcome = future.result()
                except losses() as error:
                    lost.extend(self._again(part, error))
                else:
                    yield from self._received(part, outcome)
            if lost:
                warnings.warn("a worker process ended unexpectedly: its samples are measured again", stacklevel=2)
                todo.extend(lost)  # last: a part that ends its workers should not delay the others
                self.pool.mend()

    def _submitted(self, key: str, part: bytes) -> Future:
        try:
            return self.pool.submit(key, part)
        except BrokenExecutor as error:  # a worker ended while the part was prepared: handled like any other loss
            lost: Future = Future()
            lost.set_exception(error)
            return lost

    def _pickled(self, positions: Sequence[int], readers: Executor) -> bytes:
        part = self.pool.part(
            ids=self.source.ids[list(positions)],
            samples=list(readers.map(self._sample, positions)),
            is_vector=self.source.is_vector,
            device=self.pool.device,
            batch_size=self.batch_size,
            is_budget_given=self.is_budget_given,
        )
        return pickle.dumps(part)

    def _sample(self, i: int) -> Any:
        file = self.source.file(i)
        if file is not None:
            path = os.path.abspath(file)
            return worker.FileSample(os.fspath(file), path, os.path.exists(path))
        try:
            sample = self.source.load(i)
        except ImageReadError as error:
            return error
        return sample.clone() if isinstance(sample, torch.Tensor) else sample  # pickling a view sends all its storage

    def _received(self, part: _Part, outcome: worker.Outcome) -> Measured:
        for i, reason in outcome.skipped.items():
            self.skipped[part.positions[i]] = reason
            warnings.warn(f"skipped {reason}", stacklevel=2)
        self.devices.add(outcome.device)
        if outcome.positions:
            yield [part.positions[i] for i in outcome.positions], outcome.arrays

    def _again(self, part: _Part, error: BaseException) -> list[_Part]:
        """Return the parts to try again after a lost worker.

        After two losses the part runs alone, then in halves, until the sample that ends its worker is found.
        """
        losses = part.losses + 1
        positions, n = part.positions, len(part.positions)
        if not part.alone:
            return [_Part(positions, losses, alone=losses >= _LOSSES)]
        if n > 1:
            return [_Part(positions[: n // 2], 0, alone=True), _Part(positions[n // 2 :], 0, alone=True)]
        if losses < _LOSSES:
            return [_Part(positions, losses, alone=True)]
        raise WorkerLostError(
            f"sample {self.source.ids[positions[0]]} ends every process that measures it, by a lack of memory or a "
            f"crash in a library ({error}): leave it out, or give the processes more memory"
        ) from error


def _has_failed(future: Future) -> bool:
    return future.cancelled() or future.exception() is not None


def _may_start(part: _Part, waiting: Collection[_Part], slots: int) -> bool:
    if part.alone or any(other.alone for other in waiting):
        return not waiting
    return len(waiting) < _IN_FLIGHT * max(1, slots)
