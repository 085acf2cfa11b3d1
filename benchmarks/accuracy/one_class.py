"""One class of CIFAR-10 normal, the other nine foreign: ten runs of the default detector and its rivals.

    python -m benchmarks.accuracy.one_class --data FOLDER [--quick] [--memory FOLDER]

FOLDER holds cifar10, as a folder `cifar10/{train,test}/<class>/` or as a zip file of it beside mnist, fashion_mnist and
tiny_imagenet. Detectors are fitted on training images of one class, calibrated and tested on test images. Outside the
bars: the bundled encoder was trained, without labels, on training images of all ten classes.

One pass over all images serves the ten runs. Images already measured are kept in --memory, and a run that was cut off
goes on from there. Writes benchmarks/results/one_class.json (or --out).
"""

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import t, wilcoxon

from benchmarks.common import record
from benchmarks.common.image_sets import Images, folders_of
from skjepa import load_encoder
from skjepa.data.images import read_image
from skjepa.data.sources import folder_source
from skjepa.data.splits import SPLITS
from skjepa.evaluation.benchmark import run_benchmark
from skjepa.evaluation.benchmark_result import ALPHAS, BenchmarkResult
from skjepa.evaluation.comparison import holm
from skjepa.evaluation.metrics import detection_metrics, observed_false_positives

OUT = record.RESULTS / "one_class.json"


@dataclass(frozen=True)
class Sizes:
    """Images of each class."""

    fit: int
    calibration: int
    test: int


FULL, QUICK = Sizes(500, 100, 250), Sizes(60, 20, 40)
Classes = dict[str, dict[str, Images]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--encoder", default="bundled")
    options.add_argument("--memory", type=Path, help="keep finished images here, and resume")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--quick", action="store_true", help="few images: two minutes on a free core")
    options.add_argument("--out", type=Path, default=OUT)
    chosen = options.parse_args()
    sizes = QUICK if chosen.quick else FULL
    with folders_of(chosen.data) as folder:
        classes = read_classes(folder / "cifar10", sizes, chosen.seed)
    with tempfile.TemporaryDirectory() as scratch:
        common = {
            "encoder": load_encoder(chosen.encoder),
            "memory": chosen.memory or Path(scratch),
            "random_state": chosen.seed,
        }
        results = judged(classes, common)
    record.write(chosen.out, results, seed=chosen.seed, encoder=chosen.encoder, quick=chosen.quick, sizes=vars(sizes))
    for name, row in results["detectors"].items():
        print(f"{name:20}{row['mean']:.3f}")


def read_classes(folder: Path, sizes: Sizes, seed: int) -> Classes:
    """Class -> split -> images; training images to fit on, test images for the rest."""
    rng = np.random.default_rng(seed)
    classes: Classes = {}
    for name in sorted(path.name for path in (folder / "train").iterdir()):
        fit = _drawn(folder / "train" / name, sizes.fit, rng)
        unseen = _drawn(folder / "test" / name, sizes.calibration + sizes.test, rng)
        parts = (fit, unseen[: sizes.calibration], unseen[sizes.calibration :])
        classes[name] = dict(zip(SPLITS, parts, strict=True))
    return classes


def _drawn(folder: Path, n: int, rng: np.random.Generator) -> Images:
    return [read_image(folder / name) for name in rng.choice(folder_source(folder).ids, n, replace=False)]


def judged(classes: Classes, options: dict[str, Any], detectors: dict[str, Any] | None = None) -> dict[str, Any]:
    """Each class in turn normal; AUROC against each other class and against all of them."""
    found, shares = {}, {}
    for name, normal in classes.items():
        others = {other: images["test"] for other, images in classes.items() if other != name}
        result = run_benchmark(normal, others, detectors, classes=None, **options)
        found[name] = {detector: aurocs(result, detector) for detector in result.detectors}
        shares[name] = {detector: false_positives(result, detector) for detector in result.detectors}
        print(f"{name}: done", flush=True)
    whole = {name: {detector: row["all"] for detector, row in rows.items()} for name, rows in found.items()}
    return {
        "classes": found,
        "detectors": compared(whole, reference=result.reference),
        "false_positives": {
            detector: {
                f"{alpha:g}": float(np.mean([row[detector][i] for row in shares.values()]))
                for i, alpha in enumerate(ALPHAS)
            }
            for detector in result.detectors
        },
    }


def aurocs(result: BenchmarkResult, detector: str) -> dict[str, float]:
    """Against each of the other classes, and against all of them as one set."""
    scores = result.scores[detector]
    every = np.concatenate([scores[name] for name in result.sets])
    found = {name: detection_metrics(scores["test"], scores[name])["auroc"] for name in result.sets}
    return {"all": detection_metrics(scores["test"], every)["auroc"], **found}


def false_positives(result: BenchmarkResult, detector: str) -> list[float]:
    """Observed share of normal test images at each nominal rate."""
    scores = result.scores[detector]
    return [row["observed"] for row in observed_false_positives(scores["calibration"], scores["test"], ALPHAS)]


def compared(aurocs: dict[str, dict[str, float]], reference: str) -> dict[str, dict[str, Any]]:
    """Detector -> mean over classes, its 95 % t-interval, and Wilcoxon's test of the reference's lead (Holm)."""
    means = one_class_means(aurocs)
    values = {name: np.array([row[name] for row in aurocs.values()]) for name in means}
    rivals = [name for name in values if name != reference]
    p = holm([wilcoxon(values[reference], values[name]).pvalue for name in rivals]) if rivals else []
    rows = {}
    for name, mean in means.items():
        reach = t.ppf(0.975, len(aurocs) - 1) * values[name].std(ddof=1) / np.sqrt(len(aurocs))
        rows[name] = {"mean": mean, "low": mean - float(reach), "high": mean + float(reach)}
        if name in rivals:
            lead = values[reference] - values[name]
            rows[name] |= {
                "reference_ahead_by": float(lead.mean()),
                "reference_ahead_on": int((lead > 0).sum()),
                "adjusted_p_value": float(p[rivals.index(name)]),
            }
    return rows


def one_class_means(found: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Mean over classes of every detector's AUROC."""
    detectors = next(iter(found.values()))
    return {name: float(np.mean([row[name] for row in found.values()])) for name in detectors}


if __name__ == "__main__":
    main()
