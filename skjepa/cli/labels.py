"""Read `--labels`, which tell what images are normal, and measure how well a run separates them."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from skjepa._utils.files import TABLE_SUFFIXES

if TYPE_CHECKING:
    from skjepa.data.sources import Source
    from skjepa.reporting.scored_groups import ScoredGroup

_NORMAL = {"0", "0.0", "normal", "good", "ok", "inlier", "false"}
_ANOMALOUS = {"1", "1.0", "anomalous", "anomaly", "abnormal", "bad", "defect", "odd", "outlier", "true"}

Labels = dict[str, list[bool | None]]
"""For each group, whether each image is anomalous; None for an image without a label."""


def check_labels(labels: str | None, folders: Sequence[Path]) -> None:
    """Raise if labels are neither a table with the columns id and label nor a sub-folder of the scored folders."""
    if labels is None:
        return
    path = Path(labels)
    if path.suffix.lower() in TABLE_SUFFIXES:
        if not path.is_file():
            raise FileNotFoundError(f"--labels: no file {path}")
        if path.suffix.lower() == ".csv":
            _labels_of_csv(path)
    elif not any(found.is_dir() for folder in folders for found in folder.rglob(path.name)):
        raise ValueError(
            f"--labels is a table (.csv or .parquet with the columns id and label) or the name of the sub-folders that "
            f"hold the normal images; there is no sub-folder {labels!r} below {', '.join(map(str, folders))}"
        )


def read_labels(labels: str, sources: dict[str, "Source"]) -> Labels:
    """Read the labels of all scored images.

    Parameters
    ----------
    labels : str
        A table with the same ids as the table of scores; or the name of a sub-folder, whose images are normal while
        all others are anomalous.
    sources : dict of name -> Source

    Raises
    ------
    ValueError
        A label has another value, or no image has a label.
    """
    path = Path(labels)
    if path.suffix.lower() not in TABLE_SUFFIXES:
        return {
            name: [labels not in Path(str(file)).parts[:-1] for file in source.ids] for name, source in sources.items()
        }
    known = _labels_of_csv(path) if path.suffix.lower() == ".csv" else _labels_of_parquet(path)
    found: Labels = {}
    for name, source in sources.items():
        ids = [f"{name}/{file}" if len(sources) > 1 else str(file) for file in source.ids]
        found[name] = [known.get(i) for i in ids]
    if not any(label is not None for of_group in found.values() for label in of_group):
        example = next(iter(sources.values())).ids[0]
        raise ValueError(f"--labels: {path} names none of the images; ids are paths in the folder, such as {example}")
    return found


def judged(groups: Sequence["ScoredGroup"], rows: Sequence[dict[str, Any]], labels: Labels) -> None:
    """Add to each group's row how well anomalous images are separated from normal ones, and how many are flagged."""
    import numpy as np

    from skjepa.evaluation.metrics import detection_metrics

    kinds = {
        group.name: np.array([-1 if label is None else int(label) for label in labels[group.name]]) for group in groups
    }
    readable = {group.name: np.isfinite(group.scores) for group in groups}
    normal = np.concatenate([g.scores[(kinds[g.name] == 0) & readable[g.name]] for g in groups])
    for group, row in zip(groups, rows, strict=True):
        flagged = group.decisions < 0
        for name, kind in (("normal", 0), ("anomalous", 1)):
            of_kind = kinds[group.name] == kind
            row |= {f"{name}_images": int(of_kind.sum()), f"{name}_flagged": int((flagged & of_kind).sum())}
        anomalous = group.scores[(kinds[group.name] == 1) & readable[group.name]]
        if len(normal) and len(anomalous):
            row |= detection_metrics(normal, anomalous)


def _labels_of_csv(path: Path) -> dict[str, bool]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        if missing := [name for name in ("id", "label") if name not in (reader.fieldnames or [])]:
            raise ValueError(f"--labels: {path} has no column {missing[0]!r}; it needs id and label")
        rows = list(reader)
    return _as_anomalous(path, [row["id"] for row in rows], [row["label"] or "" for row in rows])


def _labels_of_parquet(path: Path) -> dict[str, bool]:
    from skjepa.reporting.score_table import read_table

    columns = read_table(path).to_pydict()
    if missing := [name for name in ("id", "label") if name not in columns]:
        raise ValueError(f"--labels: {path} has no column {missing[0]!r}; it needs id and label")
    return _as_anomalous(path, list(map(str, columns["id"])), [str(value) for value in columns["label"]])


def _as_anomalous(path: Path, ids: list[str], labels: list[str]) -> dict[str, bool]:
    words = [label.strip().lower() for label in labels]
    found = set(words) - {"", "none"}
    normal, anomalous = _NORMAL, _ANOMALOUS
    if found & {"-1", "-1.0"}:  # as scikit-learn has them
        normal, anomalous = {"1", "1.0"}, {"-1", "-1.0"}
    if unknown := sorted(found - normal - anomalous):
        raise ValueError(
            f"--labels: {path} holds {unknown[0]!r}; labels are 0 or normal, and 1 or anomalous (or 1 and -1, as in "
            "scikit-learn)"
        )
    return {name: word in anomalous for name, word in zip(ids, words, strict=True) if word in normal | anomalous}
