"""Score samples of concurrent requests together, in one thread and within bounds."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

Score = Callable[[list[Any]], list[dict[str, Any]]]
"""A function from samples to one answer each; it raises ValueError for a bad sample."""


class BusyError(RuntimeError):
    """Raised where a request would exceed the number of waiting samples, or their weight."""


@dataclass(eq=False)
class _Request:
    samples: Sequence[Any]
    weight: int
    answer: asyncio.Future = field(repr=False)


class Batcher:
    """Score waiting samples in batches of whole requests, in the order of the requests.

    Parameters
    ----------
    score : callable
        Function from samples to answers, which is called in a thread of its own.
    max_batch : int
        Largest number of samples in a batch of several requests.
    max_waiting : int
        Largest number of waiting samples.
    max_weight : int
        Largest total weight of waiting samples, in any unit that the caller uses.
    gather_seconds : float
        Time for which the first request of a batch waits for others.
    on_batch : callable, optional
        Called with the number of samples of each batch.
    """

    def __init__(
        self,
        score: Score,
        *,
        max_batch: int,
        max_waiting: int,
        max_weight: int,
        gather_seconds: float,
        on_batch: Callable[[int], None] = lambda n: None,
    ) -> None:
        self._score, self._on_batch = score, on_batch
        self.max_batch, self.max_waiting, self.max_weight = max_batch, max_waiting, max_weight
        self.gather_seconds = gather_seconds
        self._waiting: deque[_Request] = deque()
        self._something = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="skjepa-score")

    @property
    def n_waiting(self) -> int:
        """Number of waiting samples."""
        return sum(len(request.samples) for request in self._waiting)

    @contextlib.asynccontextmanager
    async def running(self):
        """Answer requests inside this context; at its end, finish the batch that is being scored."""
        worker = asyncio.create_task(self._work())
        try:
            yield self
        finally:
            worker.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await worker
            self._thread.shutdown()

    async def in_thread(self, function: Callable[[], None]) -> None:
        """Call a function in the thread that scores."""
        await asyncio.get_running_loop().run_in_executor(self._thread, function)

    async def submit(self, samples: Sequence[Any], weight: int = 0) -> list[dict[str, Any]]:
        """Return the answers to samples, once their batch is scored.

        Raises
        ------
        BusyError
            Too many samples wait, or their weight is too large.
        ValueError
            A sample is bad.
        """
        weighs = sum(request.weight for request in self._waiting)
        if self._waiting and (self.n_waiting + len(samples) > self.max_waiting or weighs + weight > self.max_weight):
            raise BusyError(f"too many samples are waiting ({self.n_waiting})")
        request = _Request(samples, weight, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._something.set()
        try:
            return await request.answer
        finally:  # a request that was given up is not scored
            with contextlib.suppress(ValueError):
                self._waiting.remove(request)

    async def _work(self) -> None:
        while True:
            await self._something.wait()
            if self.n_waiting < self.max_batch:
                await asyncio.sleep(self.gather_seconds)
            batch = self._next_batch()
            if batch:
                await self._answer(batch)

    def _next_batch(self) -> list[_Request]:
        batch: list[_Request] = []
        n = 0
        while self._waiting and (not batch or n + len(self._waiting[0].samples) <= self.max_batch):
            batch.append(self._waiting.popleft())
            n += len(batch[-1].samples)
        if not self._waiting:
            self._something.clear()
        return batch

    async def _answer(self, batch: list[_Request]) -> None:
        loop = asyncio.get_running_loop()
        samples = [sample for request in batch for sample in request.samples]
        self._on_batch(len(samples))
        try:
            answers = await loop.run_in_executor(self._thread, self._score, samples)
        except Exception as error:
            if len(batch) == 1:
                _settle(batch[0], error=error)
                return
            for request in batch:  # one bad request must not fail the others
                await self._answer([request])
            return
        start = 0
        for request in batch:
            _settle(request, answers[start : start + len(request.samples)])
            start += len(request.samples)


def _settle(request: _Request, answers: list[dict[str, Any]] | None = None, error: Exception | None = None) -> None:
    if request.answer.done():  # the request was given up
        return
    if error is not None:
        request.answer.set_exception(error)
    else:
        request.answer.set_result(answers)
