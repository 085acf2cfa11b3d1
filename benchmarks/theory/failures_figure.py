"""The figure of failures.py."""

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.theory.toy import plt, save


def draw(results: dict[str, Any], path: Path) -> None:
    """Six panels: collapse, fidelity, lost rank, varying rank, views, seeds."""
    figure, axes = plt.subplots(2, 3, figsize=(15, 8), layout="constrained")
    panels = (_collapse, _fidelity, _spectra, _views, _seeds, _cost)
    for axis, panel in zip(axes.flat, panels, strict=True):
        panel(axis, results)
        axis.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def _collapse(axis, results: dict[str, Any]) -> None:
    for name, runs in results["vectors"].items():
        spread = runs[0]["diagnoses"]["jepa"]["relative_spread"]
        values = np.maximum(runs[0]["eigenvalues"], 1e-12)
        axis.semilogy(np.arange(1, len(values) + 1), values, "o-", ms=3, label=f"{name} (spread {spread:.1g})")
    axis.set(title="Collapse: embeddings vary in few directions", xlabel="direction", ylabel="share of the variance")
    axis.set_ylim(1e-9, 1e4)
    axis.legend(fontsize=7, loc="upper right")


def _fidelity(axis, results: dict[str, Any]) -> None:
    for name, runs in results["vectors"].items():
        told = [run["diagnoses"]["jepa"]["fidelity"] for run in runs]
        true = [run["spearman"]["jepa"] for run in runs]
        axis.plot(told, true, "o", label=name)
    axis.plot([-1, 1], [-1, 1], color="0.7", lw=0.8, zorder=0)
    axis.axvline(results["limits"]["FAITHFUL"], color="0.4", ls="--", lw=0.8, label="limit")
    axis.set(
        title="JEPA-SCORE alone: told and true",
        xlabel="fidelity, from samples alone",
        ylabel="Spearman with the true log p",
        xlim=(-1, 1),
        ylim=(-1, 1),
    )
    axis.legend(fontsize=7, loc="upper left")


def _spectra(axis, results: dict[str, Any]) -> None:
    for name, found in results["images"].items():
        (line,) = axis.semilogy(np.maximum(found["spectrum"], 1e-12), label=name)
        axis.axhline(found["noise"], color=line.get_color(), ls=":", lw=0.8)
    axis.set(title="Lost rank (dotted: rounding noise)", xlabel="k", ylabel="median singular value")
    axis.set_ylim(1e-8, 1e6)
    axis.legend(fontsize=7, loc="upper right")


def _views(axis, results: dict[str, Any]) -> None:
    for name, found in results["views"].items():
        first, second = found["two views"]
        icc = found["diagnosis"]["view_icc"]
        axis.plot(first, second, ".", ms=4, alpha=0.6, label=f"{name} (ICC {icc:.2f})")
    axis.set(title="Two views of one image", xlabel="log-volume of view 1, nats", ylabel="log-volume of view 2, nats")
    axis.legend(fontsize=7, loc="upper left")


def _seeds(axis, results: dict[str, Any]) -> None:
    rows = list(results["seeds"])[::-1]
    for height, name in enumerate(rows):
        matrix = np.array(results["seeds"][name]["correlation"])
        pairs = matrix[np.triu_indices(len(matrix), 1)]
        axis.plot(pairs, np.full(len(pairs), height), "o", color="C0")
    axis.axvline(results["limits"]["SEEDS_AGREE"], color="0.4", ls="--", lw=0.8, label="limit")
    axis.set(title="JEPA-SCORE under two seeds", xlabel="Spearman", xlim=(-1, 1.02))
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.legend(fontsize=7, loc="lower left")


def _cost(axis, results: dict[str, Any]) -> None:
    """AUROC of every image case, JEPA-SCORE with the paper's floor and the default, mean of the foreign sets."""
    rows = list(results["images"])[::-1]
    for shift, detector in ((0.2, "JEPA-SCORE, floor 1e-6"), (-0.2, "joint")):
        means = [np.mean(list(results["images"][row]["detectors"][detector]["auroc"].values())) for row in rows]
        axis.barh(np.arange(len(rows)) + shift, means, 0.36, label=detector)
    axis.axvline(0.5, color="0.4", lw=0.8)
    axis.set(title="What it costs on images", xlabel="AUROC, mean of three sets", xlim=(0, 1.45))
    axis.set_yticks(range(len(rows)), rows, fontsize=8)
    axis.legend(fontsize=7, loc="upper right")
