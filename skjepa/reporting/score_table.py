"""Make, write and read the table of scores."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from skjepa._utils.files import TABLE_SUFFIXES, check_output, written_whole
from skjepa.reporting.about import About
from skjepa.reporting.neighbours import Surroundings
from skjepa.reporting.scored_groups import ScoredGroup

ABOUT = b"skjepa"
"""Key in the metadata of a table that holds an `About` as JSON."""


def score_table(
    groups: Sequence[ScoredGroup], *, surroundings: Surroundings | None = None, about: About | None = None
) -> pa.Table:
    """Make a table with one row per image: id, score, p_value, decision, label, error and reason.

    Missing values are null. With `surroundings` it also has nearest (names of the nearest normal images), pca_1 and
    pca_2 (the place on the principal axes of the normal images). `about` goes into the metadata. `skjepa report` needs
    nothing else.
    """
    several = len(groups) > 1
    parts = []
    for group in groups:
        n = len(group.scores)
        prefix = f"{group.name}/" if several else ""
        missing = np.isnan(group.scores)
        p_values = np.full(n, np.nan) if group.p_values is None else group.p_values
        parts.append(
            pa.table(
                {
                    "id": pa.array([f"{prefix}{name}" for name in group.source.ids], pa.string()),
                    "score": pa.array(group.scores, pa.float64(), mask=missing),
                    "p_value": pa.array(p_values, pa.float64(), mask=np.isnan(p_values)),
                    "decision": pa.array(group.decisions, pa.float64(), mask=missing),
                    "label": pa.array(group.labels, pa.int8(), mask=missing),
                    "error": pa.array([group.errors.get(i) for i in range(n)], pa.string()),
                    "reason": pa.array([text or None for text in group.reasons or [""] * n], pa.string()),
                }
            )
        )
        if surroundings is not None and group.embeddings is not None:
            parts[-1] = _with_places(parts[-1], surroundings, group.embeddings)
    table = pa.concat_tables(parts)
    return table if about is None else table.replace_schema_metadata({ABOUT: about.to_json()})


def _with_places(table: pa.Table, surroundings: Surroundings, z: NDArray[np.float64]) -> pa.Table:
    places, _ = surroundings.pca(z)
    table = table.append_column("nearest", pa.array(surroundings.nearest(z), pa.list_(pa.string())))
    for name, values in zip(("pca_1", "pca_2"), places.T, strict=True):
        table = table.append_column(name, pa.array(values, pa.float64(), mask=np.isnan(values)))
    return table


def write_table(table: pa.Table, path: str | os.PathLike) -> Path:
    """Write a table as Parquet or CSV by the suffix, whole or not at all."""
    path = check_output(path, TABLE_SUFFIXES)
    with written_whole(path) as partial:
        if path.suffix.lower() == ".csv":
            lists = [column.name for column in table.schema if pa.types.is_list(column.type)]  # CSV has no lists
            pa.csv.write_csv(table.drop_columns(lists), partial)
        else:
            pq.write_table(table, partial, compression="zstd")
    return path


def read_table(path: str | os.PathLike) -> pa.Table:
    """Read a table that `write_table` wrote; names stay text even where they look like numbers."""
    path = Path(path)
    try:
        if path.suffix.lower() != ".csv":
            return pq.read_table(path)
        text = dict.fromkeys(("id", "class", "copy_of", "error", "reason"), pa.string())
        return pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types=text))
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no table {path}") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error


def numbers(path: str | os.PathLike, name: str, values: Sequence[Any]) -> NDArray[np.float64]:
    """Return a column as numbers, NaN where a cell is empty; raise ValueError with file and column for other cells."""
    try:
        return np.array([float("nan") if value is None else float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: the column {name!r} must hold numbers ({error})") from error
