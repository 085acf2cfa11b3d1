"""Command `skjepa fit`: fit a detector on a folder of normal images and save it."""

import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from skjepa.cli import checks
from skjepa.cli.bill import settle
from skjepa.cli.common import chosen_encoder, measured, print_json, running, store_if_interrupted
from skjepa.cli.normal_images import (
    Threshold,
    check_what_is_measured,
    fitted,
    n_images,
    rule_in_words,
    rule_of,
    unfitted,
)
from skjepa.cli.options import (
    Alpha,
    AsJson,
    Budget,
    Contamination,
    Device,
    EncoderName,
    Formula,
    HeldOut,
    ImageSize,
    Layers,
    Limit,
    Local,
    MemoryBudget,
    Method,
    NDirections,
    NormalFolder,
    OnError,
    Processes,
    Quiet,
    ReadThreads,
    Scheduler,
    StoreFolder,
    Tiles,
    Views,
    Weights,
    Yes,
)

_stdout = Console()


def fit(
    normal: NormalFolder,
    out: Annotated[Path, typer.Option(help="Folder to save the detector in.")] = Path("detector"),
    encoder: EncoderName = "auto",
    alpha: Alpha = None,
    calibration: HeldOut = None,
    contamination: Contamination = None,
    formula: Formula = "joint",
    image_size: ImageSize = None,
    weights: Weights = None,
    method: Method = "auto",
    directions: NDirections = None,
    layers: Layers = "auto",
    budget: Budget = None,
    yes: Yes = False,
    local: Local = False,
    tiles: Tiles = None,
    views: Views = 1,
    limit: Limit = None,
    store: StoreFolder = None,
    device: Device = "auto",
    memory_budget: MemoryBudget = None,
    n_jobs: Processes = None,
    dask: Scheduler = None,
    read_threads: ReadThreads = None,
    on_error: OnError = "skip",
    seed: Annotated[
        int, typer.Option(help="Seed of the calibration split, the views and --limit.", callback=checks.seed)
    ] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Fit a detector on a folder of normal images and save it.

    The saved folder holds JSON and safetensors files, no pickle.

    Example: skjepa fit normal/ --out detector && skjepa score --detector detector incoming/
    """
    _check_out(out)
    threshold = Threshold(alpha, calibration, contamination)
    threshold.check()
    rule = threshold.of(n_images(normal, limit), method=method)
    threshold.check_subspace(method, rule)
    check_what_is_measured(formula, method, layers, directions, local=local, tiles=checks.sides_of(tiles), store=store)
    store_if_interrupted(store)

    from skjepa.data.sources import folder_source
    from skjepa.extraction.processes.pools import workers

    source = folder_source(normal).sample(limit, seed)
    detector = unfitted(
        chosen_encoder(encoder, image_size, weights, source, quiet=quiet),
        rule,
        formula=formula,
        local=local,
        tiles=checks.sides_of(tiles),
        views=views,
        random_state=seed,
        **measured(method, directions, layers),
        **running(device, memory_budget, read_threads, on_error, quiet),
    )
    started = time.perf_counter()
    with workers(n_jobs, dask):
        reason = settle(detector, [source], budget=budget, yes=yes, quiet=quiet, store=store)
        normal_pass = fitted(detector, source, normal, threshold, store=store, reason=reason)
    detector.save(out)
    seconds = time.perf_counter() - started
    skipped = normal_pass.n_unreadable
    if as_json:
        facts = {"detector": out, "images": len(source), "unreadable": skipped, "threshold": detector.offset_}
        print_json({**facts, "rule": rule_of(detector), "seconds": seconds})
    else:
        unreadable = f" ({skipped} could not be read)" if skipped else ""
        _stdout.print(
            f"{out} written: fitted on {normal_pass.n_images} normal images{unreadable} in {seconds:.1f} s; "
            f"{rule_in_words(detector)}.\nNext: skjepa score --detector {out} FOLDER",
            highlight=False,
            soft_wrap=True,
            markup=False,
        )
    return 3 if skipped else 0


def _check_out(out: Path) -> None:
    """Raise before the expensive work if --out exists and is not a saved detector."""
    from skjepa.persistence.folder import OBJECT_FILE

    if out.exists() and not (out / OBJECT_FILE).is_file():
        raise FileExistsError(f"--out: {out} exists and is not a saved detector; choose another name")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"--out: no folder {out.parent} to save {out.name} in")
