"""Does the score carry density whatever the encoder was trained for? Objectives with and without an anti-collapse term.

    python -m benchmarks.theory.objectives [--quick] [--seed 0] [--n-jobs 2]

Toys with exact log p, small MLPs. Writes benchmarks/results/theory_objectives.json and
docs/images/theory_objectives.png; `objectives_images.py` asks the same of images.
"""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import record
from benchmarks.theory.toy import (
    TOYS,
    as_encoder,
    auroc,
    configuration,
    make_toy,
    network,
    on_sphere,
    options,
    plt,
    quality,
    run_all,
    save,
    spearman,
    summary,
    tensor,
)
from skjepa.pretraining.loop import pretrain
from skjepa.scores.densities import KNNDensity

NAME = "theory_objectives"
NO_ENCODER = "no encoder: kNN on x"
OBJECTIVES: dict[str, dict[str, Any] | None] = {
    "untrained": None,
    "SIGReg": {"objective": "sigreg"},
    "VICReg": {"objective": "vicreg"},
    "InfoNCE": {"objective": "info_nce"},
    "invariance only": {"objective": "invariance", "weight_decay": 0.0},
    "invariance, weight decay": {"objective": "invariance", "weight_decay": 1.0},
    "invariance, spectral norm": {"objective": "invariance", "weight_decay": 0.0, "spectral_norm": True},
}
"""AdamW takes learning rate x weight decay off a weight at each step: 1 is to be felt in a short training."""


def main() -> None:
    chosen = options(__doc__, NAME).parse_args()
    n_seeds, steps = (2, 100) if chosen.quick else (chosen.n_seeds, 300)
    toys = ["mixture, d = 2", "rings"] if chosen.quick else list(TOYS)
    seeds = range(chosen.seed, chosen.seed + n_seeds)
    runs = run_all(toy_run, [(name, steps, seed) for name in toys for seed in seeds], n_jobs=chosen.n_jobs)
    results = {"toys": {name: summary(runs[i * n_seeds :][:n_seeds]) for i, name in enumerate(toys)}}
    settings = {"n_seeds": n_seeds, "steps": steps, "interval": "95 %, Student's t over seeds"}
    record.write(chosen.out, results, seed=chosen.seed, quick=chosen.quick, **settings)
    draw(results["toys"], chosen.figure)


def toy_run(name: str, steps: int, seed: int) -> dict[str, dict[str, float]]:
    """Objective -> measurements on one toy, for one seed."""
    toy = make_toy(name, seed)
    density = KNNDensity().fit(toy.fit)
    normal, outliers = density.score_samples(toy.test), density.score_samples(toy.outliers)
    found = {
        NO_ENCODER: {
            "full formula: Spearman": spearman(normal, toy.log_p),
            "full formula: AUROC": auroc(normal, outliers),
            "AUROC of log p": toy.ceiling,
        }
    }
    for objective, settings in OBJECTIVES.items():
        module = network(toy.fit.shape[1], seed)
        if settings is not None:
            pretrain(module, tensor(toy.fit), configuration(steps, seed, **settings))
        found[objective] = quality(as_encoder(module, scored_output(objective)), toy)
        if objective == "InfoNCE":
            found["InfoNCE, raw output"] = quality(as_encoder(module), toy)
    return found


def scored_output(objective: str) -> Any:
    """What InfoNCE spreads over the sphere is the normalised output, so that is where its density is constant."""
    return on_sphere if objective == "InfoNCE" else "auto"


def draw(toys: dict[str, dict], path: Path) -> None:
    """One panel a toy: Spearman correlation with log p of both scores."""
    figure, axes = plt.subplots(1, len(toys), figsize=(2.4 + 2.4 * len(toys), 4), sharey=True, layout="constrained")
    for axis, (name, found) in zip(axes, toys.items(), strict=True):
        rows = list(found)[::-1]
        for shift, label, colour in ((0.14, "JEPA-SCORE alone", "C1"), (-0.14, "full formula", "C0")):
            measured = {y: found[row].get(f"{label}: Spearman") for y, row in enumerate(rows)}
            dots(axis, {y + shift: value for y, value in measured.items() if value}, label=label, color=colour)
        axis.axvline(0, color="0.6", lw=0.8)
        axis.set(title=name, xlabel="Spearman with log p", xlim=(-1, 1), yticks=range(len(rows)), yticklabels=rows)
        axis.grid(axis="y", lw=0.3)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    save(figure, path)


def dots(axis, measured: dict[float, dict[str, float]], **style: Any) -> None:
    """Means with their intervals, at these heights."""
    mean, low, high = (np.array([value[key] for value in measured.values()]) for key in ("mean", "low", "high"))
    axis.errorbar(mean, list(measured), xerr=[mean - low, high - mean], fmt="o", ms=4, capsize=2, **style)


if __name__ == "__main__":
    main()
