"""Command `skjepa demo`: find foreign objects in images of gravel, cut from photographs of scikit-image."""

import json
import platform
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from sklearn.base import clone

from skjepa import __version__
from skjepa._utils.files import written_whole
from skjepa.data.gravel import GravelImages, gravel_images
from skjepa.data.sources import folder_source
from skjepa.detectors.baselines import KNNDetector, MahalanobisDetector
from skjepa.detectors.jepa_score import JEPAScoreDetector
from skjepa.evaluation.metrics import detection_metrics
from skjepa.evaluation.plotting import save_figure
from skjepa.reporting import score_table, scored_groups
from skjepa.reporting.odd_figure import odd_figure

_ALPHA = 0.05
_SHOWN = {"coins": 3, "bricks": 3, "grass": 2, "gravel": 1}
_RIVALS: dict[str, Any] = {"kNN": KNNDetector(), "Mahalanobis": MahalanobisDetector()}


def run_demo(out: Path, *, seed: int, console: Console) -> list[dict]:
    """Fit on images of gravel, score others, and write images, table, figures and summary.json into `out`."""
    started = time.perf_counter()
    images = gravel_images(seed)
    folders = _write_images(images, out / "images")
    fit, *others = images
    console.print(
        f"Fit on {len(images[fit].images)} images of gravel; score {sum(len(images[name].images) for name in others)} "
        "others, some of them with a coin, a piece of brick or a tuft of grass.",
        highlight=False,
    )
    detector = JEPAScoreDetector(target_fpr=_ALPHA, calibration=5, local=True, random_state=seed, verbose=1)
    normal = folder_source(folders[fit])
    measured = detector.extract(normal)
    detector.fit(measured, groups=images[fit].places)
    rivals = {name: clone(rival).fit(measured.embeddings) for name, rival in _RIVALS.items()}
    groups = [scored_groups.score_group(detector, name, folder_source(folders[name])) for name in others]
    rows = _rows(detector, groups, images, rivals)
    score_table.write_table(score_table.score_table(groups), out / "scores.parquet")
    scored_groups.score_picture(detector, groups, out / "scores.png", title="Scores, by what lies in the gravel")
    save_figure(_figure(detector, images), out / "odd.png")
    seconds = time.perf_counter() - started
    _write_summary(out / "summary.json", rows, seed, seconds)
    console.print(_table(rows))
    console.print(
        f"{out / 'odd.png'} shows where images are odd, {out / 'scores.png'} the scores, {out / 'scores.parquet'} has "
        f"one row per image; {seconds:.0f} s\n"
        f"Next, on folders of your own:  skjepa score --normal {folders[fit]} {folders['coins']} --local --maps maps",
        highlight=False,
        soft_wrap=True,
    )
    return rows


def _write_images(images: Mapping[str, GravelImages], folder: Path) -> dict[str, Path]:
    """Write one folder of PNG files per kind, as a user would have them."""
    for name, kind in images.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(kind.images):
            Image.fromarray(image).save(folder / name / f"{i:03d}.png")
    return {name: folder / name for name in images}


def _rows(
    detector: JEPAScoreDetector,
    groups: Sequence[scored_groups.ScoredGroup],
    images: Mapping[str, GravelImages],
    rivals: Mapping[str, Any],
) -> list[dict[str, Any]]:
    unseen, *odd = groups
    rows = [*scored_groups.summary([], [unseen]), *scored_groups.summary(unseen.readable, odd)]
    for row, group in zip(rows[1:], odd, strict=True):
        row["located"] = _share_located(detector, images[group.name])
        row["rivals"] = {
            name: detection_metrics(*map(rival.score_samples, (unseen.embeddings, group.embeddings)))["auroc"]
            for name, rival in rivals.items()
        }
    return rows


def _share_located(detector: JEPAScoreDetector, kind: GravelImages) -> float:
    """Return the share of images whose most anomalous pixel lies on the object."""
    maps = detector.anomaly_map(kind.images)
    return float(np.mean([mask.flat[np.nanargmax(found)] for mask, found in zip(kind.masks, maps, strict=True)]))


def _figure(detector: JEPAScoreDetector, images: Mapping[str, GravelImages]) -> Any:
    """Draw the first images of each kind, without choosing the best."""
    shown = [(name, image) for name, n in _SHOWN.items() for image in images[name].images[:n]]
    pictures = np.stack([image for _, image in shown])
    maps = [found for found in detector.picture_maps(pictures) if found is not None]
    title = "What does not belong in the gravel, and where (the first images of each kind)"
    return odd_figure(list(pictures), maps, [name for name, _ in shown], title=title)


def _table(rows: list[dict[str, Any]]) -> Table:
    caption = (
        f"flagged: conformal p-value <= {_ALPHA:g}, so about {_ALPHA:.0%} of new images of gravel are flagged. AUROC: "
        "against these images of gravel, 1 = perfect, 0.5 = chance. located: the oddest pixel lies on the object. kNN "
        "and Mahalanobis: AUROC of the distances in the embedding of the same encoder."
    )
    table = Table(title="Which images are odd?", caption=caption, title_justify="left", caption_justify="left")
    for heading in ("images", "flagged / total", "AUROC", *_RIVALS, "located", "s / image"):
        table.add_column(heading, justify="left" if heading == "images" else "right")
    for row in rows:
        numbers = (row.get("auroc"), *(row.get("rivals", {}).get(name) for name in _RIVALS), row.get("located"))
        cells = ["-" if value is None else f"{value:.3f}" for value in numbers]
        table.add_row(row["group"], f"{row['flagged']} / {row['images']}", *cells, f"{row['seconds_per_image']:.3f}")
    return table


def _write_summary(path: Path, rows: list[dict], seed: int, seconds: float) -> None:
    stamp = {
        "seed": seed,
        "seconds": round(seconds, 2),
        "hardware": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"skjepa": __version__, "torch": torch.__version__, "sklearn": sklearn.__version__},
    }
    with written_whole(path) as partial:
        partial.write_text(json.dumps({**stamp, "groups": rows}, indent=1) + "\n")
