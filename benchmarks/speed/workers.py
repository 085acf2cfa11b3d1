"""One pass on several processes: efficiency of two workers against one, what a task costs, whether the numbers agree.

    python -m benchmarks.speed.workers [--quick] [--workers 2]

Arms are measured in turn, several times, in one run; the fastest round of each counts: one process with one thread and
with as many threads as there are workers, loky and a dask LocalCluster with that many workers of one thread each. The
processor's seconds, of all processes of the arm, stand beside the clock's: other work on the machine changes them less.
The cost of a task is taken where measuring costs next to nothing: a linear encoder of a vector, one sample a task.

Writes benchmarks/results/spread_cpu.json, or --out.
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import distributed
import joblib
import numpy as np
import psutil
import torch
from distributed import Client, LocalCluster
from torch import nn

from benchmarks.common import record
from skjepa import Encoder, Extraction, extract, load_encoder
from skjepa.data.sample_images import demo_images

SEED = 0
Arm = Callable[[], contextlib.AbstractContextManager]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--workers", type=int, default=2)
    options.add_argument("--quick", action="store_true", help="few images, one round: a minute")
    options.add_argument("--out", type=Path, default=record.RESULTS / "spread_cpu.json")
    chosen = options.parse_args()
    n, rounds, budget = (64, 1, 20 * 2**20) if chosen.quick else (768, 3, 2**30)
    images = np.concatenate([demo_images(SEED)[name] for name in ("fit", "photographs")])[:n]
    busy = psutil.cpu_percent(interval=5.0)
    cluster = LocalCluster(n_workers=chosen.workers, threads_per_worker=1, dashboard_address=None)
    with cluster, Client(cluster) as client:
        arms = arms_of(chosen.workers, client)
        results = {
            "workers": chosen.workers,
            "images": len(images),
            "cores_busy_before_percent": busy,
            "passes": passes(arms, load_encoder("bundled"), images, budget, chosen.workers, rounds),
            "tasks": tasks(arms, 32 if chosen.quick else 256, rounds),
        }
    tools = {"joblib": joblib.__version__, "distributed": distributed.__version__}
    record.write(chosen.out, results, seed=SEED, workers=chosen.workers, quick=chosen.quick, **tools)
    print(json.dumps(results, indent=1))


def arms_of(n: int, client: Client) -> dict[str, Arm]:
    return {
        "one process, 1 thread": lambda: threads(1),
        f"one process, {n} threads": lambda: threads(n),
        "loky": lambda: both(threads(1), joblib.parallel_config(backend="loky", n_jobs=n, inner_max_num_threads=1)),
        "dask": lambda: both(threads(1), joblib.parallel_config(backend="dask", client=client)),
    }


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def both(*managers: contextlib.AbstractContextManager) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for manager in managers:
            stack.enter_context(manager)
        yield


def passes(
    arms: dict[str, Arm], encoder: Encoder, images: np.ndarray, budget: int, n_workers: int, rounds: int
) -> list[dict]:
    """Seconds of an exact pass by each arm, the first and the fastest after it; by the clock and of the processor."""
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    processor: dict[str, list[float]] = {name: [] for name in arms}
    measured: dict[str, Extraction] = {}
    for _ in range(rounds + 1):
        for name, arm in arms.items():
            with arm():
                started, used = time.perf_counter(), processor_seconds()
                measured[name] = extract(encoder, images, memory_budget=budget)
                seconds[name].append(time.perf_counter() - started)
                processor[name].append(processor_seconds() - used)
    reference = measured["one process, 1 thread"]
    alone = min(seconds["one process, 1 thread"][1:])
    alone_processor = min(processor["one process, 1 thread"][1:])
    return [
        {
            "arm": name,
            "first_seconds": took[0],
            "seconds": min(took[1:]),
            "rounds": took[1:],
            "ms_an_image": 1e3 * min(took[1:]) / len(images),
            "efficiency": alone / min(took[1:]) / (1 if name == "one process, 1 thread" else n_workers),
            "processor_seconds": min(processor[name][1:]),
            "processor_efficiency": alone_processor / min(processor[name][1:]),
            "largest_difference_of_log_volume": difference(measured[name], reference),
            "is_bitwise_equal": bool(np.array_equal(measured[name].singular_values, reference.singular_values)),
        }
        for name, took in seconds.items()
    ]


def processor_seconds() -> float:
    """Of this process and of all that it started; other work on the machine does not count."""
    this = psutil.Process()
    times = [process.cpu_times() for process in (this, *this.children(recursive=True))]
    return sum(time.user + time.system for time in times)


def difference(a: Extraction, b: Extraction, floor: float = 1e-6) -> float:
    """In nats, of the paper's score."""
    scores = [np.log(np.maximum(part.singular_values, floor)).sum(axis=(1, 2)) for part in (a, b)]
    return float(np.abs(scores[0] - scores[1]).max())


def tasks(arms: dict[str, Arm], n: int, rounds: int) -> list[dict]:
    """Milliseconds of a task of one sample that costs next to nothing to measure."""
    torch.manual_seed(SEED)
    encoder = load_encoder(nn.Linear(8, 4))
    X = np.random.default_rng(SEED).normal(size=(n, 8))
    found = []
    for name in ("one process, 1 thread", "loky", "dask"):
        took = []
        for _ in range(rounds + 1):
            with arms[name]():
                started = time.perf_counter()
                extract(encoder, X, memory_budget=1)
                took.append(time.perf_counter() - started)
        found.append({"arm": name, "tasks": n, "ms_a_task": 1e3 * min(took[1:]) / n})
    return found


if __name__ == "__main__":
    main()
