"""Read a table of scores back as the results that a report shows."""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skjepa._utils.files import short_names
from skjepa.data.images import read_image
from skjepa.reporting.about import About
from skjepa.reporting.results import Map, Results
from skjepa.reporting.score_table import ABOUT, numbers, read_table


def results_of_table(
    path: Path, *, images: Sequence[str | os.PathLike] = (), normal: str | os.PathLike | None = None
) -> Results:
    """Read the results in a table of scores; raise ValueError for any other table."""
    table = read_table(path)
    columns = table.to_pydict()
    if missing := [name for name in ("id", "score") if name not in columns]:
        raise ValueError(
            f"{path} has no column {missing[0]!r} and is not a table of scores: give a table that `skjepa score` or "
            "`skjepa prune --scores` wrote"
        )
    if not table.num_rows:
        raise ValueError(f"{path} has no rows: give a table with at least one scored image")
    ids = np.array([str(name) for name in columns["id"]], dtype=np.str_)
    scores, decisions, p_values = (_column(path, name, columns) for name in ("score", "decision", "p_value"))
    assert scores is not None  # the column is there
    told = (table.schema.metadata or {}).get(ABOUT)
    about = About() if told is None else About.from_json(told)
    if images:
        named = short_names([Path(folder) for folder in images])
        folders = {"": str(next(iter(named.values())))} if len(named) == 1 else {k: str(v) for k, v in named.items()}
        about = replace(about, folders=folders)
    for folder in [*(images or ()), *([] if normal is None else [normal])]:
        if not Path(folder).is_dir():
            raise FileNotFoundError(f"there is no folder {folder}")
    kept = columns.get("kept")
    flagged = (
        ~(decisions >= 0) if decisions is not None else np.array([keep is False for keep in kept or [None] * len(ids)])
    )
    nearest, reasons = columns.get("nearest"), columns.get("reason")
    normal_folder = about.normal_folder if normal is None else os.fspath(normal)
    return Results(
        ids=ids,
        scores=scores,
        flagged=flagged,
        p_values=p_values if p_values is not None and np.isfinite(p_values).any() else None,
        threshold=_threshold(scores, decisions),
        errors={i: str(reason) for i, reason in enumerate(columns.get("error", [])) if reason},
        image=lambda i: _from_folders(str(ids[i]), about.folders),
        normal_image=lambda name: _from_folders(name, {"": normal_folder}) if normal_folder else None,
        reasons=None if reasons is None else [str(text or "") for text in reasons],
        nearest=None if nearest is None else [names or [] for names in nearest],
        maps=_map_of_table(path, columns, about),
        about=about,
    )


def _column(path: Path, name: str, columns: dict[str, list[Any]]) -> NDArray[np.float64] | None:
    return None if columns.get(name) is None else numbers(path, name, columns[name])


def _threshold(scores: NDArray[np.float64], decisions: NDArray[np.float64] | None) -> float | None:
    """Return the threshold, from decision = score - threshold; None without decisions."""
    known = np.isfinite(scores) & (False if decisions is None else np.isfinite(decisions))
    return float(np.median((scores - decisions)[known])) if decisions is not None and known.any() else None


def _map_of_table(path: Path, columns: dict[str, list[Any]], about: About) -> list[Map]:
    first, second = (_column(path, name, columns) for name in ("pca_1", "pca_2"))
    if first is None or second is None:
        return []
    return [Map("principal axes", np.column_stack([first, second]), np.reshape(about.normal_map, (-1, 2)))]


def _from_folders(name: str, folders: dict[str, str]) -> Image.Image | None:
    """Read the image of this name from the only folder, or from the folder of the group that the name begins with.

    A table may come from anyone, so a name that leads out of the folder is ignored.
    """
    if not folders:
        return read_image(name)
    group, _, rest = ("", "", name) if "" in folders else name.partition("/")
    inside = PurePosixPath(rest)
    if group not in folders or inside.is_absolute() or ".." in inside.parts:
        return None
    return read_image(Path(folders[group]) / inside)
