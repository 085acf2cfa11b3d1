"""The main job, for the command line and the demo: score groups of images, then a table, a file and a picture."""

import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import ArrayLike, NDArray
from rich.table import Table

from skjepa._files import written_whole
from skjepa.calibration import conformal_p_values
from skjepa.detectors import JEPAScoreDetector
from skjepa.encoders import load_encoder
from skjepa.evaluation import detection_metrics
from skjepa.extraction import Extraction
from skjepa.plotting import Thumbnail, as_picture, save_figure, score_figure
from skjepa.report_results import About, about_detector, map_of_normal
from skjepa.sources import Source
from skjepa.surroundings import Surroundings

TABLE_SUFFIXES = (".parquet", ".csv")
ABOUT = b"skjepa"
"""Key of a table's metadata that holds an `About`, as JSON."""
_GALLERY = 10


@dataclass(frozen=True)
class ScoredGroup:
    """One group of images after scoring; NaN scores are images that could not be read.

    Attributes
    ----------
    name : str
    source : Source
    scores, p_values, decisions : arrays of shape (n,)
        `p_values` is None for a detector without calibration samples.
    errors : dict of position -> reason
    seconds_per_image : float
    embeddings : array of shape (n, K), optional
        Rows of NaN for images that could not be read.
    """

    name: str
    source: Source
    scores: NDArray[np.float64]
    p_values: NDArray[np.float64] | None
    decisions: NDArray[np.float64]
    errors: dict[int, str]
    seconds_per_image: float
    embeddings: NDArray[np.float64] | None = None

    @property
    def labels(self) -> NDArray[np.int64]:
        """+1 normal, -1 flagged or unreadable, as `JEPAScoreDetector.predict`."""
        return np.where(self.decisions >= 0, 1, -1)

    @property
    def readable(self) -> NDArray[np.float64]:
        """Scores of the images that could be read."""
        return self.scores[np.isfinite(self.scores)]


def saved_detector(
    folder: Path, encoder: str, image_size: int | None = None, weights: Path | None = None
) -> JEPAScoreDetector:
    """The detector of a folder: an encoder with a name was saved by it, one that lies in a file is given again."""
    is_given = encoder != "bundled" or weights is not None
    given = load_encoder(encoder, image_size=image_size, weights=weights) if is_given else None
    return JEPAScoreDetector.load(folder, encoder=given)


def score_group(
    detector: JEPAScoreDetector, name: str, source: Source, *, store: str | os.PathLike | None = None
) -> ScoredGroup:
    """Score one group with a fitted detector; `store` keeps finished images and resumes."""
    started = time.perf_counter()
    extraction = detector.extract(source, store=store)
    seconds = (time.perf_counter() - started) / len(source)
    scores = extraction.aligned(detector.score_samples(extraction))
    errors = {position: reason for position, _, reason in extraction.meta["skipped"]}
    calibration = detector.calibration_scores_
    p_values = None if calibration is None else conformal_p_values(calibration, scores)
    z = np.column_stack([extraction.aligned(column) for column in extraction.embeddings.T])
    return ScoredGroup(name, source, scores, p_values, scores - detector.offset_, errors, seconds, z)


