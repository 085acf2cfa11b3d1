"""The tables of docs/results/passes.md, and one of docs/guide/scores.md: what backward passes add to hidden layers."""

from collections.abc import Callable
from functools import partial
from statistics import fmean

from benchmarks.common.markdown import read
from skjepa.evaluation.benchmark_result import markdown

KINDS = {"foreign": "foreign sets", "blind": "blind corruptions"}


def summary(name: str) -> str:
    """Cost, mean AUROC and decisions of every way of passing; of one that was only timed, its cost."""
    found = read(name)
    reference = found["reference"]
    head = ["", "backward passes", "ms per image"]
    head += [f"AUROC, {len(found[kind])} {label}" for kind, label in KINDS.items()]
    head += ["normal images flagged", f"decisions unlike those of {reference}: normal", *KINDS.values()]
    rows = [head]
    for way, cost in found["ways"].items():
        row = [way, f"{cost['passes']}", f"{1000 * cost['seconds']:.3g}"]
        if way in found["normal"]:
            means, normal = [found["means"][kind][way] for kind in KINDS], found["normal"][way]
            row += [_lead(mean) for mean in means]
            row += [f"{normal['flagged']:.1%}", *(_share(part, way, reference) for part in (normal, *means))]
        rows.append(row + [""] * (len(head) - len(row)))
    return markdown(rows)


def by_set(name: str) -> str:
    """AUROC on every set by every way, and its lead over the forward pass."""
    found = read(name)
    ways = list(found["normal"])
    rows = [["AUROC (lead over the forward pass; 95 %)", *ways]]
    labelled = {f"mean of the {len(found[kind])} {label}": found["means"][kind] for kind, label in KINDS.items()}
    rows += [[label, *(_lead(row[way]) for way in ways)] for label, row in (found["sets"] | labelled).items()]
    return markdown(rows)


def decisions(name: str) -> str:
    """Set by set what the most passes flag, and the share of the decisions of other ways that differ from theirs."""
    found = read(name)
    reference = found["reference"]
    others = [way for way in found["normal"] if way != reference]
    rows = [[f"flagged by {reference}, and decisions that differ", f"flagged by {reference}", *others]]
    for label, row in {"normal images": found["normal"], **found["sets"]}.items():
        rows.append([label, f"{row[reference]['flagged']:.1%}", *(f"{row[way]['differ']:.1%}" for way in others)])
    return markdown(rows)


def sizes(name: str) -> str:
    """How many images of what size, so that nobody takes a quick run for a full one."""
    found = read(name)
    stamp = found["stamp"]
    counts, side = stamp["sizes"], stamp["input_shape"][-1]
    form = "A quick run" if stamp["quick"] else "The run"
    return (
        f"{form} of {stamp['date'][:10]}, {side} x {side} pixels, K = {found['n_components']}: {counts['fit']} images "
        f"to fit on, {counts['calibration']} to calibrate, {counts['test']} normal test images, {counts['foreign']} in "
        f"every other set; {stamp['cores']} cores."
    )


def _lead(row: dict) -> str:
    if row["low"] == row["high"] == 0:
        return f"{row['auroc']:.3f}"
    return f"{row['auroc']:.3f} ({row['lead']:+.3f}; {row['low']:+.3f} to {row['high']:+.3f})"


def _share(row: dict, way: str, reference: str) -> str:
    return "" if way == reference else f"{row['differ']:.1%}"


ENCODERS = {"bundled": "value_of_passes", "lite0": "value_of_passes_lite0", "vit": "value_of_passes_vit"}
TRAINED = ("bundled", "lite0")  # AUROC of random weights says nothing of other encoders


def of_the_command_line() -> dict[str, dict[str, float]]:
    """Encoder -> number of passes -> mean AUROC over all sets: what `skjepa.cli.bill` says that fewer passes lose."""
    found = {encoder: read(ENCODERS[encoder]) for encoder in TRAINED if encoder in ENCODERS}
    return {
        encoder: {
            str(cost["passes"]): round(fmean(row[way]["auroc"] for row in result["sets"].values()), 4)
            for way, cost in result["ways"].items()
            if way in result["normal"]
        }
        for encoder, result in found.items()
    }


PAGE: dict[str, Callable[[], str]] = {
    f"passes-{encoder}-{table.__name__.replace('_', '-')}": partial(table, name)
    for encoder, name in ENCODERS.items()
    for table in (sizes, summary, by_set, decisions)
}
SCORES = {"value-of-passes": partial(summary, ENCODERS["bundled"])}
