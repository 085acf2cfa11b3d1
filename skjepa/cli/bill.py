"""Show how long a command will take and what is cheaper, and ask whether to continue."""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table

from skjepa.cli.checks import seconds_of

if TYPE_CHECKING:
    from skjepa.data.sources import Source
    from skjepa.detectors.jepa_score import JEPAScoreDetector
    from skjepa.extraction.cost.choice import Choice
    from skjepa.extraction.cost.pass_cost import PassCost

_stderr = Console(stderr=True)
_TOLD_FROM, _ASKED_FROM = 10.0, 60.0  # seconds
_CUT = 4  # images that are cut into tiles to estimate the number of tiles
_VALUES = Path(__file__).with_name("value_of_passes.json")


def settle(
    detector: "JEPAScoreDetector",
    sources: Sequence["Source"],
    *,
    budget: str | None,
    yes: bool,
    quiet: bool,
    store: Path | None = None,
) -> str | None:
    """Show the bill of a command, ask whether to go on, and give a detector the method that fits the budget.

    Parameters
    ----------
    detector : JEPAScoreDetector
        Not fitted yet; with ``method="auto"`` and a budget, its method is set.
    sources : sequence of Source
        Everything that the command will measure.
    budget : str, optional
        Time limit such as "10m", see `seconds_of`.
    yes, quiet : bool
        `yes` skips the question; `quiet` also skips the bill.
    store : path, optional
        Store of finished images. If an earlier run began it, its method is continued.

    Returns
    -------
    str or None
        Why the budget led to this method; None if the budget did not choose it.

    Raises
    ------
    TimeBudgetError
        The method takes longer than the budget.
    typer.Abort
        The user said no.
    """
    from skjepa.extraction.cost.choice import begun_with, by_time

    limit = None if budget is None else seconds_of(budget)
    cost, needs_passes = _cost(detector, sources, detector.method), detector.formula != "joint"
    choice = _without_clock(cost, detector)
    is_chosen = limit is not None and detector.method == "auto"
    if limit is not None and is_chosen:
        choice = begun_with(store) or by_time(cost, limit, needs_passes=needs_passes)
        detector.set_params(method=choice.method, n_directions=choice.n_directions)
    n_passes = passes_of(choice, cost.n_components)
    _present(detector, cost, n_passes, limit, yes=yes, quiet=quiet, needs_passes=needs_passes)
    if is_chosen and not quiet:
        _stderr.print(f"method {choice.method}: {choice.reason}", highlight=False, soft_wrap=True)
    return choice.reason if is_chosen else None


def settle_fitted(
    detector: "JEPAScoreDetector", sources: Sequence["Source"], *, budget: str | None, yes: bool, quiet: bool
) -> None:
    """Show the bill of a command with a fitted detector, which keeps the method of its fit, and ask."""
    from skjepa.jacobian.pass_method import PassMethod

    if detector.needs_samples and detector.tiles is None:
        return
    fitted = PassMethod.parse(detector.models_[0].settings["method"])
    cost = _cost(detector, sources, fitted.kind)
    n_passes = {"forward": 0, "exact": cost.n_components}.get(fitted.kind, fitted.n_directions or 0)
    limit = None if budget is None else seconds_of(budget)
    _present(detector, cost, n_passes, limit, yes=yes, quiet=quiet, is_fixed=True)


def _cost(detector: "JEPAScoreDetector", sources: Sequence["Source"], method: Any) -> "PassCost":
    from skjepa.extraction.cost.estimate import estimate_cost

    given = {name: getattr(detector, name) for name in ("views", "device", "memory_budget", "n_jobs")}
    n_samples, source = sum(map(len, sources)), sources[0]
    if detector.tiles is not None:
        n_per_image, source = _tiles_per_image(source, detector.tiles)
        n_samples = round(n_samples * n_per_image)
    return estimate_cost(detector.encoder, source, n_samples=n_samples, has_passes=method != "forward", **given)


def _tiles_per_image(source: "Source", tiles: Any) -> tuple[float, "Source"]:
    """Return how many tiles an image has, and the tiles of the first images, on which the estimate rests."""
    from skjepa.data.tiles import tile_pictures

    first = tile_pictures(source[:_CUT], tiles)
    return len(first.source) / len(first), first.source