def score_table(
    groups: Sequence[ScoredGroup], *, surroundings: Surroundings | None = None, about: About | None = None
) -> pa.Table:
    """Columns id, score, p_value, decision, label, error; one row an image, nulls where there is no value.

    With `surroundings` also nearest (names of the nearest normal images), pca_1 and pca_2 (the place on their principal
    axes); `about` goes into the table's metadata. That is all that `skjepa report` shows of a run.
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


def about_run(
    detector: JEPAScoreDetector,
    normal: Extraction | None,
    *,
    encoder: str,
    folders: dict[str, Path],
    normal_folder: Path | None,
) -> tuple[Surroundings | None, About]:
    """What `score_table` writes of a run beside its scores; `normal`, fitted on, where it is at hand."""
    known: dict[str, Any] = {
        "encoder": encoder,
        "folders": {name if len(folders) > 1 else "": str(path) for name, path in folders.items()},
    }
    if normal is None or normal_folder is None:
        return None, about_detector(detector, **known)
    surroundings = Surroundings(normal.embeddings, normal.ids)
    _, points = surroundings.pca(normal.embeddings[:1])
    about = about_detector(
        detector,
        () if detector.calibration_scores_ is not None else detector.score_samples(normal),
        normal_folder=str(normal_folder.resolve()),
        normal_map=map_of_normal(points),
        **known,
    )
    return surroundings, about


def check_output(path: str | os.PathLike, suffixes: Iterable[str]) -> Path:
    """The path, if a file can be written there; said before hours of work, not after."""
    path = Path(path)
    if path.suffix.lower() not in suffixes:
        raise ValueError(f"{path}: the name must end in {' or '.join(suffixes)}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"no folder {path.parent} to write {path.name} to")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder")
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"{path.parent} is not writable")
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


def write_table(table: pa.Table, path: str | os.PathLike) -> Path:
    """Write Parquet or CSV, as the suffix says, whole or not at all."""
    path = check_output(path, TABLE_SUFFIXES)
    with written_whole(path) as partial:
        if path.suffix.lower() == ".csv":
            lists = [column.name for column in table.schema if pa.types.is_list(column.type)]  # a cell holds none
            pa.csv.write_csv(table.drop_columns(lists), partial)
        else:
            pq.write_table(table, partial, compression="zstd")
    return path


def read_table(path: str | os.PathLike) -> pa.Table:
    """What `write_table` wrote; names stay text, also where they look like numbers."""
    path = Path(path)
    try:
        if path.suffix.lower() != ".csv":
            return pq.read_table(path)
        text = dict.fromkeys(("id", "class", "copy_of", "error"), pa.string())
        return pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types=text))
    except FileNotFoundError:
        raise FileNotFoundError(f"no table {path}") from None
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error


def summary(normal_scores: ArrayLike, groups: Sequence[ScoredGroup]) -> list[dict[str, Any]]:
    """One dict a group: images, flagged, unreadable, seconds, and how far it lies from `normal_scores`.

    `normal_scores` are of normal samples that the detector has not been fitted on; where there are none, or a group has
    no readable image, the metrics of `skjepa.evaluation.detection_metrics` are left out.
    """
    rows = []
    for group in groups:
        row: dict[str, Any] = {
            "group": group.name,
            "images": len(group.scores),
            "flagged": int((group.decisions < 0).sum()),
            "unreadable": len(group.errors),
            "seconds_per_image": group.seconds_per_image,
        }
        if np.size(normal_scores) and len(group.readable):
            row |= detection_metrics(normal_scores, group.readable)
        rows.append(row)
    return rows


def summary_table(rows: Sequence[dict[str, Any]], *, title: str, caption: str) -> Table:
    """The summary for a terminal."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("images")
    for heading in ("flagged / total", "AUROC", "AUPR", "FPR@95", "s / image"):
        table.add_column(heading, justify="right")
    for row in rows:
        metrics = (row.get("auroc"), row.get("aupr_out"), row.get("fpr95_outlier_positive"))
        unreadable = f" ({row['unreadable']} unreadable)" if row["unreadable"] else ""
        table.add_row(
            row["group"],
            f"{row['flagged']} / {row['images']}{unreadable}",
            *("-" if value is None else f"{value:.3f}" for value in metrics),
            f"{row['seconds_per_image']:.4f}",
        )
    return table


def score_picture(
    detector: JEPAScoreDetector, groups: Sequence[ScoredGroup], path: str | os.PathLike, *, title: str
) -> Path:
    """Histograms of all groups, and the most and the least typical of their images."""
    histograms = {group.name: group.scores for group in groups}
    if detector.calibration_scores_ is not None:
        histograms = {"held-out normal images": detector.calibration_scores_, **histograms}
    ranked = sorted(
        (float(score), g, i)
        for g, group in enumerate(groups)
        for i, score in enumerate(group.scores)
        if np.isfinite(score)
    )

    def thumbnails(places: list[tuple[float, int, int]]) -> list[Thumbnail]:
        return [
            Thumbnail(as_picture(groups[g].source.load(i)), score, score < detector.offset_, caption(groups[g], i))
            for score, g, i in places
        ]

    caption = _group_name if len(groups) > 1 else _file_name
    n = min(_GALLERY, max(1, len(ranked) // 2))
    figure = score_figure(
        histograms,
        threshold=detector.offset_,
        most_typical=thumbnails(ranked[::-1][:n]),
        least_typical=thumbnails(ranked[:n]),
        title=title,
    )
    return save_figure(figure, path)


def _file_name(group: ScoredGroup, i: int) -> str:
    name = Path(str(group.source.ids[i])).name
    return name if len(name) <= 16 else f"…{name[-15:]}"


def _group_name(group: ScoredGroup, i: int) -> str:
    return group.name if len(group.name) <= 16 else f"{group.name[:15]}…"
