"""Tables of docs/guide/explain.md; `python -m benchmarks.render` puts them in their places."""

from benchmarks.common.markdown import number, read
from skjepa.evaluation.benchmark_result import markdown


def faithfulness_table() -> str:
    """The gap between masking what a map calls lowest and what it calls highest."""
    found = read("explain")
    kinds = found["faithfulness"]
    maps = list(next(iter(kinds.values())))
    seconds = found["seconds_per_image"]
    rows = [
        [
            name,
            *(gap(by_map[name]["gap"]) for by_map in kinds.values()),
            "" if name not in seconds else f"{1000 * seconds[name]:.0f}",
        ]
        for name in maps
    ]
    fills = [kind.partition(",")[0] for kind in kinds]
    return markdown([["map", *(f"gap in nats, filled with {fill}" for fill in fills), "ms per image"], *rows])


def gap(found: dict) -> str:
    return f"{found['mean']:+.1f} ({found['low']:+.1f} to {found['high']:+.1f})"


def found_table() -> str:
    found = read("explain")["found"]
    readings = list(next(iter(found.values())))
    rows = [
        [content, *(f"{by[name]['mean']:.2f} ({by[name]['low']:.2f} to {by[name]['high']:.2f})" for name in readings)]
        for content, by in found.items()
    ]
    heading = [name.replace("|share|", "absolute share") for name in readings]  # a bar would end the cell
    return markdown([["AUROC of the pasted patch", *heading], *rows])


def layers_table() -> str:
    layers = read("explain")["layers"]
    sets = list(next(iter(layers.values()))["jepa"])
    rows = [
        [layer, *(f"{number(by['jepa'][name])} / {number(by['joint'][name])}" for name in sets)]
        for layer, by in layers.items()
    ]
    return markdown([["AUROC, log-volume / joint score", *(name.replace("_", "-") for name in sets)], *rows])


EXPLAIN = {
    "explain-faithfulness": faithfulness_table,
    "explain-found": found_table,
    "explain-layers": layers_table,
}
