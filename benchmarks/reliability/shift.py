"""Weighted conformal p-values after a shift: when do they hold the rate of false alarms, and when not?

    python -m benchmarks.reliability.shift --data FOLDER [--cache FOLDER]

CIFAR-10 test images by the bundled encoder: 1,500 are fitted on, 500 are calibrated on, 500 normal ones come after
the shift, and all are different images. Shifts are of two kinds: other shares of the same classes, which the
calibration samples hold, and other conditions, which they do not. Among the new images are 25 digits (MNIST), to see
whether what is odd is still flagged. Weights come from all of them and the calibration samples, each judged out of
fold. Beside them: plain p-values, a calibration with 100 fresh images, and the adaptive level with every label given
50 images late. Writes benchmarks/results/shift.json.
"""

import argparse
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.common import record
from benchmarks.common.image_sets import drawn, folders_of, reencoded
from benchmarks.common.stream_sets import CHANGES, fitted
from skjepa import JEPAScoreDetector
from skjepa.deployment.shift import AdaptiveLevel, effective_size, likelihood_ratio, weighted_p_values
from skjepa.detectors.conformal import conformal_p_values

ALPHA = 0.05
FIT, CALIBRATION, NEW, FRESH, LATE, FOREIGN = 1500, 500, 500, 100, 50, 25
DRAWS, POOL = 30, 2000
VEHICLES = ("airplane", "automobile", "ship", "truck")
Measured = tuple[NDArray[np.float64], NDArray[np.float64]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--cache", type=Path, help="folder that keeps what was measured, for another run")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=record.RESULTS / "shift.json")
    chosen = options.parse_args()
    measured = joblib.Memory(chosen.cache, verbose=0).cache(measured_pools)
    pools, foreign, is_vehicle = measured(chosen.data, chosen.seed)
    shifts = {
        "none": ("as they are", None),
        "vehicles 80 % instead of 40 %": ("as they are", 0.8),
        "vehicles 10 %": ("as they are", 0.1),
        "animals only": ("as they are", 0.0),
        "vehicles only": ("as they are", 1.0),
        **{name: (name, None) for name in CHANGES},
    }
    results = {}
    for name, (pool, share) in shifts.items():
        seen = pools[pool], foreign[pool], pools["as they are"]
        rows = [one_draw(*seen, is_vehicle, share, seed) for seed in range(DRAWS)]
        results[name] = {key: summary([row[key] for row in rows]) for key in rows[0]}
        print(name, results[name], flush=True)
    sizes = {"calibration": CALIBRATION, "new": NEW, "fresh": FRESH, "labels_late": LATE, "foreign": FOREIGN}
    record.write(chosen.out, {"shifts": results}, seed=chosen.seed, alpha=ALPHA, draws=DRAWS, **sizes)


def measured_pools(data: Path, seed: int) -> tuple[dict[str, Measured], dict[str, Measured], NDArray[np.bool_]]:
    """Scores and embeddings of the same images as they are and under each change; of digits; and who shows vehicles."""
    with folders_of(data) as folder:
        rng = np.random.default_rng(seed)
        images, classes = drawn(folder / "cifar10/test", FIT + POOL, rng)
        digits = [reencoded(image) for image in drawn(folder / "mnist", 500, rng)[0]]
    detector = fitted("bundled", images[:FIT])
    edits = {"as they are": lambda image: image, **CHANGES}
    pools = {name: judged(detector, [edit(image) for image in images[FIT:]]) for name, edit in edits.items()}
    foreign = {name: judged(detector, [edit(image) for image in digits]) for name, edit in edits.items()}
    return pools, foreign, np.isin(classes[FIT:], VEHICLES)


def judged(detector: JEPAScoreDetector, images: list[Image.Image]) -> Measured:
    extraction = detector.extract(images)
    return detector.score_samples(extraction), extraction.embeddings


def one_draw(
    pool: Measured, foreign: Measured, before: Measured, is_vehicle: NDArray[np.bool_], share: float | None, seed: int
) -> dict[str, float]:
    """Share of new normal images, and of digits among them, flagged by each way; what the weights are worth."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(is_vehicle))
    calibration, others = order[:CALIBRATION], order[CALIBRATION:]
    new = with_share(others, is_vehicle, share, NEW + FRESH)
    new, fresh = new[:NEW], new[NEW:]
    digits = rng.choice(len(foreign[0]), FOREIGN, replace=False)
    known, z_known = (values[calibration] for values in before)
    scores, z = (np.concatenate([values[new], odd[digits]]) for values, odd in zip(pool, foreign, strict=True))
    w, v = likelihood_ratio(z_known, z, random_state=seed)
    ways = {
        "plain": conformal_p_values(known, scores),
        "weighted": weighted_p_values(known, scores, w, v),
        "fresh": conformal_p_values(pool[0][fresh], scores),
    }
    return {
        **{way: flagged(p[:NEW]) for way, p in ways.items()},
        **{f"{way}, digits": flagged(p[NEW:]) for way, p in ways.items()},
        "adaptive": adaptive(ways["plain"][:NEW]),
        "effective_size": effective_size(w),
    }


def with_share(rows: NDArray[np.intp], is_vehicle: NDArray[np.bool_], share: float | None, n: int) -> NDArray[np.intp]:
    """n of the rows, of which so many show vehicles, in the order of the rows."""
    if share is None:
        return rows[:n]
    n_vehicles = round(share * n)
    vehicles, animals = rows[is_vehicle[rows]][:n_vehicles], rows[~is_vehicle[rows]][: n - n_vehicles]
    return rows[np.isin(rows, np.concatenate([vehicles, animals]))]


def flagged(p: NDArray[np.float64]) -> float:
    return float((p <= ALPHA).mean())


def adaptive(p: NDArray[np.float64]) -> float:
    """Share flagged of a stream whose labels come late."""
    level, decided = AdaptiveLevel(ALPHA, gamma=0.02), []
    for i, value in enumerate(p):
        decided.append(bool(level.flags([value])[0]))
        if i >= LATE:
            level.update(decided[i - LATE])
    return float(np.mean(decided))


def summary(values: list[float]) -> dict[str, Any]:
    return {"mean": float(np.mean(values)), "standard_error": float(np.std(values, ddof=1) / np.sqrt(len(values)))}


if __name__ == "__main__":
    main()
