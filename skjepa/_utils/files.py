"""Write files so that they appear complete or not at all."""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

PARTIAL = ".partial"
"""Ending of an unfinished file; a process that is killed while writing leaves one behind."""

TABLE_SUFFIXES = (".parquet", ".csv")
"""Of tables that are written and read."""


@contextmanager
def written_whole(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path that is renamed to `path` if the ``with`` block succeeds, and deleted otherwise.

    The file is flushed to disk before it is renamed, so that no reader sees half a file, even after a power cut.
    """
    path = Path(path)
    # The name is unique per process and thread, since several may write the same file; the last to finish wins.
    partial = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}{PARTIAL}")
    try:
        partial.touch()
        mode = partial.stat().st_mode
        yield partial
        if partial.stat().st_mode != mode:  # safetensors writes files that only their owner may read
            partial.chmod(mode)
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        _flush_folder(path.parent)
    finally:
        partial.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    """Flush a folder to disk, so that a rename in it survives a power cut."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def check_output(path: str | os.PathLike, suffixes: Iterable[str]) -> Path:
    """Return the path if a file can be written there, otherwise raise; called before long work."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: the name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to write {path.name} to: create it first")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder: give the name of a file")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent} is not writable: give another folder")
    return path


def short_names(folders: Sequence[Path]) -> dict[str, Path]:
    """Short unique names: the folder's own, with its parents' where two are alike."""
    resolved = [folder.resolve() for folder in folders]
    if len(set(resolved)) < len(resolved):
        raise ValueError("a folder is given twice")
    depth = 1
    while len({path.parts[-depth:] for path in resolved}) < len(resolved):
        depth += 1
    return {"-".join(path.parts[-depth:]).strip("/"): path for path in resolved}
