"""Does the score follow a density that is known exactly? Mixture, rings and moons in the plane.

    python -m benchmarks.theory.known_density [--quick] [--n-jobs 2]

The bar is a kernel density estimate in input space whose bandwidth is the best for the truth, less 0.02. Writes
benchmarks/results/theory_known_density.json and docs/images/theory_known_density.png. An interrupted run goes on from
where it was.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler

from benchmarks.common import record
from benchmarks.common.known_densities import Distribution, distribution
from benchmarks.common.resumable import resumable
from benchmarks.theory.kernels import AdaptiveKernelDensity
from benchmarks.theory.toy import as_encoder, interval, on_sphere, options, save, spearman, tensor
from skjepa import Encoder, Extraction, VectorJEPA, extract
from skjepa.encoders.networks import build_network
from skjepa.pretraining.augmentations import VectorViewOptions
from skjepa.pretraining.loop import PretrainConfig, pretrain
from skjepa.scores.layered import fit_score
from skjepa.scores.model import ScoreModel, fit_score_model

NAMES = ("mixture", "rings", "moons")
BAR = "kernel density"
N_FIT, N_TEST, EPOCHS, ALLOWED = 3000, 2000, 30, 0.02
BANDWIDTHS = np.geomspace(0.04, 0.5, 10)
SCORES: dict[str, dict[str, Any]] = {
    "JEPA-SCORE alone": {"formula": "jepa", "reference": "knn"},
    "full formula, kNN (the default reference)": {"formula": "density", "reference": "knn"},
    "full formula, adaptive kernels": {"formula": "density", "reference": AdaptiveKernelDensity()},
    "five terms, without layers": {"formula": "joint", "reference": "knn"},
}
DEFAULT = "joint (the default, no backward pass)"
SHOWN = ("JEPA-SCORE alone", "full formula, adaptive kernels", DEFAULT)


def info_nce(fit: NDArray, seed: int, epochs: int) -> Encoder:
    return trained(fit, seed, on_sphere, n_components=8, noise=0.1, objective="info_nce", epochs=epochs)


def soft_info_nce(fit: NDArray, seed: int, epochs: int) -> Encoder:
    settings = {"objective": "info_nce", "temperature": 0.5}
    return trained(fit, seed, on_sphere, n_components=4, noise=0.1, epochs=epochs, **settings)


def sigreg(fit: NDArray, seed: int, epochs: int) -> Encoder:
    return trained(fit, seed, "auto", n_components=4, noise=0.2, objective="sigreg", epochs=epochs)


def automatic(fit: NDArray, seed: int, epochs: int) -> Encoder:
    """What `JEPAScoreDetector()` trains on vectors."""
    return VectorJEPA(random_state=seed).fit(fit).encoder_


ENCODERS: dict[str, Callable[[NDArray, int, int], Encoder]] = {
    "VectorJEPA (the default)": automatic,
    "InfoNCE, K = 8, noise 0.1": info_nce,
    "InfoNCE, K = 4, noise 0.1, temperature 0.5": soft_info_nce,
    "SIGReg, K = 4, noise 0.2": sigreg,
}
SHOWN_ENCODER = "InfoNCE, K = 8, noise 0.1"


def main() -> None:
    chosen = options(__doc__, "theory_known_density").parse_args()
    seeds, epochs = (2, 8) if chosen.quick else (chosen.n_seeds, EPOCHS)
    tasks = [(n, label, chosen.seed + i, epochs) for i in range(seeds) for label in (BAR, *ENCODERS) for n in NAMES]
    kept = chosen.out.with_suffix(".runs")
    runs = dict(zip(tasks, resumable(one_run, tasks, kept, n_jobs=chosen.n_jobs), strict=True))
    results = {
        n: summary({label: [run for task, run in runs.items() if task[:2] == (n, label)] for label in (BAR, *ENCODERS)})
        for n in NAMES
    }
    settings = {"script": "benchmarks/theory/known_density.py", "n_fit": N_FIT, "n_test": N_TEST, "seeds": seeds}
    record.write(chosen.out, {"distributions": results}, seed=chosen.seed, epochs=epochs, allowed=ALLOWED, **settings)
    draw(chosen.seed, epochs, chosen.figure)
    kept.unlink()


def one_run(name: str, label: str, seed: int, epochs: int) -> dict[str, float]:
    """Spearman with log p of every score on one encoder, or of the bar before the allowance."""
    torch.set_num_threads(1)
    law, fit, test = samples(name, seed)
    log_p = law.log_density(test)
    scale = StandardScaler().fit(fit)
    fit, test = scale.transform(fit), scale.transform(test)
    if label == BAR:
        kernels = (KernelDensity(bandwidth=h, rtol=1e-4).fit(fit) for h in BANDWIDTHS)
        return {BAR: max(spearman(kernel.score_samples(test), log_p) for kernel in kernels)}
    encoder = ENCODERS[label](fit, seed, epochs)
    learn, judge = extract(encoder, fit), extract(encoder, test)
    return {score: spearman(scores_by(score, learn, judge), log_p) for score in (*SCORES, DEFAULT)}


def samples(name: str, seed: int) -> tuple[Distribution, NDArray, NDArray]:
    law, rng = distribution(name, 2, seed), np.random.default_rng(seed)
    return law, law.sample(N_FIT, rng), law.sample(N_TEST, rng)


def trained(fit: NDArray, seed: int, output: Any, *, n_components: int, noise: float, **settings: Any) -> Encoder:
    torch.manual_seed(seed)
    module = build_network("mlp", n_features=fit.shape[1], n_components=n_components)
    views = VectorViewOptions(noise=noise)
    pretrain(module, tensor(fit), PretrainConfig(views=views, seed=seed, n_watched=0, n_directions=32, **settings))
    return as_encoder(module, output)


def fitted(learn: Extraction, score: str) -> ScoreModel:
    # Both singular values always count, and in float64 neither is noise: a floor of 1 % would cut the smaller one off.
    is_full = SCORES[score]["formula"] != "joint"
    return fit_score_model(learn, **SCORES[score], floor=1e-12 if is_full else "auto", rank=None)


def scores_by(score: str, learn: Extraction, judge: Extraction) -> NDArray:
    """One score of samples; the default as users of vectors have it, from the forward pass alone."""
    if score != DEFAULT:
        return fitted(learn, score).score_samples(judge)
    model = fit_score(learn.forward_only(), formula="joint", reference="knn", floor="auto", rank=None)
    return model.score_samples(judge.forward_only())


def summary(runs: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Means and intervals over seeds; of each score also its difference from the bar, which shares the samples."""
    bar = [run[BAR] for run in runs[BAR]]

    def judged(values: list[float]) -> dict[str, Any]:
        return interval(values) | {"above_bar": interval(v - b + ALLOWED for v, b in zip(values, bar, strict=True))}

    measured = {
        label: {score: judged([run[score] for run in runs[label]]) for score in (*SCORES, DEFAULT)}
        for label in ENCODERS
    }
    return {BAR: interval(bar), "encoders": measured}


