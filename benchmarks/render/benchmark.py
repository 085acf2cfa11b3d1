"""The tables of docs/results/benchmark.md, from what the suites measured; `python -m benchmarks.render` puts them in
their places."""

import numpy as np

from benchmarks.common.markdown import read
from benchmarks.common.record import RESULTS
from benchmarks.render import vectors
from skjepa.evaluation.benchmark_result import auroc_table, false_positives_table, markdown

TIE = 0.01
ENCODERS = {
    "dinov2_vits14": "DINOv2 ViT-S/14",
    "dinov2_vitb14": "DINOv2 ViT-B/14",
    "dinov2_vitl14": "DINOv2 ViT-L/14",
    "metaclip_b16": "MetaCLIP B/16",
}


def images() -> dict:
    return read("benchmark_images")


def spectra() -> dict:
    return read("spectra")


def run_line() -> str:
    """What was run, so that nobody takes a quick run for a full one."""
    found = images()
    stamp, samples = found["stamp"], found["foreign"]["samples"]
    sizes = {size for name, size in samples.items() if name not in ("fit", "calibration", "test")}
    form = "A quick run" if stamp["quick"] else "The full run"
    return (
        f"{form} of {stamp['date'][:10]}, encoder {stamp['encoder']!r}: {samples['fit']} images to fit on, "
        f"{samples['calibration']} to calibrate, {samples['test']} normal test images, "
        f"{'/'.join(map(str, sorted(sizes)))} in every other set; images found in two groups: "
        f"{len(found['foreign']['repeats'])}."
    )


def bars_table() -> str:
    found = images()["bars"]
    rows = [["target", "required", *(cell for part in found for cell in (part, ""))]]
    for name, first in found["all sets"].items():
        if not isinstance(first, dict) or "met" not in first:
            continue
        cells = [cell for part in found for cell in _bar_cells(found[part][name])]
        rows.append([name, "" if "asked" not in first else f"{first['asked']:g}", *cells])
    return markdown(rows)


def verdict_list() -> str:
    """Where the default wins, ties and loses, set by set."""
    behind = images()["bars"]["all sets"]["behind"]
    lines = {"wins": [], "ties": [], "loses": []}
    for name, row in behind.items():
        gap = -row["behind_by"]
        kind = "ties" if abs(gap) <= TIE else "wins" if gap > 0 else "loses"
        lines[kind].append(f"{name} ({gap:+.3f} against {row['best_rival']})")
    return "\n".join(
        f"- **{kind}** on {len(sets)} of {len(behind)} sets{': ' + '; '.join(sets) if sets else ''}."
        for kind, sets in lines.items()
    )


def foreign_table() -> str:
    return auroc_table(images()["foreign"])


def blind_table() -> str:
    return auroc_table(images()["blind"])


def photographs_table() -> str:
    return auroc_table(read("benchmark_224")["foreign"])


def photographs_line() -> str:
    found = read("benchmark_224")
    samples, stamp = found["foreign"]["samples"], found["stamp"]
    directions = f"corrected by {stamp['exact']} exact images" if stamp["exact"] else "random, not corrected"
    return (
        f"{samples['fit']} images to fit on, {samples['calibration']} to calibrate, {samples['test']} normal test "
        f"images, {samples['mnist']} in every other set; {stamp['passes']} directions, {directions}:"
    )


def false_positives() -> str:
    return false_positives_table(images()["foreign"])


def strengths_table() -> str:
    found = images()["strengths"]
    rivals = list(next(iter(found.values())))
    rows = [["AUROC, weakest to strongest", *found]]
    rows += [[name, *(" ".join(f"{v:.2f}" for v in found[kind][name]) for kind in found)] for name in rivals]
    return markdown(rows)


def agreement_table() -> str:
    found = images()["agreement"]
    explicit = list(next(iter(found.values())))
    rows = [["Spearman, normal images / all images", *explicit]]
    for score, with_density in found.items():
        rows.append(
            [score, *(f"{with_density[name]['normal']:.2f} / {with_density[name]['all']:.2f}" for name in explicit)]
        )
    return markdown(rows)


def controls_table() -> str:
    """Means of the further parts: re-encoded, features, training images."""
    found = images()
    parts = {
        "foreign": found["foreign"],
        "re-encoded alike": found["re-encoded"],
        "features": found.get("features"),
        "training images": found["training_images"],
    }
    kept = {name: part["detectors"] for name, part in parts.items() if part is not None}
    sets = ("mnist", "fashion_mnist", "tiny_imagenet", "uniform noise")
    corruptions = tuple(found["strengths"])
    rows = [["mean AUROC", *kept, "corruptions", "corruptions re-encoded alike"]]
    for rival in found["foreign"]["detectors"]:
        cells = [
            _mean_over(part.get(rival), sets if name != "training images" else None) for name, part in kept.items()
        ]
        cells += [_mean_over(kept[part].get(rival), corruptions) for part in ("foreign", "re-encoded alike")]
        rows.append([rival, *cells])
    return markdown(rows)


