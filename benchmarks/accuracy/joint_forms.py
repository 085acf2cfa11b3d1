"""In which form do s, log q(z), log q(s given z) and others make the best score? Measured on tables, images, toys.

    python -m benchmarks.accuracy.joint_forms --data FOLDER [--quick] [--cache FOLDER]

FOLDER holds adbench/*.npz and the zips of images that foreign_sets.py reads. All that a form learns, it learns from the
normal samples to fit on; scales and p-values are of out-of-fold values. Forms are chosen on the half "tune"; "confirm"
has other sets and seeds. Tables and images: AUROC. Known densities: Spearman with log p, and AUROC against a uniform
background. Also: the share of new normal samples that a threshold at a tenth of the training samples flags.
Writes benchmarks/results/joint_forms.json (or --out).
"""

import argparse
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict
from sklearn.neighbors import KNeighborsRegressor, NearestNeighbors
from sklearn.pipeline import make_pipeline

from benchmarks.accuracy.joint_cases import BACKGROUND, KNOWN, QUICK, Case, Sizes, all_cases
from benchmarks.common import record
from skjepa import Extraction
from skjepa.detectors.conformal import contamination_offset
from skjepa.scores.densities import (
    ROUNDING,
    ConditionalDensity,
    DirectionDensity,
    GaussianDensity,
    KNNDensity,
    SpectrumDensity,
    out_of_fold_scores,
)
from skjepa.scores.model import AUTO_FLOOR, filled_share, fit_score_model

