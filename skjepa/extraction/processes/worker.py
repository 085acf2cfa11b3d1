"""Measure samples in a worker process, after comparing package versions with the sender."""

import os
import pickle
import platform
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from getpass import getuser
from pathlib import Path
from typing import Any

import cloudpickle
import joblib
import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from skjepa import __version__
from skjepa._utils import hardware
from skjepa._utils.hardware import DeviceError, default_budget, device_name
from skjepa.data.images import ImageReadError, path_as_text, read_image
from skjepa.data.sources import Source
from skjepa.extraction.batches.measurement import Arrays, Here, Measured, Measurement, scoring

_LOST_DEVICE = 70  # exit status: internal error, by the convention of sysexits.h
_KEPT = 2  # unpacked measurements: a fit and the scoring after it often alternate
_UNPACKED: dict[str, Measurement] = {}
_ROOM: dict[str, int] = {}
_LOCK = threading.Lock()
_ON_GPU = threading.Lock()
_CLAIMED: list[FileLock] = []


class VersionMismatchError(ValueError):
    """Raised when a worker runs other package versions than the process that sent the work."""


@dataclass(frozen=True)
class FileSample:
    """Name an image file that the worker reads itself.

    Attributes
    ----------
    name : str
        The path as it was given.
    path : str
        The same path, absolute.
    exists : bool
        Whether the sender found the file.
    """

    name: str
    path: str
    exists: bool

    def load(self) -> Any:
        """Read the image; raises FileNotFoundError if only the sender has the file."""
        if self.exists and not os.path.exists(self.path):
            raise FileNotFoundError(
                f"worker {_here()} does not find {self.path}, which exists for the process that sent it: give the "
                "workers the same files under the same paths"
            )
        try:
            return read_image(self.path)
        except ImageReadError as error:
            raise ImageReadError(path_as_text(self.name) + str(error).removeprefix(path_as_text(self.path))) from error


@dataclass(frozen=True)
class Part:
    """Hold samples for one worker, with the limits for measuring them.

    Attributes
    ----------
    ids : array of shape (n,), str
    samples : list
        `FileSample`, or what `Source.load` returned, or the ImageReadError that it raised.
    is_vector : bool
    device : str
    batch_size : int
        Planned batch size; usually all n samples.
    threads : int, optional
        Threads of torch. None divides the cores of the machine among its tasks, see `slots`.
    slots : dict
        Number of tasks that run at once on each host.
    is_limited : bool
        Whether the memory of the worker's machine, unknown to the sender, limits `batch_size`.
    """

    ids: NDArray[np.str_]
    samples: list[Any]
    is_vector: bool
    device: str
    batch_size: int
    threads: int | None
    slots: dict[str, int]
    is_limited: bool

    def source(self) -> Source:
        """Return the samples as a source."""
        return Source(self.ids, self._load, self.is_vector)

    def _load(self, i: int) -> Any:
        sample = self.samples[i]
        if isinstance(sample, ImageReadError):
            raise sample
        return sample.load() if isinstance(sample, FileSample) else sample


@dataclass(frozen=True)
class Outcome:
    """Hold the results of a `Part`.

    Attributes
    ----------
    positions : list of int
        Positions of the measured samples within the part.
    arrays : tuple of arrays
        Results of these samples, see `skjepa.extraction.batches.measurement.Here`.
    skipped : dict
        Position -> reason why the sample could not be read.
    device : str
        Name of the hardware.
    """

    positions: list[int]
    arrays: Arrays
    skipped: dict[int, str]
    device: str


