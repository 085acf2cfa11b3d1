"""Write the tables of README and docs from the JSON files that the scripts of this repository measured.

    python benchmarks/render.py            # rewrite the tables
    python benchmarks/render.py --demo     # run the demo first, and keep its summary and picture

A table stands between `<!-- name -->` and `<!-- /name -->`.
"""

import argparse
import json
import math
import re
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import render_benchmark
import render_curation
import render_scaling
import render_tables

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
PICTURE = ROOT / "docs" / "images" / "demo.png"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--demo", action="store_true")
    if options.parse_args().demo:
        keep_demo()
    for document, tables in TABLES.items():
        path = ROOT / document
        path.write_text(rendered(path.read_text(), {name: table() for name, table in tables.items()}))


def keep_demo() -> None:
    from rich.console import Console

    from skjepa.demo import run_demo

    with tempfile.TemporaryDirectory() as folder:
        run_demo(Path(folder), seed=0, console=Console())
        PICTURE.parent.mkdir(exist_ok=True)
        shutil.copy(Path(folder) / "scores.png", PICTURE)
        shutil.copy(Path(folder) / "summary.json", RESULTS / "demo.json")


def rendered(text: str, tables: dict[str, str]) -> str:
    """The document with each table in its place; raises ValueError where a place is missing."""
    for name, table in tables.items():
        place = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        if not place.search(text):
            raise ValueError(f"no place for the table {name!r}")
        text = place.sub(lambda match, table=table: f"{match[1]}{table}\n{match[2]}", text)
    return text


def markdown(heading: list[str], rows: list[list[str]]) -> str:
    align = ["---", *["--:"] * (len(heading) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heading, align, *rows])


def number(value: float | None, digits: int = 3) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def read(name: str) -> dict:
    return json.loads((RESULTS / f"{name}.json").read_text())


def demo_table() -> str:
    rows = [
        [
            group["group"],
            f"{group['flagged']} / {group['images']}",
            *(number(group.get(key)) for key in ("auroc", "aupr_out", "fpr95_outlier_positive")),
            number(group["seconds_per_image"], 4),
        ]
        for group in read("demo")["groups"]
    ]
    return markdown(["images", "flagged / total", "AUROC", "AUPR", "FPR@95", "s / image"], rows)


def foreign_table() -> str:
    results = read("foreign_sets")
    rivals = results["mean_auroc"]
    best = max(rivals.values())
    counted = {name: judged for name, judged in results["sets"].items() if not name.endswith("re-encoded")}
    rows = [
        [
            f"`{rival}`" if rival.startswith("skjepa") else rival,
            *(number(judged[rival]["auroc"]) for judged in counted.values()),
            f"**{number(mean)}**" if mean == best else number(mean),
        ]
        for rival, mean in rivals.items()
    ]
    return markdown(["AUROC", *(name.replace("_", "-") for name in counted), "mean"], rows)


JOINT_FORMS = {
    "standardised, k = 10": "equal weights, distance to the tenth neighbour",
    "standardised, mean of 20": "equal weights, mean distance to twenty neighbours",
    "standardised, halves, kernels": "line 1 alone, three terms: s, log q(z), log q(s given z)",
    "standardised with formula, halves, kernels": "lines 1 to 3, three terms",
    "standardised with formula, halves, mean of 20": "the same, mean distance to twenty neighbours for the kernels",
    "standardised with formula, halves, kernels, spectrum": "lines 1 to 3, without log q(z / norm z)",
    "standardised with formula, halves, kernels, spectrum, direction": "lines 1 to 3, kernels (the default)",
    "standardised with formula, halves, kernels, spectrum, direction counting one": "log q(z / norm z) counting one",
    "standardised with formula, halves, kernels, spectrum, direction, Gaussian of z": "a Gaussian for the kernels",
    "log p of standardised with formula, halves, kernels, spectrum, direction": "tail probabilities for deviations",
    "formula in nats, kernels": "s + log q(z), kernels",
    "log-volume": "s",
    "log q(sigma | z)": "log q(sigma given z)",
    "log q(z), kernels": "log q(z), kernels",
    "log q(z), k = 10": "-d log r, r the distance to the tenth neighbour of z",
    "log q(z), gaussian": "Gaussian of z (Mahalanobis)",
    "log q(z), direction": "Gaussian of z / norm z (Mahalanobis++)",
}


