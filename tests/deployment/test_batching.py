import asyncio
import threading

import pytest

from skjepa.deployment.batching import Batcher, BusyError


def batcher(score, **options):
    return Batcher(score, **{"max_batch": 8, "max_waiting": 20, "max_weight": 100, "gather_seconds": 0.01} | options)


def test_requests_that_come_together_are_scored_together_and_in_order():
    batches = []

    def score(samples):
        batches.append(list(samples))
        return [{"twice": 2 * sample} for sample in samples]

    async def run():
        async with batcher(score).running() as running:
            return await asyncio.gather(*(running.submit([i, i + 100]) for i in range(6)))

    answers = asyncio.run(run())
    assert answers == [[{"twice": 2 * i}, {"twice": 2 * (i + 100)}] for i in range(6)]
    assert [len(batch) for batch in batches] == [8, 4]


def test_one_bad_request_does_not_spoil_the_others():
    def score(samples):
        if -1 in samples:
            raise ValueError("a bad sample")
        return [{"value": sample} for sample in samples]

    async def run():
        async with batcher(score).running() as running:
            asked = (running.submit([sample]) for sample in (1, -1, 3))
            return await asyncio.gather(*asked, return_exceptions=True)

    first, bad, last = asyncio.run(run())
    assert (first, last) == ([{"value": 1}], [{"value": 3}])
    assert isinstance(bad, ValueError)


@pytest.mark.parametrize(("n_samples", "weight"), [(11, 0), (1, 60)])
def test_what_may_wait_is_bounded(n_samples, weight):
    release = threading.Event()

    def score(samples):
        release.wait(10)
        return [{} for _ in samples]

    async def run():
        async with batcher(score, gather_seconds=0).running() as running:
            first = asyncio.create_task(running.submit([0]))
            await asyncio.sleep(0.05)  # it is being scored, and no longer waits
            second = asyncio.create_task(running.submit([0] * 10, 50))
            await asyncio.sleep(0.05)
            with pytest.raises(BusyError, match=r"too many samples are waiting \(10\)"):
                await running.submit([0] * n_samples, weight)
            release.set()
            return await asyncio.gather(first, second)

    assert [len(answers) for answers in asyncio.run(run())] == [1, 10]


def test_who_gives_up_is_not_scored():
    release, scored = threading.Event(), []

    def score(samples):
        release.wait(10)
        scored.extend(samples)
        return [{} for _ in samples]

    async def run():
        async with batcher(score, gather_seconds=0).running() as running:
            first = asyncio.create_task(running.submit(["first"]))
            await asyncio.sleep(0.05)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await running.submit(["second"])
            assert running.n_waiting == 0
            release.set()
            await first

    asyncio.run(run())
    assert scored == ["first"]
