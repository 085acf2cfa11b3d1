"""Provide worker processes: those of joblib's active backend, "loky" on this machine or "dask" on a cluster."""

import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Future
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import joblib
import numpy as np
import torch
from joblib.externals.loky import ProcessPoolExecutor
from joblib.parallel import BACKENDS, get_active_backend

from skjepa._utils import hardware
from skjepa._utils.hardware import default_budget
from skjepa.extraction.processes import worker

_SECONDS_BETWEEN_LOOKS = 5.0  # between two queries of the size of a cluster
_IDLE_SECONDS = 300
_PATIENCE = 300.0  # seconds to wait for a worker after all of them were lost
_LARGE = 2**20  # bytes that should not pass through a scheduler


class Pool(Protocol):
    """Describe what a group of worker processes must provide.

    Attributes
    ----------
    is_here : bool
        Whether the workers run on this machine.
    device : str
        With "auto" and "cuda" each worker chooses its own device.
    """

    is_here: bool
    device: str

    def budget(self) -> int:
        """Return the bytes that a batch may take."""

    def slots(self) -> int:
        """Return the number of tasks that can run at once now."""

    def open(self, parcel: bytes) -> None:
        """Make a pickled `Measurement` available to all workers."""

    def part(self, *, is_budget_given: bool, **content: Any) -> worker.Part:
        """Return a `skjepa.extraction.processes.worker.Part` for these workers."""

    def submit(self, key: str, part: bytes) -> Future:
        """Start measuring a pickled part, with the measurement that `key` names."""

    def mend(self) -> None:
        """Prepare the pool for more work after a worker was lost."""

    def close(self, *, at_once: bool) -> None:
        """Release the workers; with `at_once` drop unfinished work as well."""


def own_device(device: str, pool: "Pool | None") -> str:
    """Return the device on which this process probes the encoder; it may lack the GPUs of a cluster."""
    if pool is None:
        return hardware.resolve_device(device)
    return pool.device if pool.is_here else "cpu"


def active_pool(device: str) -> Pool | None:
    """Return the processes that `joblib.parallel_config` asks for; None if this process works alone.

    This process works alone under any other backend, with one process, and inside a worker. On the GPUs of one machine
    there are at most as many processes as GPUs.

    Parameters
    ----------
    device : str
        As for `skjepa.extract`.
    """
    backend, n_jobs = get_active_backend()
    distributed = sys.modules.get("distributed")
    client = getattr(backend, "client", None)
    if distributed is not None and isinstance(client, distributed.Client):
        return None if worker.is_worker() else DaskPool(client, device, timeout=backend.wait_for_workers_timeout)
    n = backend.effective_n_jobs(n_jobs) if isinstance(backend, BACKENDS["loky"]) else 1
    if n < 2:
        return None
    device = hardware.resolve_device(device)
    if device.startswith("cuda"):
        n = min(n, torch.cuda.device_count() if device == "cuda" else 1)
    return None if n < 2 else LocalPool(n, device, threads=backend.inner_max_num_threads)


@contextmanager
def workers(n_jobs: int | None = None, scheduler: str | None = None) -> Iterator[None]:
    """Run skjepa in several processes on this machine, or on a dask cluster, within a ``with`` block.

    A short form of `joblib.parallel_config`.

    Parameters
    ----------
    n_jobs : int, optional
        Number of processes on this machine; -1 for one per core.
    scheduler : str, optional
        Address of a dask scheduler, or the scheduler file (.json) that it wrote.

    Raises
    ------
    ValueError
        If both are given, or dask is not installed.
    """
    if n_jobs is not None and scheduler is not None:
        raise ValueError("got both n_jobs and scheduler: give one of them, a cluster has its own number of workers")
    if scheduler is None:
        with nullcontext() if n_jobs is None else joblib.parallel_config(backend="loky", n_jobs=n_jobs):
            yield
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError("scheduler= needs dask, which is not installed: pip install 'skjepa[dask]'") from error
    where = {"scheduler_file": scheduler} if scheduler.endswith(".json") else {"address": scheduler}
    with Client(**where, set_as_default=False) as client, joblib.parallel_config(backend="dask", client=client):
        yield


