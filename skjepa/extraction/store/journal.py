"""Append records with checksums to a file of one process, so that complete records survive a crash."""

import os
import struct
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

from filelock import FileLock, Timeout

SUFFIX = ".journal"
_MAGIC = b"SKJ2"
_HEAD = struct.Struct("<4sQ16s")  # magic, bytes of the record, their hash
_SYNC_SECONDS = 1.0


@dataclass(frozen=True)
class Found:
    """Hold the content of a journal from some offset on.

    Attributes
    ----------
    records : list of bytes
    end : int
        Where the last complete record ends.
    torn : int
        Number of bytes after it: a record that is being written, was cut off by a crash, or is damaged.
    damaged : int
        Number of places before `end` that hold something other than a complete record.
    """

    records: list[bytes]
    end: int
    torn: int
    damaged: int


def read_records(path: str | os.PathLike, offset: int = 0) -> Found:
    """Read a journal from an earlier `end` on; another process may be writing to it."""
    with open(path, "rb") as file:
        file.seek(offset)
        data = file.read()
    records: list[bytes] = []
    position = end = damaged = 0
    while (position := data.find(_MAGIC, position)) >= 0:
        record, after = _record_at(data, position)
        if record is None:
            position += 1
            continue
        damaged += position > end
        records.append(record)
        position = end = after
    return Found(records, offset + end, len(data) - end, damaged)


def _record_at(data: bytes, position: int) -> tuple[bytes | None, int]:
    """Return the record that begins there, or None if its checksum fails, and where it ends."""
    start = position + _HEAD.size
    if start > len(data):
        return None, position
    _, length, digest = _HEAD.unpack_from(data, position)
    record = data[start : start + length]
    return (record if len(record) == length and _digest(record) == digest else None), start + length


class Journal:
    """Write the journal of one process, which holds its lock until the process ends.

    Create one by `claimed` or `left_behind`. A file name is used only once: a journal grows until it is removed.

    Attributes
    ----------
    path : Path
    found : Found
        Content when it was opened; an incomplete record at its end has been cut off.
    """

    def __init__(self, path: Path, lock: FileLock, start: int = 0) -> None:
        self.path, self._lock = path, lock
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0), 0o666)
        self.found = read_records(path, start)
        if self.found.torn:
            os.ftruncate(self._file, self.found.end)
        self.size = self.found.end
        self._synced = time.monotonic()

    @classmethod
    def claimed(cls, folder: Path, known: Callable[[Path], int] = lambda path: 0) -> "Journal":
        """Take over a journal that a writer left behind, or create one; `known` returns how far it has been read."""
        left = next(cls.left_behind(folder, known), None)
        if left is not None:
            return left
        folder.mkdir(exist_ok=True)
        path = folder / f"{uuid.uuid4().hex}{SUFFIX}"
        lock = _lock_of(path)
        lock.acquire(timeout=0)  # before the journal exists, so that no other process can take it over
        return _opened(path, lock, 0)

    @classmethod
    def left_behind(cls, folder: Path, known: Callable[[Path], int] = lambda path: 0) -> Iterator["Journal"]:
        """Take over, one by one, the journals whose writers are gone."""
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            lock = _lock_of(path)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            if path.exists():
                yield _opened(path, lock, known(path))
            else:  # its writer removed it after it was listed
                _drop(lock)

    def append(self, record: bytes) -> None:
        """Write one record; if that fails, the journal stays as it was.

        A written record survives a crash of this process at once, and a power cut after about a second.
        """
        data = memoryview(_HEAD.pack(_MAGIC, len(record), _digest(record)) + record)
        try:
            while data:
                data = data[os.write(self._file, data) :]
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._file, self.size)
            raise
        self.size += _HEAD.size + len(record)
        if time.monotonic() - self._synced > _SYNC_SECONDS:
            os.fsync(self._file)
            self._synced = time.monotonic()

    def records(self) -> list[bytes]:
        """Return all complete records; a warning reports damaged ones."""
        found = read_records(self.path)
        if found.damaged:
            warn_of_damage(self.path, found.damaged)
        return found.records

    def release(self) -> None:
        """Close it and leave it to the next writer."""
        os.close(self._file)
        self._lock.release()

    def remove(self) -> None:
        """Delete it, once its records are stored elsewhere."""
        os.close(self._file)
        self.path.unlink(missing_ok=True)
        _drop(self._lock)


def warn_of_damage(path: Path, n: int) -> None:
    """Warn that n records of a journal are damaged."""
    warnings.warn(f"{path} is damaged in {n} records; their samples are computed again", stacklevel=3)


def _opened(path: Path, lock: FileLock, start: int) -> Journal:
    try:
        return Journal(path, lock, start)
    except BaseException:
        lock.release()
        raise


def _lock_of(path: Path) -> FileLock:
    return FileLock(path.with_suffix(".lock"), thread_local=False)


def _drop(lock: FileLock) -> None:
    with suppress(OSError):
        os.unlink(lock.lock_file)
    lock.release()


def _digest(record: bytes) -> bytes:
    return blake2b(record, digest_size=16).digest()
