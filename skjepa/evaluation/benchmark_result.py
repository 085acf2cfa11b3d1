"""Hold the result of a benchmark, the scores of every detector, and write it as tables, files and figures."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from matplotlib.figure import Figure
from numpy.typing import NDArray

from skjepa._utils.files import written_whole
from skjepa._utils.provenance import stamp
from skjepa._utils.shown import html_table, text_table
from skjepa.data.sources import Source
from skjepa.data.splits import SPLITS, Repeat
from skjepa.detectors.conformal import conformal_offset
from skjepa.evaluation.comparison import (
    SharedNormals,
    bootstrap,
    critical_difference,
    delong,
    friedman_p_value,
    mean_ranks,
    paired_tests,
)
from skjepa.evaluation.metrics import METRICS, detection_metrics, observed_false_positives
from skjepa.evaluation.pareto import pareto_figure, pareto_front
from skjepa.evaluation.plotting import gallery_figure, ranks_figure, roc_figure, save_figure

ALPHAS = (0.01, 0.05, 0.1)


@dataclass(frozen=True, eq=False, repr=False)
class BenchmarkResult:
    """Hold the scores of `skjepa.run_benchmark`, and make tables, figures and files from them.

    Attributes
    ----------
    settings : dict
        Encoder, its fingerprint, method, seed and other settings of the run.
    groups : dict of name -> Source
        "fit", "calibration", "test", then the sets of outliers.
    scores : dict of detector -> dict of group -> array (n_samples,)
        Scores of all groups except "fit"; higher = more normal.
    costs : dict of detector -> dict
        passes_per_sample (one forward pass and the backward passes), seconds_per_sample (encoder and detector) and
        fit_seconds (detector alone).
    repeats : list of skjepa.data.splits.Repeat
        Samples found in two groups.
    reference : str
        The detector that the others are compared with.
    n_resamples : int
        Number of bootstrap samples.
    """

    settings: dict[str, Any]
    groups: dict[str, Source]
    scores: dict[str, dict[str, NDArray[np.float64]]]
    costs: dict[str, dict[str, float]]
    repeats: list[Repeat] = field(default_factory=list)
    reference: str = ""
    n_resamples: int = 1000

    @property
    def detectors(self) -> list[str]:
        return list(self.scores)

    @property
    def sets(self) -> list[str]:
        return [name for name in self.groups if name not in SPLITS]

    def on(self, sets: Sequence[str]) -> "BenchmarkResult":
        """Return the result for these sets of outliers alone; raise ValueError for an unknown set."""
        if unknown := [name for name in sets if name not in self.sets]:
            raise ValueError(f"there is no set {unknown[0]!r}: give one of {', '.join(map(repr, self.sets))}")
        kept = [*(name for name in SPLITS if name in self.groups), *sets]
        return replace(
            self,
            groups={name: self.groups[name] for name in kept},
            scores={
                detector: {name: scores[name] for name in kept if name in scores}
                for detector, scores in self.scores.items()
            },
            repeats=[repeat for repeat in self.repeats if repeat.group in kept],
        )

    @cached_property
    def summary(self) -> dict[str, Any]:
        """All numbers as a dict: metrics with intervals, paired tests, ranks, false positives, costs and repeats."""
        shared = self._shared
        drawn = bootstrap(shared, n_resamples=self.n_resamples, random_state=self.settings["seed"])
        auroc, _ = delong(shared)
        ranks = mean_ranks(auroc)
        detectors = {}
        for d, name in enumerate(self.detectors):
            own = {key: detection_metrics(shared.normal[name], part) for key, part in shared.outliers[name].items()}
            detectors[name] = {
                "mean": {m: _value(np.mean([own[s][m] for s in own]), drawn.interval(name, m)) for m in METRICS},
                "sets": {s: {m: _value(own[s][m], drawn.interval(name, m, s)) for m in METRICS} for s in own},
                "mean_rank": float(ranks[d]),
                "false_positives": observed_false_positives(
                    self.scores[name]["calibration"], self.scores[name]["test"], ALPHAS
                ),
                **self.costs[name],
            }
        several = len(self.detectors) > 1
        return {
            "settings": self.settings,
            "samples": {name: len(source) for name, source in self.groups.items()},
            "repeats": [asdict(repeat) for repeat in self.repeats],
            "reference": self.reference,
            "detectors": detectors,
            "paired_tests": _paired_tests(shared, self.reference) if several else [],
            "critical_difference": critical_difference(len(ranks), len(self.sets))
            if several and len(self.sets) > 1  # ranks on one set have no spread
            else None,
            "friedman_p_value": _or_none(friedman_p_value(auroc)),
        }

    def to_json(self, path: str | os.PathLike) -> Path:
        """Write the summary as JSON, stamped with date, versions and hardware."""
        path = Path(path)
        text = json.dumps({"stamp": stamp(self.settings["seed"]), **self.summary}, indent=1, allow_nan=False)
        with written_whole(path) as partial:
            partial.write_text(text + "\n")
        return path

    def to_parquet(self, path: str | os.PathLike) -> Path:
        """Write every score to a Parquet file with the columns detector, group, id and score."""
        path = Path(path)
        parts = [
            pa.table(
                {
                    "detector": pa.array([detector] * len(scores), pa.string()),
                    "group": pa.array([group] * len(scores), pa.string()),
                    "id": pa.array(self.groups[group].ids.tolist(), pa.string()),
                    "score": pa.array(scores, pa.float64()),
                }
            )
            for detector, groups in self.scores.items()
            for group, scores in groups.items()
        ]
        with written_whole(path) as partial:
            pq.write_table(pa.concat_tables(parts), partial, compression="zstd")
        return path

    def to_markdown(self) -> str:
        """Return Markdown tables of AUROC by detector and set, paired tests, and false positives."""
        return "\n\n".join([auroc_table(self.summary), false_positives_table(self.summary)])

    def __repr__(self) -> str:
        return f"BenchmarkResult({len(self.detectors)} detectors on {len(self.sets)} sets of outliers)"

    def __str__(self) -> str:
        return "\n".join([self._title(), text_table(*self._auroc())])

    def _repr_html_(self) -> str:
        return html_table(*self._auroc(), title=self._title())

    def _title(self) -> str:
        return f"AUROC against {len(self.groups['test'])} normal samples; .to_markdown() has intervals, tests and costs"

    def _auroc(self) -> tuple[list[str], list[list[str]]]:
        """The head and the rows of a table, the best mean first; without intervals, which take a while."""
        found = {
            name: [detection_metrics(scores["test"], scores[s])["auroc"] for s in self.sets]
            for name, scores in self.scores.items()
        }
        ranked = sorted(found, key=lambda name: -np.mean(found[name]))
        rows = [[name, *(f"{value:.3f}" for value in [*found[name], np.mean(found[name])])] for name in ranked]
        return ["detector", *self.sets, "mean"], rows

    def roc(self) -> Figure:
        """Draw the ROC curves of all detectors, with one panel per set."""
        return roc_figure(
            {s: {d: (self.scores[d]["test"], self.scores[d][s]) for d in self.detectors} for s in self.sets}
        )

    def ranks(self) -> Figure:
        """Draw the mean ranks over sets with the critical difference; needs two detectors and two sets."""
        found = self.summary
        if found["critical_difference"] is None:
            raise ValueError(
                f"ranks need at least two detectors and two sets; got {len(self.detectors)} and {len(self.sets)}"
            )
        mean_rank = {name: row["mean_rank"] for name, row in found["detectors"].items()}
        return ranks_figure(mean_rank, found["critical_difference"])

    def pareto(self) -> Figure:
        """Draw mean AUROC against milliseconds per sample, with a line through the detectors on the Pareto front."""
        seconds, auroc = _cost_and_value(self.summary)
        return pareto_figure(seconds, auroc, n_sets=len(self.sets))

    def gallery(self, detector: str | None = None, *, alpha: float = 0.05) -> Figure:
        """Draw histograms of a detector's scores with its threshold, and the most and least typical test images."""
        name = self.reference if detector is None else detector
        scores = {group: self.scores[name][group] for group in ("test", *self.sets)}
        calibration = self.scores[name]["calibration"]
        alpha = max(alpha, 1 / (len(calibration) + 1))  # the lowest rate that this number of samples can guarantee
        threshold = conformal_offset(calibration, alpha)
        return gallery_figure(
            scores,
            {group: self.groups[group] for group in scores},
            lambda group, i: group[:16],
            threshold=threshold,
            title=f"{name}, threshold for {alpha:.2g} of normal samples",
        )

    def save(self, folder: str | os.PathLike) -> list[Path]:
        """Write results.json, scores.parquet, table.md, roc.png, gallery.png, pareto.png and ranks.png.

        ranks.png is left out where there is one detector or one set.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        table = folder / "table.md"
        with written_whole(table) as partial:
            partial.write_text(self.to_markdown() + "\n")
        written = [self.to_json(folder / "results.json"), self.to_parquet(folder / "scores.parquet"), table]
        pictures = {"roc": self.roc, "gallery": self.gallery, "pareto": self.pareto} | (
            {"ranks": self.ranks} if min(len(self.scores), len(self.sets)) > 1 else {}
        )
        return written + [save_figure(draw(), folder / f"{name}.png") for name, draw in pictures.items()]

    @property
    def _shared(self) -> SharedNormals:
        return SharedNormals.checked(
            {detector: scores["test"] for detector, scores in self.scores.items()},
            {detector: {name: scores[name] for name in self.sets} for detector, scores in self.scores.items()},
        )


def auroc_table(summary: Mapping[str, Any]) -> str:
    """Return a Markdown table of AUROC by detector and set.

    It also has the mean with its 95 % interval, the mean rank, the lead of the reference, and the cost. The last column
    marks the detectors on the Pareto front of mean AUROC and seconds, see `pareto_front`.
    """
    tests = {test["rival"]: test for test in summary["paired_tests"]}
    sets = list(next(iter(summary["detectors"].values()))["sets"])
    best = max(row["mean"]["auroc"]["value"] for row in summary["detectors"].values())
    rows = [
        [
            "AUROC",
            *sets,
            "mean (95 %)",
            "rank",
            f"{summary['reference']} ahead by",
            "p (Holm)",
            "passes",
            "ms",
            "Pareto",
        ]
    ]
    seconds, auroc = _cost_and_value(summary)
    front = dict(zip(seconds, pareto_front(list(seconds.values()), list(auroc.values())).tolist(), strict=True))
    for name, row in summary["detectors"].items():
        mean, test = row["mean"]["auroc"], tests.get(name)
        shown = f"{mean['value']:.3f} ({mean['low']:.3f} to {mean['high']:.3f})"
        rows.append(
            [
                name,
                *(f"{row['sets'][s]['auroc']['value']:.3f}" for s in sets),
                f"**{shown}**" if mean["value"] == best else shown,
                f"{row['mean_rank']:.1f}",
                "" if test is None else f"{test['difference']:+.3f}",
                "" if test is None else _p_value(test["adjusted_p_value"]),
                f"{row['passes_per_sample']:.0f}",
                f"{1000 * row['seconds_per_sample']:.3g}",
                "yes" if front[name] else "",
            ]
        )
    return markdown(rows)


def false_positives_table(summary: Mapping[str, Any]) -> str:
    """Return a Markdown table of the shares of normal test samples flagged at nominal rates.

    The heading shows the expected beta-binomial range of each rate; a share outside of it is marked.
    """
    first = next(iter(summary["detectors"].values()))["false_positives"]
    rows = [["normal samples flagged", *(_nominal(row) for row in first)]]
    for name, row in summary["detectors"].items():
        shares = row["false_positives"]
        rows.append([name, *(f"{s['observed']:.1%}" + ("" if s["within"] in (True, None) else " (!)") for s in shares)])
    return markdown(rows)


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose first row is the heading; the first column is left-aligned, the others right."""
    lines = [rows[0], ["---", *["--:"] * (len(rows[0]) - 1)], *rows[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _paired_tests(shared: SharedNormals, reference: str) -> list[dict[str, Any]]:
    """Return the paired tests as dicts; numbers that need a variance are None where a set has a single outlier."""
    tests = [asdict(test) for test in paired_tests(shared, reference)]
    return [{key: value if isinstance(value, str) else _or_none(value) for key, value in t.items()} for t in tests]


def _cost_and_value(summary: Mapping[str, Any]) -> tuple[dict[str, float], dict[str, float]]:
    """Return seconds per sample and mean AUROC of every detector."""
    rows = summary["detectors"]
    seconds = {name: row["seconds_per_sample"] for name, row in rows.items()}
    return seconds, {name: row["mean"]["auroc"]["value"] for name, row in rows.items()}


def _nominal(row: Mapping[str, Any]) -> str:
    if row["low"] is None:
        return f"nominal {row['alpha']:.0%} (too few to calibrate)"
    return f"nominal {row['alpha']:.0%} (expected {row['low']:.1%} to {row['high']:.1%})"


def _p_value(p: float | None) -> str:
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _value(value: Any, interval: tuple[float, float]) -> dict[str, float]:
    return {"value": float(value), "low": interval[0], "high": interval[1]}


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else value
