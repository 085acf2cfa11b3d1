"""Junk in a folder of training images: who finds it, and is a linear probe better off without?

    python -m benchmarks.accuracy.curation --data FOLDER [--quick] [--memory FOLDER]

FOLDER holds cifar10, mnist, fashion_mnist and tiny_imagenet, as folders of class folders or as zip files of them. A run
is 3,000 images, 0, 10 or 30 % of them junk: MNIST, Fashion-MNIST, Tiny-ImageNet and uniform noise in equal parts, each
labelled with a random class; the others are CIFAR-10 training images. No two of the five runs share an image. Measured:

- removal: every score as `skjepa.prune` computes it, from the folder itself, junk and all; and learned from 1,000 clean
  images of none of the runs. Who ranks junk last? Once more with junk of one kind, and of the demo's sets among its
  tiles of photographs;
- probe: a logistic regression on the bundled encoder's features, trained on what each score keeps of a run (30, 50 and
  70 %) and tested on CIFAR-10 test images, against as many images kept at random.

Ranges are 95 % t-intervals over the runs. Images already measured are kept in --memory, and a run that was cut off goes
on from there. Writes benchmarks/results/curation.json (or --out) and a picture.
"""

import argparse
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.stats import t
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.accuracy.junk import KINDS, MOST_JUNK, Mix, Pool, Sizes
from benchmarks.common import record
from benchmarks.common.image_sets import folders_of
from skjepa import (
    EmbeddingDetector,
    Extraction,
    JEPAScoreDetector,
    KNNDetector,
    MahalanobisDetector,
    embed,
    extract,
    load_encoder,
    prune,
)
from skjepa.curation.rules import prune_scores
from skjepa.data.sample_images import demo_images
from skjepa.evaluation.metrics import detection_metrics
from skjepa.evaluation.plotting import save_figure

OUT = record.RESULTS / "curation.json"
FULL, QUICK = Sizes(run=3000, reference=1000, test=4000, runs=5), Sizes(run=400, reference=100, test=400, runs=2)
SHARES = (0.0, 0.1, MOST_JUNK)
KEPT = (0.3, 0.5, 0.7)
ROUNDS = 2
JOINT, JEPA, SECOND, GAUSSIAN = "joint", "JEPA-SCORE", "joint, second round", "joint, gaussian"
TRIMMED = "joint, a tenth trimmed"
CLEAN, REVERSED, RANDOM, ORACLE = "joint, clean reference", "JEPA-SCORE, reversed", "random", "true labels"
PER_CLASS = ", per class"
PROBED = (JEPA, JOINT, "Mahalanobis", "kNN", "IForest")
BY_CLASS = (JEPA, JOINT, RANDOM)  # the share is kept of every class as well
DRAWN = {
    JEPA: "-s",
    JEPA + PER_CLASS: "-*",
    JOINT: "-o",
    "kNN": "-^",
    "Mahalanobis": "-d",
    RANDOM: "--k",
    ORACLE: ":k",
}
Scores = dict[str, NDArray[np.float64]]


def detectors() -> dict[str, Any]:
    return {
        JEPA: JEPAScoreDetector(formula="jepa"),
        JOINT: JEPAScoreDetector(),
        TRIMMED: JEPAScoreDetector(trim=0.1),
        GAUSSIAN: JEPAScoreDetector(reference="gaussian"),
        "Mahalanobis": MahalanobisDetector(),
        "Mahalanobis++": MahalanobisDetector(normalize=True),
        "kNN": KNNDetector(),
        "kNN, normalised": KNNDetector(normalize=True),
        "IForest": EmbeddingDetector(IsolationForest(random_state=0)),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--memory", type=Path, help="keep finished images here, and resume")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--quick", action="store_true", help="few images: three minutes on a free core")
    options.add_argument("--out", type=Path, default=OUT)
    chosen = options.parse_args()
    sizes = QUICK if chosen.quick else FULL
    with folders_of(chosen.data) as folder, tempfile.TemporaryDirectory() as scratch:
        pool = Pool(folder, sizes, chosen.seed)
        encoder, memory = load_encoder("bundled"), chosen.memory or Path(scratch)
        passes = extract(encoder, pool.images, memory=memory, progress=True)
        photographs = among_photographs(demo_images(chosen.seed), encoder, memory)
        layer = load_encoder("bundled", output=features_of)
        features, test = (embed(layer, images, progress=True) for images in (pool.images, pool.test))
    results = judged(pool, passes, features, test, photographs)
    record.write(
        chosen.out,
        results,
        seed=chosen.seed,
        quick=chosen.quick,
        sizes=vars(sizes),
        fingerprint=encoder.fingerprint,
    )
    images = record.IMAGES if chosen.out == OUT else chosen.out.parent
    print(f"wrote {save_figure(probe_figure(results['probe']), images / 'curation.png')}")


