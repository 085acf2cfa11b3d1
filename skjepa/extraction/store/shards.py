"""Convert finished samples to Arrow tables, and to Parquet files whose names hold their checksums."""

import hashlib
import json
import os
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skjepa._utils.files import written_whole
from skjepa.extraction.store.journal import read_records, warn_of_damage

Key = tuple[str, str]
"""Id and content of a sample."""
Row = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float32]]
"""Embedding (K,), singular values (V, R) and concatenated hidden layers (W,); R or W is 0 where there are none."""

OK = "ok"
UNREADABLE = "unreadable"
_LAYERS = "layers"  # null where no hidden layers are read, and missing in files of earlier versions
SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "content": pa.string(),
        "embedding": pa.list_(pa.float64()),
        "singular_values": pa.list_(pa.list_(pa.float64())),
        "status": pa.string(),
        "error": pa.string(),
        _LAYERS: pa.list_(pa.float32()),
    }
)
_ABOUT = b"skjepa"
_READ_BYTES = 256 * 2**20
BROKEN = (OSError, pa.ArrowException, KeyError, ValueError, TypeError, AttributeError)


class DamagedError(ValueError):
    """Raised when a file of a store does not hold what was written."""


def finished(
    keys: Sequence[Key], embeddings: NDArray, singular_values: NDArray, layers: NDArray | None = None
) -> pa.Table:
    """Return a table of finished samples: embeddings (n, K), singular values (n, V, R), layers (n, W)."""
    n = len(keys)
    layers = np.empty((n, 0), dtype=np.float32) if layers is None else layers
    if not n == len(embeddings) == len(singular_values) == len(layers):
        raise ValueError(
            f"got {n} samples, {len(embeddings)} embeddings, {len(singular_values)} singular values and {len(layers)} "
            "layers: give one row of each per sample"
        )
    columns = [_lists(np.asarray(embeddings, np.float64)), _lists(np.asarray(singular_values, np.float64))]
    read = _lists(np.asarray(layers, np.float32)) if layers.shape[1] else [None] * n
    return _table(keys, *columns, [OK] * n, [None] * n, read)


def unreadable(failures: Mapping[Key, str]) -> pa.Table:
    """Return a table of samples that could not be read, with the reasons."""
    nothing = [None] * len(failures)
    return _table(list(failures), nothing, nothing, [UNREADABLE] * len(failures), list(failures.values()), nothing)


