"""Write the tables of README and docs from the JSON files that the scripts of this repository measured.

    python benchmarks/render.py            # rewrite the tables
    python benchmarks/render.py --demo     # run the demo first, and keep its summary and picture

A table stands between `<!-- name -->` and `<!-- /name -->`.
"""

import argparse
import json
import re
import shutil
import statistics
import tempfile
from pathlib import Path

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


def with_interval(found: dict, digits: int = 2) -> str:
    """Mean and half the width of its symmetric interval."""
    return f"{found['mean']:.{digits}f} ± {(found['high'] - found['low']) / 2:.{digits}f}"


def objectives_table(measure: str) -> str:
    toys = read("theory_objectives")["toys"]
    objectives = [name for name, found in next(iter(toys.values())).items() if measure in found]
    rows = [[name, *(with_interval(found[name][measure]) for found in toys.values())] for name in objectives]
    return markdown([measure, *toys], rows)


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


TABLES = {
    "README.md": {"demo": demo_table, "foreign": foreign_table},
    "docs/precision.md": {"precision": precision_table},
    "docs/theory/objectives.md": {
        "alone": lambda: objectives_table("JEPA-SCORE alone: Spearman"),
        "formula": lambda: objectives_table("full formula: Spearman"),
        "alone-auroc": lambda: objectives_table("JEPA-SCORE alone: AUROC"),
        "formula-auroc": lambda: objectives_table("full formula: AUROC"),
        "ratio": lambda: objectives_table("participation ratio"),
    },
    "docs/theory/convergence.md": {"convergence": convergence_table},
    "docs/theory/views.md": {"views": views_table, "views-images": views_images_table},
}

if __name__ == "__main__":
    main()