def features_of(module: Any, x: Any) -> Any:
    """A layer before the scored output, on which the model card's probe is measured too: (B, 448)."""
    return module.features(x)


def judged(
    pool: Pool, passes: Extraction, features: NDArray, test: NDArray, photographs: dict[str, Any]
) -> dict[str, Any]:
    """Everything that is measured, over all runs."""
    removal: dict[str, list] = {f"{share:g}": [] for share in SHARES if share}
    clean: dict[str, list] = {f"{share:g}": [] for share in SHARES if share}
    probe: dict[str, list] = {f"{share:g}": [] for share in SHARES}
    alone: dict[str, list] = {kind: [] for kind in KINDS}
    for run in range(pool.sizes.runs):
        for share in SHARES:
            mix = pool.mix(run, share)
            measured = passes[mix.places]
            scores, learned_clean = own_scores(measured), reference_scores(measured, passes[pool.reference])
            if share:
                removal[f"{share:g}"].append(removed(scores, mix))
                clean[f"{share:g}"].append(removed(learned_clean, mix))
            rng = np.random.default_rng([pool.seed, run])
            rivals = {name: scores[name] for name in PROBED}
            rivals |= {CLEAN: learned_clean[JOINT], REVERSED: -scores[JEPA], RANDOM: rng.random(len(mix.places))}
            if share:
                rivals[ORACLE] = rng.random(len(mix.places)) - mix.is_junk
            probe[f"{share:g}"].append(probed(rivals, measured.ids, mix, features, (test, pool.test_labels)))
            print(f"run {run + 1} of {pool.sizes.runs}, {share:.0%} junk: done", flush=True)
        for kind in KINDS:
            mix = pool.one_kind(run, kind)
            alone[kind].append(aurocs(own_scores(passes[mix.places]), mix.is_junk))
    return {
        "n_junk_kinds": len(KINDS),
        "removal": {share: summary(runs) for share, runs in removal.items()},
        "removal_with_clean_reference": {share: summary(runs) for share, runs in clean.items()},
        "one_kind": {kind: summary(runs) for kind, runs in alone.items()},
        "photographs": photographs,
        "probe": {share: summary(runs) for share, runs in probe.items()},
    }


