"""How large K must be: norm concentration (Lemma 1 of arXiv 2510.05949) next to how well scores follow log p.

    python -m benchmarks.theory.dimension [--quick] [--n-jobs 2]

Mixtures of five Gaussians in D dimensions, a fresh one for each seed; an MLP with K outputs, trained with SIGReg or
InfoNCE. Writes benchmarks/results/theory_dimension.json and docs/images/theory_dimension.png. Finished runs are kept
beside the JSON while the experiment lasts, and an interrupted one goes on from there.
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler
from torch.nn.functional import normalize

from benchmarks.common import record
from benchmarks.common.known_densities import distribution
from benchmarks.common.resumable import resumable
from benchmarks.theory.toy import as_encoder, interval, on_sphere, spearman, tensor
from skjepa import extract
from skjepa.encoders.isotropy import embedding_statistics
from skjepa.encoders.networks import build_network
from skjepa.jacobian.volume import log_volume
from skjepa.pretraining.augmentations import VectorViewOptions
from skjepa.pretraining.loop import PretrainConfig, embed, pretrain
from skjepa.scores.densities import KNNDensity

SCRIPT = "benchmarks/theory/dimension.py"
OBJECTIVES = {"sigreg": "SIGReg", "info_nce": "InfoNCE"}
DIMENSIONS, COMPONENTS, SEEDS = (2, 8, 32), (2, 4, 8, 16, 32, 64, 128, 256), 5
N_FIT, N_TEST = 3000, 1000
BANDWIDTHS = np.geomspace(0.05, 2.0, 12)
TRAINING = {"epochs": 20, "batch_size": 256, "n_directions": 32}
"""220 steps with the package's own learning rate and weight decay."""
NOISE, N_NEIGHBORS = 0.1, 30
MEASURES = {
    "jepa": "JEPA-SCORE alone",
    "density": "full formula",
    "embedding": "density of z alone",
    "norm_variance": "variance of the norm, scaled",
    "participation_ratio": "participation ratio",
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--quick", action="store_true", help="fewer and shorter runs, to see that everything works")
    options.add_argument("--seeds", type=int, default=SEEDS)
    options.add_argument("--n-jobs", type=int, default=2)
    options.add_argument("--out", type=Path, default=record.RESULTS / "theory_dimension.json")
    options.add_argument("--figure", type=Path, default=record.IMAGES / "theory_dimension.png")
    chosen = options.parse_args()
    dimensions, components, seeds = (
        ((2, 8), (2, 16, 128), 2) if chosen.quick else (DIMENSIONS, COMPONENTS, chosen.seeds)
    )
    epochs = 4 if chosen.quick else TRAINING["epochs"]
    tasks = [
        (objective, d, k, seed, epochs)
        for seed in range(seeds)
        for d in dimensions
        for objective in OBJECTIVES
        for k in components
    ]
    runs = resumable(one_run, tasks, chosen.out.with_suffix(".runs"), n_jobs=chosen.n_jobs)
    results = {"kernel_density": kernel_densities(dimensions, seeds), "groups": grouped(runs)}
    settings = {"n_fit": N_FIT, "n_test": N_TEST, "noise": NOISE, "n_neighbors": N_NEIGHBORS}
    settings |= {"seeds": seeds, "training": TRAINING | {"epochs": epochs}}
    record.write(chosen.out, results, seed=0, script=SCRIPT, **settings)
    draw(results, chosen.figure)
    chosen.out.with_suffix(".runs").unlink()


def one_run(objective: str, n_features: int, n_components: int, seed: int, epochs: int) -> dict[str, Any]:
    """One training, and everything measured on it."""
    torch.set_num_threads(1)
    fit, test, log_p = samples(n_features, seed)
    torch.manual_seed(seed)
    module = build_network("mlp", n_features=n_features, n_components=n_components)
    config = PretrainConfig(
        **TRAINING | {"epochs": epochs},
        objective=objective,
        views=VectorViewOptions(noise=NOISE),
        seed=seed,
        n_watched=0,
    )
    pretrain(module, tensor(fit), config)
    on_unit_sphere = objective == "info_nce"
    z = embed(module, tensor(fit), config)
    z = (normalize(z) if on_unit_sphere else z).double().numpy()
    judged = extract(as_encoder(module, on_sphere if on_unit_sphere else "auto"), test)
    # On the sphere the radial direction's singular value is zero in every sample, and in float64 no other one is.
    rank = min(n_components - on_unit_sphere, n_features)
    volume = log_volume(judged.singular_values[:, 0], floor=1e-12, rank=rank)
    density = KNNDensity(N_NEIGHBORS).fit(z).score_samples(judged.embeddings)
    statistics = embedding_statistics(torch.as_tensor(z))
    return {
        "objective": objective,
        "n_features": n_features,
        "n_components": n_components,
        "seed": seed,
        "jepa": spearman(volume, log_p),
        "density": spearman(volume + density, log_p),
        "embedding": spearman(density, log_p),
        "norm_variance": norm_variance(z, judged.embeddings),
        "participation_ratio": statistics["participation_ratio"],
        "normality": statistics["normality"],
    }


def samples(n_features: int, seed: int) -> tuple[NDArray, NDArray, NDArray]:
    """Standardised samples to fit on and to test on, and the exact log p of the latter."""
    law, rng = distribution("mixture", n_features, seed), np.random.default_rng(seed)
    fit, test = law.sample(N_FIT, rng), law.sample(N_TEST, rng)
    scale = StandardScaler().fit(fit)
    return scale.transform(fit), scale.transform(test), law.log_density(test)


def norm_variance(fit: NDArray, test: NDArray) -> float:
    """Variance of |z| where z is centred and scaled to E|z|^2 = 1, as that of N(0, I/K) is: about 1/(2K) there."""
    centre = fit.mean(axis=0)
    scale = np.sqrt(np.mean(np.sum((fit - centre) ** 2, axis=1)))
    return float(np.var(np.linalg.norm(test - centre, axis=1) / scale))


def kernel_densities(dimensions: tuple[int, ...], seeds: int) -> dict[str, Any]:
    """Spearman with log p of a kernel density estimate in input space whose bandwidth knows the answer."""
    return {str(d): interval(best_kernel_density(*samples(d, seed)) for seed in range(seeds)) for d in dimensions}


def best_kernel_density(fit: NDArray, test: NDArray, log_p: NDArray) -> float:
    return max(spearman(KernelDensity(bandwidth=b, rtol=1e-4).fit(fit).score_samples(test), log_p) for b in BANDWIDTHS)


def grouped(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and interval over seeds of each measure, for each objective, D and K."""
    keys = ("objective", "n_features", "n_components")
    places = dict.fromkeys(tuple(run[key] for key in keys) for run in runs)
    return [
        dict(zip(keys, place, strict=True))
        | {m: interval(run[m] for run in runs if tuple(run[key] for key in keys) == place) for m in MEASURES}
        for place in places
    ]


def draw(results: dict[str, Any], path: Path) -> None:
    """Above: Spearman with log p against K, a column a D. Below: the norm's variance. Bands: range of seeds."""
    dimensions = [int(d) for d in results["kernel_density"]]
    figure, axes = plt.subplots(2, len(dimensions), figsize=(4 * len(dimensions), 6.4), sharex=True, sharey="row")
    for (above, below), d in zip(axes.T, dimensions, strict=True):
        for (objective, label), colour in zip(OBJECTIVES.items(), ("tab:blue", "tab:orange"), strict=True):
            groups = [g for g in results["groups"] if (g["objective"], g["n_features"]) == (objective, d)]
            k = [g["n_components"] for g in groups]
            for measure, style, axis in (
                ("jepa", "o-", above),
                ("density", "s--", above),
                ("norm_variance", "o-", below),
            ):
                mean = [g[measure]["mean"] for g in groups]
                low, high = ([end(g[measure]["values"]) for g in groups] for end in (min, max))
                axis.plot(k, mean, style, color=colour, markersize=4, label=f"{label}, {MEASURES[measure]}")
                axis.fill_between(k, low, high, color=colour, alpha=0.15, linewidth=0)
        bar = results["kernel_density"][str(d)]["mean"]
        above.axhline(bar, color="black", linewidth=1, linestyle=":", label="best kernel density of x")
        below.plot(k, 1 / (2 * np.array(k)), color="black", linewidth=1, linestyle=":", label="Lemma 1: 1 / (2K)")
        above.axvline(d, color="grey", linewidth=0.8)
        above.set(title=f"D = {d} (grey line: K = D)", xscale="log", ylim=(-1, 1.05))
        below.set(xlabel="K", yscale="log")
        below.set_xscale("log", base=2)
    axes[0, 0].set_ylabel("Spearman with log p")
    axes[1, 0].set_ylabel("variance of |z|, E|z|² = 1")
    axes[0, -1].legend(fontsize=7, loc="lower right")
    axes[1, -1].legend(fontsize=7, loc="lower left")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
