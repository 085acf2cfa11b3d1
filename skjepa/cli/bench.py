"""`skjepa bench`: detectors against each other on folders of one's own."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from skjepa.cli.bill import settle
from skjepa.cli.common import chosen_encoder, measured, print_json, running
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
    Weights,
    Yes,
)

_stdout, _stderr = Console(), Console(stderr=True)


def bench(
    more: Annotated[list[Path] | None, typer.Argument(metavar="[OOD_DIR]...", help="Further folders of --ood.")] = None,
    normal: Annotated[Path, typer.Option("--id", metavar="ID_DIR", help="Folder of normal images.")] = ...,  # type: ignore[assignment]
    ood: Annotated[list[Path] | None, typer.Option("--ood", metavar="OOD_DIR", help="Folders of other images.")] = None,
    encoder: EncoderName = "auto",
    out: Annotated[Path, typer.Option(help="Folder for tables, scores and pictures.")] = Path("benchmark-output"),
    image_size: ImageSize = None,
    weights: Weights = None,
    fit: Annotated[float, typer.Option(help="Share of the normal images to fit on.")] = 0.5,
    calibration: Annotated[float, typer.Option(help="Share of them to calibrate on; the rest is for the test.")] = 0.2,
    method: Method = "auto",
    directions: NDirections = None,
    layers: Layers = "auto",
    budget: Budget = None,
    yes: Yes = False,
    passes: Annotated[
        str,
        typer.Option(
            help="Numbers of backward passes to judge the default detector with as well, such as '0, 4, 16' (random "
            "directions); 'none'; or 'auto' (these three, where all K passes are made anyway)."
        ),
    ] = "auto",
    limit: Limit = None,
    drop_repeats: Annotated[
        bool, typer.Option("--drop-repeats", help="Leave out images found twice, instead of reporting them.")
    ] = False,
    memory: Annotated[Path | None, typer.Option(help="Folder that keeps finished images: the run resumes.")] = None,
    device: Device = "auto",
    n_jobs: Processes = None,
    dask: Scheduler = None,
    read_threads: ReadThreads = None,
    on_error: OnError = "raise",
    n_resamples: Annotated[int, typer.Option("--resamples", help="Bootstrap samples behind each interval.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the splits, --limit and the bootstrap.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Compare the default detector with its rivals: one folder is normal, the others are not.

    Splits never overlap, and images found twice are reported. Writes results.json, scores.parquet, table.md and
    pictures, among them AUROC against seconds (pareto.png). Sub-folders of the normal folder are taken for classes.

    Example: skjepa bench --id normal/ --ood digits/ textures/ --encoder bundled
    """
    from skjepa.data.sources import folder_source
    from skjepa.detectors.jepa_score import JEPAScoreDetector
    from skjepa.evaluation.benchmark import run_benchmark
    from skjepa.extraction.processes.pools import workers
    from skjepa.reporting.score_table import short_names

    folders = [*(ood or []), *(more or [])]
    if not folders:
        raise ValueError("give at least one folder of other images: --ood DIR")
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file: --out names a folder")
    sources = [folder_source(folder).sample(limit, seed) for folder in (normal, *folders)]
    detector = JEPAScoreDetector(
        chosen_encoder(encoder, image_size, weights, sources[0], quiet=quiet),
        **measured(method, directions, layers),
        **running(device, None, read_threads, on_error, quiet),
    )
    with workers(n_jobs, dask):
        settle(detector, sources, budget=budget, yes=yes, quiet=quiet)
        result = run_benchmark(
            normal,
            short_names(folders),
            encoder=detector.encoder,
            fit=fit,
            calibration=calibration,
            limit=limit,
            on_repeats="drop" if drop_repeats else "report",
            memory=memory,
            device=device,
            n_jobs=read_threads,
            on_error=on_error,
            n_resamples=n_resamples,
            random_state=seed,
            progress=not quiet,
            method=detector.method,
            n_directions=detector.n_directions,
            layers=detector.layers,
            passes=_numbers(passes),
        )
    written = result.save(out)
    code = 3 if any(result.settings["unreadable"].values()) else 0
    if as_json:
        print_json({"written": written, **result.summary})
        return code
    _stdout.print(result.to_markdown(), highlight=False, soft_wrap=True, markup=False)
    for repeat in result.repeats[:5]:
        _stderr.print(
            escape(f"found twice: {repeat.group}/{repeat.id} is {repeat.first_group}/{repeat.first_id}"), soft_wrap=True
        )
    if result.repeats:
        what = "left out" if drop_repeats else "kept; --drop-repeats leaves them out"
        _stderr.print(f"{len(result.repeats)} images found twice, {what}", highlight=False)
    _stdout.print(escape(f"{', '.join(path.name for path in written)} written to {out}"), soft_wrap=True)
    return code


def _numbers(passes: str) -> list[int] | str | None:
    """As `run_benchmark` takes them."""
    if passes in ("auto", "none"):
        return None if passes == "none" else "auto"
    try:
        return [int(number) for number in passes.split(",")]
    except ValueError:
        raise ValueError(f"--passes takes 'auto', 'none' or numbers such as '0, 4, 16'; got {passes!r}") from None
