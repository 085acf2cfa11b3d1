"""What docs/guide/streams.md says was measured; `python -m benchmarks.render` puts it in its place."""

from benchmarks.common.markdown import read
from skjepa.evaluation.benchmark_result import markdown

WORDS = {
    "jumper": "`ScoreMonitor`, default bets, all streams",
    "power": "`ScoreMonitor`, power bets, all streams",
    "fixed normal values": "the default bets on p-values of the score against the fixed normal values",
    "KS test of windows": "a Kolmogorov-Smirnov test of each 100 such p-values at 0.01",
}
BAR = 200
"""Images within which a blur of sigma 1 was to be noticed."""

BLUR = "blur, sigma 1"


def alarms_table() -> str:
    found = read("drift")
    cifar = found["sets"]["CIFAR-10"]
    n, stream = found["stamp"]["seeds"]["false alarms"], cifar["sizes"]["stream"]
    rows = [[WORDS[name], f"{round(share * n)} of {n}"] for name, share in cifar["false alarms"].items()]
    return markdown([[f"normal streams of {stream:,} images", "with a false alarm"], *rows])


def delays_table() -> str:
    head = ["images", "change", "median", "95 %", "missed", "first", "power bets: median", "95 %", "missed"]
    head += ["score and terms alone: median", "95 %", "missed"]
    return markdown(
        [
            head,
            *(
                [
                    name,
                    change,
                    *_delay(found["jumper"]),
                    _first(found["jumper"]),
                    *_delay(found["power"]),
                    *_delay(found["terms alone"]),
                ]
                for name, case in read("drift")["sets"].items()
                for change, found in case["delays"].items()
            ),
        ]
    )


def _delay(found: dict) -> list[str]:
    n = read("drift")["stamp"]["seeds"]["delays"]
    return [_images(found["median"]), _images(found["quantile_95"]), f"{found['missed']} of {n}"]


def _images(value: float | None) -> str:
    return "not noticed" if value is None else f"{value:.0f}"


def _first(found: dict) -> str:
    return "" if found["first_stream"] is None else f"{found['first_stream']}, {found['first_stream_share']:.0%}"


def bar_line() -> str:
    """What was asked, and whether it was met."""
    told = []
    for name, case in read("drift")["sets"].items():
        late = case["delays"][BLUR]["jumper"]["quantile_95"]
        met = late is not None and late <= BAR
        told.append(f"{name}: {'met' if met else 'missed'}, 95 % of the draws: {_images(late)}")
    after = ", ".join(f"{case['sizes']['changed']:,} of {name}" for name, case in read("drift")["sets"].items())
    return (
        f"The target was a delay of at most {BAR} images for a blur of sigma 1 ({'; '.join(told)}). "
        f'"Not noticed" means no alarm within the changed images of a stream ({after}).'
    )


def shift_table() -> str:
    head = ["shift", "plain", "weighted", "100 fresh", "adaptive, labels 50 late", "effective size", "digits: plain"]
    head += ["weighted", "100 fresh"]
    rows = [
        [
            name,
            *(_share(found[way]) for way in ("plain", "weighted", "fresh", "adaptive")),
            f"{found['effective_size']['mean']:.0f}",
            *(f"{found[f'{way}, digits']['mean']:.0%}" for way in ("plain", "weighted", "fresh")),
        ]
        for name, found in read("shift")["shifts"].items()
    ]
    return markdown([head, *rows])


def _share(found: dict[str, float]) -> str:
    return f"{found['mean']:.1%} ({found['standard_error']:.1%})"


def reading_line() -> str:
    """Where weights hold the rate, and where not."""
    found = read("shift")
    alpha = found["stamp"]["alpha"]
    held = {name: _holds(case["weighted"], alpha) for name, case in found["shifts"].items()}
    needed = [name for name, case in found["shifts"].items() if not _holds(case["plain"], alpha)]
    mended = [name for name in needed if held[name]]
    failed = [name for name, holds in held.items() if not holds]
    return (
        f"Called held is a rate of at most {alpha:.0%} and three standard errors. Plain p-values do not hold "
        f"under: {_listed(needed)}. Of these, weights hold under: {_listed(mended)}. Weights do not hold under: "
        f"{_listed(failed)}."
    )


def _holds(found: dict[str, float], alpha: float) -> bool:
    return found["mean"] <= alpha + 3 * found["standard_error"]


def _listed(names: list[str]) -> str:
    return "; ".join(names) if names else "none of the shifts"


STREAMS = {
    "drift-alarms": alarms_table,
    "drift-delays": delays_table,
    "drift-bar": bar_line,
    "shift": shift_table,
    "shift-reading": reading_line,
}
