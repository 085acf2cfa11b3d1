"""Does a JEPA trained on a table's own rows find its outliers? Beside PyOD's KNN, LOF, IForest and ECOD at defaults.

    python benchmarks/tables.py --data FOLDER [--seeds 3] [--max-rows 3000] [--quick]

FOLDER holds ADBench's sets as .npz files of X (n, d) and y (1 = outlier). Two protocols:

- semi-supervised: fit on half of the normal rows, judged on the other half and all outliers;
- unsupervised: fit and judged on all rows, as far as a set's share of outliers goes.

Of larger sets a random `--max-rows` are fitted on and a random `--max-rows` judged. Everyone gets the same rows, PyOD's
detectors standardised by the fit rows ("KNN, unscaled" shows what that is worth); skjepa's gets them as they are. The
settings of `VectorJEPA` were chosen on every second set in the order of names, the first among them: the means over
those ("tuned") and over the others ("confirmed") are told apart.

Each (set, seed) is kept beside the results as it is finished, and a run that was cut off goes on from there. Writes
docs/results/tables.json (or --out).
"""

import argparse
import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pyod.models.ecod import ECOD
from pyod.models.iforest import IForest
from pyod.models.knn import KNN
from pyod.models.lof import LOF
from record import RESULTS, write
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler

from skjepa import Encoder, JEPAScoreDetector, VectorJEPA
from skjepa.scores import fit_score_model

PROTOCOLS = ("semi-supervised", "unsupervised")
PYOD: dict[str, Callable] = {
    "KNN": KNN,
    "LOF": LOF,
    "IForest": lambda: IForest(random_state=0),
    "ECOD": ECOD,
}
Rows = NDArray[np.float64]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--max-rows", type=int, default=3000)
    options.add_argument("--quick", action="store_true", help="one seed, 300 rows: minutes")
    options.add_argument("--out", type=Path, default=RESULTS / "tables.json")
    chosen = options.parse_args()
    seeds, max_rows = (1, 300) if chosen.quick else (chosen.seeds, chosen.max_rows)
    names = sorted(path.stem for path in chosen.data.glob("*.npz"))
    runs = kept_runs(chosen.data, names, seeds, max_rows, chosen.out.with_suffix(".runs"))
    results = {"tuned": names[::2], "confirmed": names[1::2], **summary(names, runs)}
    write(chosen.out, results, seed=0, seeds=seeds, max_rows=max_rows, torch_threads=torch.get_num_threads())
    chosen.out.with_suffix(".runs").unlink()


def kept_runs(data: Path, names: list[str], seeds: int, max_rows: int, kept: Path) -> dict[str, dict]:
    """What was measured of each (set, seed), read back or measured now."""
    runs = {}
    if kept.exists():
        runs = {run["key"]: run for run in map(json.loads, kept.read_text().splitlines())}
    for seed in range(seeds):
        for name in names:
            key = f"{name} {seed} {max_rows}"
            if key not in runs:
                runs[key] = {"key": key, "set": name, **measure(data / f"{name}.npz", seed, max_rows)}
                with kept.open("a") as file:
                    file.write(json.dumps(runs[key]) + "\n")
            print(key, {rival: round(value, 3) for rival, value in runs[key]["semi-supervised"].items()}, flush=True)
    return {key: run for key, run in runs.items() if key.endswith(f" {max_rows}") and int(key.split()[1]) < seeds}


def measure(path: Path, seed: int, max_rows: int) -> dict:
    """AUROC of every rival under both protocols, and the seconds that skjepa's fit took."""
    with np.load(path) as arrays:
        X, y = np.asarray(arrays["X"], dtype=np.float64), np.asarray(arrays["y"]).ravel().astype(int)
    measured: dict = {"n_samples": len(X), "n_features": X.shape[1], "outliers": int(y.sum())}
    for protocol in PROTOCOLS:
        fit, test, labels = split(X, y, protocol, seed, max_rows)
        started = time.perf_counter()
        scores = skjepa_scores(fit, test, seed)
        measured[f"{protocol} seconds"] = time.perf_counter() - started
        scores |= pyod_scores(fit, test, same=protocol == "unsupervised")
        measured[protocol] = {rival: float(roc_auc_score(labels, score)) for rival, score in scores.items()}
    return measured


def split(X: Rows, y: NDArray[np.int64], protocol: str, seed: int, max_rows: int) -> tuple[Rows, Rows, NDArray]:
    """Rows to fit on, rows to judge, and which of these are outliers."""
    rng = np.random.default_rng(seed)
    if protocol == "unsupervised":
        chosen = rng.permutation(len(X))[:max_rows]
        return X[chosen], X[chosen], y[chosen]
    normal, outliers = rng.permutation(np.flatnonzero(y == 0)), np.flatnonzero(y == 1)
    half = len(normal) // 2
    test = rng.permutation(np.concatenate([normal[half:], outliers]))[:max_rows]
    return X[normal[:half][:max_rows]], X[test], y[test]


def skjepa_scores(fit: Rows, test: Rows, seed: int) -> dict[str, Rows]:
    """Outlier scores of the default detector, of its other scores, and of the default without a network."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about floors, of sets with fewer directions than features
        scores = {
            name: default_scores(VectorJEPA(n_steps=steps, random_state=seed).fit(fit).encoder_, fit, test)
            for name, steps in (("skjepa", None), ("no network", 0))
        }
    return {
        **{f"skjepa {score}": values for score, values in scores["skjepa"].items()},
        "skjepa joint, no network": scores["no network"]["joint"],
    }


def default_scores(encoder: Encoder, fit: Rows, test: Rows) -> dict[str, Rows]:
    """Outlier scores by name of the score, all from one extraction."""
    detector = JEPAScoreDetector(encoder)
    known, new = detector.extract(fit), detector.extract(test)
    return {
        score: -fit_score_model(known, formula=score, reference="knn", floor="auto", rank=None).score_samples(new)
        for score in ("joint", "density", "jepa")
    }


def pyod_scores(fit: Rows, test: Rows, *, same: bool) -> dict[str, Rows]:
    """Outlier scores of PyOD's detectors; of the rows fitted on, the ones that leave each row out of its neighbours."""
    scaler = StandardScaler().fit(fit)
    inputs = {name: (make, scaler.transform(fit), scaler.transform(test)) for name, make in PYOD.items()}
    inputs["KNN, unscaled"] = (KNN, fit, test)
    scores = {}
    for name, (make, a, b) in inputs.items():
        model = make().fit(a)
        scores[name] = model.decision_scores_ if same else model.decision_function(b)
    return scores


def summary(names: list[str], runs: dict[str, dict]) -> dict:
    """AUROC by protocol and set, mean over seeds; then the means over sets, and those of each half."""
    of = {name: [run for run in runs.values() if run["set"] == name] for name in names}
    results: dict = {"sets": {}, "mean_auroc": {}}
    for name, own in of.items():
        results["sets"][name] = {key: own[0][key] for key in ("n_samples", "n_features", "outliers")}
        for protocol in PROTOCOLS:
            results["sets"][name][protocol] = {r: np.mean([run[protocol][r] for run in own]) for r in own[0][protocol]}
            results["sets"][name][f"{protocol} seconds"] = np.mean([run[f"{protocol} seconds"] for run in own])
    for protocol in PROTOCOLS:
        for part, chosen in (("all", names), ("tuned", names[::2]), ("confirmed", names[1::2])):
            table = [results["sets"][name][protocol] for name in chosen]
            results["mean_auroc"].setdefault(protocol, {})[part] = {r: np.mean([t[r] for t in table]) for r in table[0]}
    return results


if __name__ == "__main__":
    main()
