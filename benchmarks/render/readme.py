"""The two tables of the README: the demo, and all detectors on all kinds of data."""

from typing import Any

from benchmarks.common.markdown import number, read
from skjepa.evaluation.benchmark_result import markdown

_ALONE = "skjepa, forward pass alone"
# Row -> its name in the benchmarks of images, and in the one of tables.
_ROWS: dict[str, tuple[str | None, str | None]] = {
    "**skjepa**, default": ("skjepa", "skjepa"),
    "JEPA-SCORE as published": ("JEPA-SCORE", "skjepa jepa"),
    "Mahalanobis distance": ("Mahalanobis", None),
    "Mahalanobis, all layers": ("Mahalanobis, sum over layers",) * 2,
    "kNN": ("kNN", "KNN"),
    "kNN, normalised embedding": ("kNN, normalised", None),
    "kNN, all layers": ("kNN on layers", "KNN on layers"),
    "isolation forest (PyOD)": ("IForest", "IForest"),
}
_DEFECTS = {"**skjepa**, default": "ours", "PaDiM (anomalib)": "padim", "PatchCore (anomalib)": "patchcore"}
_PASSES = {"**skjepa**, default": "1, small images 65", "JEPA-SCORE as published": "1 + K"}


def demo_table() -> str:
    groups = read("demo")["groups"]
    rivals = list(groups[-1]["rivals"])
    rows = [
        [
            group["group"],
            f"{group['flagged']} / {group['images']}",
            number(group.get("auroc")),
            *(number(group.get("rivals", {}).get(rival)) for rival in rivals),
            number(group.get("located")),
        ]
        for group in groups
    ]
    return markdown([["images", "flagged / total", "AUROC", *(f"{rival} AUROC" for rival in rivals), "located"], *rows])


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
    return markdown([["AUROC", *(name.replace("_", "-") for name in counted), "mean"], *rows])


def rivals_table() -> str:
    """Mean AUROC by kind of data; empty where a detector does not apply or was not measured."""
    columns = [_photographs(), _small_images(), _one_class(), _defects(), _tables()]
    names = [*_ROWS, *(name for name in columns[3] if name not in _ROWS)]
    best = [max(column.values()) for column in columns]
    rows = []
    for name in names:
        cells = [_cell(column.get(name), top) for column, top in zip(columns, best, strict=True)]
        rows.append([name, *cells, _PASSES.get(name, "1")])
    heading = ["mean AUROC", "photographs", "small images", "one class of ten", "defects", "tables", "passes per image"]
    return markdown([heading, *rows])


def _cell(value: float | None, best: float) -> str:
    if value is None:
        return ""
    return f"**{number(value)}**" if value == best else number(value)


def _of_images(found: dict[str, Any]) -> dict[str, float]:
    return {row: found[name] for row, (name, _) in _ROWS.items() if name in found}


def _photographs() -> dict[str, float]:
    """The default makes no backward pass with this encoder, K being 1280."""
    means = {
        name: judged["mean"]["auroc"]["value"] for name, judged in read("benchmark_224")["foreign"]["detectors"].items()
    }
    del means["JEPA-SCORE"]  # of 16 random directions, not the published one
    return _of_images(means | {"skjepa": means[_ALONE]})


def _small_images() -> dict[str, float]:
    means = read("foreign_sets")["mean_auroc"]
    return _of_images(means | {"JEPA-SCORE": means["JEPA-SCORE, floor 1e-6"]})


def _one_class() -> dict[str, float]:
    return _of_images({name: judged["mean"] for name, judged in read("one_class")["detectors"].items()})


def _defects() -> dict[str, float]:
    """Of detectors that were measured on the same folds as ours."""
    measured = read("tiles")["224"]
    names = {row: name for row, name in _DEFECTS.items() if name in measured}
    comparable = {row: name for row, name in names.items() if measured[name]["folds"] == measured["ours"]["folds"]}
    return {row: measured[name]["image_auroc"]["value"] for row, name in comparable.items()}


def _tables() -> dict[str, float]:
    judged = read("tables")["verdicts"]["semi-supervised"]["all"]["detectors"]
    return {row: judged[name]["mean_auroc"] for row, (_, name) in _ROWS.items() if name in judged}
