"""Tables of docs/guide/scaling.md, from benchmarks/results/spread_cpu.json and the catalogue's counts."""

from benchmarks.common.markdown import read
from benchmarks.common.record import RESULTS
from skjepa.evaluation.benchmark_result import markdown


def spread_table() -> str:
    found = read("spread_cpu")
    rows = []
    for arm in found["passes"]:
        name = arm["arm"] if arm["arm"].startswith("one") else f"{arm['arm']}, {found['workers']} workers of 1 thread"
        same = "yes" if arm["is_bitwise_equal"] else f"within {arm['largest_difference_of_log_volume']:.1g} nats"
        rows.append(
            [
                name,
                f"{arm['first_seconds']:.1f}",
                f"{arm['seconds']:.1f}",
                f"{arm['ms_an_image']:.1f}",
                f"{arm['efficiency']:.0%}",
                f"{arm['processor_seconds']:.1f}",
                same,
            ]
        )
    heading = ["", "first pass, s", "later passes, s", "ms per image", "efficiency", "processor, s", "bitwise the same"]
    return markdown([heading, *rows])


def tasks_table() -> str:
    rows = [[row["arm"], f"{row['ms_a_task']:.2f}"] for row in read("spread_cpu")["tasks"]]
    return markdown([["batch of one sample that takes almost no time", "ms per batch"], *rows])


PLANNED = ("bundled", "vit_small_patch14_dinov2.lvd142m", "vit_base_patch14_dinov2.lvd142m")
TFLOPS = 100.0  # a second that a GPU sustains, as docs/guide/cost.md assumes
BATCH = 64
FEW, MANY = 8, 64  # GPUs


def plan_table() -> str:
    """What the catalogue's counts make of a million images on a few GPUs, and of a billion on many."""
    from skjepa.encoders.catalog import encoder_costs

    rows = []
    for cost in encoder_costs():
        if cost.name not in PLANNED or (cost.image_size != 224 and not cost.is_default_size) or cost.image_size > 224:
            continue
        for passes, method in ((cost.n_components, "exact"), (cost.n_components // 4, "m = K / 4")):
            seconds = (cost.forward_gflop + passes * cost.backward_gflop) / 1e3 / TFLOPS
            rows.append(
                [
                    f"{cost.name.split('.')[0]}, {method}",
                    three(1e6 * seconds / FEW / 3600),
                    three(1e9 * seconds / MANY / 86400),
                    three(MANY / (BATCH * seconds)),
                    f"{1e6 * 8 * (cost.n_components + passes) / 2**30:.1f}",
                ]
            )
    heading = ["", f"10^6 on {FEW} GPUs, hours", f"10^9 on {MANY} GPUs, days", f"batches per second for {MANY} GPUs"]
    return markdown([[*heading, "rows of 10^6, GiB"], *rows])


def three(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


SCALING = {"scaling-plan": plan_table}
if (RESULTS / "spread_cpu.json").exists():  # `make spread`
    SCALING |= {"spread": spread_table, "spread-tasks": tasks_table}
