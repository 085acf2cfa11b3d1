"""A cascade: few backward passes for most images, all K where the decision could still change. Is it worth it?

    python -m benchmarks.accuracy.cascade --data FOLDER [--encoder NAME] [--cache FOLDER] [--quick]

FOLDER is that of benchmarks.accuracy.images; the sets are its eight foreign ones and its five blind corruptions. Stages
are the forward pass, 4 and 16 random directions of one basis of the output, so that no pass is made twice, and all K.
Normal images that the detectors were not fitted on are halved:

- on the one half, scores of each stage are brought to the scale of the exact ones by a straight line, and the bounds of
  what is missing are learned, each exceeded by a given share of normal images (conformal). An image whose score is
  farther than that from the threshold of this half is settled and goes no further;
- the other half passes through the cascade as new images do and calibrates it for 5 % false positives, so that p-values
  stay valid; the detectors of single stages are calibrated on it, too.

Judged are other normal images and the foreign sets: passes per image, and the share of decisions that are those of the
exact detector. For the formulas "jepa" and "density", which have no score without passes, the first stage predicts the
score from the embedding and the hidden layers, by ridge regression; log-volumes of a few directions are corrected, see
skjepa.learn_directions. Both learn from `N_EXACT` of the fit images.

Figures are means over several bases and halves. Every image is measured exactly once, see grams.py; with --cache a run
that was cut off goes on. Writes benchmarks/results/cascade.json (or --out).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.accuracy.images import Sets, Sizes
from benchmarks.common import record
from benchmarks.common.grams import Measured, measure
from benchmarks.common.image_sets import folders_of
from skjepa import Directions, Extraction, load_encoder
from skjepa.detectors.conformal import conformal_offset
from skjepa.extraction.learned_directions import N_EXACT
from skjepa.jacobian.directions import random_directions
from skjepa.scores.layered import fit_score

PARTIAL = (4, 16)
"""Stages between the forward pass and all K."""

FORMULAS = ("joint", "jepa", "density")
SHARES = (0.01, 0.02, 0.05, 0.1)
ALPHA = 0.05
BAR = {"agreement": 0.99, "passes": 20}
FULL, QUICK = Sizes(1000, 400, 800, 300), Sizes(120, 60, 40, 15)
Scores = dict[str, NDArray[np.float64]]
"""By name of the set."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--encoder", default="bundled")
    options.add_argument("--seed", type=int, default=11)
    options.add_argument("--bases", type=int, default=3)
    options.add_argument("--halves", type=int, default=10)
    options.add_argument("--cache", type=Path, help="keep what is measured here, and resume")
    options.add_argument("--quick", action="store_true", help="few images: a smoke test")
    options.add_argument("--out", type=Path, default=record.RESULTS / "cascade.json")
    chosen = options.parse_args()
    encoder, sizes = load_encoder(chosen.encoder), QUICK if chosen.quick else FULL
    with folders_of(chosen.data) as folder:
        sets = Sets(folder, sizes, chosen.seed, None)
    measured = measure(encoder, {**sets.normal, **sets.outliers, **sets.blind}, chosen.cache)
    n_components = measured["fit"].grams.shape[1]
    rows = [row for seed in range(chosen.bases) for row in judge(measured, seed, chosen.halves)]
    curve = summarise(rows)
    results = {"n_components": n_components, "bar": BAR, "curve": curve, "met": meets_bar(curve, n_components)}
    settings = {name: getattr(chosen, name) for name in ("encoder", "bases", "halves", "quick")}
    record.write(chosen.out, results, seed=chosen.seed, fingerprint=encoder.fingerprint, sizes=vars(sizes), **settings)
    show(results)


def judge(measured: dict[str, Measured], seed: int, halves: int) -> Iterator[dict]:
    """One row for each formula, way to score, half and set."""
    exact = {name: part.exact for name, part in measured.items()}
    n, n_components = len(exact["fit"]), measured["fit"].grams.shape[1]
    learned_from = np.sort(np.random.default_rng(seed).choice(n, min(N_EXACT, int(0.8 * n)), replace=False))
    basis = random_directions(n_components, n_components, seed=seed).components
    stages = {m: corrected(basis[:, :m], measured["fit"][learned_from]) for m in PARTIAL}
    for formula in FORMULAS:
        scores = {0: cheapest(exact, formula, learned_from), n_components: scored(exact, formula)}
        for m, directions in stages.items():
            seen = {name: part.seen_by(directions.components, directions.method) for name, part in measured.items()}
            scores[m] = scored(seen, formula, directions)
        for half in range(halves):
            order = np.random.default_rng([seed, half]).permutation(len(exact["calibration"]))
            settling, calibrating = np.array_split(order, 2)
            for way, (values, passes) in ways(scores, settling).items():
                for row in compare(scores[n_components], values, passes, calibrating):
                    yield {"formula": formula, "way": way, **row}


def scored(passed: dict[str, Extraction], formula: str, directions: Directions | None = None) -> Scores:
    settings: dict[str, Any] = {"formula": formula, "reference": "knn", "floor": "auto", "rank": None}
    model = fit_score(passed["fit"], directions=directions, **settings)
    return {name: model.score_samples(part) for name, part in passed.items()}


def corrected(components: NDArray[np.float64], learned_from: Measured) -> Directions:
    """What `learn_directions` would return with these directions and samples."""
    exact, seen = learned_from.exact, learned_from.seen_by(components, "")
    views: Any = {key: exact.meta[key] for key in ("views", "transform")}
    fingerprint = exact.meta["fingerprint"]
    return Directions(components, fingerprint, exact.embeddings, exact.spectra, seen.spectra, views)


