"""ADBench's tables: read, thinned, and split into rows to fit on and rows to judge."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

PROTOCOLS = ("semi-supervised", "unsupervised")
QUICK = ("Cardiotocography", "landsat", "mammography", "skin", "SpamBase", "Stamps", "Waveform", "WDBC")


@dataclass(frozen=True, eq=False)
class Table:
    """Rows (n, d), and which of them are outliers (n,)."""

    X: NDArray[np.float64]
    y: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Parts:
    """Rows to fit on, rows to judge, and which of these are outliers. `same`: the judged rows are the fitted ones."""

    fit: NDArray[np.float64]
    test: NDArray[np.float64]
    outlier: NDArray[np.bool_]
    same: bool


def tables_in(folder: Path, names: tuple[str, ...] = ()) -> dict[str, Path]:
    """Files by their name without ADBench's number, in the order of files; raises ValueError where one is missing."""
    found = {path.stem.partition("_")[2] or path.stem: path for path in sorted(folder.glob("*.npz"))}
    if not found:
        raise ValueError(f"no .npz files in {folder}")
    if missing := [name for name in names if name not in found]:
        raise ValueError(f"no table {missing[0]!r} in {folder}; there are {', '.join(found)}")
    return {name: path for name, path in found.items() if not names or name in names}


def read(path: Path) -> Table:
    """Arrays `X` (n, d) and `y` (1 = outlier); raises ValueError where a table has one kind of rows only."""
    with np.load(path) as arrays:
        X, y = np.asarray(arrays["X"], dtype=np.float64), np.asarray(arrays["y"]).ravel().astype(int)
    if set(np.unique(y)) != {0, 1}:
        raise ValueError(f"{path.name}: y must hold 0 (normal) and 1 (outlier); it holds {np.unique(y).tolist()[:5]}")
    return Table(X, y)


def thinned(table: Table, max_rows: int, seed: int) -> Table:
    """At most so many rows, drawn at random; outliers keep their share."""
    if len(table.X) <= max_rows:
        return table
    rows = min(max_rows, len(table.X) - 2)  # scikit-learn leaves no kind of rows without one
    kept, _ = train_test_split(np.arange(len(table.X)), train_size=rows, stratify=table.y, random_state=seed)
    return Table(table.X[kept], table.y[kept])


def split(table: Table, protocol: str, seed: int) -> Parts:
    """Semi-supervised: fit on half of the normal rows, judge the others and all outliers. Unsupervised: all, twice."""
    if protocol == "unsupervised":
        return Parts(table.X, table.X, table.y == 1, same=True)
    normal = np.random.default_rng(seed).permutation(np.flatnonzero(table.y == 0))
    fit, rest = np.split(normal, [len(normal) // 2])
    test = np.concatenate([rest, np.flatnonzero(table.y == 1)])
    return Parts(table.X[fit], table.X[test], table.y[test] == 1, same=False)
