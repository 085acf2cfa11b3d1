"""Tables of docs/results/speed.md that say where the time of an exact score goes and what was tried."""

from benchmarks.common.markdown import number, read
from skjepa.evaluation.benchmark_result import markdown


def profile_table() -> str:
    """Shares of the time by kind of operation, and the rate of the arithmetic."""
    found = read("engine_profile_cpu")
    cases = found.get("profiles", [])
    if not cases:
        return "(not measured yet: `python -m benchmarks.speed.engine_profile --only profiles stacked`)"
    heading = [f"{c['encoder']}, batch {c['batch']}, {c['precision']}" for c in cases]
    kinds = [[kind, *(f"{c['shares'][kind]:.0%}" for c in cases)] for kind in cases[0]["shares"]]
    of_products = [found["rates"][c["precision"]] for c in cases]
    rows = [
        ["ms per image", *(number(c["ms"], 1) for c in cases)],
        *kinds,
        ["GFLOP/s, all the time", *(f"{c['gflops']:.0f}" for c in cases)],
        ["GFLOP/s of convolutions and products", *(f"{c['gflops_of_products']:.0f}" for c in cases)],
        ["GFLOP/s of a large product, torch's", *(f"{rates['matrix product']:.0f}" for rates in of_products)],
        ["GFLOP/s of the same as a convolution", *(f"{rates['convolution']:.0f}" for rates in of_products)],
    ]
    return markdown([["", *heading], *rows])


def tried_table() -> str:
    """Every way that was tried of a part, as a multiple of the time of the way taken."""
    found = read("engine_profile_cpu")
    rows = []
    for case in [*found["kernels"], *found.get("stacked", [])]:
        ways = ", ".join(f"{way} {ratio:.2f}" for way, ratio in case["times_as_long"].items())
        part = case.get("part") or f"{case['encoder']}, whole scores, batch {case['batch']}"
        rows.append([part, case["precision"], case.get("layout", ""), f"{case['ms']:.2f}", ways])
    return markdown([["part of a pass", "precision", "layout", "ms, as taken", "times as long by other ways"], *rows])


ENGINE = {"speed-profile": profile_table, "speed-tried": tried_table}
