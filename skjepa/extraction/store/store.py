"""Keep finished samples in a folder from which a run resumes: Parquet shards, a JSON manifest and journals.

manifest.json               settings that all samples of the store share
samples/*.parquet           shards: one row per sample, never rewritten; the file name holds the hash of its bytes
samples/unreadable.parquet  samples that could not be read, with the reasons; each run tries them again
journals/                   samples finished since the last shard, one file per writer
damaged/                    shards whose bytes do not match their hash
"""

import functools
import hashlib
import json
import math
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from filelock import FileLock
from numpy.typing import NDArray

from skjepa._utils.files import PARTIAL, written_whole
from skjepa.extraction.store import shards
from skjepa.extraction.store.journal import SUFFIX, Journal
from skjepa.extraction.store.settings import LATER, SETTINGS, SettingsMismatchError, require_same_settings
from skjepa.extraction.store.shards import DamagedError, Key, Row

FORMAT = 2
PACKAGES = ("skjepa", "torch", "torchvision", "timm", "numpy", "Pillow", "pyarrow")
_MANIFEST = "manifest.json"
_LOCK = ".lock"
_UNREADABLE = "unreadable.parquet"
_SHARD_BYTES = 64 * 2**20
_CACHE_SHARD_BYTES = 8 * 2**20  # smaller: every process that uses the cache reads all journals
_READ_LATELY = shards.Cache()


def cache_of(memory: Any) -> Path | None:
    """Return the folder of a cache, given as a path or a joblib.Memory; None if there is none."""
    if hasattr(memory, "location"):
        memory = memory.location
    if memory is None:
        return None
    if not isinstance(memory, str | os.PathLike):
        raise TypeError(f"memory must be a folder or a joblib.Memory; got {memory!r}")
    return Path(memory)


def memory_folder(memory: Any, settings: dict[str, Any]) -> Path | None:
    """Return the folder of the `Store` for these settings within a cache; None if there is no cache.

    Parameters
    ----------
    memory : path, joblib.Memory or None
        A joblib.Memory without a location means no cache.
    settings : dict
        As for `Store`.
    """
    if (folder := cache_of(memory)) is None:
        return None
    values = {key: settings.get(key) for key in SETTINGS}
    values = {key: value for key, value in values.items() if key not in LATER or value is not None}
    settled = json.dumps([FORMAT, *values.values()])
    return folder / hashlib.sha256(settled.encode()).hexdigest()[:32]


def stores_of(memory: Any) -> list[Path]:
    """Return the folders of all stores within a cache."""
    folder = cache_of(memory)
    return [] if folder is None else [manifest.parent for manifest in folder.glob(f"*/{_MANIFEST}")]


def settings_of(store: Path) -> dict[str, Any] | None:
    """Return the settings of a store; None if there is none or it is damaged, which opening it reports."""
    try:
        settings = _read_manifest(store / _MANIFEST)["settings"]
    except (OSError, ValueError):
        return None
    return settings if settings.keys() >= set(SETTINGS) - set(LATER) else None


