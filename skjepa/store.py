"""A folder that keeps finished samples: Parquet shards and a JSON manifest. A run resumes from what lies there."""

import json
import os
import time
import uuid
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
        if manifest.exists():
            found = _read_manifest(manifest)
            require_same_settings(settings, found["settings"], f"the store {self.path} and this run")
            return
        if self.path.exists() and (not self.path.is_dir() or any(map(_is_foreign, self.path.iterdir()))):
            raise ValueError(f"{self.path} is not a store: it exists, without {_MANIFEST}")
        self.path.mkdir(parents=True, exist_ok=True)
        with written_whole(manifest) as partial:
            partial.write_text(json.dumps({"format": FORMAT, "settings": settings}, indent=1))

    def read(self) -> dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """Finished samples: id -> (embedding (K,), singular values (V, R))."""
        rows: dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]] = {}
        for shard in sorted(self.path.glob("*.parquet")):
            try:
                table = pq.read_table(shard)
                embeddings = _array(table, "embedding", depth=1)
                sigmas = _array(table, "singular_values", depth=2)
                rows.update(zip(table.column("id").to_pylist(), zip(embeddings, sigmas, strict=True), strict=True))
            except (OSError, pa.ArrowException, KeyError, ValueError, AttributeError) as error:
                raise ValueError(f"{shard} is damaged: {error}. Move it away to compute its samples again") from error
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
