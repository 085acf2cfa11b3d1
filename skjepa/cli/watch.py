"""Command `skjepa watch`: score new files of a folder and watch them for drift until a signal stops it."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from skjepa.cli import checks
from skjepa.cli.common import if_interrupted, print_json, running
from skjepa.cli.options import (
    AsJson,
    Device,
    EncoderName,
    ImageSize,
    MemoryBudget,
    NeededDetector,
    Quiet,
    ReadThreads,
    Weights,
)

if TYPE_CHECKING:
    from skjepa.deployment.watch import FolderWatch

_stderr = Console(stderr=True)
_TABLES = (".csv", ".jsonl")


def watch(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Folder in which new images arrive.", callback=checks.folder)
    ],
    saved: NeededDetector = ...,  # type: ignore[assignment]
    out: Annotated[
        Path, typer.Option(help="Table that rows are appended to: .csv or .jsonl.", callback=checks.output(_TABLES))
    ] = Path("watched.csv"),
    interval: Annotated[
        float, typer.Option(help="Seconds between two checks of the folder.", callback=checks.number(above=0.0))
    ] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Check once and stop, for example from cron.")] = False,
    drift_level: Annotated[
        float,
        typer.Option(
            help="Probability of a false alarm of drift within 10,000 normal images.",
            callback=checks.number(above=0.0, below=1.0),
        ),
    ] = 0.01,
    normal: Annotated[
        Path | None,
        typer.Option(
            metavar="NORMAL_DIR",
            help="Normal images that the detector was not fitted on, to compare the stream with.",
            callback=checks.image_folder,
        ),
    ] = None,
    patience: Annotated[
        float,
        typer.Option(
            help="Seconds without change after which an unreadable file is reported as a row.",
            callback=checks.number(above=0.0, closed="<"),
        ),
    ] = 10.0,
    encoder: EncoderName = "auto",
    image_size: ImageSize = None,
    weights: Weights = None,
    device: Device = "auto",
    memory_budget: MemoryBudget = None,
    read_threads: ReadThreads = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Score each new file of a folder once, append its row to a table, and report when the images drift.

    The same command continues where it stopped. Ctrl-C and SIGTERM end it after the images that are being scored.

    Example: skjepa watch incoming/ --detector detector --out watched.csv
    """
    if_interrupted(lambda: f"the rows written so far are kept in {out}; the same command continues")

    from skjepa.cli.common import saved_detector
    from skjepa.deployment.stream_values import normal_values
    from skjepa.deployment.watch import FolderWatch
    from skjepa.deployment.watch_table import WatchTable

    run = running(device, memory_budget, read_threads, "skip", quiet=True)
    detector = saved_detector(saved, encoder, image_size, weights).set_params(**run)
    terms = [name for name in normal_values(detector) if name != "score"]
    with stopped_by_signals() as stop, WatchTable(out, terms) as table:
        watching = FolderWatch(
            folder,
            detector,
            table,
            out.with_suffix(".drift.json"),
            level=drift_level,
            patience=patience,
            normal=None if normal is None else lambda: normal,
        )
        n_before = len(watching.ids)
        while not stop.is_set():
            n_told = len(watching.alarms)
            n = watching.look(stop.is_set)
            _tell(watching, n, n_told, quiet)
            if once or stop.wait(interval):
                break
    if as_json:
        print_json(_facts(watching, n_before, out))
    return 3 if watching.n_unreadable else 0


@contextmanager
def stopped_by_signals() -> Iterator[threading.Event]:
    """Yield an event that SIGINT and SIGTERM set; a second SIGINT interrupts at once and loses no written row."""
    stop = threading.Event()
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def heard(number: int, _: Any) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.set()

    try:
        for number in before:
            signal.signal(number, heard)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(watching: "FolderWatch", n: int, n_told: int, quiet: bool) -> None:
    if n and not quiet:
        _stderr.print(f"watch: {n} new, {len(watching.ids)} rows of {escape(str(watching.table.path))}", soft_wrap=True)
    for alarm in watching.alarms[n_told:]:
        name = escape(f"(sample {alarm.since} is {watching.ids[alarm.since]})")
        _stderr.print(f"[red]drift:[/red] {escape(str(alarm))} {name}", highlight=False, soft_wrap=True)


def _facts(watching: "FolderWatch", n_before: int, out: Path) -> dict[str, Any]:
    alarms = [
        {"stream": a.stream, "since": a.since, "since_id": watching.ids[a.since], "noticed": a.noticed, "side": a.side}
        for a in watching.alarms
    ]
    rows = len(watching.ids)
    return {
        "table": out,
        "rows": rows,
        "new": rows - n_before,
        "unreadable": watching.n_unreadable,
        "alarms": alarms,
        "log_martingale": watching.monitor.monitor.log_martingale,
    }
