"""Tables of docs/results/speed.md, cost.md, precision.md and fewer-passes.md; `python -m benchmarks.render` puts them
in their places."""

import math

from benchmarks.common.markdown import number, read
from skjepa.evaluation.benchmark_result import markdown


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
    ordered = sorted(rows, key=lambda row: list(dict.fromkeys(r[0] for r in rows)).index(row[0]))
    return markdown([heading, *ordered])


OTHER_ENCODERS = {
    "fewer_passes_vit-tiny": "vit-tiny, random weights",
    "fewer_passes_lite0": "EfficientNet-Lite0, ImageNet weights",
}


def fewer_passes_others_table() -> str:
    """Random directions, corrected where there were exact samples enough."""
    rows = []
    for file, label in OTHER_ENCODERS.items():
        results = read(file)
        found = {(row["score"], row["kind"], row["m"]): row for row in results["curve"]}
        for m in sorted({m for _, _, m in found if m < results["n_components"]}):
            kind = "random, corrected" if ("joint", "random, corrected", m) in found else "random, raw"
            joint, volume = found["joint", kind, m], found["volume", kind, m]
            rows.append(
                [
                    f"{label}, K = {results['n_components']}",
                    kind,
                    f"{m} ({joint['fewer_passes']:.2g}x)",
                    number(joint["lowest_spearman_with_normal"]),
                    f"{joint['largest_change']:.3f} ({joint['largest_change_of_a_seed']:.3f})",
                    number(volume["lowest_spearman_with_normal"]),
                ]
            )
    return markdown([["encoder", "directions", "m", "Spearman", "change of AUROC", "Spearman, volume"], *rows])


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
    return markdown([["AUROC of the default score", "exact", *(f"change, m = {m}" for m in (more, few))], *rows])


def changed(change: dict) -> str:
    mean, low, high = (round(value, 3) + 0.0 for value in (change["mean"], *change["range"]))  # no minus zero
    return f"{mean:+.3f} ({low:+.3f} to {high:+.3f})"


def fewer_passes_seconds_table() -> str:
    results = read("fewer_passes")
    times = results["seconds_per_image"]
    rows = [[name, number(1000 * time, 1), number(times["exact"] / time, 1)] for name, time in times.items()]
    return markdown([["passes per image", "ms per image", "times faster"], *rows])


def speed_table() -> str:
    """Listing 1 and ours, each at batch 1 and at its best batch."""
    rows = []
    for name, measured in read("exact_speed_cpu")["encoders"].items():
        best, single = best_ways(measured), single_way(measured)
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
    return markdown([[*heading, "faster than Listing 1 at batch 1", "... at its best batch", "times the floor"], *rows])


SMALL, LARGE = ("bundled", "ResNet-14"), "ViT-S/14"
FLOORS = {
    "floor_ms": "at most so many times the floor, float32",
    "lowest_floor_ms": "the same, by products as convolutions",
}
RATES = {
    "fastest_gflops": "fastest",
    "matrix_gflops": "sustained",
    "convolution_gflops": "sustained as convolutions",
}


def speed_bars_table() -> str:
    """What the project asked of exact scores on a CPU, and what was reached."""
    found = read("exact_speed_cpu")
    best = {name: best_ways(measured) for name, measured in found["encoders"].items()}
    alone = {name: single_way(measured)["Listing 1"] for name, measured in found["encoders"].items()}

    def faster(name: str, precision: str, reference: float) -> float:
        return reference / best[name][f"skjepa, {precision}"][0]

    def small(label: str, asked: float, precision: str, of: dict[str, float]) -> list[str]:
        cells = [verdict(faster(name, precision, of[name]), asked) for name in SMALL]
        return [label, f"{asked:g}", *cells, ""]

    theirs = {name: ways["Listing 1"][0] for name, ways in best.items()}
    vit = found["encoders"][LARGE]
    over = {floor: best[LARGE]["skjepa, float32"][0] / vit[floor]["float32"] for floor in FLOORS if floor in vit}
    return markdown(
        [
            ["target", "required", *SMALL, LARGE],
            small("times faster than Listing 1 at batch 1, float32", 6, "float32", alone),
            small("times faster than Listing 1 at its best batch, float32", 1.4, "float32", theirs),
            small("the same in bfloat16", 2, "bfloat16", theirs),
            *([FLOORS[f], "1.25", "", "", verdict(times, 1.25, at_most=True)] for f, times in over.items()),
            [
                "times faster than Listing 1, bfloat16",
                "2.5",
                "",
                "",
                verdict(faster(LARGE, "bfloat16", theirs[LARGE]), 2.5),
            ],
        ]
    )


