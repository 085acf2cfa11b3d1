"""Do activations help to predict the log-volume from m directions? On normal images, and far from them.

    python -m benchmarks.accuracy.activations --data FOLDER [--encoder NAME] [--cache FOLDER] [--quick]

FOLDER is that of benchmarks.accuracy.images; the sets are its eight foreign ones and its five blind corruptions. From m
random directions, embedding z and singular values of U^T J of at most `N_EXACT` fit images that were measured exactly,
the exact log-volume is predicted by ridge regression

- of what the sketch lacks on z and the log singular values: the correction of skjepa.learn_directions ("sketch");
- of the same on these and on the hidden layers that the forward pass reads, means and logarithms of deviations, so
  scaled that both groups have the same variance ("layers added");
- of what the first leaves out of fold on the layers alone, added to it ("control variate", the correction where there
  are layers);
- by the mean of the first and the second ("half");
- on z and the layers, without directions ("layers alone").

Judged are other normal images and the foreign sets: error in nats, rank correlation with the exact log-volume, and by
how much the AUROC of JEPA-SCORE and of the default score moves. The error out of fold is of the fit images; that of the
second stage is nested. Every image is measured exactly once, see grams.py; with --cache a run that was cut off goes on.
Writes benchmarks/results/activations[_NAME].json (or --out).
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.base import BaseEstimator
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import VotingRegressor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.accuracy.fewer_passes import spread
from benchmarks.accuracy.images import Sets, Sizes
from benchmarks.common import record
from benchmarks.common.grams import Measured, measure
from benchmarks.common.image_sets import folders_of
from skjepa import Extraction, load_encoder
from skjepa.extraction.learned_directions import N_EXACT
from skjepa.jacobian.control_variate import TwoStageRidge, activations, deviation_floors
from skjepa.jacobian.directions import random_directions
from skjepa.jacobian.volume import log_volume
from skjepa.scores.densities import ConditionalDensity, SpectrumDensity
from skjepa.scores.layered import VOLUME_WEIGHT, Tail, fit_score
from skjepa.scores.model import AUTO_FLOOR

M = (4, 8, 16, 32)
FULL, QUICK = Sizes(1000, 400, 800, 300), Sizes(120, 60, 40, 15)
Values = dict[str, NDArray[np.float64]]
"""By name of the set."""


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--encoder", default="bundled", help="a name or a file, as load_encoder takes it")
    options.add_argument("--name", help="of the encoder, in the name of the file that is written")
    options.add_argument("--seed", type=int, default=11)
    options.add_argument("--seeds", type=int, default=3, help="of the directions and the images learned from")
    options.add_argument("--n-exact", type=int, default=N_EXACT)
    options.add_argument("--cache", type=Path, help="keep what is measured here, and resume")
    options.add_argument("--quick", action="store_true", help="few images: a smoke test")
    options.add_argument("--out", type=Path)
    chosen = options.parse_args()
    encoder, sizes = load_encoder(chosen.encoder), QUICK if chosen.quick else FULL
    with folders_of(chosen.data) as folder:
        sets = Sets(folder, sizes, chosen.seed, None)
    measured = measure(encoder, {**sets.normal, **sets.outliers, **sets.blind}, chosen.cache)
    rows = list(judge(measured, chosen.seeds, chosen.n_exact))
    results = {"n_components": measured["fit"].grams.shape[1], "curve": summarise(rows)}
    suffix = f"_{chosen.name}" if chosen.name else ""
    out = chosen.out or record.RESULTS / f"activations{suffix}.json"
    settings = {"encoder": chosen.name or chosen.encoder, "seeds": chosen.seeds, "n_exact": chosen.n_exact}
    settings |= {"sizes": vars(sizes), "quick": chosen.quick}
    record.write(out, results, seed=chosen.seed, fingerprint=encoder.fingerprint, **settings)
    show(results)


def judge(measured: dict[str, Measured], seeds: int, n_exact: int) -> Iterator[dict]:
    """One row for each m, seed, way and set."""
    fit = measured["fit"].exact
    floor = AUTO_FLOOR * float(np.median(fit.spectra[..., 0]))
    exact = {name: log_volume(part.exact.spectra, floor=floor)[:, 0] for name, part in measured.items()}
    floors = deviation_floors(fit.layers)
    layers = {name: activations(part.exact.layers, floors, len(part.exact)) for name, part in measured.items()}
    forward = scored({name: part.exact.forward_only() for name, part in measured.items()})
    logs = {name: np.log(np.maximum(part.exact.spectra[:, 0], floor)) for name, part in measured.items()}
    joint = default(forward, measured, exact, logs)
    for seed in range(seeds):
        n = min(n_exact, int(0.8 * len(fit)))
        rows = np.sort(np.random.default_rng(seed).choice(len(fit), n, replace=False))
        for m in M:
            U = random_directions(measured["fit"].grams.shape[1], m, seed=seed).components
            sigma = {name: part.seen_by(U, "").spectra[:, 0] for name, part in measured.items()}
            logs = {name: np.log(np.maximum(values, floor)) for name, values in sigma.items()}
            table = {
                name: np.hstack([part.exact.embeddings, logs[name], layers[name]]) for name, part in measured.items()
            }
            n_sketch = table["fit"].shape[1] - layers["fit"].shape[1]
            for way, (model, raw) in models(n_sketch, logs, fit.embeddings.shape[1]).items():
                lacking = exact["fit"][rows] - raw["fit"][rows]
                unseen = cross_val_predict(model, table["fit"][rows], lacking, cv=folds())
                error = float(np.sqrt(np.mean((lacking - unseen) ** 2)))
                model.fit(table["fit"][rows], lacking)
                found = {name: raw[name] + model.predict(part) for name, part in table.items()}
                ours = default(forward, measured, found, logs)
                for row in compare(exact, found, joint, ours):
                    yield {"m": m, "seed": seed, "way": way, "out_of_fold": error, **row}


def folds() -> KFold:
    return KFold(5, shuffle=True, random_state=0)


def ridge() -> Any:
    return make_pipeline(StandardScaler(), RidgeCV(alphas=np.logspace(-2, 6, 17)))


def models(n_sketch: int, logs: Values, n_components: int) -> dict[str, tuple[Any, Values]]:
    """Regressions of what is lacking, and from what, by name; columns are z, log singular values and layers."""
    raw = {name: values.sum(axis=1) for name, values in logs.items()}
    nothing = {name: np.zeros(len(values)) for name, values in logs.items()}
    sketch = make_pipeline(ColumnTransformer([("sketch", "passthrough", slice(0, n_sketch))]), ridge())
    added = make_pipeline(Balanced(n_sketch), RidgeCV(alphas=np.logspace(-2, 6, 17)))
    alone = [("z", "passthrough", slice(0, n_components)), ("layers", "passthrough", slice(n_sketch, None))]
    return {
        "sketch": (sketch, raw),
        "layers added": (added, raw),
        "control variate": (TwoStageRidge(n_sketch), raw),
        "half": (VotingRegressor([("sketch", sketch), ("added", added)]), raw),
        "layers alone": (make_pipeline(ColumnTransformer(alone), ridge()), nothing),
    }


class Balanced(BaseEstimator):
    """Standardised columns, the later ones scaled to the variance that the first have together."""

    def __init__(self, n_first: int) -> None:
        self.n_first = n_first

    def fit(self, X: NDArray[np.float64], y: object = None) -> "Balanced":
        self.scaler_ = StandardScaler().fit(X)
        return self

    def transform(self, X: NDArray[np.float64]) -> NDArray[np.float64]:
        rows = self.scaler_.transform(X)
        rows[:, self.n_first :] *= np.sqrt(self.n_first / (X.shape[1] - self.n_first))
        return rows


def scored(passed: dict[str, Extraction]) -> Values:
    model = fit_score(passed["fit"], formula="joint", reference="knn", floor="auto", rank=None)
    return {name: model.score_samples(part) for name, part in passed.items()}


def default(forward: Values, measured: dict[str, Measured], volumes: Values, logs: Values) -> Values:
    """The default score: that of the forward pass with the two terms of the Jacobian."""
    z = {name: part.exact.embeddings for name, part in measured.items()}
    volume = ConditionalDensity().fit(z["fit"], volumes["fit"])
    spectrum = SpectrumDensity().fit(z["fit"], logs["fit"])
    tails = [Tail.learn(-density.fit_scores_) for density in (volume, spectrum)]
    found = {}
    for name, rows in z.items():
        odd = tails[0].surprise(-volume.score_samples(rows, volumes[name]))
        odd += tails[1].surprise(-spectrum.score_samples(rows, logs[name]))
        found[name] = forward[name] - VOLUME_WEIGHT * odd / 2
    return found


def compare(exact: Values, ours: Values, exact_joint: Values, our_joint: Values) -> Iterator[dict]:
    for name in exact:
        if name in ("fit", "calibration"):
            continue
        row = {
            "set": name,
            "error": float(np.sqrt(np.mean((ours[name] - exact[name]) ** 2))),
            "spearman": float(spearmanr(ours[name], exact[name]).statistic),
        }
        if name != "test":
            for score, (theirs, mine) in {"jepa": (exact, ours), "joint": (exact_joint, our_joint)}.items():
                row[f"{score} change"] = auroc(mine, name) - auroc(theirs, name)
        yield row


def auroc(scores: Values, name: str) -> float:
    labels = np.repeat([1, 0], [len(scores["test"]), len(scores[name])])
    return float(roc_auc_score(labels, np.concatenate([scores["test"], scores[name]])))


def summarise(rows: list[dict]) -> list[dict]:
    """For every m and way: each set's mean over seeds with its range; mean and worst of the foreign sets."""
    curve = []
    for m, way in dict.fromkeys((row["m"], row["way"]) for row in rows):
        these = [row for row in rows if (row["m"], row["way"]) == (m, way)]
        sets = {}
        for name in dict.fromkeys(row["set"] for row in these):
            of_set = [row for row in these if row["set"] == name]
            keys = [key for key in ("error", "spearman", "jepa change", "joint change") if key in of_set[0]]
            sets[name] = {key: spread([row[key] for row in of_set]) for key in keys}
        normal = {key: value["mean"] for key, value in sets.pop("test").items()}
        foreign = list(sets.values())
        summary = {"m": m, "way": way, "out_of_fold": spread([row["out_of_fold"] for row in these]), "normal": normal}
        for key, worst in (("error", max), ("spearman", min)):
            values = [found[key]["mean"] for found in foreign]
            summary[key] = {"mean": round(float(np.mean(values)), 6), "worst": worst(values)}
        for key in ("jepa change", "joint change"):
            values = [abs(found[key]["mean"]) for found in foreign]
            summary[key] = {"mean": round(float(np.mean(values)), 6), "worst": max(values)}
        curve.append(summary | {"sets": sets})
    return curve


def show(results: dict) -> None:
    print(
        " m way              out of fold   normal: nats, rank   foreign: nats (worst), rank (worst)   AUROC jepa, joint"
    )
    for row in results["curve"]:
        told = "".join(
            f"   {row[key]['mean']:.4f} ({row[key]['worst']:.4f})"
            for key in ("error", "spearman", "jepa change", "joint change")
        )
        normal = row["normal"]
        mean = row["out_of_fold"]["mean"]
        print(f"{row['m']:2} {row['way']:16}{mean:8.3f}   {normal['error']:.3f} {normal['spearman']:.4f}{told}")


if __name__ == "__main__":
    main()
