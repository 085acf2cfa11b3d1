"""Processes that measure: those of joblib's active backend, "loky" on this machine or "dask" on a cluster."""

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

_SECONDS_BETWEEN_LOOKS = 5.0  # at the size of a cluster
_IDLE_SECONDS = 300
_PATIENCE = 300.0  # seconds without any worker, once there have been some
_LARGE = 2**20  # bytes that should not pass through a scheduler


class Pool(Protocol):
    """Processes that measure.

    Attributes
    ----------
    is_here : bool
        Whether they share this machine.
    device : str
        "auto" and "cuda" are each worker's own.
    """

    is_here: bool
    device: str

    def budget(self) -> int:
        """Bytes that a batch may take."""

    def slots(self) -> int:
        """Tasks that run at once, as of now."""

    def open(self, parcel: bytes) -> None:
        """Make a pickled `Measurement` available to all."""

    def part(self, *, is_budget_given: bool, **content: Any) -> worker.Part:
        """A `skjepa.extraction.processes.worker.Part` for these workers."""

    def submit(self, key: str, part: bytes) -> Future: ...

    def mend(self) -> None:
        """After a worker was lost."""

    def close(self, *, at_once: bool) -> None:
        """Let go; `at_once` where work in flight is of no use any more."""


def own_device(device: str, pool: "Pool | None") -> str:
    """Where this process looks at the encoder; it need not have the GPUs of a cluster."""
    if pool is None:
        return hardware.resolve_device(device)
    return pool.device if pool.is_here else "cpu"


def active_pool(device: str) -> Pool | None:
    """The processes that `joblib.parallel_config` asks for; None where this process is to work alone.

    That is so under any other backend, with one process only, and inside a worker, where nothing is spread again. Of
    processes on one machine there are no more than GPUs, where they measure on GPUs.

    Parameters
    ----------
    device : str
        As of `skjepa.extract`.
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
    """`joblib.parallel_config` for a number of processes here, or for the dask cluster at an address.

    Parameters
    ----------
    n_jobs : int, optional
        -1 for one a core.
    scheduler : str, optional
        Address of the scheduler, or the scheduler file (.json) that it wrote.
    """
    if n_jobs is not None and scheduler is not None:
        raise ValueError("give a number of processes or a dask scheduler, not both: a cluster has its own workers")
    if scheduler is None:
        with nullcontext() if n_jobs is None else joblib.parallel_config(backend="loky", n_jobs=n_jobs):
            yield
        return
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError("a dask scheduler needs dask: pip install 'skjepa[dask]'") from error
    where = {"scheduler_file": scheduler} if scheduler.endswith(".json") else {"address": scheduler}
    with Client(**where, set_as_default=False) as client, joblib.parallel_config(backend="dask", client=client):
        yield


class LocalPool:
    """Processes on this machine, by loky; they stay for the next pass, and end when idle for five minutes.

    Parameters
    ----------
    n : int
    device : str
    threads : int, optional
        Of each; by default the cores are shared out, and no process takes more than this one.
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
    """n processes; those of an earlier pass, if there are as many. joblib's own would be another kind of executor."""
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
    """A broken pool, or one whose work is of no use any more, with its processes."""
    with _EXECUTORS_LOCK:
        for executor in _EXECUTORS.values():
            executor.shutdown(kill_workers=True)
        _EXECUTORS.clear()


class DaskPool:
    """The workers of a dask cluster, also those that join later.

    Parameters
    ----------
    client : distributed.Client
    device : str
    timeout : float
        Seconds to wait for a first worker.
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
        if self._parcel.status != "finished":  # it went with the last worker that had it
            self.open(self._bytes)

    def close(self, *, at_once: bool) -> None:
        self._tasks.shutdown(wait=False)

    def _wait_for_workers(self, timeout: float) -> None:
        try:
            self.client.wait_for_workers(1, timeout=timeout)
        except TimeoutError as error:
            raise TimeoutError(f"the dask cluster has no worker, after {timeout:g} seconds") from error

    def _look(self) -> None:
        if time.monotonic() - self._looked < _SECONDS_BETWEEN_LOOKS:
            return
        slots: dict[str, int] = {}
        for address, threads in self.client.nthreads().items():
            host = worker.host_of(address)
            slots[host] = slots.get(host, 0) + threads
        self._slots, self._looked = sum(slots.values()), time.monotonic()
        # The most that was seen: a worker that restarts does not leave its cores to the others.
        self._sharing |= {host: max(n, self._sharing.get(host, 0)) for host, n in slots.items()}


def losses() -> tuple[type[BaseException], ...]:
    """What a future raises whose worker ended."""
    distributed = sys.modules.get("distributed")
    return (BrokenExecutor, CancelledError, *([] if distributed is None else [distributed.KilledWorker]))