def versions() -> dict[str, str]:
    """Return the versions that must agree between processes that share one run."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"skjepa": __version__, "torch": torch.__version__, "numpy": np.__version__, "Python": python}


def run(expected: dict[str, str], key: str, parcel: bytes | str, part: bytes) -> Outcome:
    """Measure a pickled `Part`.

    Parameters
    ----------
    expected : dict
        The sender's `versions`; nothing is unpickled before they are compared.
    key : str
        Hash of the parcel.
    parcel : bytes or path
        A pickled `Measurement`, or the file that holds it. It is unpickled, and its encoder loaded, once per process.
    part : bytes

    Raises
    ------
    VersionMismatchError
        If the versions differ.
    FingerprintError
        If the encoder of that name is a different one here.
    """
    _require_versions(expected)
    measurement, order = _unpacked(key, parcel), pickle.loads(part)
    device, encoder, source = own_device(order.device), measurement.encoder, order.source()
    size, is_gpu = order.batch_size, device.startswith("cuda")
    if order.is_limited:
        room = _ROOM.setdefault(key, budget(device, order.slots))  # the first: later results fill memory
        size = min(size, measurement.batch_size(room, device, is_vector=order.is_vector))
    # One batch at a time on a GPU, however many tasks the cluster gives this process.
    with _ON_GPU if is_gpu else nullcontext(), _threads(order), scoring(encoder, device) as function:
        measured = Here(measurement, function, source, device, size)
        batches = list(_or_end(measured(range(len(source)))))
    positions = [i for batch, _ in batches for i in batch]
    arrays = tuple(np.concatenate(parts) for parts in zip(*(arrays for _, arrays in batches), strict=True))
    return Outcome(positions, arrays, measured.skipped, device_name(device))


def _or_end(batches: Measured) -> Measured:
    """End this process if it lost its GPU; another process is then given the same samples."""
    try:
        yield from batches
    except DeviceError as error:
        print(f"skjepa: worker {_here()} exits: {error}", file=sys.stderr, flush=True)
        os._exit(_LOST_DEVICE)


def survey(expected: dict[str, str], device: str, slots: dict[str, int]) -> int:
    """Return the bytes that a batch may take in this worker; raises VersionMismatchError."""
    _require_versions(expected)
    return budget(own_device(device), slots)


def budget(device: str, slots: dict[str, int]) -> int:
    """Return half of the device's free memory; on a CPU, this task's share of it."""
    free = default_budget(device)
    if device.startswith("cuda"):
        return free
    worker = _dask_worker()
    limit = getattr(getattr(worker, "memory_manager", None), "memory_limit", None)
    share = free // _tasks_here(slots)
    return share if not limit else min(share, limit // (2 * worker.state.nthreads))


def own_device(device: str) -> str:
    """Return the device of this process; of several GPUs one that no other worker here has taken, if possible.

    GPUs hidden by CUDA_VISIBLE_DEVICES are not considered. A device given with its number is returned as it is.
    """
    if device == "auto":
        device = hardware.resolve_device(device)
    if device != "cuda" or torch.cuda.device_count() < 2:
        return device
    with _LOCK:
        if not _CLAIMED:
            _CLAIMED.append(_claim([str(torch.cuda.get_device_properties(i).uuid) for i in _gpus()]))
    return f"cuda:{Path(_CLAIMED[0].lock_file).suffix[1:]}"


def _gpus() -> range:
    return range(torch.cuda.device_count())


def _claim(names: list[str]) -> FileLock:
    """Lock the first free device; the operating system releases the lock when this process ends."""
    folder = Path(tempfile.gettempdir(), f"skjepa-devices-{getattr(os, 'getuid', getuser)()}")
    folder.mkdir(mode=0o700, exist_ok=True)
    locks = [FileLock(folder / f"{name}.{i}", thread_local=False) for i, name in enumerate(names)]
    for lock in locks:
        with suppress(Timeout):
            lock.acquire(timeout=0)
            return lock
    return locks[os.getpid() % len(locks)]  # more workers than devices: they share


def _unpacked(key: str, parcel: bytes | str) -> Measurement:
    with _LOCK:
        if key not in _UNPACKED:
            while len(_UNPACKED) >= _KEPT:
                oldest = next(iter(_UNPACKED))
                del _UNPACKED[oldest]
                _ROOM.pop(oldest, None)
            _UNPACKED[key] = cloudpickle.loads(Path(parcel).read_bytes() if isinstance(parcel, str) else parcel)
        return _UNPACKED[key]


def packed(measurement: Measurement) -> bytes:
    """Pickle a `Measurement` for another process.

    An encoder loaded by name is sent as name and fingerprint, one made from a module as a whole.
    """
    encoder = measurement.encoder
    # The sender warns about skipped samples, so the workers do not.
    quiet = replace(measurement, is_quiet=True)
    try:
        return cloudpickle.dumps(quiet)
    except Exception as error:  # pickling runs code of the objects, which may raise anything
        raise TypeError(
            f"encoder {encoder.name!r}, or the transform, cannot be pickled for other processes: {error}. Load the "
            "encoder from a name, a folder or a file, or remove what cannot be pickled (open files, locks, streams)"
        ) from error


def _require_versions(expected: dict[str, str]) -> None:
    found = versions()
    different = [name for name in expected if found.get(name) != expected[name]]
    if different:
        reasons = "; ".join(f"{name} {found.get(name)} there, {expected[name]} here" for name in different)
        raise VersionMismatchError(
            f"worker {_here()} has other versions than the process that sends the work: {reasons}. Install the same "
            "versions on both"
        )


@contextmanager
def _threads(order: Part) -> Iterator[None]:
    """Set the torch threads during a task, so that all tasks on this machine use no more than its cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(order.threads or max(1, joblib.cpu_count() // _tasks_here(order.slots)))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _tasks_here(slots: dict[str, int]) -> int:
    """Return how many tasks run on this machine at once; for a worker that joined later, its own number."""
    worker = _dask_worker()
    return 1 if worker is None else slots.get(host_of(worker.address), worker.state.nthreads)


def host_of(address: str) -> str:
    """Return the host in the address of a dask worker."""
    return address.rpartition("://")[2].rpartition(":")[0] or address


def _dask_worker() -> Any:
    """Return the dask worker that this code runs in; None elsewhere."""
    distributed = sys.modules.get("distributed")
    try:
        return None if distributed is None else distributed.get_worker()
    except ValueError:
        return None


def is_worker() -> bool:
    """Whether this code runs in a task of a dask worker."""
    return _dask_worker() is not None


def _here() -> str:
    return f"{socket.gethostname()} (process {os.getpid()})"
