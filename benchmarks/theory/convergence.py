"""How score quality follows training: the theory speaks of the optimum of both loss terms, training only nears it.

    python -m benchmarks.theory.convergence [--quick] [--seed 0] [--n-jobs 2]

At log-spaced steps of a training with a constant learning rate: both loss terms on held-out samples, Spearman
correlation with log p, participation ratio. Writes benchmarks/results/theory_convergence.json and
docs/images/theory_convergence.png.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from benchmarks.common import record
from benchmarks.theory.objectives import OBJECTIVES, scored_output
from benchmarks.theory.toy import (
    BATCH,
    N_FIT,
    NOISE,
    SCORES,
    Toy,
    as_encoder,
    configuration,
    interval,
    isotropy,
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
from skjepa import extract
from skjepa.encoders.isotropy import unit_directions
from skjepa.pretraining.config import PretrainConfig
from skjepa.pretraining.loop import pretrain
from skjepa.pretraining.losses import info_nce, invariance, sigreg, vicreg

NAME = "theory_convergence"
TRAINED = ("SIGReg", "VICReg", "InfoNCE")
TOYS = ("mixture, d = 2", "rings")
LOSSES = ("invariance", "regulariser")
SATURATED = 0.02
"""A score has saturated at the first step from which on its Spearman correlation stays this close to the last one."""


def main() -> None:
    chosen = options(__doc__, NAME).parse_args()
    n_seeds, doublings = (2, 5) if chosen.quick else (chosen.n_seeds, 7)
    seeds = range(chosen.seed, chosen.seed + n_seeds)
    tasks = [(toy, objective, 2**doublings, seed) for toy in TOYS for objective in TRAINED for seed in seeds]
    traces = run_all(trace, tasks, n_jobs=chosen.n_jobs)
    results: dict[str, dict[str, Any]] = {}
    for i, (toy, objective, *_) in enumerate(tasks[::n_seeds]):
        results.setdefault(toy, {})[objective] = summary(traces[i * n_seeds :][:n_seeds])
    settings = {"n_seeds": n_seeds, "noise": NOISE, "interval": "95 %, Student's t over seeds"}
    record.write(chosen.out, {"toys": results}, seed=chosen.seed, quick=chosen.quick, **settings)
    draw(results, chosen.figure)


def trace(name: str, objective: str, epochs: int, seed: int) -> dict[str, list[float]]:
    """Measure -> its values before training and after 1, 2, 4 ... epochs."""
    toy, per_epoch = make_toy(name, seed), N_FIT // BATCH
    module = network(toy.fit.shape[1], seed)
    config = configuration(epochs * per_epoch, seed, decay=0.0, **(OBJECTIVES[objective] or {}))
    found: dict[str, list[float]] = {"step": []}

    def measure(module: nn.Module, epoch: int) -> None:
        found["step"].append(epoch * per_epoch)
        for measure, value in (terms(module, objective, toy, config) | qualities(module, objective, toy)).items():
            found.setdefault(measure, []).append(value)

    def on_epoch(module: nn.Module, statistics: dict[str, float]) -> None:
        epoch = int(statistics["epoch"])
        if epoch & (epoch - 1) == 0:
            measure(module, epoch)

    measure(module.eval(), 0)
    pretrain(module, tensor(toy.fit), config, on_epoch=on_epoch)
    return found


def qualities(module: nn.Module, objective: str, toy: Toy) -> dict[str, float]:
    encoder = as_encoder(module, scored_output(objective))
    fit, test = extract(encoder, toy.fit), extract(encoder, toy.test)
    found = {label: spearman(model.score_samples(test), toy.log_p) for label, model in score_models(fit).items()}
    return found | isotropy(fit.embeddings)


@torch.no_grad()
def terms(module: nn.Module, objective: str, toy: Toy, config: PretrainConfig) -> dict[str, float]:
    """Both loss terms, unweighted, of two views of the test samples: the same views and directions at every step."""
    generator = torch.Generator().manual_seed(0)
    x = tensor(toy.test)
    first, second = (module(x + NOISE * torch.randn(x.shape, generator=generator)) for _ in range(2))
    both = torch.stack([first, second])
    if objective == "SIGReg":
        directions = unit_directions(first.shape[1], 256, generator)
        found = invariance(both), (sigreg(first, directions) + sigreg(second, directions)) / 2
    elif objective == "VICReg":
        found = mse_loss(first, second), vicreg(first, second, invariance_weight=0.0)
    else:
        alignment = (1 - cosine(first, second)).mean() / config.temperature
        found = alignment, info_nce(first, second, temperature=config.temperature) - alignment
    return {name: value.item() for name, value in zip(LOSSES, found, strict=True)}


def cosine(first: Tensor, second: Tensor) -> Tensor:
    return (normalize(first) * normalize(second)).sum(1)


def summary(traces: list[dict[str, list[float]]]) -> dict[str, Any]:
    """Curves over the seeds, and what each run says of the questions: follow, saturate, hurt?"""
    steps = traces[0]["step"]
    curves = {
        measure: [interval(values) for values in zip(*(trace[measure] for trace in traces), strict=True)]
        for measure in traces[0]
        if measure != "step"
    }
    answers = {
        label: {
            "correlation with the fall of": {
                loss: interval(follows(t, label, loss) for t in traces) for loss in LOSSES
            },
            "saturated at step": [saturation(steps, t[label]) for t in traces],
            "last": curves[label][-1],
            "best step less last": interval(max(t[label]) - t[label][-1] for t in traces),
            "last less a quarter of the steps": interval(t[label][-1] - t[label][-3] for t in traces),
        }
        for label in SCORES
    }
    return {"steps": steps, "curves": curves, "scores": answers}


def follows(trace: dict[str, list[float]], label: str, loss: str) -> float:
    """Rank correlation, over one run's steps, of the score's quality with minus the loss; the theory expects 1."""
    if np.ptp(trace[label]) == 0 or np.ptp(trace[loss]) == 0:
        return 0.0
    return float(spearmanr(trace[label], -np.array(trace[loss])).statistic)


def saturation(steps: list[int], quality: list[float]) -> int:
    away = np.flatnonzero(np.abs(np.array(quality) - quality[-1]) > SATURATED)
    return steps[int(away[-1]) + 1] if len(away) else steps[0]


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """A column a toy and objective: quality above, both loss terms below, over steps."""
    columns = [(toy, objective, found) for toy, by in results.items() for objective, found in by.items()]
    figure, axes = plt.subplots(
        2, len(columns), figsize=(2.5 * len(columns) + 0.5, 5.2), sharex=True, sharey="row", layout="constrained"
    )
    for (toy, objective, found), (above, below) in zip(columns, axes.T, strict=True):
        for label, colour in (("JEPA-SCORE alone", "C1"), ("full formula", "C0")):
            band(above, found["steps"], found["curves"][label], label=label, color=colour)
        for loss, colour in zip(LOSSES, ("C2", "C3"), strict=True):
            band(below, found["steps"], found["curves"][loss], label=loss, color=colour)
        above.axhline(0, color="0.6", lw=0.8)
        above.set(title=f"{toy}\n{objective}", ylim=(-1, 1))
        below.set(xlabel="step", yscale="log")
        below.set_xscale("symlog", linthresh=N_FIT // BATCH)
    axes[0, 0].set_ylabel("Spearman with log p")
    axes[1, 0].set_ylabel("loss term, held-out samples")
    for axis in axes[:, 0]:
        axis.legend(fontsize=8)
    save(figure, path)


def band(axis, steps: list[int], curve: list[dict[str, float]], *, label: str, color: str) -> None:
    mean, low, high = (np.array([value[key] for value in curve]) for key in ("mean", "low", "high"))
    axis.plot(steps, mean, marker=".", color=color, label=label)
    smallest: NDArray | float = min(mean.min() / 10, 1e-9) if axis.get_yscale() == "log" else -np.inf
    axis.fill_between(steps, np.maximum(low, smallest), high, color=color, alpha=0.2, lw=0)


if __name__ == "__main__":
    main()
