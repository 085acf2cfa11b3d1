"""Score groups of images for the command line and the demo, and summarise them."""

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skjepa.data.sources import Source
from skjepa.detectors.jepa_score import JEPAScoreDetector
from skjepa.evaluation.metrics import detection_metrics
from skjepa.evaluation.plotting import gallery_figure, save_figure
from skjepa.extraction.extraction import Extraction
from skjepa.inspection.terms import Explanation
from skjepa.reporting.about import About, about_detector, map_of_normal
from skjepa.reporting.neighbours import Surroundings


@dataclass(frozen=True)
class ScoredGroup:
    """One group of images after scoring.

    Attributes
    ----------
    name : str
    source : Source
    scores, p_values, decisions : arrays of shape (n,)
        NaN for images that could not be read. `p_values` is None for a detector without calibration samples.
    errors : dict of position -> reason
    seconds_per_image : float
    embeddings : array of shape (n, K), optional
        Rows of NaN for images that could not be read.
    reasons : list of str, optional
        Names of the unusual terms of the score, see `skjepa.inspection.Explanation.reason`.
    explained : Explanation, optional
        Terms of the score, for the images that could be read in their order, or for all images.
    """

    name: str
    source: Source
    scores: NDArray[np.float64]
    p_values: NDArray[np.float64] | None
    decisions: NDArray[np.float64]
    errors: dict[int, str]
    seconds_per_image: float
    embeddings: NDArray[np.float64] | None = None
    reasons: list[str] | None = None
    explained: Explanation | None = None

    def row_of_explained(self, i: int) -> int | None:
        """Return the row of image `i` in `explained`; None if the image could not be read."""
        if self.explained is None or i in self.errors:
            return None
        if len(self.explained) == len(self.scores):
            return i
        return i - sum(unreadable < i for unreadable in self.errors)

    @property
    def labels(self) -> NDArray[np.int64]:
        """Labels as returned by `JEPAScoreDetector.predict`: +1 = normal, -1 = flagged or unreadable."""
        return np.where(self.decisions >= 0, 1, -1)

    @property
    def readable(self) -> NDArray[np.float64]:
        """Scores of the images that could be read."""
        return self.scores[np.isfinite(self.scores)]


def score_group(
    detector: JEPAScoreDetector, name: str, source: Source, *, store: str | os.PathLike | None = None
) -> ScoredGroup:
    """Score one group with a fitted detector; `store` lets an interrupted run resume, except with tiles."""
    started = time.perf_counter()
    if detector.tiles is not None:
        return _score_tiled(detector, name, source)
    extraction = detector.extract(source, store=store)
    seconds = (time.perf_counter() - started) / len(source)
    judged, explained = detector.judge_and_explain(extraction)
    scores, decisions = extraction.aligned(judged.scores), extraction.aligned(judged.decisions)
    p_values = None if judged.p_values is None else extraction.aligned(judged.p_values)
    z, reasons = extraction.aligned(extraction.embeddings), aligned_reasons(judged.unusual_terms, extraction)
    return ScoredGroup(name, source, scores, p_values, decisions, extraction.errors, seconds, z, reasons, explained)


def _score_tiled(detector: JEPAScoreDetector, name: str, source: Source) -> ScoredGroup:
    """Score a group of large images by their tiles; the seconds include both the scores and the reasons."""
    started = time.perf_counter()
    found, explained = detector.judge_and_explain(source)
    seconds = (time.perf_counter() - started) / len(source)
    numbers = (found.scores, found.p_values, found.decisions)
    return ScoredGroup(name, source, *numbers, found.errors, seconds, None, found.unusual_terms, explained)


def aligned_reasons(reasons: Sequence[str], extraction: Extraction) -> list[str]:
    """Return the reasons of the samples of an extraction with "" inserted for those that were skipped."""
    known = dict(zip(extraction.measured.tolist(), reasons, strict=True))
    return [known.get(i, "") for i in range(len(extraction.all_ids))]


def about_run(
    detector: JEPAScoreDetector,
    normal: Extraction | None,
    *,
    encoder: str,
    folders: dict[str, Path],
    normal_folder: Path | None,
) -> tuple[Surroundings | None, About]:
    """Return what `score_table` stores about a run besides the scores; `normal` holds the fit samples, if known."""
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
        detector.score_samples(normal) if _shows_fit_samples(detector) else (),
        normal_folder=str(normal_folder.resolve()),
        normal_map=map_of_normal(points),
        **known,
    )
    return surroundings, about


def _shows_fit_samples(detector: JEPAScoreDetector) -> bool:
    """Return whether reports show scores of fit samples: without held-out samples, or with folds.

    The held-out scores of folds come from different models than the scores of new samples.
    """
    return detector.calibration_scores_ is None or detector.is_cross_calibrated


def summary(normal_scores: ArrayLike, groups: Sequence[ScoredGroup]) -> list[dict[str, Any]]:
    """Return one dict per group: numbers of images, flagged and unreadable ones, seconds per image, and metrics.

    The metrics of `skjepa.evaluation.detection_metrics` compare the group with `normal_scores`, the scores of normal
    samples that the detector was not fitted on. They are left out where there are none, or the group has no readable
    image.
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


def score_picture(
    detector: JEPAScoreDetector, groups: Sequence[ScoredGroup], path: str | os.PathLike, *, title: str
) -> Path:
    """Draw histograms of all groups above the most and the least typical images, and save the figure."""
    histograms = {group.name: group.scores for group in groups}
    held_out = detector.calibration_scores_
    if held_out is not None and not detector.is_cross_calibrated:
        histograms = {"held-out normal images": held_out, **histograms}
    by_name = {group.name: group for group in groups}
    caption = _group_name if len(groups) > 1 else _file_name
    figure = gallery_figure(
        histograms,
        {name: group.source for name, group in by_name.items()},
        lambda name, i: caption(by_name[name], i),
        threshold=detector.offset_,
        title=title,
    )
    return save_figure(figure, path)


def _file_name(group: ScoredGroup, i: int) -> str:
    name = Path(str(group.source.ids[i])).name
    return name if len(name) <= 16 else f"…{name[-15:]}"


def _group_name(group: ScoredGroup, i: int) -> str:
    return group.name if len(group.name) <= 16 else f"{group.name[:15]}…"
