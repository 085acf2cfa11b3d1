"""CIFAR-10 as normal against everything at hand: does the default detector beat every baseline, and where not?

    python -m benchmarks.accuracy.images --data FOLDER [--quick] [--memory FOLDER] [--download FOLDER]

FOLDER holds cifar10, mnist, fashion_mnist and tiny_imagenet, as folders of class folders or as zip files of them
(`cifar10/{train,test}/<class>/`). Detectors are fitted on CIFAR-10 training images, which the bundled encoder was
trained on too; they are calibrated and tested on test images, which nobody has seen. Parts:

- foreign: MNIST, Fashion-MNIST, Tiny-ImageNet, uniform noise, and four corruptions of further test images, each at five
  strengths; with --download also SVHN, CIFAR-100 and DTD by torchvision;
- blind: five corruptions that nobody had looked at while the score was made;
- re-encoded: the foreign sets, and the normal images, once more through one JPEG compression;
- training images: those that the encoder was trained on and the detectors were not fitted on, against test images;
- features: the first part once more on the encoder's 448 features in the place of its 64 outputs, 64 random directions.

Images already measured are kept in --memory, and a run that was cut off goes on from there. Writes
benchmarks/results/benchmark_images.json (or --out) and plots beside it; --galleries FOLDER receives the most and the
least typical images, which are other people's data and never committed.
"""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from benchmarks.accuracy.verdicts import bars
from benchmarks.common import record
from benchmarks.common.image_sets import (
    BLIND,
    CORRUPTIONS,
    FOREIGN,
    NOISE,
    STRENGTHS,
    Images,
    corrupted,
    downloaded,
    drawn,
    folders_of,
    reencoded,
    uniform_noise,
)
from skjepa import load_encoder
from skjepa.detectors.conformal import conformal_offset
from skjepa.evaluation.benchmark import default_detectors, run_benchmark
from skjepa.evaluation.benchmark_result import BenchmarkResult
from skjepa.evaluation.metrics import detection_metrics
from skjepa.evaluation.plotting import Thumbnail, save_figure, score_figure

OUT = record.RESULTS / "benchmark_images.json"
TRAINING = "training images"
# Fashion-MNIST chose the form of the score (benchmarks/accuracy/joint_cases.py), the corruptions had a word in its
# fourth term.
TUNED = ("fashion_mnist", *CORRUPTIONS)
EXPLICIT = ("Gaussian mixture", "flow", "Mahalanobis")  # densities of the embeddings
RANKED_CLASSES = ("horse", "airplane", "cat", "truck")
ALPHA = 0.05


@dataclass(frozen=True)
class Sizes:
    """Images of each group."""

    fit: int
    calibration: int
    test: int
    foreign: int
    control: float = 0.5
    features: float = 0.5


FULL, QUICK = Sizes(2000, 500, 1000, 400), Sizes(200, 100, 100, 30)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--download", type=Path, help="folder for SVHN, CIFAR-100 and DTD; needs a network")
    options.add_argument("--encoder", default="bundled")
    options.add_argument("--no-features", action="store_true", help="leave out the last part")
    options.add_argument("--memory", type=Path, help="keep finished images here, and resume")
    options.add_argument("--resamples", type=int, default=1000)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--quick", action="store_true", help="few images: two minutes on a free core")
    options.add_argument("--galleries", type=Path, help="folder for pictures that show images of the sets")
    options.add_argument("--out", type=Path, default=OUT)
    chosen = options.parse_args()
    sizes = QUICK if chosen.quick else FULL
    with folders_of(chosen.data) as folder, tempfile.TemporaryDirectory() as scratch:
        sets = Sets(folder, sizes, chosen.seed, chosen.download)
        common = {
            "memory": chosen.memory or Path(scratch),
            "random_state": chosen.seed,
            "n_resamples": 100 if chosen.quick else chosen.resamples,
            "progress": True,
        }
        results, plots, galleries = judged(chosen, sets, common)
    record.write(chosen.out, results, seed=chosen.seed, encoder=chosen.encoder, quick=chosen.quick, sizes=vars(sizes))
    images = record.IMAGES if chosen.out == OUT else chosen.out.parent
    keep(plots, images)
    if chosen.galleries is not None:
        chosen.galleries.mkdir(parents=True, exist_ok=True)
        keep(galleries, chosen.galleries)


