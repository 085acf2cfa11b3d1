"""Files appear whole or not at all."""

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""Ending of a file in the making; a process killed in the midst leaves one behind."""


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """A temporary path to write to: it becomes `path` where the block ends well, and vanishes where it does not.

    Flushed to the disk before it is renamed, so that a reader never sees half a file, not even after a power cut.
    """
    path = Path(path)
    # Processes, and threads of one, may write the same file at the same time: the last one done wins.
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{PARTIAL}")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _flush_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """A rename, too, must outlive a power cut."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_output(path: str | os.PathLike, suffixes: Iterable[str]) -> Path:
    """The path, if a file can be written there; said before hours of work, not after."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: the name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} to")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent} is not writable")
    return path
