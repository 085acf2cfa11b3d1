"""What fewer passes cost: log-volume and default score of m directions against all K, on the sets of foreign_sets.py.

    python -m benchmarks.accuracy.fewer_passes --data FOLDER [--encoder NAME] [--cache FOLDER] [--quick]
    python -m benchmarks.accuracy.fewer_passes --data FOLDER --encoder vit-tiny --n-fit 160 --n-test 40
    python -m benchmarks.accuracy.fewer_passes --data FOLDER --encoder lite0 --weights FILE \
        --n-fit 80 --n-test 25 --cache FOLDER

FOLDER as for foreign_sets.py, and the same two suites (of the encoders of small_encoders.py the first one only).
Directions and correction are learned from at most 300 of the fit samples (four fifths, where there are fewer), drawn by
several seeds; detectors are fitted on all fit samples and judged on the others, which neither has seen. Every sample is
measured exactly once, see grams.py; with --cache a run that was cut off goes on. Seconds come from `extract` itself.

Writes benchmarks/results/fewer_passes[_ENCODER].json and docs/images/fewer-passes[-ENCODER].png (or beside --out).
"""

import argparse
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from benchmarks.accuracy.foreign_sets import CONTROL, NORMAL_FIT, NORMAL_TEST, read_sets
from benchmarks.common import record
from benchmarks.common.grams import Measured, measure
from benchmarks.common.small_encoders import OTHERS, encoder_named
from skjepa import Directions, Encoder, Extraction, extract
from skjepa.data.sample_images import demo_images
from skjepa.extraction.learned_directions import N_EXACT, learned_directions
from skjepa.jacobian.directions import exact_samples_needed, principal_directions, random_directions
from skjepa.jacobian.pass_method import PassMethod
from skjepa.scores.model import fit_score_model

NAME = "fewer_passes"
SHARES = (16, 8, 6, 4, 2)
KINDS = ("learned, corrected", "random, corrected", "principal, corrected", "random, raw")
UNCORRECTED = ("random, raw",)
SCORES = {"volume": "jepa", "joint": "joint"}
BAR = {"passes": 8, "spearman": 0.95, "auroc": 0.02}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--encoder", default="bundled", help="a name of skjepa, or vit-tiny or lite0")
    options.add_argument("--weights", type=Path, help="of lite0")
    options.add_argument("--image-size", type=int, help="of vit-tiny and lite0")
    options.add_argument("--n-fit", type=int, default=1000)
    options.add_argument("--n-test", type=int, default=400)
    options.add_argument("--seeds", type=int, default=5)
    options.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=KINDS, help="learned ones take minutes for large K"
    )
    options.add_argument("--cache", type=Path, help="keep what is measured here, and resume: 8 K^2 bytes an image")
    options.add_argument("--quick", action="store_true", help="few images, two seeds: a smoke test")
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    if chosen.quick:
        chosen.n_fit, chosen.n_test, chosen.seeds = 150, 40, 2
    encoder = encoder_named(chosen.encoder, chosen.weights, chosen.image_size)
    with tempfile.TemporaryDirectory() as folder:
        cifar = read_sets(chosen.data, Path(folder), chosen.n_fit, chosen.n_test, 0)
    cifar = {name: images for name, images in cifar.items() if not name.endswith(CONTROL)}
    suites = [(measure(encoder, cifar, chosen.cache), NORMAL_FIT, NORMAL_TEST)]
    if chosen.encoder not in OTHERS:
        tiles = {name: images[: 150 if chosen.quick else None] for name, images in demo_images(0).items()}
        suites.append((measure(encoder, tiles, chosen.cache), "fit", "photographs"))
    rows = [row for suite in suites for row in judge(*suite, seeds=chosen.seeds, kinds=chosen.kinds)]
    n_components = suites[0][0][NORMAL_FIT].grams.shape[1]
    curve = summarise(rows, n_components)
    results = {
        "n_components": n_components,
        "curve": curve,
        "bar": {**BAR, "met": meets_bar(curve, n_components), "fewest_passes": fewest_passes(curve)},
        "seconds_per_image": seconds(encoder, cifar[NORMAL_FIT], n_components, repeats=1 if chosen.quick else 3),
    }
    settings = {name: getattr(chosen, name) for name in ("encoder", "n_fit", "n_test", "seeds", "kinds", "quick")}
    settings |= {"n_exact": N_EXACT, "input_shape": list(encoder.input_shape or ())}
    suffix = f"_{chosen.encoder}" if chosen.encoder in OTHERS else ""
    out = chosen.out or record.RESULTS / f"{NAME}{suffix}.json"
    record.write(out, results, seed=0, fingerprint=encoder.fingerprint, **settings)
    folder = out.parent if chosen.out else record.IMAGES
    draw(results, folder / f"{NAME}{suffix}.png".replace("_", "-"))
    show(results)