def joint_forms_table() -> str:
    halves = read("joint_forms")["mean"]
    groups = {
        "tables, semi-supervised": "tables, semi-supervised",
        "tables, unsupervised": "unsupervised",
        "known densities, Spearman": "known densities",
        "images, head": "images",
        "all": "all ten groups",
    }
    rows = [
        [name, *(" / ".join(number(halves[half][group][form]) for half in ("tune", "confirm")) for group in groups)]
        for form, name in JOINT_FORMS.items()
    ]
    return markdown(["chosen on / looked at", *groups.values()], rows)


def contamination_table() -> str:
    found = read("joint_forms")["flagged"]
    rows = [[group, f"{shares['new normal']:.0%}"] for group, shares in found.items()]
    return markdown(["new normal samples flagged at contamination=0.1", "share"], rows)


def complexity_table() -> str:
    found = read("foreign_sets")["spearman_with_bits_per_pixel"]
    rows = [[name.replace("cifar10/test", "CIFAR-10"), number(value, 2)] for name, value in found.items()]
    return markdown(["Spearman with bits per pixel", "JEPA-SCORE"], rows)


def fewer_passes_table(name: str = "fewer_passes") -> str:
    results = read(name)
    found = {(row["score"], row["kind"], row["m"]): row for row in results["curve"]}
    rows = []
    for kind, m in dict.fromkeys((row["kind"], row["m"]) for row in results["curve"] if row["fewer_passes"] > 1):
        joint, volume = found["joint", kind, m], found["volume", kind, m]
        normal = [name for name in ("cifar10/test", "photographs") if name in volume["sets"]]
        errors = [volume["sets"][name]["error"]["mean"] for name in normal]
        rows.append(
            [
                kind,
                f"{m} ({joint['fewer_passes']:.2g}x)",
                number(joint["lowest_spearman_with_normal"]),
                number(joint["lowest_spearman"]),
                f"{joint['largest_change']:.3f} ({joint['largest_change_of_a_seed']:.3f})",
                number(volume["lowest_spearman_with_normal"]),
                " / ".join(number(error, 1) for error in errors),
            ]
        )
    heading = ["directions", "m", "Spearman", "alone", "change of AUROC", "Spearman, volume", "error in nats"]
    return markdown(heading, sorted(rows, key=lambda row: list(dict.fromkeys(r[0] for r in rows)).index(row[0])))


def fewer_passes_sets_table() -> str:
    results = read("fewer_passes")
    kind = results["curve"][0]["kind"]
    chosen = {
        row["m"]: row["sets"]
        for row in results["curve"]
        if (row["score"], row["kind"]) == ("joint", kind) and row["fewer_passes"] in (4, 8)
    }
    few, more = sorted(chosen)
    rows = [
        [
            name.replace("_", "-"),
            number(found["auroc"]["mean"]),
            *(changed(chosen[m][name]["change"]) for m in (more, few)),
        ]
        for name, found in chosen[few].items()
        if "change" in found
    ]
    return markdown(["AUROC of the default score", "exact", *(f"change, m = {m}" for m in (more, few))], rows)


def changed(change: dict) -> str:
    mean, low, high = (round(value, 3) + 0.0 for value in (change["mean"], *change["range"]))  # no minus zero
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def fewer_passes_seconds_table() -> str:
    results = read("fewer_passes")
    times = results["seconds_per_image"]
    rows = [[name, number(1000 * time, 1), number(times["exact"] / time, 1)] for name, time in times.items()]
    return markdown(["passes an image", "ms an image", "times faster"], rows)


def speed_table() -> str:
    """Listing 1 and ours, each at batch 1 and at its best batch."""
    rows = []
    for name, measured in read("exact_speed_cpu")["encoders"].items():
        best: dict[str, tuple[float, int]] = {}
        for way in measured["ways"]:
            best[way["way"]] = min(best.get(way["way"], (math.inf, 0)), (way["ms"], way["batch"]))
        single = {way["way"]: way["ms"] for way in measured["ways"] if way["batch"] == 1}
        for way, (ms, batch) in best.items():
            few = "projections" in way or "directions" in way
            rows.append(
                [
                    f"{name}, K = {measured['n_components']}" if way == "Listing 1" else "",
                    way,
                    milliseconds(single[way]),
                    f"{milliseconds(ms)} (batch {batch})",
                    "" if few else f"{single['Listing 1'] / ms:.1f}",
                    "" if few else f"{best['Listing 1'][0] / ms:.2f}",
                    "" if few or way == "Listing 1" else f"{ms / measured['floor_ms'][way.split(', ')[1]]:.2f}",
                ]
            )
    heading = ["encoder", "way", "ms, batch 1", "ms, best batch"]
    return markdown([*heading, "faster than Listing 1 at batch 1", "... at its best batch", "times the floor"], rows)