def _memory(detector: "JEPAScoreDetector") -> float:
    """Return the memory that a batch may take, in GiB."""
    from skjepa._utils.hardware import default_budget, resolve_device

    return (detector.memory_budget or default_budget(resolve_device(detector.device))) / 2**30


def _present(
    detector: "JEPAScoreDetector",
    cost: "PassCost",
    n_passes: int,
    limit: float | None,
    *,
    yes: bool,
    quiet: bool,
    needs_passes: bool = False,
    is_fixed: bool = False,
) -> None:
    """Print the bill of a long command, refuse a command that exceeds the limit in seconds, and ask."""
    if limit is not None:
        cost.require(limit, n_passes)
    seconds = cost.seconds(n_passes)
    if seconds > _TOLD_FROM and not quiet:
        what = "images" if detector.tiles is None else "tiles of images"
        _stderr.print(_table(cost, n_passes, what, needs_passes=needs_passes, is_fixed=is_fixed))
        _stderr.print(
            f"Memory: up to {_memory(detector):.1f} GiB (--memory-budget). {_FIXED if is_fixed else _ADVICE}",
            highlight=False,
        )
    if seconds > _ASKED_FROM and limit is None and not (yes or quiet) and sys.stdin.isatty():
        typer.confirm("Continue?", default=True, abort=True, err=True)


def passes_of(choice: "Choice", n_components: int) -> int:
    """Return the number of backward passes per image and view."""
    from skjepa.jacobian.directions import DEFAULT_SHARE

    if choice.method in ("forward", "exact"):
        return 0 if choice.method == "forward" else n_components
    return choice.n_directions or max(1, n_components // DEFAULT_SHARE)


def _without_clock(cost: "PassCost", detector: "JEPAScoreDetector") -> "Choice":
    """Return the method of the settings, or the method that "auto" chooses without a time limit."""
    from skjepa.extraction.cost.choice import Choice, by_operations

    if detector.method != "auto":
        return Choice(str(detector.method), detector.n_directions, "as asked")
    if detector.formula != "joint":
        return Choice("exact", None, f"formula={detector.formula!r} needs backward passes")
    return by_operations(cost.n_components, lambda: cost.gflop, is_vector=False, has_views=detector.views > 1)


def _table(cost: "PassCost", n_passes: int, what: str, *, needs_passes: bool, is_fixed: bool) -> Table:
    from skjepa.extraction.cost.choice import offered
    from skjepa.extraction.cost.pass_cost import duration

    title = f"{cost.n_samples:,} {what}, about {duration(cost.seconds(n_passes))} on this machine"
    table = Table(title=title, title_justify="left", box=None, padding=(0, 1, 0, 0))  # fits a terminal of 80 columns
    for heading in ("", "choice", "passes", "per image", "total", "AUROC"):
        table.add_column(heading, justify="left" if heading in ("", "choice") else "right", no_wrap=True)
    numbers = {n for _, _, n in offered(cost.n_components) if (n or not needs_passes) and not is_fixed} | {n_passes}
    for n in sorted(numbers, reverse=True):
        if math.isnan(cost.seconds(n)):  # backward passes were not requested
            continue
        method = {0: "forward", cost.n_components: "exact"}.get(n, f"sketch --directions {n}")
        per_image, total = duration(cost.seconds_per_sample(n)), duration(cost.seconds(n))
        mark, change = ">" if n == n_passes else "", _change(n, cost.n_components)
        table.add_row(mark, f"--method {method}", str(n), per_image, total, "-" if needs_passes else change)
    return table


def _change(n_passes: int, n_components: int) -> str:
    """Return the change of AUROC against the most passes measured, as a range over encoders."""
    if n_passes == n_components:
        return "reference"
    changes = []
    for by_passes in json.loads(_VALUES.read_text()).values():
        measured = {int(n): auroc for n, auroc in by_passes.items()}
        fewer = max(n for n in measured if n <= n_passes)  # not every encoder was measured with this number
        changes.append(measured[fewer] - measured[max(measured)])
    low, high = (f"{round(change, 3) + 0.0:+.3f}" for change in (min(changes), max(changes)))
    return low if low == high else f"{low} to {high}"


_FIXED = "The method is the one of the fit. --limit scores fewer images; --yes skips this question."
_ADVICE = (
    "AUROC: change against the most passes measured, over the encoders in docs/results/passes.md. --budget 10m chooses "
    "what fits into that time, --yes skips this question, --store keeps finished images for the next run."
)