def to_bytes(tables: Iterable[pa.Table]) -> bytes:
    """Serialise tables as one record of a journal."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as stream:
        for table in tables:
            stream.write_table(table)
    return sink.getvalue().to_pybytes()


def from_bytes(records: Iterable[bytes]) -> pa.Table:
    """Return the rows of records of a journal."""
    tables = [SCHEMA.empty_table(), *(pa.ipc.open_stream(record).read_all() for record in records)]
    return pa.concat_tables(tables, promote_options="default")  # a journal of an earlier version lacks a column


def of_status(table: pa.Table, status: str) -> pa.Table:
    """Return the rows of a table with this status, `OK` or `UNREADABLE`."""
    return table.filter(pc.equal(table["status"], status))


def keys_of(table: pa.Table) -> list[Key]:
    """Return id and content of each row of a table."""
    return list(zip(table["id"].to_pylist(), table["content"].to_pylist(), strict=True))


def failures_of(table: pa.Table) -> dict[Key, str]:
    """Return the reasons for samples that could not be read."""
    table = of_status(table, UNREADABLE)
    return dict(zip(keys_of(table), table["error"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Block:
    """Hold finished samples that were read from a file."""

    places: dict[Key, int]
    embeddings: NDArray[np.float64]
    singular_values: NDArray[np.float64]
    layers: NDArray[np.float32]
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, table: pa.Table, about: dict[str, Any] | None = None) -> "Block":
        """Convert a table to arrays; raises ValueError if rows differ in length."""
        places = {key: i for i, key in enumerate(keys_of(table))}
        is_read = _LAYERS in table.column_names and table.column(_LAYERS).null_count < len(table)
        layers = _array(table, _LAYERS, depth=1) if is_read else np.empty((len(table), 0))
        embeddings, sigma = _array(table, "embedding", depth=1), _array(table, "singular_values", depth=2)
        block = cls(places, embeddings, sigma, layers.astype(np.float32), about or {})
        if not len(table) == len(block.embeddings) == len(block.singular_values) == len(block.layers):
            raise ValueError("columns of different length")
        return block

    def rows(self, wanted: set[Key] | None) -> dict[Key, Row]:
        """Return the wanted samples that are here, or all."""
        names = self.places.keys() if wanted is None else wanted & self.places.keys()
        arrays = self.embeddings, self.singular_values, self.layers
        return {key: tuple(array[self.places[key]] for array in arrays) for key in names}

    @property
    def nbytes(self) -> int:
        """Approximate memory in bytes."""
        return self.embeddings.nbytes + self.singular_values.nbytes + self.layers.nbytes + 300 * len(self.places)


def write_shard(folder: Path, table: pa.Table, about: dict[str, Any]) -> Path:
    """Write finished samples as one new file, with `about` in its metadata and its hash in its name."""
    table = table.replace_schema_metadata({_ABOUT: json.dumps(about)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    path = folder / f"{time.time_ns()}-{_digest(data)}.parquet"
    with written_whole(path) as partial:
        partial.write_bytes(data)
    return path


def read_shard(path: Path) -> Block:
    """Read a file that `write_shard` wrote; raises DamagedError if its content changed."""
    data = path.read_bytes()
    if path.stem.partition("-")[2] != _digest(data):
        raise DamagedError(f"{path} is damaged: its content does not match the hash in its name")
    try:
        table = pq.read_table(pa.BufferReader(data))
        return Block.of(table, json.loads(table.schema.metadata[_ABOUT]))
    except BROKEN as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def without_keys_of(table: pa.Table, paths: Iterable[Path]) -> pa.Table:
    """Return the rows of samples that are in none of these files, each sample once."""
    table = _each_once(table)
    for path in paths:
        try:
            found = pq.read_table(path, columns=["id", "content"])
        except BROKEN:
            continue  # damaged: reported when it is read
        table = table.filter(pc.invert(pc.is_in(_joined(table), value_set=_joined(found))))
    return table


class Cache:
    """Keep recently read files in memory, up to a number of bytes.

    A grid search reads the same files at each of its steps.
    """

    def __init__(self, limit: int = _READ_BYTES) -> None:
        self.limit = limit
        self._shards: OrderedDict[tuple[str, int, int], Block] = OrderedDict()
        self._journals: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def shard(self, path: Path) -> Block:
        """Return the content of a shard, as `read_shard`."""
        status = path.stat()
        key = os.path.abspath(path), status.st_mtime_ns, status.st_size  # skjepa never rewrites a shard; a user might
        with self._lock:
            if key in self._shards:
                self._shards.move_to_end(key)
                return self._shards[key]
        block = read_shard(path)
        with self._lock:
            self._shards[key] = block
            while self._shards and sum(kept.nbytes for kept in self._shards.values()) > self.limit:
                self._shards.popitem(last=False)
        return block

    def journal(self, path: Path, wanted: set[Key] | None) -> tuple[dict[Key, Row], dict[Key, str]]:
        """Return finished samples, and reasons for unreadable ones, reading only records added since the last call."""
        with self._lock:
            known = self._journals.pop(os.path.abspath(path), _Known())
            found = read_records(path, known.end)
            if found.records:
                table = from_bytes(found.records)
                known.failures |= failures_of(table)
                if len(done := of_status(table, OK)):
                    known.rows |= Block.of(done).rows(None)
            if found.damaged:
                warn_of_damage(path, found.damaged)
            known.end = found.end
            self._journals[os.path.abspath(path)] = known
            while self._journals and sum(kept.end for kept in self._journals.values()) > self.limit:
                self._journals.popitem(last=False)
            names = known.rows.keys() if wanted is None else wanted & known.rows.keys()
            return {key: known.rows[key] for key in names}, dict(known.failures)

    def end(self, path: Path) -> int:
        """Return up to which byte a journal has been read."""
        with self._lock:
            return self._journals.get(os.path.abspath(path), _Known()).end

    def forget(self, path: Path) -> None:
        """Forget a journal that is removed."""
        with self._lock:
            self._journals.pop(os.path.abspath(path), None)


@dataclass
class _Known:
    """Hold what has been read from a journal."""

    end: int = 0
    rows: dict[Key, Row] = field(default_factory=dict)
    failures: dict[Key, str] = field(default_factory=dict)


def _table(keys: Sequence[Key], *columns: Any) -> pa.Table:
    ids, contents = ([key[i] for key in keys] for i in (0, 1))
    return pa.table([ids, contents, *columns], schema=SCHEMA)


def _lists(array: NDArray) -> pa.Array:
    """Convert an array (n, a, ...) to a column of n lists."""
    offsets = pa.array(np.arange(len(array) + 1, dtype=np.int32) * array.shape[1])
    values = (
        pa.array(array.ravel())
        if array.ndim == 2
        else _lists(array.reshape(array.shape[0] * array.shape[1], *array.shape[2:]))
    )
    return pa.ListArray.from_arrays(offsets, values)


def _array(table: pa.Table, name: str, *, depth: int) -> NDArray[np.float64]:
    """Convert a column of lists of equal length, nested `depth` times, to one array."""
    column, shape = table.column(name), [len(table)]
    for _ in range(depth):
        lengths = pc.unique(pc.list_value_length(column)).to_pylist()
        if len(lengths) != 1 or lengths[0] is None:
            raise ValueError(f"rows of different length in {name}")
        column, shape = pc.list_flatten(column), [*shape, lengths[0]]
    return column.to_numpy().reshape(shape)


def _each_once(table: pa.Table) -> pa.Table:
    last = {key: i for i, key in enumerate(keys_of(table))}
    return table if len(last) == len(table) else table.take(sorted(last.values()))


def _joined(table: pa.Table) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(table["content"], table["id"], "/")


def _digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