def milliseconds(value: float) -> str:
    return f"{value:.1f}" if value < 1000 else f"{value:,.0f}"


def speed_values_table() -> str:
    rows = [
        [
            name,
            precision,
            str(found["images"]),
            f"{found['mean_difference']:+.1e}",
            f"{found['largest_difference']:.1e}",
            number(found["spearman"], 4),
        ]
        for name, measured in read("exact_speed_cpu")["encoders"].items()
        for precision, found in measured["values"].items()
    ]
    return markdown(["encoder", "precision", "images", "mean difference", "largest", "Spearman"], rows)


def growth_table() -> str:
    measured = read("growth_cpu")
    rows = []
    for key, label in (
        ("passes", "m"),
        ("components", "K"),
        ("inputs", "side"),
        ("samples", "N"),
        ("threads", "threads"),
    ):
        rungs = measured[key]
        each = [1e3 * rung["seconds"] / rung["images"] for rung in rungs]
        sizes = " / ".join(str(rung["size"]) for rung in rungs)
        rows.append([label, sizes, " / ".join(f"{ms:.1f}" for ms in each)])
    return markdown(["size", "rungs", "ms an image"], rows)


def spectrum_cost_table() -> str:
    rows = [
        [str(row["n_components"]), f"{row['n_inputs']:,}", f"{row['ms']:.1f}"] for row in read("growth_cpu")["spectrum"]
    ]
    return markdown(["K", "D", "ms an image"], rows)


def peaks_table() -> str:
    rows = [
        [row["shape"], str(row["images"]), f"{row['budget_gib']:.1f}", f"{row['peak_gib']:.2f}"]
        for row in read("growth_cpu")["memory"]
    ]
    return markdown(["encoder at 224x224", "images", "budget, GiB", "peak, GiB"], rows)


