"""What several commands share: the options of a run, JSON answers, saved detectors and the summary table."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from skjepa.data.sources import Source
    from skjepa.detectors.jepa_score import JEPAScoreDetector
    from skjepa.encoders.encoder import Encoder


def running(
    device: str, memory_budget: float | None, read_threads: int | None, on_error: str, quiet: bool
) -> dict[str, Any]:
    """The options of a run (`--memory-budget` in GiB) as parameters of a detector."""
    from skjepa.extraction.batches.options import RunOptions

    n_bytes = None if memory_budget is None else int(memory_budget * 2**30)
    return RunOptions(device, n_bytes, read_threads, on_error, progress=not quiet).parameters


def measured(method: str, directions: int | None, layers: str) -> dict[str, Any]:
    """What a pass measures (--method, --directions, --layers), as parameters of a detector and of `skjepa.extract`."""
    names: Any = {"auto": "auto", "none": None}.get(layers, [name.strip() for name in layers.split(",")])
    return {"method": method, "n_directions": directions, "layers": names}


def print_json(facts: dict[str, Any]) -> None:
    """The answer of a command with --json: paths as text, null for what is no number."""
    print(json.dumps(_plain(facts), allow_nan=False))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):  # a number of NumPy's
        value = value.item()
    return None if isinstance(value, float) and value != value else value


def chosen_encoder(
    encoder: str, image_size: int | None, weights: Path | None, source: "Source", *, quiet: bool = True
) -> "Encoder":
    """Load the encoder of --encoder; "auto" chooses by the size of the images, and says which unless `quiet`."""
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
    """The detector of a folder: an encoder with a name was saved by it, one that lies in a file is given again."""
    from skjepa.detectors.jepa_score import JEPAScoreDetector
    from skjepa.encoders.encoder import load_encoder

    is_given = encoder != "auto" or weights is not None
    given = load_encoder(encoder, image_size=image_size, weights=weights) if is_given else None
    return JEPAScoreDetector.load(folder, encoder=given)


def summary_table(rows: Sequence[dict[str, Any]], *, title: str, caption: str) -> Table:
    """The summary for a terminal."""
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left")
    table.add_column("images")
    for heading in ("flagged / total", "AUROC", "AUPR", "FPR@95", "s / image"):
        table.add_column(heading, justify="right")
    for row in rows:
        metrics = (row.get("auroc"), row.get("aupr_out"), row.get("fpr95_outlier_positive"))
        unreadable = f" ({row['unreadable']} unreadable)" if row["unreadable"] else ""
        table.add_row(
            row["group"],
            f"{row['flagged']} / {row['images']}{unreadable}",
            *("-" if value is None else f"{value:.3f}" for value in metrics),
            f"{row['seconds_per_image']:.4f}",
        )
    return table
