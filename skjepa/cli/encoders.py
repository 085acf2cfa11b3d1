"""`skjepa encoders`: the encoders known to work, and what they cost."""

import time

from rich.console import Console
from rich.table import Table

from skjepa.cli.common import print_json
from skjepa.cli.options import AsJson


def encoders(as_json: AsJson = False) -> None:
    """List the encoders known to work, with what one exact score costs."""
    from dataclasses import asdict

    from skjepa.encoders.catalog import encoder_costs

    rate = _matrix_rate()
    if as_json:
        print_json({"encoders": [asdict(cost) for cost in encoder_costs()], "tflop_per_second_here": rate / 1e12})
        return
    title = "Encoders known to work (any other timm name loads too)"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))  # fits a terminal of 80 columns
    table.add_column("name", no_wrap=True)
    for heading in ("size", "K", "TFLOP", "seconds"):
        table.add_column(heading, justify="right")
    family = ""
    for cost in encoder_costs():
        if cost.family != family:
            family = cost.family
            table.add_row(f"[bold]{family}[/bold]")
        table.add_row(
            cost.name,
            f"{cost.image_size}" + ("" if cost.is_default_size else "*"),
            str(cost.n_components),
            _three_digits(cost.tflop_per_image),
            _three_digits(cost.tflop_per_image * 1e12 / rate),
        )
    console = Console()
    console.print(table)
    console.print(
        "size: pixels a side, the encoder's own; * with image_size=, as in the published figures. K: length of the "
        "embedding, and passes an image. TFLOP: of an exact score, one forward and K backward passes. seconds: of an "
        f"image on this machine's CPU, at the {rate / 1e12:.2g} TFLOP/s that a float32 matrix product reached just "
        "now; a lower bound, to divide by your GPU's advantage.",
        highlight=False,
    )


def _three_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def _matrix_rate() -> float:
    """Operations a second of a float32 matrix product, the best of five."""
    import torch

    n = 1024
    a, b = torch.rand(2, n, n)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best