def keep(figures: dict[str, Any], folder: Path) -> None:
    for name, figure in figures.items():
        print(f"wrote {save_figure(figure, folder / f'benchmark_{name}.png')}")


class Sets:
    """Images of every group; no two groups share one."""

    def __init__(self, folder: Path, sizes: Sizes, seed: int, download: Path | None) -> None:
        rng = np.random.default_rng(seed)
        train, train_classes = drawn(folder / "cifar10" / "train", sizes.fit + sizes.foreign, rng)
        n_corrupted = sizes.foreign * len(CORRUPTIONS)
        unseen, classes = drawn(folder / "cifar10" / "test", sizes.calibration + sizes.test + n_corrupted, rng)
        ends = np.cumsum([sizes.calibration, sizes.test])
        self.normal = {
            "fit": train[: sizes.fit],
            "calibration": unseen[: ends[0]],
            "test": unseen[ends[0] : ends[1]],
        }
        self.classes = {
            "fit": train_classes[: sizes.fit],
            "calibration": classes[: ends[0]],
            "test": classes[ends[0] : ends[1]],
        }
        self.outliers = {name: drawn(folder / name, sizes.foreign, rng)[0] for name in FOREIGN}
        self.outliers[NOISE] = uniform_noise(sizes.foreign, rng)
        if download is not None:
            self.outliers |= downloaded(download, sizes.foreign, rng)
        clean = unseen[ends[1] :]
        parts = [clean[i * sizes.foreign : (i + 1) * sizes.foreign] for i in range(len(CORRUPTIONS))]
        for kind, part in zip(CORRUPTIONS, parts, strict=True):
            self.outliers[kind] = corrupted(part, kind, rng)
        rng = np.random.default_rng([seed, 1])
        # Fewer parts than kinds: some pictures are there twice, each time spoilt in another way.
        self.blind = {kind: corrupted(part, kind, rng) for kind, part in zip(BLIND, cycle(parts))}
        self.training = train[sizes.fit :]
        self.sizes = sizes

    def normal_of(self, share: float) -> dict[str, Images]:
        """The first so many of every split."""
        return {name: images[: int(share * len(images))] for name, images in self.normal.items()}

    def outliers_of(self, share: float) -> dict[str, Images]:
        return {name: images[: int(share * len(images))] for name, images in self.outliers.items()}

    def fit_classes(self, share: float = 1.0) -> list[str]:
        return self.classes["fit"][: int(share * len(self.classes["fit"]))]


def judged(chosen: argparse.Namespace, sets: Sets, common: dict[str, Any]) -> tuple[dict, dict, dict]:
    """Everything that is measured, the plots of it, and galleries that show images."""
    encoder, rivals = load_encoder(chosen.encoder), default_detectors(classes=True)
    whole = run_benchmark(
        sets.normal,
        sets.outliers | sets.blind | {TRAINING: sets.training},
        rivals,
        encoder=encoder,
        classes=sets.fit_classes(),
        **common,
    )
    foreign, blind = whole.on(list(sets.outliers)), whole.on(list(sets.blind))
    results: dict[str, Any] = {
        "tuned_on": TUNED,
        "foreign": foreign.summary,
        "bars": bars(
            foreign,
            {
                "sets not tuned on": [name for name in sets.outliers if name not in TUNED],
                "without corruptions": [name for name in sets.outliers if name not in CORRUPTIONS],
            },
        )
        | {"blind corruptions": bars(blind, {})["all sets"]},
        "blind": blind.summary,
        "strengths": by_strength(foreign),
        "agreement": agreement(foreign, [foreign.reference, "JEPA-SCORE"], EXPLICIT),
        "training_images": whole.on([TRAINING]).summary,
        "re-encoded": re_encoded(sets, rivals, encoder, common).summary,
    }
    if not chosen.no_features:
        results["features"] = on_features(chosen, sets, rivals, common).summary
    plots = {
        "ranks": foreign.ranks(),
        "roc": foreign.roc(),
        "default": histograms(foreign, foreign.reference),
        "jepa_score": histograms(foreign, "JEPA-SCORE"),
        "within_class": within_class(whole, sets, RANKED_CLASSES[0], n_images=0),
    }
    galleries = {"default": foreign.gallery(), "jepa_score": foreign.gallery("JEPA-SCORE")}
    galleries |= {f"within_{name}": within_class(whole, sets, name) for name in RANKED_CLASSES}
    return results, plots, galleries


