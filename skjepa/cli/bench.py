"""Command `skjepa bench`: compare detectors on your own folders."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from skjepa._utils.files import short_names
from skjepa.cli import checks
from skjepa.cli.bill import settle
from skjepa.cli.common import chosen_encoder, measured, print_json, require_readable, running, store_if_interrupted
from skjepa.cli.normal_images import check_what_is_measured
from skjepa.cli.options import (
    AsJson,
    Budget,
    Device,
    EncoderName,
    ImageSize,
    Layers,
    Limit,
    Method,
    NDirections,
    OnError,
    Processes,
    Quiet,
    ReadThreads,
    Scheduler,
    StoreFolder,
    Weights,
    Yes,
)

_stdout, _stderr = Console(), Console(stderr=True)


def bench(
    more: Annotated[
        list[Path] | None,
        typer.Argument(metavar="OOD_DIR", help="Further folders of --ood.", callback=checks.image_folder),
    ] = None,
    normal: Annotated[
        Path,
        typer.Option(
            "--normal", "--id", metavar="NORMAL_DIR", help="Folder of normal images.", callback=checks.image_folder
        ),
    ] = ...,  # type: ignore[assignment]
    ood: Annotated[
        list[Path] | None,
        typer.Option("--ood", metavar="OOD_DIR", help="Folders of other images.", callback=checks.image_folder),
    ] = None,
    encoder: EncoderName = "auto",
    out: Annotated[
        Path, typer.Option(help="Folder for tables, scores and pictures.", callback=checks.new_folder)
    ] = Path("benchmark-output"),
    image_size: ImageSize = None,
    weights: Weights = None,
    fit: Annotated[
        float,
        typer.Option(
            "--fit-share",
            help="Share of the normal images to fit on.",
            callback=checks.number(above=0.0, below=1.0),
        ),
    ] = 0.5,
    calibration: Annotated[
        float,
        typer.Option(
            help="Share of the normal images to calibrate on; the rest is for the test.",
            callback=checks.number(above=0.0, below=1.0),
        ),
    ] = 0.2,
    method: Method = "auto",
    directions: NDirections = None,
    layers: Layers = "auto",
    budget: Budget = None,
    yes: Yes = False,
    passes: Annotated[
        str,
        typer.Option(
            help="Also compare the default detector with these numbers of backward passes (random directions), such as "
            "'0, 4, 16'; 'none'; or 'auto' (these three if the run makes all K passes, else none)."
        ),
    ] = "auto",
    limit: Limit = None,
    drop_repeats: Annotated[
        bool,
        typer.Option("--drop-repeats", help="Leave out repeated images; by default they are kept and reported."),
    ] = False,
    store: StoreFolder = None,
    memory: Annotated[Path | None, typer.Option(hidden=True, callback=checks.new_folder)] = None,
    device: Device = "auto",
    n_jobs: Processes = None,
    dask: Scheduler = None,
    read_threads: ReadThreads = None,
    on_error: OnError = "skip",
    n_resamples: Annotated[
        int,
        typer.Option("--resamples", help="Number of bootstrap samples for each interval.", callback=checks.integer(1)),
    ] = 1000,
    seed: Annotated[int, typer.Option(help="Seed of the splits, --limit and the bootstrap.", callback=checks.seed)] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Compare detectors on your folders: one folder is normal, the others are not.

    Images for the fit, the calibration and the test never overlap, and repeated images are reported. Writes
    results.json, scores.parquet, table.md and figures, such as AUROC against seconds (pareto.png). Sub-folders of the
    normal folder are its classes.

    Example: skjepa bench --normal normal/ --ood digits/ textures/ --encoder bundled
    """
    folders = [*(ood or []), *(more or [])]
    if not folders:
        raise ValueError("give at least one folder of other images: --ood DIR")
    named, numbers = short_names(folders), _numbers(passes)
    if fit + calibration >= 1:
        raise ValueError(f"--fit-share {fit:g} and --calibration {calibration:g} leave no normal images for the test")
    check_what_is_measured("joint", method, layers, directions)
    store = store or memory
    store_if_interrupted(store)

    from skjepa.data.sources import folder_source
    from skjepa.detectors.jepa_score import JEPAScoreDetector
    from skjepa.evaluation.benchmark import run_benchmark
    from skjepa.extraction.processes.pools import workers

    sources = [folder_source(folder).sample(limit, seed) for folder in (normal, *folders)]
    require_readable(sources, on_error)
    detector = JEPAScoreDetector(
        chosen_encoder(encoder, image_size, weights, sources[0], quiet=quiet),
        **measured(method, directions, layers),
        **running(device, None, read_threads, on_error, quiet),
    )
    with workers(n_jobs, dask):
        settle(detector, sources, budget=budget, yes=yes, quiet=quiet)
        result = run_benchmark(
            normal,
            named,
            encoder=detector.encoder,
            fit=fit,
            calibration=calibration,
            limit=limit,
            on_repeats="drop" if drop_repeats else "report",
            memory=store,
            device=device,
            n_jobs=read_threads,
            on_error=on_error,
            n_resamples=n_resamples,
            random_state=seed,
            progress=not quiet,
            method=detector.method,
            n_directions=detector.n_directions,
            layers=detector.layers,
            passes=numbers,
        )
    written = result.save(out)
    code = 3 if any(result.settings["unreadable"].values()) else 0
    if as_json:
        print_json({"written": written, **result.summary})
        return code
    _stdout.print(result.to_markdown(), highlight=False, soft_wrap=True, markup=False)
    for repeat in result.repeats[:5]:
        _stderr.print(
            escape(f"repeated: {repeat.group}/{repeat.id} is the same as {repeat.first_group}/{repeat.first_id}"),
            soft_wrap=True,
        )
    if result.repeats:
        what = "left out" if drop_repeats else "kept; --drop-repeats leaves them out"
        _stderr.print(f"{len(result.repeats)} repeated images, {what}", highlight=False)
    _stdout.print(escape(f"{', '.join(path.name for path in written)} written to {out}"), soft_wrap=True)
    return code


def _numbers(passes: str) -> list[int] | str | None:
    """Convert --passes to the form that `run_benchmark` takes."""
    if passes in ("auto", "none"):
        return None if passes == "none" else "auto"
    try:
        return [int(number) for number in passes.split(",")]
    except ValueError:
        raise ValueError(f"--passes takes 'auto', 'none' or numbers such as '0, 4, 16'; got {passes!r}") from None
