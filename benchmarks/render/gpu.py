"""What `benchmarks.speed.gpu` measured, in docs/results/speed.md, where there is such a file."""

import math
from typing import Any

from benchmarks.common.markdown import read
from benchmarks.common.record import RESULTS
from benchmarks.render.forward import spread
from skjepa.evaluation.benchmark_result import markdown


def gpu_tables() -> str:
    return tables_of(read("gpu"))


def tables_of(found: dict) -> str:
    """Every table for which there are figures, each under a line that says of what; steps that failed come first."""
    stamp, steps = found["stamp"], found["steps"]
    parts = [f"Measured on {stamp.get('gpu', stamp['device'])}, {stamp['date'][:10]}."]
    parts += [
        f"The step `{name}` did not end well: {outcome['state']}."
        for name, outcome in steps.items()
        if outcome["state"] != "done"
    ]
    results = {name: outcome.get("results", {}) for name, outcome in steps.items()}
    for name, (caption, table) in TABLES.items():
        rows = table(results.get(name, {}))
        if len(rows) > 1:
            parts.append(f"{caption}\n\n{markdown(rows)}")
    return "\n\n".join(parts)


def tests_rows(results: dict) -> list[list[str]]:
    counts = results.get("counts", {})
    return [["outcome", "tests"], *([word, str(n)] for word, n in sorted(counts.items()))]


def exact_rows(results: dict) -> list[list[str]]:
    """Milliseconds per image at batch 1 and at the best batch, by way and precision."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in good(results):
        if "ms" in row:
            found.setdefault((row["way"], row["precision"]), {})[row["batch"]] = row["ms"]
    rows = [["way", "precision", "ms, batch 1", "ms, best batch", "times the floor", "faster than Listing 1"]]
    for (way, precision), by_batch in found.items():
        best = min(by_batch, key=by_batch.__getitem__)
        theirs = min(found.get(("Listing 1", precision), {0: math.nan}).values())
        rows.append(
            [
                way,
                precision,
                decimal(by_batch.get(1)),
                f"{decimal(by_batch[best])} (batch {best})",
                decimal(by_batch[best] / results["floor_ms"][precision]),
                "" if math.isnan(theirs) or way == "Listing 1" else decimal(theirs / by_batch[best]),
            ]
        )
    return rows


def variant_rows(results: dict) -> list[list[str]]:
    """Each way beside the package's own at the same precision and batch."""
    measured = good(results)
    own = {(row["precision"], row["batch"]): row["ms"] for row in measured if row["way"] == "skjepa"}
    rows = [["way", "precision", "batch", "ms", "times as long as skjepa", "largest difference of a row"]]
    for row in measured:
        ratio = row["ms"] / own.get((row["precision"], row["batch"]), math.nan)
        difference = f"{row['largest_difference']:.0e}"
        rows.append([row["way"], row["precision"], str(row["batch"]), decimal(row["ms"]), decimal(ratio), difference])
    return rows


def forward_rows(results: dict) -> list[list[str]]:
    rows = [["encoder", "way", "precision", "batch", "ms", "ratio to the bare encoder"]]
    for row in good(results):
        if "ways" in row:
            ways = row["ways"]["measured batch"]
            cells = ["", str(row["batch"]), decimal(ways["ms_per_image"]), spread(ways["ratio"])]
        else:
            cells = [row["precision"], str(row["batch"]), decimal(row["ms"]), ""]
        rows.append([row["encoder"], row["way"], *cells])
    return rows


def memory_rows(results: dict) -> list[list[str]]:
    rows = [["encoder", "batch", "peak, GiB", "reckoned per image, GiB", "largest batch"]]
    for row in good(results):
        peak, reckoned = (gibibytes(row.get(key)) for key in ("peak_bytes", "reckoned_bytes_per_image"))
        rows.append([row["encoder"], str(row.get("batch", "")), peak, reckoned, str(row.get("largest_batch", ""))])
    return rows


def together_rows(results: dict) -> list[list[str]]:
    rows = [["encoders", "each alone, s", "both at once, s", "over the sum"]]
    for row in good(results):
        alone = " + ".join(decimal(seconds) for seconds in row["seconds_alone"])
        cells = [alone, decimal(row["seconds_together"]), decimal(row["together_over_sum"])]
        rows.append([" and ".join(row["encoders"]), *cells])
    return rows


def good(results: dict) -> list[dict[str, Any]]:
    """Rows that were measured."""
    return [row for row in results.get("rows", []) if "error" not in row]


def decimal(value: float | None) -> str:
    return "" if value is None or math.isnan(value) else f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def gibibytes(value: int | None) -> str:
    return "" if value is None else f"{value / 2**30:.2f}"


TABLES = {
    "tests": ("Tests with `--device`:", tests_rows),
    "exact": ("ViT-S/14 at 224 pixels, K = 384, exact:", exact_rows),
    "variants": ("The same Jacobian by other ways:", variant_rows),
    "forward": ("The forward method, and sketches:", forward_rows),
    "memory": ("Memory of exact scores at 224 pixels:", memory_rows),
    "together": ("Two encoders at once:", together_rows),
}
"""Step -> a line above its table, and the table's rows."""

GPU = {"speed-gpu": gpu_tables} if (RESULTS / "gpu.json").exists() else {}
"""Tables of docs/results/speed.md."""