def histograms(result: BenchmarkResult, detector: str, *, alpha: float = ALPHA) -> Any:
    """One detector's scores of every group and its threshold (the paper's Fig. 3)."""
    scores = result.scores[detector]
    return score_figure(
        {name: scores[name] for name in ("test", *result.sets)},
        threshold=conformal_offset(scores["calibration"], alpha),
        title=f"{detector}, threshold for {alpha:g} of normal samples",
    )


def by_strength(result: BenchmarkResult) -> dict[str, dict[str, list[float]]]:
    """AUROC of every detector on each corruption, from the weakest to the strongest."""
    return {
        kind: {
            name: [
                detection_metrics(scores["test"], scores[kind][strength::STRENGTHS])["auroc"]
                for strength in range(STRENGTHS)
            ]
            for name, scores in result.scores.items()
        }
        for kind in CORRUPTIONS
    }


def agreement(result: BenchmarkResult, ours: Sequence[str], explicit: Sequence[str]) -> dict[str, dict]:
    """Spearman's rank correlation of scores with explicit densities: of normal images alone, and of all images."""

    def spearman(a: str, b: str, groups: Sequence[str]) -> float:
        both = [np.concatenate([result.scores[name][group] for group in groups]) for name in (a, b)]
        return float(spearmanr(*both).statistic)

    groups = {"normal": ["test"], "all": ["test", *result.sets]}
    return {
        score: {
            density: {which: spearman(score, density, names) for which, names in groups.items()} for density in explicit
        }
        for score in ours
    }


def re_encoded(sets: Sets, rivals: dict, encoder: Any, common: dict[str, Any]) -> BenchmarkResult:
    """All images alike through one JPEG compression: what is left is not the file format."""
    share = sets.sizes.control
    normal = {name: list(map(reencoded, images)) for name, images in sets.normal_of(share).items()}
    outliers = {name: list(map(reencoded, images)) for name, images in sets.outliers_of(share).items()}
    return run_benchmark(normal, outliers, rivals, encoder=encoder, classes=sets.fit_classes(share), **common)


def on_features(chosen: argparse.Namespace, sets: Sets, rivals: dict, common: dict[str, Any]) -> BenchmarkResult:
    """Another embedding: a layer before the scored output, its singular values in 64 random directions."""
    share = sets.sizes.features
    return run_benchmark(
        sets.normal_of(share),
        sets.outliers_of(share),
        {name: rival for name, rival in rivals.items() if name != "flow"},  # of 448 dimensions from a thousand rows
        encoder=load_encoder(chosen.encoder, output=features_of),
        classes=sets.fit_classes(share),
        method="sketch",
        n_directions=64,
        **common,
    )


def features_of(module: Any, x: Any) -> Any:
    """Of the bundled encoder's network, or of one that `skjepa pretrain` made: (B, 448)."""
    return module.features(x)


def within_class(result: BenchmarkResult, sets: Sets, ranked: str, *, n_images: int = 10) -> Any:
    """One class's test images ranked by JEPA-SCORE, the most and the least typical (the paper's Fig. 1)."""
    places = [i for i, label in enumerate(sets.classes["test"]) if label == ranked]
    scores = result.scores["JEPA-SCORE"]["test"][places]
    order = np.argsort(scores)
    n = min(n_images, len(order) // 2)

    def row(chosen: np.ndarray) -> list[Thumbnail]:
        return [Thumbnail(sets.normal["test"][places[i]], float(scores[i]), False) for i in chosen]

    return score_figure(
        {ranked: scores, "all test images": result.scores["JEPA-SCORE"]["test"]},
        threshold=float(np.quantile(scores, ALPHA)),
        most_typical=row(order[::-1][:n]),
        least_typical=row(order[:n]),
        title=f"JEPA-SCORE of test images of the class {ranked}; threshold at {ALPHA:.0%} of them",
    )


if __name__ == "__main__":
    main()
