"""Is a bar met? Numbers, not prose."""

from collections.abc import Mapping, Sequence
from typing import Any

from skjepa.evaluation.benchmark_result import BenchmarkResult

AHEAD, BEHIND, SIGNIFICANCE = 0.03, 0.03, 0.05
CONTROLS = ("bits per pixel",)


def bars(result: BenchmarkResult, parts: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The default against every baseline: ahead on average, nowhere far behind, significantly, calibrated.

    Parameters
    ----------
    result : BenchmarkResult
        Its reference is the default detector.
    parts : mapping of name -> sets
        The bars are told for all sets, and for each of these choices of them.
    """
    return {"all sets": _bars(result)} | {name: _bars(result.on(sets)) for name, sets in parts.items()}


def _bars(result: BenchmarkResult) -> dict[str, Any]:
    found = result.summary
    rivals = [name for name in result.detectors if name not in CONTROLS and not name.startswith(result.reference)]
    tests = {test["rival"]: test for test in found["paired_tests"]}
    nearest = min(rivals, key=lambda name: tests[name]["difference"])
    auroc = {name: {s: v["auroc"]["value"] for s, v in row["sets"].items()} for name, row in found["detectors"].items()}
    behind = {}
    for name in result.sets:
        best = max(rivals, key=lambda rival: auroc[rival][name])
        behind[name] = {"best_rival": best, "behind_by": auroc[best][name] - auroc[result.reference][name]}
    worst = max(behind, key=lambda name: behind[name]["behind_by"])
    shares = found["detectors"][result.reference]["false_positives"]
    p = max(tests[name]["adjusted_p_value"] for name in rivals)
    return {
        "sets": result.sets,
        "ahead of every baseline": {
            "asked": AHEAD,
            "nearest": nearest,
            "measured": tests[nearest]["difference"],
            "met": tests[nearest]["difference"] >= AHEAD,
        },
        "no set far behind the best": {
            "asked": BEHIND,
            "worst_set": worst,
            "best_there": behind[worst]["best_rival"],
            "measured": behind[worst]["behind_by"],
            "met": behind[worst]["behind_by"] <= BEHIND,
        },
        "significant against every baseline": {
            "asked": SIGNIFICANCE,
            "measured": p,
            "met": p <= SIGNIFICANCE and all(tests[name]["difference"] > 0 for name in rivals),
        },
        "false positives within bounds": {
            "measured": {f"{row['alpha']:g}": row["observed"] for row in shares},
            "met": all(row["within"] is not False for row in shares),
        },
        "behind": behind,
    }