def among_photographs(images: dict[str, NDArray], encoder: Any, memory: Path) -> dict[str, dict[str, float]]:
    """Set -> score -> AUROC, of the demo's scans, terrain and digits among its tiles of photographs."""
    passes = {name: extract(encoder, part, memory=memory) for name, part in images.items()}
    normal = Extraction.concat([passes.pop("fit"), passes.pop("photographs")])
    found = {}
    for name, junk in passes.items():
        junk = junk[: len(normal) // 5]
        is_junk = np.repeat([False, True], [len(normal), len(junk)])
        found[name] = aurocs(own_scores(Extraction.concat([normal, junk])), is_junk)
    return found


def aurocs(scores: Scores, is_junk: NDArray[np.bool_]) -> dict[str, float]:
    return {name: detection_metrics(score[~is_junk], score[is_junk])["auroc"] for name, score in scores.items()}


def own_scores(measured: Extraction) -> Scores:
    """As `skjepa prune FOLDER` has them: by models of the folder's other parts."""
    scores = {name: prune(measured, keep=KEPT[-1], detector=made).scores for name, made in detectors().items()}
    return scores | {SECOND: prune(measured, keep=KEPT[-1], detector=detectors()[JOINT], rounds=ROUNDS).scores}


def reference_scores(measured: Extraction, reference: Extraction) -> Scores:
    return {name: made.fit(reference).score_samples(measured) for name, made in detectors().items()}


def removed(scores: Scores, mix: Mix) -> dict[str, Any]:
    """Score -> how well it ranks junk last. Of as many images as there is junk, precision is recall."""
    n_junk = int(mix.is_junk.sum())
    kinds = np.repeat(np.arange(len(KINDS)), n_junk // len(KINDS))
    found = {}
    for name, score in scores.items():
        metrics = detection_metrics(score[~mix.is_junk], score[mix.is_junk])
        order = np.argsort(score, kind="stable")
        dropped = {share: np.isin(np.arange(len(score)), order[: round((1 - share) * len(score))]) for share in KEPT}
        first = np.isin(np.arange(len(score)), order[:n_junk])
        found[name] = {
            "auroc": metrics["auroc"],
            "aupr": metrics["aupr_out"],
            "precision": float(mix.is_junk[first].mean()),
            "recall_by_kind": {kind: float(first[mix.is_junk][kinds == i].mean()) for i, kind in enumerate(KINDS)},
            "by_share_kept": {
                f"{share:g}": {
                    "precision": float(mix.is_junk[drop].mean()),
                    "recall": float(drop[mix.is_junk].mean()),
                }
                for share, drop in dropped.items()
            },
        }
    return found


def probed(
    scores: Scores, ids: NDArray, mix: Mix, features: NDArray, test: tuple[NDArray, NDArray]
) -> dict[str, dict[str, Any]]:
    """Share kept -> score -> accuracy of the probe, its gain over random, and the share of the class that lost most.

    Shares of every class are compared with as many of every class at random.
    """
    found: dict[str, dict[str, Any]] = {"1": {"all": {"accuracy": accuracy(slice(None), mix, features, test)}}}
    choices = {name: (score, False) for name, score in scores.items()}
    choices |= {name + PER_CLASS: (scores[name], True) for name in BY_CLASS}
    for share in KEPT:
        rows = found[f"{share:g}"] = {}
        for name, (score, per_class) in choices.items():
            kept = prune_scores(ids, score, keep=share, classes=mix.labels, per_class=per_class).kept
            of_class = [kept[(mix.labels == c) & ~mix.is_junk].mean() for c in np.unique(mix.labels)]
            rows[name] = {"accuracy": accuracy(kept, mix, features, test), "rarest_class_kept": float(min(of_class))}
        for name, (_, per_class) in choices.items():
            as_many = rows[RANDOM + PER_CLASS if per_class else RANDOM]["accuracy"]
            rows[name]["over_random"] = rows[name]["accuracy"] - as_many
    return found


def accuracy(kept: Any, mix: Mix, features: NDArray, test: tuple[NDArray, NDArray]) -> float:
    """Of the model card's probe, trained on what was kept."""
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=300))
    return float(probe.fit(features[mix.places[kept]], mix.labels[kept]).score(*test))


def summary(runs: Sequence[Any]) -> Any:
    """Like a run's figures, each with its mean over the runs and the ends of its 95 % interval."""
    if isinstance(runs[0], dict):
        return {key: summary([run[key] for run in runs]) for key in runs[0]}
    values = np.asarray(runs, dtype=np.float64)
    reach = t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return {"mean": float(values.mean()), "low": float(values.mean() - reach), "high": float(values.mean() + reach)}


def probe_figure(probe: dict[str, Any]) -> Figure:
    """Accuracy over the share kept, one panel for each share of junk."""
    figure = Figure(figsize=(10.5, 3.6), layout="constrained")
    panels: Iterable = figure.subplots(1, len(probe), sharey=True)
    for axes, (share, found) in zip(panels, probe.items(), strict=True):
        whole = found["1"]["all"]["accuracy"]["mean"]
        for name, style in DRAWN.items():
            if name in found[f"{KEPT[0]:g}"]:
                rows = [found[f"{kept:g}"][name]["accuracy"] for kept in KEPT]
                reach = [row["high"] - row["mean"] for row in rows]
                axes.errorbar(KEPT, [row["mean"] for row in rows], reach, fmt=style, capsize=2, label=name, ms=4)
        axes.axhline(whole, color="0.7", lw=1, label="all images")
        axes.set(title=f"{float(share):.0%} junk", xlabel="share kept", xticks=KEPT)
    figure.axes[0].set_ylabel("accuracy of the linear probe")
    figure.axes[-1].legend(fontsize=7, frameon=False)
    return figure


if __name__ == "__main__":
    main()
