"""The table of what the forward method costs, in docs/results/speed.md."""

from benchmarks.common.markdown import read
from skjepa.evaluation.benchmark_result import markdown


def forward_table() -> str:
    """Milliseconds per image, and ratios to the bare encoder in the same rounds: median (smallest to largest)."""
    found = read("forward_cost")
    rows = [forward_row(name, measured, found["bar"]) for name, measured in found["encoders"].items()]
    heading = [
        "encoder",
        "batch",
        "layers",
        "bare encoder, ms",
        "measured batch, ms",
        "ratio",
        f"at most {found['bar']:g}",
    ]
    return markdown([[*heading, "whole call, ms", "ratio of the call", "fixed, ms per call"], *rows])


def forward_row(name: str, measured: dict, bar: float) -> list[str]:
    ways = measured["ways"]
    ratio = ways["measured batch"]["ratio"]
    return [
        name,
        str(measured["batch"]),
        str(len(measured["layers"])),
        f"{ways['bare encoder']['ms_per_image']:.2f}",
        f"{ways['measured batch']['ms_per_image']:.2f}",
        spread(ratio),
        "met" if ratio["median"] <= bar else "**not met**",
        f"{ways['whole call']['ms_per_image']:.2f}",
        spread(ways["whole call"]["ratio"]),
        f"{measured['fixed_ms_of_a_call']:.0f}",
    ]


def spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


FORWARD = {"speed-forward": forward_table}
"""Tables of docs/results/speed.md."""
