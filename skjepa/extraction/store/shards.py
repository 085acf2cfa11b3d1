"""Rows of finished samples as Arrow tables, and as Parquet files whose names hold their checksums."""

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
"""Embedding (K,), singular values (V, R) and hidden layers side by side (W,); R or W is 0 where there are none."""

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
    """A file of a store is not what was written."""


def finished(
    keys: Sequence[Key], embeddings: NDArray, singular_values: NDArray, layers: NDArray | None = None
) -> pa.Table:
    """A table of finished samples: embeddings (n, K), singular values (n, V, R), layers (n, W)."""
    n = len(keys)
    layers = np.empty((n, 0), dtype=np.float32) if layers is None else layers
    if not n == len(embeddings) == len(singular_values) == len(layers):
        raise ValueError(
            f"{n} samples, {len(embeddings)} embeddings, {len(singular_values)} singular values, {len(layers)} layers"
        )
    columns = [_lists(np.asarray(embeddings, np.float64)), _lists(np.asarray(singular_values, np.float64))]
    read = _lists(np.asarray(layers, np.float32)) if layers.shape[1] else [None] * n
    return _table(keys, *columns, [OK] * n, [None] * n, read)


def unreadable(failures: Mapping[Key, str]) -> pa.Table:
    """A table of samples that could not be read, with the reasons."""
    nothing = [None] * len(failures)
    return _table(list(failures), nothing, nothing, [UNREADABLE] * len(failures), list(failures.values()), nothing)


def to_bytes(tables: Iterable[pa.Table]) -> bytes:
    """Tables as one record of a journal."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, SCHEMA) as stream:
        for table in tables:
            stream.write_table(table)
    return sink.getvalue().to_pybytes()


def from_bytes(records: Iterable[bytes]) -> pa.Table:
    """The rows of records."""
    tables = [SCHEMA.empty_table(), *(pa.ipc.open_stream(record).read_all() for record in records)]
    return pa.concat_tables(tables, promote_options="default")  # a journal of an earlier version lacks a column


def of_status(table: pa.Table, status: str) -> pa.Table:
    return table.filter(pc.equal(table["status"], status))


def keys_of(table: pa.Table) -> list[Key]:
    return list(zip(table["id"].to_pylist(), table["content"].to_pylist(), strict=True))


def failures_of(table: pa.Table) -> dict[Key, str]:
    """Sample -> why it could not be read."""
    table = of_status(table, UNREADABLE)
    return dict(zip(keys_of(table), table["error"].to_pylist(), strict=True))


@dataclass(frozen=True)
class Block:
    """Finished samples that were read."""

    places: dict[Key, int]
    embeddings: NDArray[np.float64]
    singular_values: NDArray[np.float64]
    layers: NDArray[np.float32]
    about: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, table: pa.Table, about: dict[str, Any] | None = None) -> "Block":
        places = {key: i for i, key in enumerate(keys_of(table))}
        is_read = _LAYERS in table.column_names and table.column(_LAYERS).null_count < len(table)
        layers = _array(table, _LAYERS, depth=1) if is_read else np.empty((len(table), 0))
        embeddings, sigma = _array(table, "embedding", depth=1), _array(table, "singular_values", depth=2)
        block = cls(places, embeddings, sigma, layers.astype(np.float32), about or {})
        if not len(table) == len(block.embeddings) == len(block.singular_values) == len(block.layers):
            raise ValueError("columns of different length")
        return block

    def rows(self, wanted: set[Key] | None) -> dict[Key, Row]:
        names = self.places.keys() if wanted is None else wanted & self.places.keys()
        arrays = self.embeddings, self.singular_values, self.layers
        return {key: tuple(array[self.places[key]] for array in arrays) for key in names}

    @property
    def nbytes(self) -> int:
        return self.embeddings.nbytes + self.singular_values.nbytes + self.layers.nbytes + 300 * len(self.places)


def write_shard(folder: Path, table: pa.Table, about: dict[str, Any]) -> Path:
    """Write finished samples as one new file: `about` stands in its metadata, the hash of its bytes in its name."""
    table = table.replace_schema_metadata({_ABOUT: json.dumps(about)})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue()
    path = folder / f"{time.time_ns()}-{_digest(data)}.parquet"
    with written_whole(path) as partial:
        partial.write_bytes(data)
    return path


def read_shard(path: Path) -> Block:
    """What `write_shard` wrote; raises DamagedError naming a file that is anything else."""
    data = path.read_bytes()
    if path.stem.partition("-")[2] != _digest(data):
        raise DamagedError(f"{path} is damaged: its content has not the hash that its name says")
    try:
        table = pq.read_table(pa.BufferReader(data))
        return Block.of(table, json.loads(table.schema.metadata[_ABOUT]))
    except BROKEN as error:
        raise DamagedError(f"{path} is damaged: {error}") from error


def without_keys_of(table: pa.Table, paths: Iterable[Path]) -> pa.Table:
    """The rows of samples that none of these files has, each sample once."""
    table = _each_once(table)
    for path in paths:
        try:
            found = pq.read_table(path, columns=["id", "content"])
        except BROKEN:
            continue  # whoever reads it finds out
        table = table.filter(pc.invert(pc.is_in(_joined(table), value_set=_joined(found))))
    return table


class Cache:
    """Files read lately, up to a number of bytes: a grid search asks for the same ones at each of its steps."""

    def __init__(self, limit: int = _READ_BYTES) -> None:
        self.limit = limit
        self._shards: OrderedDict[tuple[str, int, int], Block] = OrderedDict()
        self._journals: OrderedDict[str, _Known] = OrderedDict()
        self._lock = threading.Lock()

    def shard(self, path: Path) -> Block:
        """As `read_shard`."""
        status = path.stat()
        key = os.path.abspath(path), status.st_mtime_ns, status.st_size  # never rewritten, but by hand
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
        """Finished samples, and those that could not be read with the reasons. Only what is new there is read."""
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
        """Up to where a journal has been read."""
        with self._lock:
            return self._journals.get(os.path.abspath(path), _Known()).end

    def forget(self, path: Path) -> None:
        """A journal that is removed."""
        with self._lock:
            self._journals.pop(os.path.abspath(path), None)


@dataclass
class _Known:
    """What has been read of a journal."""

    end: int = 0
    rows: dict[Key, Row] = field(default_factory=dict)
    failures: dict[Key, str] = field(default_factory=dict)


def _table(keys: Sequence[Key], *columns: Any) -> pa.Table:
    ids, contents = ([key[i] for key in keys] for i in (0, 1))
    return pa.table([ids, contents, *columns], schema=SCHEMA)


def _lists(array: NDArray) -> pa.Array:
    """An array (n, a, ...) as a column of n lists."""
    offsets = pa.array(np.arange(len(array) + 1, dtype=np.int32) * array.shape[1])
    values = (
        pa.array(array.ravel())
        if array.ndim == 2
        else _lists(array.reshape(array.shape[0] * array.shape[1], *array.shape[2:]))
    )
    return pa.ListArray.from_arrays(offsets, values)


def _array(table: pa.Table, name: str, *, depth: int) -> NDArray[np.float64]:
    """A column of lists of equal length, nested `depth` times, as one array."""
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
