"""Eq. 5 takes the volume at the sample itself, Eq. 4 averages its inverse over random views: do more views pay?

    python -m benchmarks.theory.views [--quick] [--seed 0] [--n-jobs 2]

Toys with exact log p; the views are those of the training, Gaussian noise. Writes
benchmarks/results/theory_views.json and docs/images/theory_views.png; `views_images.py` asks the same of images.
"""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import record
from benchmarks.theory.objectives import OBJECTIVES, scored_output
from benchmarks.theory.toy import (
    NOISE,
    SCORES,
    TOYS,
    as_encoder,
    configuration,
    interval,
    make_toy,
    network,
    options,
    plt,
    run_all,
    save,
    score_models,
    spearman,
    tensor,
)
from skjepa import Encoder, Extraction, extract
from skjepa.pretraining.loop import pretrain

NAME = "theory_views"
TRAINED = ("SIGReg", "InfoNCE")
VIEWS = (1, 2, 4, 8, 16)
ITSELF = "the sample itself"


def main() -> None:
    chosen = options(__doc__, NAME).parse_args()
    n_seeds, steps = (2, 100) if chosen.quick else (chosen.n_seeds, 300)
    toys = ["mixture, d = 2", "rings"] if chosen.quick else list(TOYS)
    seeds = range(chosen.seed, chosen.seed + n_seeds)
    tasks = [(toy, objective, steps, seed) for toy in toys for objective in TRAINED for seed in seeds]
    runs = run_all(view_run, tasks, n_jobs=chosen.n_jobs)
    results: dict[str, dict[str, Any]] = {}
    for i, (toy, objective, *_) in enumerate(tasks[::n_seeds]):
        results.setdefault(toy, {})[objective] = summary(runs[i * n_seeds :][:n_seeds])
    settings = {"n_seeds": n_seeds, "steps": steps, "noise": NOISE, "interval": "95 %, Student's t over seeds"}
    record.write(chosen.out, {"toys": results}, seed=chosen.seed, quick=chosen.quick, **settings)
    draw(results, chosen.figure)


def view_run(name: str, objective: str, steps: int, seed: int) -> dict[str, dict[str, float]]:
    """Views -> Spearman correlation of each score with log p, and seconds a sample that the views cost."""
    toy = make_toy(name, seed)
    module = network(toy.fit.shape[1], seed)
    pretrain(module, tensor(toy.fit), configuration(steps, seed, **(OBJECTIVES[objective] or {})))
    encoder = as_encoder(module, scored_output(objective))
    fit, test = extract(encoder, toy.fit), extract(encoder, toy.test)
    started = time.perf_counter()
    several = at_views(encoder, test, toy.test, seed)
    seconds = (time.perf_counter() - started) / len(test) / VIEWS[-1]
    cases = {ITSELF: test} | {str(v): replace(several, singular_values=several.singular_values[:, :v]) for v in VIEWS}
    models = score_models(fit)
    found = {
        views: {label: spearman(model.score_samples(case), toy.log_p) for label, model in models.items()}
        for views, case in cases.items()
    }
    return found | {"cost": {"seconds a sample and view": seconds}}


def at_views(encoder: Encoder, test: Extraction, X: NDArray, seed: int) -> Extraction:
    """The embeddings of the samples with the singular values at noisy copies, which `views=` would draw one by one."""
    rng = np.random.default_rng([seed, 1])
    noisy = [extract(encoder, X + NOISE * rng.standard_normal(X.shape)) for _ in range(VIEWS[-1])]
    return replace(test, singular_values=np.concatenate([view.singular_values for view in noisy], axis=1))


def summary(runs: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Views -> measure -> interval over the seeds, with the gain over the sample itself, paired by seed."""
    found: dict[str, Any] = {
        views: {measure: interval(run[views][measure] for run in runs) for measure in runs[0][views]}
        for views in runs[0]
    }
    for views in map(str, VIEWS):
        for label in SCORES:
            found[views][f"{label}: gain"] = interval(run[views][label] - run[ITSELF][label] for run in runs)
    return found


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Gain over the sample itself, by number of views: a row a score, a column a toy."""
    figure, axes = plt.subplots(
        2, len(results), figsize=(2.7 * len(results) + 0.6, 5), sharex=True, sharey="row", layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for column, (toy, by) in zip(axes.T, results.items(), strict=True):
        for axis, label in zip(column, SCORES, strict=True):
            for shift, (objective, found) in zip((0.96, 1.04), by.items(), strict=True):
                gain = [found[str(v)][f"{label}: gain"] for v in VIEWS]
                mean, low, high = (np.array([value[key] for value in gain]) for key in ("mean", "low", "high"))
                own = found[ITSELF][label]["mean"]
                axis.errorbar(
                    shift * np.array(VIEWS), mean, [mean - low, high - mean], marker="o", ms=4, capsize=2,
                    label=f"{objective} (itself {own:.2f})",
                )  # fmt: skip
            axis.axhline(0, color="0.6", lw=0.8)
            axis.legend(fontsize=7)
            axis.set_xscale("log", base=2)
        column[0].set_title(toy)
        column[-1].set(xlabel="views V", xticks=VIEWS, xticklabels=VIEWS)
    for axis, label in zip(axes[:, 0], SCORES, strict=True):
        axis.set_ylabel(f"gain in Spearman,\n{label}")
    save(figure, path)


if __name__ == "__main__":
    main()