def encoders_table() -> str:
    """Mean AUROC of every detector by encoder, over the foreign sets and over the blind corruptions."""
    found = {"bundled": images()} | {
        path.stem.removeprefix("benchmark_images_"): read(path.stem)
        for path in sorted(RESULTS.glob("benchmark_images_*.json"))
    }
    columns = [(name, part) for name in found for part in ("foreign", "blind")]
    rows = [["mean AUROC", *(f"{name}, {part}" for name, part in columns)]]
    for rival in found["bundled"]["foreign"]["detectors"]:
        cells = (found[name][part]["detectors"][rival]["mean"]["auroc"]["value"] for name, part in columns)
        rows.append([rival, *(f"{value:.3f}" for value in cells)])
    bars = {"foreign": "all sets", "blind": "blind corruptions"}
    gaps = (found[name]["bars"][bars[part]]["ahead of every baseline"] for name, part in columns)
    rows.append(["skjepa ahead of the best baseline", *(f"{gap['measured']:+.3f} ({gap['nearest']})" for gap in gaps)])
    return markdown(rows)


def spectra_table() -> str:
    found = spectra()["encoders"]
    names = list(found["dinov2_vits14"]["SVHN"]["scores"])
    rows = [["AUROC", "n", *names]]
    for encoder, sets in found.items():
        rows += [
            [f"{ENCODERS[encoder]}, {name}", str(row["n"]), *(f"{row['scores'][s]['auroc']:.3f}" for s in names)]
            for name, row in sets.items()
        ]
    return markdown(rows)


def spectra_fifths_table() -> str:
    found = spectra()["encoders"]
    rows = [["normal less foreign log singular value, nats", *(f"{i}. fifth" for i in range(1, 6))]]
    for encoder, sets in found.items():
        rows += [
            [f"{ENCODERS[encoder]}, {name}", *(f"{gap:+.2f}" for gap in row["fifths"]["gap_in_nats"])]
            for name, row in sets.items()
        ]
    return markdown(rows)


def spectra_line() -> str:
    found = spectra()["published"]
    under = {
        f"{ENCODERS[encoder]}, {name}": row["values_under_the_paper_floor"]
        for encoder, sets in spectra()["encoders"].items()
        for name, row in sets.items()
        if row["values_under_the_paper_floor"]
    }
    return (
        f"Largest difference from the ten published AUROCs: {found['largest_difference']:.4f}, required at most "
        f"{found['tolerance']:g}: {'met' if found['met'] else 'not met'}. Singular values under the paper's floor, "
        f"1e-6: {', '.join(f'{n} ({name})' for name, n in under.items()) or 'none'}."
    )


def _bar_cells(row: dict) -> list[str]:
    measured = row["measured"]
    if isinstance(measured, dict):
        shown = ", ".join(f"{share:.1%} at {float(alpha):.0%}" for alpha, share in measured.items())
    elif where := row.get("nearest") or row.get("worst_set"):
        shown = f"{measured:+.3f} ({where})"
    else:
        shown = "p < 0.001" if measured < 0.001 else f"p = {measured:.3f}"
        if measured <= row["asked"] and not row["met"]:
            shown += ", a baseline ahead"
    return [shown, "met" if row["met"] else "**not met**"]


def _mean_over(row: dict | None, sets: tuple[str, ...] | None) -> str:
    if row is None:
        return ""
    chosen = row["sets"] if sets is None else {name: row["sets"][name] for name in sets}
    return f"{np.mean([metrics['auroc']['value'] for metrics in chosen.values()]):.3f}"


BENCHMARK = {
    "benchmark-run": run_line,
    "benchmark-bars": bars_table,
    "benchmark-verdict": verdict_list,
    "benchmark-foreign": foreign_table,
    "benchmark-blind": blind_table,
    "benchmark-encoders": encoders_table,
    "benchmark-false-positives": false_positives,
    "benchmark-strengths": strengths_table,
    "benchmark-agreement": agreement_table,
    "benchmark-controls": controls_table,
    "benchmark-224-run": photographs_line,
    "benchmark-224": photographs_table,
    "benchmark-tables": vectors.ranks_table,
    "spectra-line": spectra_line,
    "spectra": spectra_table,
    "spectra-fifths": spectra_fifths_table,
}
