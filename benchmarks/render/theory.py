"""Tables of docs/theory; `python -m benchmarks.render` puts them in their places."""

import statistics

from benchmarks.common.markdown import number, read
from skjepa.evaluation.benchmark_result import markdown


def with_interval(found: dict, digits: int = 2) -> str:
    """Mean and half the width of its symmetric interval."""
    return f"{found['mean']:.{digits}f} ± {(found['high'] - found['low']) / 2:.{digits}f}"


def objectives_table(measure: str) -> str:
    toys = read("theory_objectives")["toys"]
    objectives = [name for name, found in next(iter(toys.values())).items() if measure in found]
    rows = [[name, *(with_interval(found[name][measure]) for found in toys.values())] for name in objectives]
    return markdown([[measure, *toys], *rows])


def known_density_table() -> str:
    """Bold where the mean over seeds is at least the bar."""
    results = read("theory_known_density")["distributions"]
    allowed = read("theory_known_density")["stamp"]["allowed"]
    rows = [
        ["best kernel density of x", "", *(with_interval(found["kernel density"], 3) for found in results.values())],
        [
            f"**the target**: the same, less {allowed}",
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
    return markdown([["encoder", "score", *results], *rows])


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
    heading = ["K", *(f"D = {d}: {names[m]}" for m, d in columns)]
    return markdown([heading, *rows, ["best kernel density of x", *best]])


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
    return markdown([["K", "1 / (2K)", *(f"variance of the norm, D = {d}" for d in dimensions), *ratios], *rows])


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
    return markdown([[*heading, "with the fall of invariance", "of the regulariser"], *rows])


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
    return markdown([["Spearman with log p", itself, *(f"V = {v}" for v in views)], *rows])


def found(*diagnoses: dict) -> str:
    """The findings of several runs of one case, with how many runs they were made in where that is not all."""
    named = [finding["name"] for diagnosis in diagnoses for finding in diagnosis["findings"]]
    runs = len(diagnoses)
    counted = {name: named.count(name) for name in dict.fromkeys(named)}
    return ", ".join(name if n == runs else f"{name} ({n} of {runs})" for name, n in counted.items()) or "none"


MEASURED_OF_EMBEDDINGS = {"participation_ratio": 1, "relative_spread": 3, "fidelity": 2}


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
    return markdown([[*heading, 'found, "jepa"', 'found, "joint"'], *rows])


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
    return markdown([["output", "numerical rank", "score (values counted)", "short of rank", *foreign, "found"], *rows])


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
    return markdown([["3 views", "Spearman", "intraclass correlation", *foreign, "found"], *rows])


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
    return markdown([["training", "Spearman of two seeds, mean", "lowest", "Spearman with log p", "found"], *rows])


LIMITS = {
    "COLLAPSED_SPREAD": ("relative_spread", 2),
    "COLLAPSED_DIRECTIONS": ("participation_ratio", 1),
    "SHORT_OF_RANK": ("short_of_rank", 3),
    "AT_FLOOR": ("at_floor", 3),
    "TIED": ("tied", 3),
    "FAITHFUL": ("fidelity", 2),
}


def failures_limits_table() -> str:
    results = read("theory_failures")
    healthy = list(results["healthy"].values())
    toys = [run["diagnoses"] for run in next(iter(results["vectors"].values()))]
    rows = []
    for limit, (measure, digits) in LIMITS.items():
        values = [d[measure] for d in (*healthy, *(run["joint"] for run in toys)) if d.get(measure) is not None]
        rows.append([f"`{measure}`", f"{results['limits'][limit]:g}", span(values, digits)])
    return markdown([["measured", "limit", "healthy: lowest to highest"], *rows])


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
    return markdown([["mean AUROC", itself, *(f"V = {v}" for v in views), "s / image and view"], *rows])


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
    return markdown([["mean AUROC", *scores, "participation ratio"], *rows])


KNOWN_DENSITY = {"known-density": known_density_table}
DIMENSION = {
    "dimension-info-nce": lambda: dimension_table("info_nce"),
    "dimension-sigreg": lambda: dimension_table("sigreg"),
    "norm": norm_table,
}
OBJECTIVES = {
    "alone": lambda: objectives_table("JEPA-SCORE alone: Spearman"),
    "formula": lambda: objectives_table("full formula: Spearman"),
    "alone-auroc": lambda: objectives_table("JEPA-SCORE alone: AUROC"),
    "formula-auroc": lambda: objectives_table("full formula: AUROC"),
    "ratio": lambda: objectives_table("participation ratio"),
    "images": objectives_images_table,
}
CONVERGENCE = {"convergence": convergence_table}
FAILURES = {
    "vectors": failures_vectors_table,
    "images": failures_images_table,
    "views": failures_views_table,
    "seeds": failures_seeds_table,
    "limits": failures_limits_table,
}
VIEWS = {"views": views_table, "views-images": views_images_table}
