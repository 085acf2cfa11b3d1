"""What the folds of `benchmarks.accuracy.tiles` say together: means, intervals from drawing tiles again, counts."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom
from sklearn.metrics import roc_auc_score

from benchmarks.common.defect_sets import GOOD

FOLDS, SEED = 5, 0
ALPHA = 0.05
SIZES = (20, 50, 100, 400)
DRAWS = 200
LEAST = {"image_auroc": ("image AUROC", 0.86), "pixel_auroc": ("pixel AUROC", 0.80), "pro": ("PRO", 0.73)}
"""Of the issue, with EfficientNet-Lite0 at 224."""


def summary(memory: Path) -> dict[str, Any]:
    """All that is finished, by side and part."""
    found: dict[str, Any] = {}
    for path in sorted(memory.glob("*-*-0.pickle")):
        part, side, _ = path.stem.split("-")
        folds = [memory / f"{part}-{side}-{i}.pickle" for i in range(FOLDS)]
        done = [pickle.loads(fold.read_bytes()) for fold in folds if fold.exists()]
        tell = {"calibrated": of_flags, "growth": of_growth, "cost": of_cost}.get(part, of_maps)
        found.setdefault(side, {})[part] = {"folds": len(done), **tell(done)}
        if tell is of_maps and len(done) < FOLDS:
            same = [memory / f"ours-{side}-{i}.pickle" for i in range(FOLDS) if folds[i].exists()]
            if all(fold.exists() for fold in same):
                found[side][part]["ours_on_these_folds"] = of_maps([pickle.loads(fold.read_bytes()) for fold in same])
    for parts in found.values():
        parts["targets"] = targets(parts)
    return found


def targets(parts: dict[str, Any]) -> list[dict[str, Any]]:
    """What was aimed at, what came, and whether it was met; of the parts that are measured."""
    found: list[dict[str, Any]] = []

    def add(what: str, aim: str, value: float, is_met: bool) -> None:
        found.append({"what": what, "aim": aim, "value": value, "met": bool(is_met)})

    ours = parts.get("ours")
    if ours is not None:
        for name, (called, least) in LEAST.items():
            value = ours[name]["value"]
            add(called, f"at least {least:.2f}", value, value >= least)
        for part, called in (("local", "the local model"), ("whole", "the whole saved detector")):
            size = ours["cost"]["megabytes"][part]
            add(f"MB of {called}", "below 10", size, size < 10)
    for rival, called in (("padim", "PaDiM"), ("patchcore", "PatchCore")):
        if ours is not None and rival in parts:
            mine = parts[rival].get("ours_on_these_folds", ours)
            for name in ("image_auroc", "pro"):
                lead = mine[name]["value"] - parts[rival][name]["value"]
                add(f"lead over {called}, {LEAST[name][0]}, folds: {parts[rival]['folds']}", "above 0", lead, lead > 0)
    if "calibrated" in parts:
        value, (low, high) = parts["calibrated"]["flagged"]["by tile"], parts["calibrated"]["binomial"]
        add(
            f"good tiles flagged at 5 %, folds: {parts['calibrated']['folds']}",
            f"{low:.3f} to {high:.3f}",
            value,
            low <= value <= high,
        )
    for name, value in parts.get("cost", {}).get("added", {}).items():
        add(f"time of {name}, share of the embedding's", "below 0.10", value, value < 0.1)
    return found


def of_maps(folds: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over folds, with 95 % intervals from drawing tiles again, image AUROC by kind, and what spots tell."""
    measures: dict[str, Callable[[dict, NDArray], float]] = {
        "image_auroc": lambda fold, times: roc_auc_score(fold["kinds"] != GOOD, fold["odd"], sample_weight=times),
        "pixel_auroc": lambda fold, times: fold["counts"].auroc(times),
        "pro": lambda fold, times: fold["counts"].pro(times),
    }
    found: dict[str, Any] = {}
    for name, measure in measures.items():
        value = np.mean([measure(fold, np.ones(len(fold["odd"]))) for fold in folds])
        rng = np.random.default_rng(SEED)
        draws = [np.mean([measure(fold, drawn_again(fold, rng)) for fold in folds]) for _ in range(DRAWS)]
        low, high = np.quantile(draws, [0.025, 0.975])
        found[name] = {"value": float(value), "low": float(low), "high": float(high)}
    kinds = sorted(set(np.concatenate([fold["kinds"] for fold in folds])) - {GOOD})
    found["image_auroc_by_kind"] = {kind: _of_kind(folds, kind) for kind in kinds}
    found["cost"] = {name: _mean([fold["cost"][name] for fold in folds]) for name in folds[0]["cost"]}
    if "terms" in folds[0]:
        names = folds[0]["terms"]
        found["image_auroc_by_term"] = {
            name: float(np.mean([roc_auc_score(fold["kinds"] != GOOD, fold["terms"][name]) for fold in folds]))
            for name in names
        }
    return found | of_spots(folds)