def draw(seed: int, epochs: int, path: Path) -> None:
    """Ranks over the shown part of the plane, as the scores differ in scale; samples as dots beside log p."""
    figure, axes = plt.subplots(len(NAMES), 1 + len(SHOWN), figsize=(13, 3 * len(NAMES)), layout="constrained")
    for row, name in zip(axes, NAMES, strict=True):
        law, fit, _ = samples(name, seed)
        low, high = fit.min(axis=0) - 0.2, fit.max(axis=0) + 0.2
        x, y = (np.linspace(a, b, 80) for a, b in zip(low, high, strict=True))
        grid = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
        scale = StandardScaler().fit(fit)
        encoder = ENCODERS[SHOWN_ENCODER](scale.transform(fit), seed, epochs)
        learn, judge = extract(encoder, scale.transform(fit)), extract(encoder, scale.transform(grid))
        maps = {"true log p": law.log_density(grid)}
        maps |= {score: scores_by(score, learn, judge) for score in SHOWN}
        for axis, (title, values) in zip(row, maps.items(), strict=True):
            ranks = rankdata(values).reshape(len(y), len(x))
            axis.pcolormesh(x, y, ranks, shading="nearest", cmap="viridis", rasterized=True)
            axis.set(xticks=[], yticks=[], aspect="equal", title=title if name == NAMES[0] else "")
        row[0].scatter(*fit[:400].T, s=1, color="white", alpha=0.5)
        row[0].set_ylabel(name)
    figure.suptitle(f"Ranks over the plane, bright = dense; encoder: {SHOWN_ENCODER}")
    save(figure, path)


if __name__ == "__main__":
    main()
