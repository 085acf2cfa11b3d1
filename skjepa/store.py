"""A folder that keeps finished samples: Parquet shards and a JSON manifest. A run resumes from what lies there."""

import hashlib
import json
import os
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skjepa._files import PARTIAL, written_whole
from skjepa.extraction import SETTINGS, SettingsMismatchError, require_same_settings

FORMAT = 1
_MANIFEST = "manifest.json"
_FLUSH_SECONDS = 20.0
_READ_BYTES = 256 * 2**20


def memory_folder(memory: Any, settings: dict[str, Any]) -> Path | None:
    """The folder of a `Store` for these settings within a cache of many; None where there is no cache.

    Parameters
    ----------
    memory : path, joblib.Memory or None
        A joblib.Memory with no location is no cache.
    settings : dict
        As of `Store`.
    """
    if hasattr(memory, "location"):
        memory = memory.location
    if memory is None:
        return None
    if not isinstance(memory, str | os.PathLike):
        raise TypeError(f"memory must be a folder or a joblib.Memory; got {memory!r}")
    settled = json.dumps([FORMAT, *(settings.get(key) for key in SETTINGS)])
    return Path(memory) / hashlib.sha256(settled.encode()).hexdigest()[:32]


class Store:
    """Rows of finished samples, appended in shards.

    Parameters
    ----------
    path : path
        Made if absent. A folder that holds other files and no manifest is refused.
    settings : dict
        What must agree before results may be mixed (`skjepa.extraction.SETTINGS`).

    Raises
    ------
    SettingsMismatchError
        The store was made with other settings; every difference is named.
    """

    def __init__(self, path: str | os.PathLike, settings: dict[str, Any]) -> None:
        self.path = Path(path)
        self._pending: list[tuple[str, NDArray, NDArray]] = []
        self._flushed = time.monotonic()
        manifest = self.path / _MANIFEST
        settings = json.loads(json.dumps({key: settings.get(key) for key in ("encoder", *SETTINGS)}))
        # Before the manifest is looked for: another process may be making the same store, and its manifest comes first.
        foreign = self.path.exists() and (not self.path.is_dir() or any(map(_is_foreign, self.path.iterdir())))
        if manifest.exists():
            found = _read_manifest(manifest)
            require_same_settings(settings, found["settings"], f"the store {self.path} and this run")
            return
        if foreign:
            raise ValueError(f"{self.path} is not a store: it exists, without {_MANIFEST}")
        self.path.mkdir(parents=True, exist_ok=True)
        with written_whole(manifest) as partial:
            partial.write_text(json.dumps({"format": FORMAT, "settings": settings}, indent=1))

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def read(self, ids: Iterable[str] | None = None) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Finished samples, all or those of `ids` that there are: id -> (embedding (K,), singular values (V, R))."""
        wanted = None if ids is None else set(ids)
        rows: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        for path in sorted(self.path.glob("*.parquet")):
            shard = _SHARDS.read(path)
            names = shard.places.keys() if wanted is None else wanted & shard.places.keys()
            rows.update((name, shard[name]) for name in names)
        return rows

    def append(self, ids: list[str], embeddings: NDArray, singular_values: NDArray) -> None:
        """Keep finished samples; they reach the disk in shards, at most every twenty seconds, and at `flush`."""
        self._pending.extend(zip(ids, embeddings, singular_values, strict=True))
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what is pending as one shard, whole or not at all."""
        self._flushed = time.monotonic()
        if not self._pending:
            return
        ids, embeddings, sigmas = zip(*self._pending, strict=True)
        table = pa.table(
            {
                "id": pa.array(ids, pa.string()),
                "embedding": pa.array([row.tolist() for row in embeddings], pa.list_(pa.float64())),
                "singular_values": pa.array([row.tolist() for row in sigmas], pa.list_(pa.list_(pa.float64()))),
            }
        )
        with written_whole(self.path / f"{time.time_ns()}-{uuid.uuid4().hex[:8]}.parquet") as partial:
            pq.write_table(table, partial, compression="zstd")
        self._pending = []


@dataclass(frozen=True)
class _Shard:
    """One file of rows."""

    places: dict[str, int]
    embeddings: NDArray[np.float64]
    singular_values: NDArray[np.float64]

    def __getitem__(self, name: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        place = self.places[name]
        return self.embeddings[place], self.singular_values[place]

    @property
    def nbytes(self) -> int:
        return self.embeddings.nbytes + self.singular_values.nbytes + 200 * len(self.places)


class _Shards:
    """Shards read lately, up to a number of bytes: a grid search asks for the same ones at each of its steps."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._kept: OrderedDict[tuple[str, int, int], _Shard] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, path: Path) -> _Shard:
        status = path.stat()
        key = os.path.abspath(path), status.st_mtime_ns, status.st_size  # never rewritten, but by hand
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        shard = _read_shard(path)
        with self._lock:
            self._kept[key] = shard
            while sum(kept.nbytes for kept in self._kept.values()) > self.limit:
                self._kept.popitem(last=False)
        return shard


_SHARDS = _Shards(_READ_BYTES)


def _read_shard(path: Path) -> _Shard:
    try:
        table = pq.read_table(path)
        places = {name: i for i, name in enumerate(table.column("id").to_pylist())}
        shard = _Shard(places, _array(table, "embedding", depth=1), _array(table, "singular_values", depth=2))
        if not len(table) == len(shard.embeddings) == len(shard.singular_values):
            raise ValueError("columns of different length")
        return shard
    except (OSError, pa.ArrowException, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is damaged: {error}. Move it away to compute its samples again") from error


def _is_foreign(path: Path) -> bool:
    """A process killed in the midst of writing leaves its partial file."""
    return not path.name.endswith(PARTIAL)


def _array(table: pa.Table, name: str, *, depth: int) -> NDArray[np.float64]:
    """A column of lists of equal length, nested `depth` times, as one array."""
    column, shape = table.column(name), [len(table)]
    for _ in range(depth):
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            raise ValueError(f"rows of different length in {name}")
        column, shape = pc.list_flatten(column), [*shape, lengths[0]]
    return column.to_numpy().reshape(shape)


def _read_manifest(path: Path) -> dict[str, Any]:
    try:
        manifest = json.loads(path.read_text())
        version = manifest["format"]
        manifest["settings"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not the manifest of a store: {error}") from error
    if version != FORMAT:
        raise SettingsMismatchError(f"{path} has format {version}; this version of skjepa reads {FORMAT}")
    return manifest
