"""The tables of docs/guide/local-defects.md."""

from statistics import mean
from typing import Any

from benchmarks.common.markdown import number, read
from benchmarks.common.record import RESULTS
from skjepa.evaluation.benchmark_result import markdown

_WAYS = {
    "additive": "`JEPAScoreDetector()`, its shares",
    "ours": "`JEPAScoreDetector(local=True)`",
    "padim": "PaDiM of anomalib",
    "patchcore": "PatchCore of anomalib, 1 % of the patches",
}


def maps_table() -> str:
    rows = [["", "side", "folds", "image AUROC", "pixel AUROC", "PRO (FPR 0.3)", "good with a spot", "spots that hit"]]
    for side, way, found in _measured():
        rows.append(_maps_row(_WAYS[way], side, found["folds"], found))
        if "ours_on_these_folds" in found:
            rows.append(
                _maps_row(f"{_WAYS['ours']}, the same folds", side, found["folds"], found["ours_on_these_folds"])
            )
    return _table(rows)


def _maps_row(name: str, side: str, n_folds: int, found: dict[str, Any]) -> list[str]:
    spots = found.get("spots", {})
    shares = [f"{spots[each]:.1%}" if spots else "" for each in ("good", "hits")]
    cells = [_interval(found[each]) for each in ("image_auroc", "pixel_auroc", "pro")]
    return [name, side, str(n_folds), *cells, *shares]


def kinds_table() -> str:
    measured = _measured()
    kinds = list(measured[0][2]["image_auroc_by_kind"])
    rows = [["image AUROC", "side", *kinds]]
    rows += [
        [_WAYS[way], side, *(number(found["image_auroc_by_kind"].get(kind)) for kind in kinds)]
        for side, way, found in measured
        if found["folds"] == measured[0][2]["folds"]  # others have not seen all kinds
    ]
    return _table(rows)


def flags_table() -> str:
    rows = [["new good pictures flagged at 5 %", "side", "flagged", "with a spot"]]
    bounds = []
    for side, parts in _sides():
        if "calibrated" in parts:
            found = parts["calibrated"]
            shares = found["flagged"]
            for by in ("by tile", "by picture"):
                rows.append([f"calibrated {by}", side, f"{shares[by]:.1%}", f"{shares[f'spots {by}']:.1%}"])
            low, high = found["binomial"]
            bounds.append(f"95 % of binomial counts of {found['n']} at 5 % lie between {low:.1%} and {high:.1%}.")
    return "\n\n".join([_table(rows), *bounds[:1]])


def targets_table() -> str:
    rows = [["", "side", "aimed at", "measured", ""]]
    for side, parts in _sides():
        for found in parts.get("targets", []):
            is_met = "met" if found["met"] else "missed"
            rows.append([found["what"], side, found["aim"], number(found["value"]), is_met])
    return _table(rows)


def growth_table() -> str:
    rows = [["normal pictures", "side", "image AUROC", "MB of the local model", "MB of the whole detector"]]
    for side, parts in _sides():
        for n, found in parts.get("growth", {}).get("by_n", {}).items():
            sizes = [number(found["megabytes"][part], 1) for part in ("local", "whole")]
            rows.append([n, side, number(found["auroc"]), *sizes])
    return _table(rows)


def cost_table() -> str:
    rows = [["per picture, one core", "side", "ms", "of the time of an embedding"]]
    for side, parts in _sides():
        found = parts.get("cost", {})
        for name, value in found.get("milliseconds", {}).items():
            rows.append([name, side, number(value, 1), f"{found['of_embedding'][name]:.0%}"])
    return _table(rows)


def large_table() -> str:
    if not (RESULTS / "large_pictures.json").exists():
        return _table([[]])
    found = read("large_pictures")
    share = f"{found['hottest_share']:.1%}"
    rows = [["defects of 40 pixels", "number", "hotter than all of the surface", f"among the hottest {share}"]]
    for kind, told in found["kinds"].items():
        rows.append([kind, str(told["n"]), str(told["hottest"]), str(told["among_hottest"])])
    clean, scratched, _ = found["pictures"]
    seconds = mean(case["seconds"] for case in found["pictures"])
    is_hottest = "is" if found["scratch_is_hottest"] else "is not"
    fit = f"{found['normal_pictures']} normal surfaces of {found['normal_megapixels']:.0f} megapixel each"
    return (
        f"{_table(rows)}\n\nLearned from {fit}. One scratch {is_hottest} the hottest place of "
        f"{found['megapixels']:.0f} megapixels, and lowers the score from {clean['score']:.0f} to "
        f"{scratched['score']:.0f}. Score and map of such a surface, {found['tiles_per_picture']} tiles, took "
        f"{seconds:.0f} s on one core; memory rose by {found['megabytes'] / 1000:.1f} GB."
    )


def _sides() -> list[tuple[str, dict[str, Any]]]:
    return [(side, parts) for side, parts in read("tiles").items() if side.isdigit()]


def _measured() -> list[tuple[str, str, dict[str, Any]]]:
    return [(side, way, parts[way]) for side, parts in _sides() for way in _WAYS if way in parts]


def _table(rows: list[list[str]]) -> str:
    return markdown(rows) if len(rows) > 1 else "Not measured yet."


def _interval(found: dict[str, float]) -> str:
    return f"{found['value']:.3f} ({found['low']:.3f} to {found['high']:.3f})"


LOCAL_DEFECTS = {
    "large-pictures": large_table,
    "tiles-maps": maps_table,
    "tiles-kinds": kinds_table,
    "tiles-flags": flags_table,
    "tiles-targets": targets_table,
    "tiles-growth": growth_table,
    "tiles-cost": cost_table,
}
