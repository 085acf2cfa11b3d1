"""`skjepa watch`: a folder that fills is scored file by file, and watched for drift, until a signal comes."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from skjepa.cli.common import print_json, running
from skjepa.cli.options import AsJson, Device, EncoderName, ImageSize, MemoryBudget, Quiet, ReadThreads, Weights

if TYPE_CHECKING:
    from skjepa.deployment.watch import FolderWatch

_stderr = Console(stderr=True)


def watch(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder that new images come into.")],
    saved: Annotated[Path, typer.Option("--detector", metavar="FOLDER", help="What `skjepa fit` saved.")],
    out: Annotated[Path, typer.Option(help="Table that rows are appended to: .csv or .jsonl.")] = Path("watched.csv"),
    interval: Annotated[float, typer.Option(help="Seconds between two looks at the folder.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and stop, as from cron.")] = False,
    drift_level: Annotated[
        float, typer.Option(help="Probability of a false alarm of drift within 10,000 normal images.")
    ] = 0.01,
    normal: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Normal images the detector has not seen: terms are compared with theirs."),
    ] = None,
    patience: Annotated[
        float, typer.Option(help="Seconds that an unreadable file must not have changed before it is a row.")
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
    """Score each new file of a folder once, append its row to a table, and say when the stream drifts.

    Goes on where it stopped, whatever stopped it; SIGINT and SIGTERM end it after the images at hand.

    Example: skjepa watch incoming/ --detector detector --out watched.csv
    """
    from skjepa._utils.files import check_output
    from skjepa._utils.validation import check_number
    from skjepa.cli.common import saved_detector
    from skjepa.deployment.stream_values import normal_values
    from skjepa.deployment.watch import FolderWatch
    from skjepa.deployment.watch_table import SUFFIXES, WatchTable

    check_number("--interval", interval, above=0.0)
    check_number("--patience", patience, above=0.0, closed="<")
    out = check_output(out, SUFFIXES)
    for needed in (folder, *([] if normal is None else [normal])):
        if not needed.is_dir():
            raise FileNotFoundError(f"no folder {needed}")
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
    """An event that SIGINT and SIGTERM set; a second SIGINT interrupts at once, and loses no row that was written."""
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