def directions_of(kind: str, learned_from: Measured, m: int, seed: int) -> Directions:
    """What `learn_directions` returns, from Gram matrices."""
    exact, n_components = learned_from.exact, learned_from.grams.shape[1]
    if kind.startswith("learned"):
        components = learned_directions(exact, learned_from.grams, m, seed)
    elif kind.startswith("principal"):
        components = principal_directions(learned_from.grams.mean(axis=0), m)
    else:
        components = random_directions(n_components, m, seed=seed).components
    seen = learned_from.seen_by(components, "").singular_values
    views = {key: exact.meta[key] for key in ("views", "transform")}
    fingerprint = exact.meta["fingerprint"]
    return Directions(components, fingerprint, exact.embeddings, exact.singular_values, seen, views)


def judge(
    suite: dict[str, Measured], fit: str, normal: str, *, seeds: int, kinds: Sequence[str] = KINDS
) -> Iterator[dict]:
    """One row for every kind, number of directions, seed, score and set."""
    tests = {name: measured for name, measured in suite.items() if name != fit}
    exact = {score: scored(suite[fit].exact, tests, score, lambda part: part.exact) for score in SCORES}
    n_components = suite[fit].grams.shape[1]
    for seed in range(seeds):
        n = min(N_EXACT, int(0.8 * len(suite[fit].exact)))
        drawn = suite[fit][np.sort(np.random.default_rng(seed).choice(len(suite[fit].exact), n, replace=False))]
        for m in (max(1, n_components // share) for share in SHARES):
            enough = n >= exact_samples_needed(m)
            for kind in [kind for kind in kinds if enough or kind in UNCORRECTED]:
                directions = directions_of(kind, drawn, m, seed)
                corrected = directions if "corrected" in kind else None
                method = directions.method if corrected else str(PassMethod("sketch", m))

                def seen(part: Measured, components=directions.components, method=method) -> Extraction:
                    return part.seen_by(components, method)

                for score in SCORES:
                    ours = scored(seen(suite[fit]), tests, score, seen, corrected)
                    yield from compare(exact[score], ours, normal, kind=kind, m=m, seed=seed, score=score)


def scored(fit: Extraction, tests: dict[str, Measured], score: str, seen, directions=None) -> dict[str, NDArray]:
    settings = {"formula": SCORES[score], "reference": "knn", "floor": "auto", "rank": None}
    model = fit_score_model(fit, directions=directions, **settings)
    return {name: model.score_samples(seen(part)) for name, part in tests.items()}


def compare(exact: dict[str, NDArray], ours: dict[str, NDArray], normal: str, **row) -> Iterator[dict]:
    for name in exact:
        error = float(np.sqrt(np.mean((ours[name] - exact[name]) ** 2)))
        found = {"set": name, "spearman": float(spearmanr(ours[name], exact[name]).statistic), "error": error}
        if name != normal:
            found["auroc"] = auroc(exact[normal], exact[name])
            found["change"] = auroc(ours[normal], ours[name]) - found["auroc"]
            both = [np.concatenate([scores[normal], scores[name]]) for scores in (ours, exact)]
            found["spearman_with_normal"] = float(spearmanr(*both).statistic)
        yield {**row, **found}


def auroc(normal: NDArray, foreign: NDArray) -> float:
    labels = np.repeat([1, 0], [len(normal), len(foreign)])
    return float(roc_auc_score(labels, np.concatenate([normal, foreign])))


def summarise(rows: list[dict], n_components: int) -> list[dict]:
    """For every score, kind and m: each set's mean over seeds with its range, and the worst set."""
    curve = []
    for score, kind, m in dict.fromkeys((row["score"], row["kind"], row["m"]) for row in rows):
        these = [row for row in rows if (row["score"], row["kind"], row["m"]) == (score, kind, m)]
        sets = {}
        for name in dict.fromkeys(row["set"] for row in these):
            of_set = [row for row in these if row["set"] == name]
            keys = [key for key in ("spearman", "spearman_with_normal", "error", "auroc", "change") if key in of_set[0]]
            sets[name] = {key: spread([row[key] for row in of_set]) for key in keys}
        foreign = [found for found in sets.values() if "change" in found]
        curve.append(
            {
                "score": score,
                "kind": kind,
                "m": m,
                "fewer_passes": n_components / m,
                "lowest_spearman": min(found["spearman"]["mean"] for found in sets.values()),
                "lowest_spearman_normal": min(
                    found["spearman"]["mean"] for found in sets.values() if "change" not in found
                ),
                "lowest_spearman_with_normal": min(found["spearman_with_normal"]["mean"] for found in foreign),
                "largest_change": max(abs(found["change"]["mean"]) for found in foreign),
                "largest_change_of_a_seed": max(max(map(abs, found["change"]["range"])) for found in foreign),
                "sets": sets,
            }
        )
    return curve


def spread(values: list[float]) -> dict:
    """Rounded: six digits are more than the seeds agree on."""
    return {"mean": round(float(np.mean(values)), 6), "range": [round(float(bound(values)), 6) for bound in (min, max)]}


def meets_bar(curve: list[dict], n_components: int) -> dict[str, bool]:
    """Of the default score at K / 8, by kind: every set by itself, in the mean over seeds."""
    m = max(1, n_components // BAR["passes"])
    return {row["kind"]: is_good(row) for row in curve if row["score"] == "joint" and row["m"] == m}


def fewest_passes(curve: list[dict]) -> dict[str, int | None]:
    """The smallest m with which the default score meets the bar for accuracy, by kind; None where no m does."""
    good = [row for row in curve if row["score"] == "joint" and is_good(row)]
    return {kind: min((row["m"] for row in good if row["kind"] == kind), default=None) for kind in KINDS}


def is_good(row: dict) -> bool:
    return bool(row["lowest_spearman"] >= BAR["spearman"] and row["largest_change"] <= BAR["auroc"])


def seconds(encoder: Encoder, images: list, n_components: int, *, repeats: int, n: int = 16) -> dict[str, float]:
    """Of `extract` an image, the fastest of several runs, after one that warms up; by the number of passes."""
    methods: dict[str, dict] = {"exact": {}}
    for share in SHARES:
        m = max(1, n_components // share)
        methods.setdefault(str(m), {"method": random_directions(n_components, m)})
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(repeats + 1):
        for name, chosen in methods.items():
            start = time.perf_counter()
            extract(encoder, images[:n], **chosen)
            times[name].append((time.perf_counter() - start) / n)
    return {name: min(values[1:]) for name, values in times.items()}


def draw(results: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, key, label, bar in (
        (
            axes[0],
            "lowest_spearman_with_normal",
            "Spearman with exact: normal and\none set together, the worst",
            BAR["spearman"],
        ),
        (axes[1], "largest_change", "|change of AUROC|, the worst set", BAR["auroc"]),
    ):
        for kind in dict.fromkeys(row["kind"] for row in results["curve"]):
            rows = [row for row in results["curve"] if row["kind"] == kind and row["score"] == "joint"]
            axis.plot([row["m"] for row in rows], [row[key] for row in rows], marker="o", label=kind)
        axis.axhline(bar, color="grey", linewidth=1, linestyle=":")
        axis.axvline(results["n_components"] / BAR["passes"], color="grey", linewidth=1, linestyle=":")
        axis.set_xscale("log", base=2)
        ticks = sorted({row["m"] for row in results["curve"]})
        axis.set_xticks(ticks, [str(m) for m in ticks])
        axis.set_xlabel(f"passes an image (exact: {results['n_components']})")
        axis.set_ylabel(label)
    axes[0].legend(fontsize=8)
    figure.suptitle("Default score with fewer passes")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def show(results: dict) -> None:
    print("score   kind                    m  Spearman: normal, with normal, alone  |change|   of a seed")
    for row in results["curve"]:
        print(
            f"{row['score']:7} {row['kind']:21} {row['m']:4} {row['lowest_spearman_normal']:17.3f}"
            f"{row['lowest_spearman_with_normal']:13.3f}{row['lowest_spearman']:7.3f}"
            f"{row['largest_change']:11.3f}{row['largest_change_of_a_seed']:10.3f}"
        )
    print("bar:", results["bar"], "\nseconds an image:", results["seconds_per_image"])


if __name__ == "__main__":
    main()