def bill_table() -> str:
    """What the catalogue's counts make of a million and of a billion images."""
    from skjepa.catalog import encoder_costs

    speed, growth = read("exact_speed_cpu"), read("growth_cpu")
    rows = []
    for cost in encoder_costs():
        if cost.name not in BILLED or (cost.image_size != 224 and not cost.is_default_size) or cost.image_size > 224:
            continue
        for passes, method in ((cost.n_components, "exact"), (cost.n_components // 4, "m = K / 4")):
            tflop = (cost.forward_gflop + passes * cost.backward_gflop) / 1e3
            stored = growth["bytes_on_disk"]["64"] / 128 * (cost.n_components + passes)
            rows.append(
                [
                    f"{cost.name.split('.')[0]}, K = {cost.n_components}" if method == "exact" else "",
                    method,
                    f"{tflop:.3g}",
                    hours(tflop * 1e3 / speed["matrix_gflops"]["bfloat16"] * 1e6),
                    hours(tflop / 100 * 1e6),
                    hours(tflop / 100 * 1e9),
                    f"{stored * 1e6 / 2**30:.1f}",
                ]
            )
    heading = ["encoder", "method", "TFLOP an image", "hours here, bfloat16, 10^6", "GPU hours, 10^6"]
    return markdown([*heading, "GPU hours, 10^9", "GiB on disk, 10^6"], rows)


def hours(seconds: float) -> str:
    value = seconds / 3600
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


BILLED = (
    "bundled",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch14_dinov2.lvd142m",
    "vit_large_patch14_dinov2.lvd142m",
    "vit_huge_patch14_gap_224.in1k_ijepa",
    "vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b",
    "convnext_tiny.dinov3_lvd1689m",
)


def narrow_table() -> str:
    rows = [
        [
            name,
            floor,
            *(f"{found[key]:.2g}" for key in ("mean", "standard_deviation")),
            number(found["standard_deviation_of_the_score"], 1),
            number(found["spearman"], 4),
            f"{row['largest_zero']:.1e}",
        ]
        for name, row in read("precision")["bfloat16"].items()
        for floor, found in row["error_in_nats"].items()
    ]
    heading = [
        "encoder",
        "floor",
        "mean error",
        "its standard deviation",
        "standard deviation of the score",
        "Spearman",
    ]
    return markdown([*heading, "smallest / largest singular value"], rows)


def precision_table() -> str:
    rows = [
        [
            name,
            floor.removeprefix("floor "),
            f"{error['mean']:.1e}",
            f"{error['largest']:.1e}",
            number(error["standard_deviation_of_the_score"], 1),
        ]
        for name, measured in read("precision")["encoders"].items()
        for floor, error in measured["error_in_nats"].items()
    ]
    heading = ["encoder", "floor", "mean error", "largest error", "standard deviation of the score"]
    return markdown(heading, rows)


def trials_table() -> str:
    rows = [
        [
            name,
            number(measured["knn_20"]),
            number(measured["linear_probe"]),
            f"{measured['participation_ratio']:.1f} of {measured['n_components']}",
            number(measured["jepa_score_auroc"]),
        ]
        for name, measured in read("encoder_trials")["trials"].items()
    ]
    return markdown(["change", "20-NN", "linear probe", "participation ratio", "JEPA-SCORE"], rows)


def with_interval(found: dict, digits: int = 2) -> str:
    """Mean and half the width of its symmetric interval."""
    return f"{found['mean']:.{digits}f} ± {(found['high'] - found['low']) / 2:.{digits}f}"


def objectives_table(measure: str) -> str:
    toys = read("theory_objectives")["toys"]
    objectives = [name for name, found in next(iter(toys.values())).items() if measure in found]
    rows = [[name, *(with_interval(found[name][measure]) for found in toys.values())] for name in objectives]
    return markdown([measure, *toys], rows)


def known_density_table() -> str:
    """Bold where the mean over seeds is at least the bar."""
    results = read("theory_known_density")["distributions"]
    allowed = read("theory_known_density")["stamp"]["allowed"]
    rows = [
        ["best kernel density of x", "", *(with_interval(found["kernel density"], 3) for found in results.values())],
        [
            f"**the bar**: the same, less {allowed}",
            "",
            *(number(f["kernel density"]["mean"] - allowed) for f in results.values()),
        ],
    ]
    for encoder, scores in next(iter(results.values()))["encoders"].items():
        for score in scores:
            cells = [found["encoders"][encoder][score] for found in results.values()]
            texts = [with_interval(cell, 3) for cell in cells]
            met = [cell["above_bar"]["mean"] >= 0 for cell in cells]
            rows.append([encoder, score, *(f"**{t}**" if m else t for t, m in zip(texts, met, strict=True))])
    return markdown(["encoder", "score", *results], rows)


def dimension_groups() -> dict[tuple[str, int, int], dict]:
    keys = ("objective", "n_features", "n_components")
    return {tuple(group[key] for key in keys): group for group in read("theory_dimension")["groups"]}


def dimension_table(objective: str) -> str:
    groups, bars = dimension_groups(), read("theory_dimension")["kernel_density"]
    components = sorted({k for _, _, k in groups})
    columns = [(measure, int(d)) for d in bars for measure in ("jepa", "density")]
    names = {"jepa": "alone", "density": "formula"}
    rows = [[str(k), *(with_interval(groups[objective, d, k][m]) for m, d in columns)] for k in components]
    best = [with_interval(bars[str(d)]) if m == "density" else "" for m, d in columns]
    return markdown(["K", *(f"D = {d}: {names[m]}" for m, d in columns)], [*rows, ["best kernel density of x", *best]])


def norm_table() -> str:
    groups, dimensions = dimension_groups(), read("theory_dimension")["kernel_density"]
    rows = [
        [
            str(k),
            number(1 / (2 * k), 4),
            *(number(groups["sigreg", int(d), k]["norm_variance"]["mean"], 4) for d in dimensions),
            *(
                number(groups[objective, int(d), k]["participation_ratio"]["mean"], 1)
                for objective in ("sigreg", "info_nce")
                for d in dimensions
            ),
        ]
        for k in sorted({k for _, _, k in groups})
    ]
    ratios = [f"{name}, participation ratio, D = {d}" for name in ("SIGReg", "InfoNCE") for d in dimensions]
    return markdown(["K", "1 / (2K)", *(f"variance of the norm, D = {d}" for d in dimensions), *ratios], rows)


def convergence_table() -> str:
    rows = [
        [
            f"{toy}, {objective}, {score}",
            with_interval(answers["last"]),
            f"{statistics.median(answers['saturated at step']):.0f}",
            with_interval(answers["last less a quarter of the steps"]),
            with_interval(answers["best step less last"]),
            *(with_interval(found) for found in answers["correlation with the fall of"].values()),
        ]
        for toy, by in read("theory_convergence")["toys"].items()
        for objective, found in by.items()
        for score, answers in found["scores"].items()
    ]
    heading = ["Spearman with log p", "last", "saturated at", "last less a quarter of the steps", "best less last"]
    return markdown([*heading, "with the fall of invariance", "of the regulariser"], rows)


def views_table() -> str:
    toys = read("theory_views")["toys"]
    itself = "the sample itself"
    rows, views = [], []
    for toy, by in toys.items():
        for objective, found in by.items():
            views = [name for name in found if name.isdigit()]
            for score, own in found[itself].items():
                gains = [with_interval(found[v][f"{score}: gain"], 3) for v in views]
                rows.append([f"{toy}, {objective}, {score}", with_interval(own, 3), *gains])
    return markdown(["Spearman with log p", itself, *(f"V = {v}" for v in views)], rows)


def found(*diagnoses: dict) -> str:
    """The findings of several runs of one case, with how many runs they were made in where that is not all."""
    named = [finding["name"] for diagnosis in diagnoses for finding in diagnosis["findings"]]
    runs = len(diagnoses)
    counted = {name: named.count(name) for name in dict.fromkeys(named)}
    return ", ".join(name if n == runs else f"{name} ({n} of {runs})" for name, n in counted.items()) or "none"


def failures_vectors_table() -> str:
    rows = []
    for name, runs in read("theory_failures")["vectors"].items():
        alone = [run["diagnoses"]["jepa"] for run in runs]
        rows.append(
            [
                name,
                *(span([d[key] for d in alone], digits) for key, digits in MEASURED_OF_EMBEDDINGS.items()),
                *(span([run["spearman"][score] for run in runs], 2) for score in ("jepa", "density", "joint")),
                found(*alone),
                found(*(run["diagnoses"]["joint"] for run in runs)),
            ]
        )
    heading = ["training", "participation ratio of 8", "relative spread", "fidelity", '"jepa"', '"density"', '"joint"']
    return markdown([*heading, 'found, "jepa"', 'found, "joint"'], rows)


MEASURED_OF_EMBEDDINGS = {"participation_ratio": 1, "relative_spread": 3, "fidelity": 2}


def span(values: list[float], digits: int) -> str:
    low, high = f"{min(values):.{digits}f}", f"{max(values):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def failures_images_table() -> str:
    rows = []
    for name, case in read("theory_failures")["images"].items():
        for detector, judged in case["detectors"].items():
            d = judged["diagnosis"]
            rank = f"{d['numerical_rank']:.0f} ({d['numerical_rank_lowest']} to {d['numerical_rank_highest']})"
            aurocs = [number(value) for value in judged["auroc"].values()]
            rows.append([name, rank, f"{detector} ({d['rank']})", f"{d['short_of_rank']:.0%}", *aurocs, found(d)])
    foreign = list(judged["auroc"])
    return markdown(["output", "numerical rank", "score (values counted)", "short of rank", *foreign, "found"], rows)


def failures_views_table() -> str:
    rows = [
        [
            name,
            *(number(case["diagnosis"][key], 2) for key in ("view_spearman", "view_icc")),
            *(number(value) for value in case["auroc"].values()),
            found(case["diagnosis"]),
        ]
        for name, case in read("theory_failures")["views"].items()
    ]
    foreign = list(next(iter(read("theory_failures")["views"].values()))["auroc"])
    return markdown(["3 views", "Spearman", "intraclass correlation", *foreign, "found"], rows)


def failures_seeds_table() -> str:
    results = read("theory_failures")
    rows = [
        [
            name,
            *(number(agreement[key], 2) for key in ("mean", "lowest")),
            span([run["spearman"]["jepa"] for run in results["vectors"][name]], 2),
            found(agreement),
        ]
        for name, agreement in results["seeds"].items()
    ]
    return markdown(["training", "Spearman of two seeds, mean", "lowest", "Spearman with log p", "found"], rows)


def failures_limits_table() -> str:
    results = read("theory_failures")
    healthy = list(results["healthy"].values())
    toys = [run["diagnoses"] for run in next(iter(results["vectors"].values()))]
    rows = []
    for limit, (measure, digits) in LIMITS.items():
        values = [d[measure] for d in (*healthy, *(run["joint"] for run in toys)) if d.get(measure) is not None]
        rows.append([f"`{measure}`", f"{results['limits'][limit]:g}", span(values, digits)])
    return markdown(["measured", "limit", "healthy: lowest to highest"], rows)


LIMITS = {
    "COLLAPSED_SPREAD": ("relative_spread", 2),
    "COLLAPSED_DIRECTIONS": ("participation_ratio", 1),
    "SHORT_OF_RANK": ("short_of_rank", 3),
    "AT_FLOOR": ("at_floor", 3),
    "TIED": ("tied", 3),
    "FAITHFUL": ("fidelity", 2),
}


def views_images_table() -> str:
    suites = read("theory_views_images")["suites"]
    itself = "the sample itself"
    rows, views = [], []
    for suite, found in suites.items():
        views = [name for name in found["views"] if name != itself]
        for score, own in found["views"][itself].items():
            gains = [gain_cell(found["views"][v][score]["gain"]) for v in views]
            seconds = number(found["seconds an image and view"], 2)
            rows.append([f"{suite}, {score}", number(own["value"]), *gains, seconds])
    return markdown(["mean AUROC", itself, *(f"V = {v}" for v in views), "s / image and view"], rows)


def gain_cell(gain: dict) -> str:
    return f"{gain['value']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]"


def objectives_images_table() -> str:
    images = read("theory_objectives_images")["images"]
    scores = ("JEPA-SCORE alone", "full formula", "joint")
    rows = [
        [name, *(with_interval(found[f"{score}: mean AUROC"]) for score in scores),
         with_interval(found["participation ratio"])]
        for name, found in images.items()
    ]  # fmt: skip
    return markdown(["mean AUROC", *scores, "participation ratio"], rows)


TABLES = {
    "README.md": {"demo": demo_table, "foreign": foreign_table},
    "docs/benchmark.md": render_benchmark.TABLES,
    "docs/curation.md": render_curation.TABLES,
    "docs/one-class.md": render_curation.ONE_CLASS,
    "docs/baselines.md": {"complexity": complexity_table},
    "docs/scores.md": {"joint-forms": joint_forms_table},
    "docs/thresholds.md": {"thresholds-contamination": contamination_table},
    "skjepa/bundled/MODEL_CARD.md": {"trials": trials_table},
    "docs/fewer-passes.md": {
        "fewer-passes": fewer_passes_table,
        "fewer-passes-sets": fewer_passes_sets_table,
        "fewer-passes-seconds": fewer_passes_seconds_table,
    },
    "docs/precision.md": {"precision": precision_table, "narrow": narrow_table},
    "docs/speed.md": {"speed": speed_table, "speed-values": speed_values_table},
    "docs/cost.md": {
        "growth": growth_table,
        "spectrum-cost": spectrum_cost_table,
        "peaks": peaks_table,
        "bill": bill_table,
    },
    "docs/scaling.md": render_scaling.SCALING,
    "docs/theory/known-density.md": {"known-density": known_density_table},
    "docs/theory/dimension.md": {
        "dimension-info-nce": lambda: dimension_table("info_nce"),
        "dimension-sigreg": lambda: dimension_table("sigreg"),
        "norm": norm_table,
    },
    "docs/theory/objectives.md": {
        "alone": lambda: objectives_table("JEPA-SCORE alone: Spearman"),
        "formula": lambda: objectives_table("full formula: Spearman"),
        "alone-auroc": lambda: objectives_table("JEPA-SCORE alone: AUROC"),
        "formula-auroc": lambda: objectives_table("full formula: AUROC"),
        "ratio": lambda: objectives_table("participation ratio"),
        "images": objectives_images_table,
    },
    "docs/theory/convergence.md": {"convergence": convergence_table},
    "docs/theory/failures.md": {
        "vectors": failures_vectors_table,
        "images": failures_images_table,
        "views": failures_views_table,
        "seeds": failures_seeds_table,
        "limits": failures_limits_table,
    },
    "docs/theory/views.md": {"views": views_table, "views-images": views_images_table},
    "docs/vectors.md": render_tables.VECTORS,
}

if __name__ == "__main__":
    main()