class Store:
    """Keep rows of finished samples in a folder; many processes may read and write it at once.

    Each writer appends to its own journal, with a checksum per record. A journal becomes a shard when it is large, and
    at `close`. The next writer takes over the journal of a writer that was killed.

    Parameters
    ----------
    path : path
        Created if absent. A folder that holds other files and no manifest is refused.
    settings : dict
        Settings that must agree before results may be mixed (`skjepa.extraction.store.settings.SETTINGS`).
    is_cache : bool
        Whether it is a cache, which is read often for few samples. Its journals then become shards only when they are
        large, and samples that could not be read are not recorded.

    Raises
    ------
    SettingsMismatchError
        If the store was made with other settings; the message names every difference.
    OSError
        If it cannot be created or read.
    """

    def __init__(self, path: str | os.PathLike, settings: dict[str, Any], *, is_cache: bool = False) -> None:
        self.path, self.is_cache = Path(path), is_cache
        self.settings = json.loads(json.dumps({key: settings.get(key) for key in ("encoder", *SETTINGS)}))
        self._samples, self._journals = self.path / "samples", self.path / "journals"
        self._journal: Journal | None = None
        self._shard_bytes = self._roll_at = _CACHE_SHARD_BYTES if is_cache else _SHARD_BYTES
        self._known: set[Path] = set()  # shards known to hold nothing that this writer appends
        self._has_inherited = False
        # Checked before the manifest: another process may be creating the store, and writes its manifest first.
        is_foreign = self.path.exists() and (not self.path.is_dir() or any(map(_is_foreign, self.path.iterdir())))
        manifest = self.path / _MANIFEST
        if not manifest.exists():
            if is_foreign:
                raise ValueError(f"{self.path} is not a store, for it has no {_MANIFEST}: give a new or empty folder")
            with self._writing(), self._locked():
                if not manifest.exists():
                    self._write_manifest(manifest)
        self._require_same_settings(_read_manifest(manifest)["settings"], f"the store {self.path}")

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, keys: Iterable[Key] | None = None) -> dict[Key, Row]:
        """Return finished samples, all or those among `keys`: embedding (K,), singular values (V, R), layers (W,).

        A damaged shard is moved aside with a warning that names it; its samples count as not finished.
        """
        return self.read_all(keys)[0]

    def failures(self) -> dict[Key, str]:
        """Return recorded samples that could not be read, with the reasons."""
        return self.read_all(())[1]

    def read_all(self, keys: Iterable[Key] | None = None) -> tuple[dict[Key, Row], dict[Key, str]]:
        """Return what `read` and `failures` return, as of the same moment."""
        wanted = None if keys is None else set(keys)
        rows: dict[Key, Row] = {}
        failures: dict[Key, str] = {}
        for path in _files(self._journals, SUFFIX):  # before the shards: a journal vanishes once its shard is there
            with suppress(FileNotFoundError):
                finished, unreadable = _READ_LATELY.journal(path, wanted)
                rows, failures = rows | finished, failures | unreadable
        for path in self._shards() if wanted is None or wanted else []:
            try:
                block = _READ_LATELY.shard(path)
            except FileNotFoundError:
                continue
            except DamagedError as error:
                self._set_aside(path, error)
                continue
            self._require_same_settings(block.about.get("settings", {}), f"the shard {path}")
            rows |= block.rows(wanted)
            if self._journal is None:
                self._known.add(path)
        return rows, self._noted() | failures

    def claim(self) -> None:
        """Prepare for writing, so that a folder that cannot be written raises now and not after an hour of work."""
        if self._journal is None:
            with self._writing():
                self._journal = Journal.claimed(self._journals, _READ_LATELY.end)
            _warn_if_torn(self._journal)
            self._has_inherited = self._journal.size > 0
            if self._has_inherited:  # its writer may have been killed after it wrote a shard
                self._known.clear()

    def append(
        self,
        keys: Sequence[Key],
        embeddings: NDArray,
        singular_values: NDArray,
        failures: Mapping[Key, str] | None = None,
        layers: NDArray | None = None,
    ) -> None:
        """Append finished samples and reasons for unreadable ones; if it raises, none of them is kept."""
        tables = [shards.finished(keys, embeddings, singular_values, layers)] if len(keys) else []
        if failures and not self.is_cache:
            tables.append(shards.unreadable(failures))
        if not tables:
            return
        self.claim()
        assert self._journal is not None
        with self._writing():
            self._journal.append(shards.to_bytes(tables))
        if self._journal.size > self._roll_at:
            self._roll()

    def close(self) -> None:
        """Release the journal; except in a cache, all journals without a writer become a shard first."""
        if not self.is_cache and (self._journal is not None or _files(self._journals, SUFFIX)):
            self._roll(adopt=True)
        if self._journal is not None:
            self._journal.release()
            self._journal = None
        self._roll_at = self._shard_bytes

    def _roll(self, *, adopt: bool = False) -> None:
        """Turn journals into a shard; if that fails they stay, and the next run reads them."""
        journals = [] if self._journal is None else [self._journal]
        is_mine = bool(journals)
        try:
            if adopt:
                for journal in Journal.left_behind(self._journals):
                    journals.append(journal)
                    _warn_if_torn(journal)
            if not journals:
                return
            with self._locked():
                self._write_rows([record for journal in journals for record in journal.records()], adopt)
        except OSError as error:
            for journal in journals[is_mine:]:
                journal.release()
            if self._journal is not None:
                self._roll_at += self._shard_bytes
                warnings.warn(
                    f"the store {self.path}: no shard could be written ({error.strerror or error}). Finished samples "
                    f"stay in its journals, from which the next run reads them",
                    stacklevel=2,
                )
            return
        for journal in journals:
            _READ_LATELY.forget(journal.path)
            journal.remove()
        self._journal, self._roll_at = None, self._shard_bytes

    def _write_rows(self, records: list[bytes], is_adopting: bool) -> None:
        self._samples.mkdir(exist_ok=True)
        for path in _files(self._samples, PARTIAL):  # left by killed writers: a live one would hold the lock
            path.unlink(missing_ok=True)
        table = shards.from_bytes(records)
        done = shards.of_status(table, shards.OK)
        done = shards.without_keys_of(done, set(self._shards()) - (set() if is_adopting else self._known))
        if len(done):
            about = {"settings": self.settings, "versions": _versions()}
            path = shards.write_shard(self._samples, done, about)
            if not (is_adopting or self._has_inherited):  # inherited samples may be measured again by this writer
                self._known.add(path)
        self._note(shards.failures_of(table), shards.keys_of(done))

    def _note(self, failures: dict[Key, str], done: list[Key]) -> None:
        """Update the table of unreadable samples."""
        before = self._noted()
        read_since = {*done, *((name, "") for name, _ in done)}  # the content of a file that cannot be opened is ""
        left = {key: reason for key, reason in (before | failures).items() if key not in read_since}
        path = self._samples / _UNREADABLE
        if left and left != before:
            table = shards.without_keys_of(shards.unreadable(left), self._shards())
            with written_whole(path) as partial:
                pq.write_table(table, partial, compression="zstd")
        elif not left:
            path.unlink(missing_ok=True)

    def _noted(self) -> dict[Key, str]:
        try:
            return shards.failures_of(pq.read_table(self._samples / _UNREADABLE))
        except shards.BROKEN:  # missing or damaged: the samples are tried and recorded again
            return {}

    def _shards(self) -> list[Path]:
        return [path for path in _files(self._samples, ".parquet") if path.name != _UNREADABLE]

    def _set_aside(self, path: Path, error: DamagedError) -> None:
        try:
            (self.path / "damaged").mkdir(exist_ok=True)
            os.replace(path, self.path / "damaged" / path.name)
            where = f"it is moved to {self.path / 'damaged'}, and "
        except OSError:
            where = ""
        warnings.warn(f"{error}: {where}its samples are computed again", stacklevel=3)

    def _require_same_settings(self, found: dict[str, Any], what: str) -> None:
        require_same_settings(self.settings, found, f"{what} and this run")

    def _write_manifest(self, path: Path) -> None:
        shape = self.settings["input_shape"]
        manifest = {
            "format": FORMAT,
            "settings": self.settings,
            "K": self.settings["n_components"],
            "D": None if shape is None else math.prod(shape),
            "versions": _versions(),
        }
        with written_whole(path) as partial:
            partial.write_text(json.dumps(manifest, indent=1))

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the lock of all writers; the operating system releases it if this process dies."""
        self.path.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path / _LOCK, thread_local=False):
            yield

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Add the path and the state of the store to errors of the operating system."""
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise OSError(
                error.errno,
                f"the store {self.path} cannot be written ({reason}); what it holds is intact, and a run with the same "
                "store resumes from there",
            ) from error


def _warn_if_torn(journal: Journal) -> None:
    if journal.found.torn:
        warnings.warn(
            f"{journal.path} ended in {journal.found.torn} bytes of an incomplete record; its samples are computed "
            "again",
            stacklevel=3,
        )


def _files(folder: Path, ending: str) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.name.endswith(ending))
    except FileNotFoundError:
        return []


def _is_foreign(path: Path) -> bool:
    """Return whether a path does not belong to an unfinished store.

    A process that is creating a store has its lock there; one that was killed leaves a partial file.
    """
    return path.name != _LOCK and not path.name.endswith(PARTIAL)


@functools.cache
def _versions() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
        format_ = manifest["format"]
        manifest["settings"].keys()
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the manifest of a store ({error}): give another folder") from error
    if format_ != FORMAT:
        raise SettingsMismatchError(
            f"{path} has format {format_}; this version of skjepa reads format {FORMAT}: give another folder"
        )
    return manifest