OUT = record.RESULTS / "joint_forms.json"
CONTAMINATION = 0.1
FLOORS = (1e-1, 1e-2, 1e-4)
Pair = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Values of the fit samples, out of fold, and of the samples to judge. Where these are the fit samples, the densities
have seen them; that is the order that the package gives them."""


class NeighborDensity(BaseEstimator):
    """-d log r, r the distance to the k-th neighbour or the mean distance to k neighbours."""

    def __init__(self, k: int, mean: bool = False) -> None:
        self.k, self.mean = k, mean

    def fit(self, Z, y=None) -> "NeighborDensity":
        k = max(1, min(self.k, len(Z) - 1))
        self._dimension = KNNDensity(k).fit(Z).intrinsic_dim_
        self._neighbors = NearestNeighbors(n_neighbors=k).fit(Z)
        self._smallest = max(1e-3 * float(np.median(self._neighbors.kneighbors()[0][:, -1])), np.finfo(float).tiny)
        return self

    def score_samples(self, Z) -> NDArray[np.float64]:
        distances = self._neighbors.kneighbors(Z)[0]
        r = distances.mean(axis=1) if self.mean else distances[:, -1]
        return -self._dimension * np.log(np.maximum(r, self._smallest))


DENSITIES: dict[str, BaseEstimator] = {
    "k = 10": NeighborDensity(10),
    "k = 30": NeighborDensity(30),
    "mean of 10": NeighborDensity(10, mean=True),
    "mean of 20": NeighborDensity(20, mean=True),
    "kernels": KNNDensity(),
    "gaussian": GaussianDensity(),
    "direction": DirectionDensity(),
}
NOW, NEW, KERNELS = "k = 10", "mean of 20", "kernels"


class Terms:
    """The terms of one case, each computed once; the floor is `share` times the median largest singular value."""

    def __init__(
        self, fit: Extraction, test: Extraction, share: float = AUTO_FLOOR, density: Callable[[str], Pair] | None = None
    ) -> None:
        floor = max(share * float(np.median(fit.singular_values[..., 0])), np.finfo(float).tiny)
        model = fit_score_model(fit, formula="jepa", reference="knn", floor=floor, rank=None)
        self.z, self.rank = (fit.embeddings, test.embeddings), fit.singular_values.shape[2]
        self.filled = filled_share(fit, model.rank)
        self.s: Pair = (model.volume(fit), model.volume(test))
        self.log_sigma: Pair = (model.log_spectrum(fit), model.log_spectrum(test))
        self.density = density or cache(self._density)
        self.residual = cache(self._residual)
        self.spectrum = cache(self._spectrum)

    def _density(self, name: str) -> Pair:
        """log q(z)."""
        known, new = self.z
        density = DENSITIES[name]
        if name == "gaussian" and self.rank < known.shape[1]:
            # Inputs of D < K dimensions fill a D-dimensional surface, on which alone a Gaussian is proper.
            density = make_pipeline(PCA(min(self.rank, len(known) * 4 // 5 - 1)), density)
        density.fit(known)
        return out_of_fold_scores(density, known), density.score_samples(new)

    def _residual(self, kind: str = "ridge") -> Pair:
        """log q(s | z): minus the squared distance of s from its prediction, but for scale and constant."""
        (z, new), (s, s_new) = self.z, self.s
        if kind == "ridge":
            conditional = ConditionalDensity().fit(z, s)
            return conditional.fit_scores_, conditional.score_samples(new, s_new)
        regression = KNeighborsRegressor(max(1, min(10, len(z) // 5)))
        out_of_fold = cross_val_predict(regression, z, s, cv=min(5, len(z)))
        return -((s - out_of_fold) ** 2), -((s_new - regression.fit(z, s).predict(new)) ** 2)

    def _spectrum(self) -> Pair:
        """log q(sigma | z)."""
        model = SpectrumDensity().fit(self.z[0], self.log_sigma[0])
        return model.fit_scores_, model.score_samples(self.z[1], self.log_sigma[1])

    def formula(self, density: str, part: float = 1) -> Pair:
        """s + log q(z), in nats: the change of variables; or part of s."""
        return tuple(part * a + b for a, b in zip(self.s, self.density(density), strict=True))

    def opposition(self, density: str) -> float:
        """max(0, -correlation of s and log q(z)) over the fit samples."""
        return max(0.0, -correlation(self.s[0], self.density(density)[0]))

    def three(self, density: str, residual: str = "ridge") -> list[Pair]:
        return [self.s, self.density(density), self.residual(residual)]


def standardised(pair: Pair) -> NDArray:
    return (pair[1] - pair[0].mean()) / spread(pair[0])


def robust(pair: Pair) -> NDArray:
    centre = np.median(pair[0])
    scale = 1.4826 * np.median(np.abs(pair[0] - centre))
    return (pair[1] - centre) / scale if scale > 1e-9 * (1 + np.abs(pair[0]).max()) else standardised(pair)


def log_p(pair: Pair) -> NDArray:
    """log of the share of fit samples with a value as low; under the lowest of them on with slope 1 a deviation."""
    values, counts = np.unique(pair[0], return_counts=True)
    scale = spread(pair[0])
    if np.isinf(scale):
        return np.zeros(len(pair[1]))
    inside = np.interp(pair[1], values, np.log(np.cumsum(counts) / (len(pair[0]) + 1)))
    return inside + np.minimum(0.0, (pair[1] - values[0]) / scale)


def spread(values: NDArray) -> float:
    deviation = float(np.std(values))
    return deviation if deviation > ROUNDING * (1 + np.abs(values).max()) else np.inf


def correlation(a: NDArray, b: NDArray) -> float:
    return 0.0 if np.isinf(spread(a)) or np.isinf(spread(b)) else float(np.corrcoef(a, b)[0, 1])


def whitened(pairs: list[Pair]) -> NDArray:
    """Sum of the terms after the symmetric whitening of their covariance over the fit samples."""
    known, new = (np.stack([pair[i] / min(spread(pair[0]), 1e300) for pair in pairs], axis=1) for i in (0, 1))
    values, vectors = np.linalg.eigh(np.cov(known.T) + 1e-6 * np.eye(len(pairs)))
    return ((new - known.mean(axis=0)) @ (vectors / np.sqrt(values)) @ vectors.T).sum(axis=1)


def weighted(scale: Callable, weights: tuple, pairs: list[Pair]) -> NDArray:
    return np.sum([w * scale(pair) for w, pair in zip(weights, pairs, strict=True)], axis=0)


def with_formula(
    scale: Callable,
    terms: Terms,
    density: str,
    weights: tuple = (1, 1, 1),
    residual: str = "ridge",
    root: bool = False,
    less: bool = False,
) -> NDArray:
    """Three to five terms, of which log q(sigma | z) and log q(z / |z|) are last; as far as s and log q(z) are opposed,
    they give way to the formula. Where embeddings fill few directions, s enters that by the `root` of their share, or
    the terms give `less` way, by that share."""
    share = terms.opposition(density) * (terms.filled if less else 1)
    pairs = [*terms.three(density, residual), terms.spectrum(), terms.density("direction")][: len(weights)]
    formula = terms.formula(density, np.sqrt(terms.filled) if root else 1)
    return (1 - share) * weighted(scale, weights, pairs) + sum(weights) * share * scale(formula)


def pair_density(terms: Terms) -> NDArray:
    """Nearest neighbours in the joint space of z and s, both of unit variance."""
    known, new = (
        np.column_stack([z / np.sqrt(terms.z[0].var(axis=0).sum()), s / spread(terms.s[0])])
        for z, s in zip(terms.z, terms.s, strict=True)
    )
    return NeighborDensity(20, mean=True).fit(known).score_samples(new)


EQUAL, HALVES = (1, 1, 1), (0.5, 1, 0.5)
PRESENT = "standardised with formula, halves, kernels"
WITH_SPECTRUM = f"{PRESENT}, spectrum"
WITH_DIRECTION = f"{WITH_SPECTRUM}, direction"
RECOMMENDED = f"{WITH_DIRECTION}, root of the share filled"
FORMS: dict[str, Callable[[Terms], NDArray]] = {
    "log-volume": lambda t: t.s[1],
    **{f"log q(z), {name}": lambda t, name=name: t.density(name)[1] for name in DENSITIES},
    "log q(s | z), ridge": lambda t: t.residual("ridge")[1],
    **{f"formula in nats, {name}": lambda t, name=name: t.formula(name)[1] for name in (NOW, NEW, KERNELS)},
    "neighbours in (z, s)": pair_density,
    **{f"standardised, {q}": lambda t, q=q: weighted(standardised, EQUAL, t.three(q)) for q in DENSITIES},
    "standardised, halves, k = 10": lambda t: weighted(standardised, HALVES, t.three(NOW)),
    "standardised, halves, mean of 20": lambda t: weighted(standardised, HALVES, t.three(NEW)),
    "median and MAD, k = 10": lambda t: weighted(robust, EQUAL, t.three(NOW)),
    "whitened, k = 10": lambda t: whitened(t.three(NOW)),
    "standardised formula + half residual, k = 10": lambda t: weighted(
        standardised, (1, 0.5), [t.formula(NOW), t.residual("ridge")]
    ),
    "standardised with formula, k = 10": lambda t: with_formula(standardised, t, NOW),
    "standardised with formula, mean of 20": lambda t: with_formula(standardised, t, NEW),
    "standardised with formula, halves, k = 10": lambda t: with_formula(standardised, t, NOW, HALVES),
    "standardised with formula, halves, mean of 20": lambda t: with_formula(standardised, t, NEW, HALVES),
    PRESENT: lambda t: with_formula(standardised, t, KERNELS, HALVES),
    "log q(sigma | z)": lambda t: t.spectrum()[1],
    WITH_SPECTRUM: lambda t: with_formula(standardised, t, KERNELS, (*HALVES, 0.5)),
    f"{WITH_SPECTRUM} counting one": lambda t: with_formula(standardised, t, KERNELS, (*HALVES, 1)),
    f"{WITH_SPECTRUM} for s": lambda t: with_formula(standardised, t, KERNELS, (0.5, 1, 0, 0.5)),
    WITH_DIRECTION: lambda t: with_formula(standardised, t, KERNELS, (*HALVES, 0.5, 0.5)),
    RECOMMENDED: lambda t: with_formula(standardised, t, KERNELS, (*HALVES, 0.5, 0.5), root=True),
    f"{WITH_DIRECTION}, as far as filled": lambda t: with_formula(
        standardised, t, KERNELS, (*HALVES, 0.5, 0.5), less=True
    ),
    f"{WITH_DIRECTION} counting one": lambda t: with_formula(standardised, t, KERNELS, (*HALVES, 0.5, 1)),
    f"{WITH_DIRECTION}, Gaussian of z": lambda t: with_formula(standardised, t, "gaussian", (*HALVES, 0.5, 0.5)),
    f"log p of {WITH_DIRECTION}": lambda t: with_formula(log_p, t, KERNELS, (*HALVES, 0.5, 0.5)),
    "standardised, halves, kernels": lambda t: weighted(standardised, HALVES, t.three(KERNELS)),
    "log p with formula, halves, kernels": lambda t: with_formula(log_p, t, KERNELS, HALVES),
    "least log p, k = 10": lambda t: np.min([log_p(pair) for pair in t.three(NOW)], axis=0),
    **{f"log p, {q}": lambda t, q=q: weighted(log_p, EQUAL, t.three(q)) for q in DENSITIES},
    "log p with formula, halves, mean of 20": lambda t: with_formula(log_p, t, NEW, HALVES),
    "log p, halves, mean of 20": lambda t: weighted(log_p, HALVES, t.three(NEW)),
    **{f"log p with formula, {q}": lambda t, q=q: with_formula(log_p, t, q) for q in DENSITIES},
    "log p with formula, mean of 20, neighbours for s": lambda t: with_formula(log_p, t, NEW, residual="neighbours"),
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--cache", type=Path, help="keep extractions here; by default they are thrown away")
    options.add_argument("--quick", action="store_true", help="fewer samples and seeds: minutes")
    options.add_argument("--out", type=Path, default=OUT)
    chosen = options.parse_args()
    sizes = QUICK if chosen.quick else Sizes()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about floors, of sets with fewer directions than features
        runs = [measured(case) for case in all_cases(chosen.data, chosen.cache or Path(folder), sizes)]
    results = {"present": PRESENT, "recommended": RECOMMENDED, **summary(runs)}
    record.write(chosen.out, results, seed=0, **vars(sizes))
    report(results)


def measured(case: Case) -> dict:
    """Quality of every form on one case, of the recommended one at other floors, and what thresholds flag."""
    terms = Terms(case.fit, case.test)
    run = {"group": case.group, "half": case.half, "name": case.name}
    run["forms"] = {name: quality(case, form(terms)) for name, form in FORMS.items()}
    run["floors"] = {
        f"{share:g}": quality(case, FORMS[RECOMMENDED](Terms(case.fit, case.test, share, terms.density)))
        for share in FLOORS
    }
    if case.group not in (KNOWN, BACKGROUND):
        run["flagged"] = flagged(case)
    return run


def quality(case: Case, score: NDArray) -> float:
    if case.group == KNOWN:
        return float(spearmanr(score, case.truth).statistic) if np.ptp(score) > 0 else 0.0
    return float(roc_auc_score(case.truth, score))


def flagged(case: Case) -> dict[str, float]:
    """Share flagged of new normal samples with the threshold at `CONTAMINATION` of the fit samples, and whether as many
    of these are flagged as if no two scores were equal."""
    model = fit_score_model(case.fit, formula="joint", reference="knn", floor="auto", rank=None)
    known, new = model.score_samples(case.fit), model.score_samples(case.test)
    distinct = np.arange(len(known))
    wanted = (distinct < contamination_offset(distinct, CONTAMINATION)).sum()
    offset = contamination_offset(known, CONTAMINATION)
    as_many = float((known < offset).sum() == wanted)
    return {"new normal": float((new[case.truth == 1] < offset).mean()), "fit as asked": as_many}


def summary(runs: list[dict]) -> dict:
    """Means over the cases: half -> group -> form, with the mean over groups of its own; then floors and thresholds."""
    tables: dict = {"mean": {}, "sets": {}, "floors": {}, "flagged": {}}
    for half in ("tune", "confirm"):
        groups = defaultdict(list)
        for run in runs:
            if run["half"] == half:
                groups[run["group"]].append(run)
        for key, into in (("forms", "mean"), ("floors", "floors")):
            means = {group: averages([run[key] for run in some]) for group, some in groups.items()}
            tables[into][half] = means | {"all": averages(list(means.values()))}
        for group, some in groups.items():
            of_set = {name: [run["forms"] for run in some if run["name"] == name] for name in {r["name"] for r in some}}
            tables["sets"].setdefault(group, {}).update({name: averages(of_set[name]) for name in sorted(of_set)})
            shares = [run["flagged"] for run in some if "flagged" in run]
            if shares and half == "confirm":
                tables["flagged"][group] = averages(shares)
    return tables


def averages(rows: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]}


def report(results: dict) -> None:
    for half, groups in results["mean"].items():
        print(f"{half:50}" + "".join(f"{group.split(', ')[-1][:11]:>13}" for group in groups))
        for form in FORMS:
            print(f"{form:50}" + "".join(f"{values[form]:13.3f}" for values in groups.values()))


if __name__ == "__main__":
    main()
