"""Command `skjepa encoders`: list the encoders known to work, with the seconds that a score takes."""

import time
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from skjepa.cli import checks
from skjepa.cli.common import print_json
from skjepa.cli.options import AsJson

OnlySize = Annotated[
    int | None,
    typer.Option(
        "--image-size", help="List only encoders for images of this side, in pixels.", callback=checks.integer(1)
    ),
]
_SKETCH = 16


def encoders(image_size: OnlySize = None, as_json: AsJson = False) -> None:
    """List the encoders known to work, with the seconds per image that a score takes."""
    from dataclasses import asdict

    from skjepa.encoders.catalog import encoder_costs

    known = encoder_costs()
    costs = [cost for cost in known if image_size in (None, cost.image_size)]
    if not costs:
        sizes = ", ".join(map(str, sorted({cost.image_size for cost in known})))
        raise ValueError(f"--image-size: no encoder is listed at {image_size} pixels; listed are {sizes}")
    rate = _matrix_rate()
    if as_json:
        print_json({"encoders": [asdict(cost) for cost in costs], "tflop_per_second_here": rate / 1e12})
        return
    title = "Encoders known to work (any other timm name loads too); seconds per image"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))  # fits a terminal of 80 columns
    table.add_column("name", overflow="fold")
    for heading in ("size", "K", "forward", "sketch", "exact"):
        table.add_column(heading, justify="right", no_wrap=True)
    family = ""
    for cost in costs:
        if cost.family != family:
            family = cost.family
            table.add_row(f"[bold]{family}[/bold]")
        seconds = (cost.tflop(n) * 1e12 / rate for n in (0, _SKETCH, cost.n_components))
        size = f"{cost.image_size}" + ("" if cost.is_default_size else "*")
        table.add_row(cost.name, size, str(cost.n_components), *map(_two_digits, seconds))
    console = Console()
    console.print(table)
    console.print(
        "size: side of the images in pixels, the encoder's own; * with --image-size, as in the published figures. K: "
        "length of the embedding. forward: --method forward, no backward pass, default for large encoders and tables. "
        f"sketch: --method sketch --directions {_SKETCH}. exact: --method exact, K backward passes. Seconds "
        f"are a lower bound for this machine's CPU, at the {rate / 1e12:.2g} TFLOP/s that a float32 matrix product "
        "reached just now. A GPU is faster by the ratio of its rate to that.",
        highlight=False,
    )


def _two_digits(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}" if value >= 1e-3 else "< 0.001"


def _matrix_rate() -> float:
    """Return the operations per second of a float32 matrix product, the best of five runs."""
    import torch

    n = 1024
    a, b = torch.rand(2, n, n)
    best = float("inf")
    for _ in range(5):
        started = time.perf_counter()
        a @ b
        best = min(best, time.perf_counter() - started)
    return 2 * n**3 / best
