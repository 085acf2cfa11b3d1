"""The table of docs/guide/scores.md that says what backward passes add once hidden layers are read."""

import numpy as np

from benchmarks.common.markdown import read
from skjepa.evaluation.benchmark_result import markdown


def value_of_passes() -> str:
    """Set by set, AUROC by the forward pass and by more passes, and the lead over the forward pass."""
    found = read("value_of_passes")
    first, *others = next(iter(found["sets"].values()))
    rows = [["AUROC (lead over the forward pass; 95 %)", first, *others]]
    for name, ways in found["sets"].items():
        rows.append([name, f"{ways[first]['auroc']:.3f}", *(_cell(ways[way]) for way in others)])
    for kind, label in (("foreign", "mean of the eight foreign sets"), ("blind", "mean of the five blind corruptions")):
        mean = {way: np.mean([found["sets"][name][way]["auroc"] for name in found[kind]]) for way in (first, *others)}
        cells = (f"{mean[way]:.3f} ({mean[way] - mean[first]:+.3f})" for way in others)
        rows.append([label, f"{mean[first]:.3f}", *cells])
    return markdown(rows)


def _cell(row: dict) -> str:
    return f"{row['auroc']:.3f} ({row['lead']:+.3f}; {row['low']:+.3f} to {row['high']:+.3f})"


PASSES = {"value-of-passes": value_of_passes}