class LocalPool:
    """Run loky processes on this machine; they are reused, and end after five idle minutes.

    Parameters
    ----------
    n : int
        Number of processes.
    device : str
    threads : int, optional
        Torch threads per process. By default the cores are divided among the processes, and none takes more threads
        than this process has.
    """

    is_here = True

    def __init__(self, n: int, device: str, *, threads: int | None = None) -> None:
        self.n, self.device = n, device
        self.threads = threads or max(1, min(torch.get_num_threads(), joblib.cpu_count() // n))
        self._folder: tempfile.TemporaryDirectory | None = None

    def budget(self) -> int:
        return default_budget(self.device) // (1 if self.device.startswith("cuda") else self.n)

    def slots(self) -> int:
        return self.n

    def open(self, parcel: bytes) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="skjepa-")
        self._parcel = Path(self._folder.name, "measurement.pickle")
        self._parcel.write_bytes(parcel)

    def part(self, *, is_budget_given: bool, **content: Any) -> worker.Part:
        return worker.Part(**content, threads=self.threads, slots={}, is_limited=False)

    def submit(self, key: str, part: bytes) -> Future:
        return _executor(self.n, self.threads).submit(worker.run, worker.versions(), key, str(self._parcel), part)

    def mend(self) -> None:
        _drop_executor()

    def close(self, *, at_once: bool) -> None:
        if at_once:
            _drop_executor()
        if self._folder is not None:
            self._folder.cleanup()


_EXECUTORS: dict[tuple[int, int], ProcessPoolExecutor] = {}
_EXECUTORS_LOCK = threading.Lock()


def _executor(n: int, threads: int) -> ProcessPoolExecutor:
    """Return n processes, reusing those of an earlier run with the same numbers.

    joblib's own executor is not used: it is of another kind.
    """
    with _EXECUTORS_LOCK:
        if (n, threads) not in _EXECUTORS:
            for other in _EXECUTORS.values():
                other.shutdown(wait=False)
            _EXECUTORS.clear()
            variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
            environment = dict.fromkeys(variables, str(threads))
            _EXECUTORS[n, threads] = ProcessPoolExecutor(n, timeout=_IDLE_SECONDS, env=environment)
        return _EXECUTORS[n, threads]


def _drop_executor() -> None:
    """End the processes of a broken pool, or of one whose work is no longer needed."""
    with _EXECUTORS_LOCK:
        for executor in _EXECUTORS.values():
            executor.shutdown(kill_workers=True)
        _EXECUTORS.clear()


class DaskPool:
    """Run on the workers of a dask cluster, including workers that join later.

    Parameters
    ----------
    client : distributed.Client
    device : str
    timeout : float
        Seconds to wait for the first worker.
    """

    is_here = False

    def __init__(self, client: Any, device: str, *, timeout: float) -> None:
        self.client, self.device, self.timeout = client, device, timeout
        self._wait_for_workers(timeout)
        self._tasks = client.get_executor(pure=False)
        self._slots, self._looked = 0, -np.inf
        self._sharing: dict[str, int] = {}
        self._look()

    def budget(self) -> int:
        return max(self.client.run(worker.survey, worker.versions(), self.device, self._sharing).values())

    def slots(self) -> int:
        self._look()
        return self._slots

    def open(self, parcel: bytes) -> None:
        self._bytes = parcel
        self._parcel = self.client.scatter([parcel], broadcast=True, hash=False)[0]

    def part(self, *, is_budget_given: bool, **content: Any) -> worker.Part:
        return worker.Part(**content, threads=None, slots=self._sharing, is_limited=not is_budget_given)

    def submit(self, key: str, part: bytes) -> Future:
        sent = part if len(part) < _LARGE else self.client.scatter([part], hash=False)[0]
        return self._tasks.submit(worker.run, worker.versions(), key, self._parcel, sent)

    def mend(self) -> None:
        self._wait_for_workers(max(self.timeout, _PATIENCE))
        if self._parcel.status != "finished":  # the last worker that held it is gone
            self.open(self._bytes)

    def close(self, *, at_once: bool) -> None:
        self._tasks.shutdown(wait=False)

    def _wait_for_workers(self, timeout: float) -> None:
        try:
            self.client.wait_for_workers(1, timeout=timeout)
        except TimeoutError as error:
            raise TimeoutError(f"the dask cluster has no worker after {timeout:g} seconds: start one") from error

    def _look(self) -> None:
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        slots: dict[str, int] = {}
        for address, threads in self.client.nthreads().items():
            host = worker.host_of(address)
            slots[host] = slots.get(host, 0) + threads
        self._slots, self._looked = sum(slots.values()), time.monotonic()
        # Keep the largest number seen: cores of a worker that restarts are not given to the others meanwhile.
        self._sharing |= {host: max(n, self._sharing.get(host, 0)) for host, n in slots.items()}


def losses() -> tuple[type[BaseException], ...]:
    """Return the exceptions that a future raises if its worker ended."""
    distributed = sys.modules.get("distributed")
    return (BrokenExecutor, CancelledError, *([] if distributed is None else [distributed.KilledWorker]))
