"""The main job on real images that the installed packages carry: photographs against scans, digits and terrain.

Normal: 32-pixel tiles of the sample photographs of scikit-learn (a palace, a flower) and Matplotlib (a portrait).
Foreign: scikit-learn's handwritten digits, tiles of Matplotlib's magnetic-resonance scan and of its digital elevation
model. No tile is used twice; tiles with next to nothing on them (blurred background, air around the head) are left out.
"""

import json
import platform
import time
from pathlib import Path

import sklearn
import torch
from rich.console import Console

from skjepa import __version__
from skjepa._utils.files import written_whole
from skjepa.cli import common
from skjepa.data.sample_images import demo_images
from skjepa.data.sources import as_source
from skjepa.detectors.jepa_score import JEPAScoreDetector
from skjepa.reporting import score_table, scored_groups

_ALPHA = 0.05


def run_demo(out: Path, *, seed: int, console: Console) -> list[dict]:
    """Fit, score, print the table, write scores.parquet, scores.png and summary.json below `out`; the summary."""
    started = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    images = demo_images(seed)
    normal = images.pop("fit")
    console.print(
        f"fit on {len(normal)} tiles of photographs, score {sum(map(len, images.values()))} images", highlight=False
    )
    detector = JEPAScoreDetector(target_fpr=_ALPHA, calibration=0.25, random_state=seed, verbose=1).fit(normal)
    groups = [
        scored_groups.score_group(detector, name, as_source(array, ids=[f"{i:03d}" for i in range(len(array))]))
        for name, array in images.items()
    ]
    unseen, *foreign = groups
    rows = scored_groups.summary(unseen.readable, foreign)
    rows = [*scored_groups.summary([], [unseen]), *rows]
    score_table.write_table(score_table.score_table(groups), out / "scores.parquet")
    scored_groups.score_picture(
        detector, groups, out / "scores.png", title="Bundled encoder, fitted on tiles of photographs"
    )
    seconds = time.perf_counter() - started
    _write_summary(out / "summary.json", rows, seed, seconds)
    console.print(
        common.summary_table(
            rows,
            title="Normal: photographs. Foreign: everything else",
            caption=f"flagged: conformal p <= {_ALPHA:g}; AUROC, AUPR (foreign images as positive) and FPR@95 (of "
            "photographs, when 95 % of the foreign images are caught): against the unseen photographs",
        )
    )
    console.print(f"{out / 'scores.parquet'}, scores.png and summary.json written; {seconds:.1f} s", highlight=False)
    return rows


def _write_summary(path: Path, rows: list[dict], seed: int, seconds: float) -> None:
    stamp = {
        "seed": seed,
        "seconds": round(seconds, 2),
        "hardware": {"processor": platform.machine(), "threads": torch.get_num_threads()},
        "versions": {"skjepa": __version__, "torch": torch.__version__, "sklearn": sklearn.__version__},
    }
    with written_whole(path) as partial:
        partial.write_text(json.dumps({**stamp, "groups": rows}, indent=1) + "\n")
