"""Provide what several commands need: options of a run, JSON output, saved detectors and the summary table."""

import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from skjepa.data.sources import Source
    from skjepa.detectors.jepa_score import JEPAScoreDetector
    from skjepa.encoders.encoder import Encoder


_NOTHING_KEPT = "nothing was written"
_kept: list[Callable[[], str]] = []


def if_interrupted(said: Callable[[], str]) -> None:
    """Set the function that, after Ctrl-C, tells what this command has kept and how to continue."""
    _kept.append(said)


def forget_what_is_kept() -> None:
    """Discard the messages of an earlier command."""
    _kept.clear()


def kept_so_far() -> str:
    """Return what the running command has kept, and how to continue."""
    return _kept[-1]() if _kept else _NOTHING_KEPT


def store_if_interrupted(store: Path | None) -> None:
    """Prepare the message after Ctrl-C for a command that has the option --store."""
    if store is None:
        if_interrupted(lambda: f"{_NOTHING_KEPT}; with --store FOLDER finished images are kept for the next run")
    else:
        if_interrupted(lambda: f"finished images are kept in {store}; type the same command again to continue")


def running(
    device: str, memory_budget: float | None, read_threads: int | None, on_error: str, quiet: bool
) -> dict[str, Any]:
    """Return the options of a run (`--memory-budget` in GiB) as parameters of a detector."""
    from skjepa.extraction.batches.options import RunOptions

    n_bytes = None if memory_budget is None else int(memory_budget * 2**30)
    return RunOptions(device, n_bytes, read_threads, on_error, progress=not quiet).parameters


def measured(method: str, directions: int | None, layers: str) -> dict[str, Any]:
    """Return --method, --directions and --layers as parameters of a detector and of `skjepa.extract`."""
    names: Any = {"auto": "auto", "none": None}.get(layers, [name.strip() for name in layers.split(",")])
    return {"method": method, "n_directions": directions, "layers": names}


def print_json(facts: dict[str, Any]) -> None:
    """Print the result of a command with --json: paths as text, NaN as null."""
    print(json.dumps(_plain(facts), allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a NumPy number
        value = value.item()
    return None if isinstance(value, float) and value != value else value


def chosen_encoder(
    encoder: str, image_size: int | None, weights: Path | None, source: "Source", *, quiet: bool = True
) -> "Encoder":
    """Load the encoder of --encoder; "auto" chooses by image size and prints the choice unless `quiet`."""
    from skjepa.encoders.automatic import automatic_encoder_name, describe_automatic_encoder
    from skjepa.encoders.encoder import load_encoder

    if encoder == "auto":
        encoder = automatic_encoder_name(source) if weights is None else encoder
        if not quiet:
            Console(stderr=True).print(describe_automatic_encoder(encoder, option="--encoder"), highlight=False)
    return load_encoder(encoder, image_size=image_size, weights=weights)


def saved_detector(
    folder: Path, encoder: str, image_size: int | None = None, weights: Path | None = None
) -> "JEPAScoreDetector":
    """Load a saved detector; an encoder that came from a file or a folder must be given again."""
    from skjepa.detectors.jepa_score import JEPAScoreDetector
    from skjepa.encoders.encoder import load_encoder

    is_given = encoder != "auto" or weights is not None
    given = load_encoder(encoder, image_size=image_size, weights=weights) if is_given else None
    return JEPAScoreDetector.load(folder, encoder=given)


def require_readable(sources: Iterable["Source"], on_error: str) -> None:
    """With --on-error raise, read every image before any expensive work and stop at the first unreadable one."""
    if on_error != "raise":
        return
    for source in sources:
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
            for _ in threads.map(source.load, range(len(source))):
                pass


def summary_table(rows: Sequence[dict[str, Any]]) -> Table:
    """Return a table with one row per group of images, with measures of separation where they are known."""
    table = Table()
    is_labelled, is_judged = any("normal_images" in row for row in rows), any("auroc" in row for row in rows)
    table.add_column("images", overflow="fold")
    flagged = ("flagged normal", "flagged anomalous") if is_labelled else ("flagged / total",)
    for heading in (*flagged, *(("AUROC", "AUPR", "FPR@95") if is_judged else ()), "s / image"):
        table.add_column(heading, justify="right")
    for row in rows:
        counts = [_share(row, "flagged", "images")]
        if is_labelled:
            counts = [_share(row, f"{kind}_flagged", f"{kind}_images") for kind in ("normal", "anomalous")]
        counts[0] += f" ({row['unreadable']} unreadable)" if row["unreadable"] else ""
        metrics = [row.get(name) for name in ("auroc", "aupr_out", "fpr95_outlier_positive")] if is_judged else []
        table.add_row(
            row["group"],
            *counts,
            *("-" if value is None else f"{value:.3f}" for value in metrics),
            f"{row['seconds_per_image']:.4f}",
        )
    return table


def _share(row: dict[str, Any], part: str, whole: str) -> str:
    return f"{row[part]} / {row[whole]}"
