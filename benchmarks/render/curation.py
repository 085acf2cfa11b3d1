"""The tables of docs/guide/curation.md and docs/results/one-class.md; `python -m benchmarks.render` puts them in
their places."""

from typing import Any

from benchmarks.common.markdown import read
from skjepa.evaluation.benchmark_result import markdown

PERCENT = {"0": "no junk", "0.1": "10 % junk", "0.3": "30 % junk"}


def curation() -> dict:
    return read("curation")


def one_class() -> dict:
    return read("one_class")


def run_line() -> str:
    """What was run, so that nobody takes a quick run for a full one."""
    stamp = curation()["stamp"]
    sizes = stamp["sizes"]
    return (
        f"{'A quick run' if stamp['quick'] else 'The full run'} of {stamp['date'][:10]}: {sizes['runs']} runs of "
        f"{sizes['run']} images, {sizes['reference']} in the clean reference, {sizes['test']} test images of the probe."
    )


def removal_table() -> str:
    """Learned from the folder itself, beside learned from a clean reference."""
    found = curation()
    ways = {"the folder itself": found["removal"], "a clean reference": found["removal_with_clean_reference"]}
    heading = [
        f"{PERCENT[share]}, {way}: {what}" for share in ("0.1", "0.3") for way in ways for what in ("AUPR", "P = R")
    ]
    rows = [["learned from", *heading]]
    for name in found["removal"]["0.1"]:
        cells = [
            _mean(ways[way][share].get(name), metric)
            for share in ("0.1", "0.3")
            for way in ways
            for metric in ("aupr", "precision")
        ]
        rows.append([name, *cells])
    return markdown(rows)


def kinds_table() -> str:
    """Which junk is found among as many images as there is junk."""
    found = curation()["removal"]
    kinds = list(next(iter(found["0.1"].values()))["recall_by_kind"])
    rows = [["recall", *(f"{PERCENT[share]}: {kind.replace('_', ' ')}" for share in found for kind in kinds)]]
    for name in found["0.1"]:
        rows.append(
            [name, *(f"{found[share][name]['recall_by_kind'][kind]['mean']:.2f}" for share in found for kind in kinds)]
        )
    return markdown(rows)


def alone_table() -> str:
    """AUROC where all junk is of one kind: the mean over the runs, and the demo's sets among photographs."""
    found = curation()
    kinds, photographs = found["one_kind"], found["photographs"]
    rows = [["AUROC", *(kind.replace("_", " ") for kind in kinds), *photographs, "mean"]]
    for name in found["removal"]["0.1"]:
        values = [row[name]["mean"] for row in kinds.values()] + [row[name] for row in photographs.values()]
        rows.append([name, *(f"{value:.3f}" for value in values), f"{sum(values) / len(values):.3f}"])
    return markdown(rows)


def shares_table() -> str:
    """Precision and recall of what is dropped at each share kept."""
    found = curation()["removal"]
    kept = list(next(iter(found["0.1"].values()))["by_share_kept"])[::-1]
    rows = [["precision / recall", *(f"{PERCENT[share]}, {float(k):.0%} kept" for share in found for k in kept)]]
    for name in found["0.1"]:
        cells = [found[share][name]["by_share_kept"][k] for share in found for k in kept]
        rows.append([name, *(f"{cell['precision']['mean']:.2f} / {cell['recall']['mean']:.2f}" for cell in cells)])
    return markdown(rows)


def probe_table(share: str) -> str:
    """Accuracy after pruning; in brackets the gain over as many at random, and its interval."""
    found = curation()["probe"][share]
    kept = [k for k in found if k != "1"]
    whole = found["1"]["all"]["accuracy"]
    rows = [[PERCENT[share], *(f"{float(k):.0%} kept" for k in kept), "class that lost most, 50 % kept"]]
    for name in found[kept[0]]:
        cells = [_gain(found[k][name], name) for k in kept]
        rows.append([name, *cells, f"{found['0.5'][name]['rarest_class_kept']['mean']:.2f}"])
    rows.append([f"all images: {whole['mean']:.3f}", *[""] * (len(kept) + 1)])
    return markdown(rows)


def one_class_line() -> str:
    stamp = one_class()["stamp"]
    sizes = stamp["sizes"]
    return (
        f"{'A quick run' if stamp['quick'] else 'The full run'} of {stamp['date'][:10]}: of each class {sizes['fit']} "
        f"images to fit on, {sizes['calibration']} to calibrate, {sizes['test']} to test."
    )


def one_class_table() -> str:
    found = one_class()
    names = list(found["classes"])
    rows = [["AUROC", *names, "mean (95 %)", "skjepa ahead by", "on", "p (Holm)", "flagged at 5 %"]]
    for detector, row in found["detectors"].items():
        aurocs = (f"{found['classes'][name][detector]['all']:.3f}" for name in names)
        lead = ["", "", ""]
        if "reference_ahead_by" in row:
            lead = [
                f"{row['reference_ahead_by']:+.3f}",
                f"{row['reference_ahead_on']} of {len(names)}",
                f"{row['adjusted_p_value']:.3f}",
            ]
        mean = f"{row['mean']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
        rows.append([detector, *aurocs, mean, *lead, f"{found['false_positives'][detector]['0.05']:.1%}"])
    return markdown(rows)


def _mean(row: dict[str, Any] | None, metric: str) -> str:
    return "" if row is None else f"{row[metric]['mean']:.3f}"


def _gain(row: dict[str, Any], name: str) -> str:
    accuracy, gain = row["accuracy"]["mean"], row["over_random"]
    if name.startswith("random"):
        return f"{accuracy:.3f}"
    return f"{accuracy:.3f} ({gain['mean']:+.3f}; {gain['low']:+.3f} to {gain['high']:+.3f})"


CURATION = {
    "curation-run": run_line,
    "curation-removal": removal_table,
    "curation-kinds": kinds_table,
    "curation-alone": alone_table,
    "curation-shares": shares_table,
    "curation-probe-0": lambda: probe_table("0"),
    "curation-probe-10": lambda: probe_table("0.1"),
    "curation-probe-30": lambda: probe_table("0.3"),
}
ONE_CLASS = {"one-class-run": one_class_line, "one-class": one_class_table}
