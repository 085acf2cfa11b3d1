"""Write the anomaly maps of flagged images as PNG files, with a list of their spots."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skjepa._utils.files import written_whole
from skjepa.detectors.jepa_score import JEPAScoreDetector
from skjepa.inspection.picture_maps import LEVEL, P_STEPS
from skjepa.reporting.scored_groups import ScoredGroup

SPOTS = "spots.json"
_AT_A_TIME = 64


def write_maps(detector: JEPAScoreDetector, groups: Sequence[ScoredGroup], folder: Path) -> list[dict[str, Any]]:
    """Write every flagged image with its anomaly map as a PNG file, and list all spots in the file `SPOTS`.

    Each image takes one forward pass.

    Returns
    -------
    list of dict
        The entries of `SPOTS`, one per image: group, id, score, p_value, overlay (a file in the folder), width, height
        and spots. Each spot has box (left, top, right, bottom), p_value and surprise. Without ``local=True`` there are
        no spots.
    """
    folder.mkdir(parents=True, exist_ok=True)
    told: list[dict[str, Any]] = []
    for group in groups:
        flagged = np.flatnonzero((group.decisions < 0) & np.isfinite(group.scores))
        for start in range(0, len(flagged), _AT_A_TIME):
            told += _written(detector, group, flagged[start : start + _AT_A_TIME], folder, len(told))
    document = {"level": LEVEL if detector.local else None, "colours": P_STEPS if detector.local else None}
    with written_whole(folder / SPOTS) as partial:
        partial.write_text(json.dumps({**document, "images": told}, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    return told


def _written(
    detector: JEPAScoreDetector, group: ScoredGroup, places: np.ndarray, folder: Path, n_before: int
) -> list[dict[str, Any]]:
    told: list[dict[str, Any]] = []
    for i, found in zip(places.tolist(), detector.picture_maps(group.source[places]), strict=True):
        if found is None:
            continue
        name = f"{n_before + len(told):05d} {Path(found.id).stem[:80]}.png"
        with written_whole(folder / name) as partial:
            found.overlay(group.source.load(i)).save(partial, "PNG")
        height, width = found.placement.picture_size
        told.append(
            {
                "group": group.name,
                "id": found.id,
                "score": float(group.scores[i]),
                "p_value": None if group.p_values is None else float(group.p_values[i]),
                "overlay": name,
                "width": width,
                "height": height,
                "spots": [
                    {"box": list(spot.box), "p_value": spot.p_value, "surprise": spot.surprise} for spot in found.spots
                ],
            }
        )
    return told