def cheapest(exact: dict[str, Extraction], formula: str, chosen: NDArray[np.intp]) -> Scores:
    """Of the forward pass alone: the default's own score; of other formulas what layers and embedding tell of it."""
    if formula == "joint":
        return scored({name: part.forward_only() for name, part in exact.items()}, formula)
    rows = {name: np.hstack([part.embeddings, *part.layers.values()]) for name, part in exact.items()}
    target = scored({"fit": exact["fit"]}, formula)["fit"]
    regression = make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 6, 17)))
    regression.fit(rows["fit"][chosen], target[chosen])
    return {name: regression.predict(part) for name, part in rows.items()}


def ways(scores: dict[int, Scores], settling: NDArray[np.intp]) -> dict[str, tuple[Scores, dict[str, NDArray]]]:
    """Scores and passes of every image, by the name of the way they were come by."""
    found = {}
    *cheap, n_components = sorted(scores)
    for m in (*cheap, n_components):
        found[f"{m} passes"] = scores[m], {name: np.full(len(values), m) for name, values in scores[m].items()}
    for chain in ((*cheap, n_components), (0, n_components), (*cheap[1:], n_components)):
        for share in [share for share in SHARES if share * (len(settling) + 1) >= 1]:
            told = ", ".join(map(str, chain))
            found[f"cascade {told} at {share:g}"] = cascade(scores, chain, settling, share)
    return found


def cascade(
    scores: dict[int, Scores], chain: tuple[int, ...], settling: NDArray[np.intp], share: float
) -> tuple[Scores, dict[str, NDArray]]:
    """Scores on the scale of the exact ones, each of the first stage that settles the image, and passes made."""
    last = scores[chain[-1]]
    exact = last["calibration"][settling]
    threshold = conformal_offset(exact, ALPHA)
    values = {name: np.full(len(scored), np.nan) for name, scored in last.items()}
    passes = {name: np.full(len(scored), chain[-1]) for name, scored in last.items()}
    for m in chain[:-1]:
        cheap = scores[m]["calibration"][settling]
        slope, intercept = np.polyfit(cheap, exact, 1)
        missing = exact - slope * cheap - intercept
        lower, upper = conformal_offset(missing, share), -conformal_offset(-missing, share)
        for name, scored in scores[m].items():
            on_scale = slope * scored + intercept
            settled = np.isnan(values[name]) & ((on_scale + lower > threshold) | (on_scale + upper < threshold))
            values[name][settled], passes[name][settled] = on_scale[settled], m
    return {name: np.where(np.isnan(found), last[name], found) for name, found in values.items()}, passes


def compare(exact: Scores, scores: Scores, passes: dict[str, NDArray], calibrating: NDArray) -> Iterator[dict]:
    """Of the test images and each foreign set: passes, decisions as the exact ones, flagged, and AUROC."""
    is_odd, is_odd_exactly = (
        {name: values < conformal_offset(found["calibration"][calibrating], ALPHA) for name, values in found.items()}
        for found in (scores, exact)
    )
    for name in exact:
        if name in ("fit", "calibration"):
            continue
        row = {
            "set": name,
            "passes": passes[name].mean(),
            "agreement": (is_odd[name] == is_odd_exactly[name]).mean(),
            "flagged": is_odd[name].mean(),
        }
        if name != "test":
            labels = np.repeat([1, 0], [len(scores["test"]), len(scores[name])])
            row["auroc"] = roc_auc_score(labels, np.concatenate([scores["test"], scores[name]]))
        yield row


def summarise(rows: list[dict]) -> list[dict]:
    """For every formula and way: the means of the test images, of each foreign set and of all foreign sets."""
    curve = []
    for formula, way in dict.fromkeys((row["formula"], row["way"]) for row in rows):
        these = [row for row in rows if (row["formula"], row["way"]) == (formula, way)]
        sets = {}
        for name in dict.fromkeys(row["set"] for row in these):
            of_set = [row for row in these if row["set"] == name]
            keys = [key for key in of_set[0] if key not in ("formula", "way", "set")]
            sets[name] = {key: round(float(np.mean([row[key] for row in of_set])), 6) for key in keys}
        normal = sets.pop("test")
        keys = ("passes", "agreement", "flagged", "auroc")
        mean = {key: round(float(np.mean([found[key] for found in sets.values()])), 6) for key in keys}
        worst = {"agreement": min(found["agreement"] for found in sets.values())}
        row = {"formula": formula, "way": way, "normal": normal, "foreign": mean, "worst_foreign": worst, "sets": sets}
        curve.append(row)
    return curve


def meets_bar(curve: list[dict], n_components: int) -> dict[str, list[str]]:
    """Ways that meet the bar on normal images, by formula, and on foreign ones as well."""
    met: dict[str, list[str]] = {}
    for row in curve:
        for kinds in (("normal",), ("normal", "foreign")):
            is_met = all(
                row[kind]["agreement"] >= BAR["agreement"] and row[kind]["passes"] <= n_components / BAR["passes"]
                for kind in kinds
            )
            met.setdefault(f"{row['formula']}, {' and '.join(kinds)}", []).extend([row["way"]] if is_met else [])
    return met


def show(results: dict) -> None:
    print(f"{'':46}normal: passes, agreement, flagged   foreign: passes, agreement (worst), flagged, AUROC")
    for row in results["curve"]:
        normal, foreign = row["normal"], row["foreign"]
        print(
            f"{row['formula']:8} {row['way']:36}"
            f"{normal['passes']:12.2f}{normal['agreement']:9.3f}{normal['flagged']:9.3f}"
            f"{foreign['passes']:18.2f}{foreign['agreement']:9.3f} ({row['worst_foreign']['agreement']:.3f})"
            f"{foreign['flagged']:9.3f}{foreign['auroc']:9.3f}"
        )
    print("bar met:", results["met"])


if __name__ == "__main__":
    main()