def verdict(value: float, asked: float, *, at_most: bool = False) -> str:
    met = value <= asked if at_most else value >= asked
    return f"{value:.2f}, {'met' if met else '**not met**'}"


def best_ways(measured: dict) -> dict[str, tuple[float, int]]:
    """Milliseconds per image and the batch, of each way at its best batch."""
    best: dict[str, tuple[float, int]] = {}
    for way in measured["ways"]:
        best[way["way"]] = min(best.get(way["way"], (math.inf, 0)), (way["ms"], way["batch"]))
    return best


def single_way(measured: dict) -> dict[str, float]:
    return {way["way"]: way["ms"] for way in measured["ways"] if way["batch"] == 1}


def speed_rates_table() -> str:
    found = read("exact_speed_cpu")
    kinds = [kind for kind in RATES if found.get(kind)]  # a GPU has none of the last
    rows = [[name, *(f"{found[kind][name]:.0f}" for kind in kinds)] for name in found["matrix_gflops"]]
    return markdown([["GFLOP/s of matrix products", *(RATES[kind] for kind in kinds)], *rows])


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
    return markdown([["encoder", "precision", "images", "mean difference", "largest", "Spearman"], *rows])


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
    return markdown([["size", "values", "ms per image"], *rows])


def growth_line() -> str:
    line = read("growth_cpu")["linear_in_passes"]
    return (
        f"- Passes: a straight line, {line['fixed_ms']:.1f} ms and {line['ms_of_a_pass']:.2f} ms per pass, within "
        f"{line['largest_relative_error']:.0%} of every value."
    )


def spectrum_cost_table() -> str:
    rows = [
        [str(row["n_components"]), f"{row['n_inputs']:,}", f"{row['ms']:.1f}"] for row in read("growth_cpu")["spectrum"]
    ]
    return markdown([["K", "D", "ms per image"], *rows])


def peaks_table() -> str:
    rows = [
        [row["shape"], str(row["images"]), f"{row['budget_gib']:.1f}", f"{row['peak_gib']:.2f}"]
        for row in read("growth_cpu")["memory"]
    ]
    return markdown([["encoder at 224x224", "images", "budget, GiB", "peak, GiB"], *rows])


BILLED = (
    "bundled",
    "vit_small_patch14_dinov2.lvd142m",
    "vit_base_patch14_dinov2.lvd142m",
    "vit_large_patch14_dinov2.lvd142m",
    "vit_huge_patch14_gap_224.in1k_ijepa",
    "vit_base_patch16_clip_quickgelu_224.metaclip_2pt5b",
    "convnext_tiny.dinov3_lvd1689m",
)


def bill_table() -> str:
    """What the catalogue's counts make of a million and of a billion images."""
    from skjepa.encoders.catalog import encoder_costs

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
    heading = ["encoder", "method", "TFLOP per image", "hours here, bfloat16, 10^6", "GPU hours, 10^6"]
    return markdown([[*heading, "GPU hours, 10^9", "GiB on disk, 10^6"], *rows])


def hours(seconds: float) -> str:
    value = seconds / 3600
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


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
    return markdown([[*heading, "smallest / largest singular value"], *rows])


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
    return markdown([heading, *rows])


FEWER_PASSES = {
    "fewer-passes": fewer_passes_table,
    "fewer-passes-others": fewer_passes_others_table,
    "fewer-passes-sets": fewer_passes_sets_table,
    "fewer-passes-seconds": fewer_passes_seconds_table,
}
PRECISION = {"precision": precision_table, "narrow": narrow_table}
SPEED = {
    "speed": speed_table,
    "speed-values": speed_values_table,
    "speed-rates": speed_rates_table,
    "speed-bars": speed_bars_table,
}
COST = {
    "growth": growth_table,
    "growth-line": growth_line,
    "spectrum-cost": spectrum_cost_table,
    "peaks": peaks_table,
    "bill": bill_table,
}