def _mean(values: list[Any]) -> Any:
    if isinstance(values[0], dict):
        return {name: _mean([value[name] for value in values]) for name in values[0]}
    return float(np.mean(values))


def drawn_again(fold: dict[str, Any], rng: np.random.Generator) -> NDArray[np.float64]:
    """How often each picture counts where tiles are drawn with replacement, until there are good and odd ones."""
    tiles, own = np.unique(fold["groups"], return_inverse=True)
    while True:
        times = np.bincount(rng.integers(len(tiles), size=len(tiles)), minlength=len(tiles))[own].astype(float)
        is_good = fold["kinds"] == GOOD
        if times[is_good].any() and times[~is_good].any():
            return times


def _of_kind(folds: list[dict[str, Any]], kind: str) -> float:
    found = []
    for fold in folds:
        chosen = np.isin(fold["kinds"], (GOOD, kind))
        is_odd = fold["kinds"][chosen] == kind
        if is_odd.any():
            found.append(roc_auc_score(is_odd, fold["odd"][chosen]))
    return float(np.mean(found))


def of_spots(folds: list[dict[str, Any]]) -> dict[str, Any]:
    """Share of good pictures with a spot, of defect ones, and of the hottest spots of these on or next to the mask."""
    if not any("spots" in fold and fold["spots"].any() for fold in folds):
        return {}
    has, hits = np.concatenate([fold["spots"] for fold in folds]).T
    is_good = np.concatenate([fold["kinds"] for fold in folds]) == GOOD
    told = {"good": has[is_good].mean(), "defect": has[~is_good].mean(), "hits": hits[has & ~is_good].mean()}
    return {"spots": {name: float(share) for name, share in told.items()}}


def of_flags(folds: list[dict[str, Any]]) -> dict[str, Any]:
    """Counts over all folds, and the bounds between which 95 % of binomial counts at `ALPHA` lie."""
    n = sum(fold["n"] for fold in folds)
    names = [name for name in folds[0] if name != "n"]
    low, high = binom.interval(0.95, n, ALPHA)
    shares = {name: sum(fold[name] for fold in folds) / n for name in names}
    return {"n": n, "flagged": shares, "binomial": [float(low / n), float(high / n)]}


def of_cost(folds: list[dict[str, float]]) -> dict[str, Any]:
    """Milliseconds per picture, and as shares of the embedding's time."""
    (seconds,) = folds
    whole = seconds["embedding"]
    local, default = (seconds[f"pass of the {name}"] + seconds[name] for name in ("local score", "default score"))
    maps = seconds["local score and maps, judge_and_map"] - local
    shares = seconds["maps of shares of the default score"] - seconds["pass of the default score"]
    added = {"local score": local - default, "map with the local score": maps, "map of shares": shares}
    return {
        "added": {f"the {name}": more / whole for name, more in added.items()},
        "milliseconds": {name: 1000 * value for name, value in seconds.items()},
        "of_embedding": {name: value / whole for name, value in seconds.items()},
    }


def of_growth(folds: list[dict[str, Any]]) -> dict[str, Any]:
    return {"by_n": {str(n): _mean([fold[n] for fold in folds]) for n in SIZES}}
