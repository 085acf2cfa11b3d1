"""The main job on real images that the installed packages carry: photographs against scans, digits and terrain.

Normal: 32-pixel tiles of the sample photographs of scikit-learn (a palace, a flower) and Matplotlib (a portrait).
Foreign: scikit-learn's handwritten digits, tiles of Matplotlib's magnetic-resonance scan and of its digital elevation
model. No tile is used twice; tiles with next to nothing on them (blurred background, air around the head) are left out.
"""

import gzip
import json
import platform
import time
from pathlib import Path

import numpy as np
import sklearn
import torch
from matplotlib.cbook import get_sample_data
from numpy.typing import NDArray
from rich.console import Console
from sklearn.datasets import load_digits, load_sample_images

from skjepa import __version__, job
from skjepa._files import written_whole
from skjepa.detectors import JEPAScoreDetector
from skjepa.sources import as_source, read_image

TILE = 32
_N_FIT, _N_TEST = 320, 200
_BLANK = 10.0  # standard deviation within every channel, of 8-bit pixels, below which a tile shows nothing
_ALPHA = 0.05


def demo_images(seed: int = 0) -> dict[str, NDArray[np.uint8]]:
    """Name -> images (n, 32, 32, 3): "fit" and "photographs" are normal and disjoint, the others foreign."""
    rng = np.random.default_rng(seed)
    portrait = np.asarray(read_image(_sample("grace_hopper.jpg")))
    photographs = np.concatenate([_tiles(image) for image in (*load_sample_images().images, portrait)])
    photographs = photographs[rng.permutation(len(photographs))]
    foreign = {"MRI scan": _tiles(_rgb(_scan())), "elevation model": _tiles(_rgb(_terrain())), "digits": _digits()}
    return {
        "fit": photographs[:_N_FIT],
        "photographs": photographs[_N_FIT:][:_N_TEST],
        **{name: images[rng.permutation(len(images))][:_N_TEST] for name, images in foreign.items()},
    }


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
        job.score_group(detector, name, as_source(array, ids=[f"{i:03d}" for i in range(len(array))]))
        for name, array in images.items()
    ]
    unseen, *foreign = groups
    rows = job.summary(unseen.readable, foreign)
    rows = [*job.summary([], [unseen]), *rows]
    job.write_table(job.score_table(groups), out / "scores.parquet")
    job.score_picture(detector, groups, out / "scores.png", title="Bundled encoder, fitted on tiles of photographs")
    seconds = time.perf_counter() - started
    _write_summary(out / "summary.json", rows, seed, seconds)
    console.print(
        job.summary_table(
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


def _tiles(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Tiles that do not overlap and are not blank, (n, 32, 32, 3)."""
    rows, columns = image.shape[0] // TILE, image.shape[1] // TILE
    whole = image[: rows * TILE, : columns * TILE]
    tiles = whole.reshape(rows, TILE, columns, TILE, 3).swapaxes(1, 2).reshape(-1, TILE, TILE, 3)
    return tiles[tiles.std(axis=(1, 2)).max(axis=-1) > _BLANK]


def _rgb(grey: NDArray) -> NDArray[np.uint8]:
    """Any range of values as 8-bit grey in three channels."""
    low, high = float(grey.min()), float(grey.max())
    scaled = np.round(255 * (grey.astype(np.float64) - low) / (high - low)).astype(np.uint8)
    return np.repeat(scaled[..., None], 3, axis=-1)


def _scan() -> NDArray[np.uint16]:
    content = Path(_sample("s1045.ima.gz")).read_bytes()
    return np.frombuffer(gzip.decompress(content), np.uint16).reshape(256, 256)


def _terrain() -> NDArray:
    with np.load(_sample("jacksboro_fault_dem.npz")) as file:
        return file["elevation"]


def _sample(name: str) -> str:
    """Path of a file that Matplotlib brings along."""
    return str(get_sample_data(name, asfileobj=False))


def _digits() -> NDArray[np.uint8]:
    return _rgb(np.kron(load_digits().images, np.ones((1, 4, 4))))
