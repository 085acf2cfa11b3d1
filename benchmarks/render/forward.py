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
        "ratio of a batch, processor",
        "ratio of a batch, clock",
    ]
    return markdown(
        [[*heading, f"at most {found['bar']:g}", "ratio of a call, processor", "fixed, ms per call"], *rows]
    )


def forward_row(name: str, measured: dict, bar: float) -> list[str]:
    bare, batch, call = (measured["ways"][way] for way in ("bare encoder", "measured batch", "whole call"))
    return [
        name,
        str(measured["batch"]),
        str(len(measured["layers"])),
        f"{bare['processor_ms_per_image']:.2f}",
        spread(batch["processor_ratio"]),
        spread(batch["ratio"]),
        "met" if batch["processor_ratio"]["median"] <= bar else "**not met**",
        spread(call["processor_ratio"]),
        f"{measured['fixed_ms_of_a_call']:.0f}",
    ]


def spread(ratio: dict[str, float]) -> str:
    return f"{ratio['median']:.2f} ({ratio['min']:.2f} to {ratio['max']:.2f})"


FORWARD = {"speed-forward": forward_table}
"""Tables of docs/results/speed.md."""
