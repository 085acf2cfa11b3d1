"""Command line: `skjepa score`, `bench`, `prune`, `report`, `pretrain`, `encoders`, `demo`."""

import os
import sys
import time
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from skjepa._options import Processes, ReadThreads, Scheduler
from skjepa.bench_command import bench
from skjepa.prune_command import prune
from skjepa.report_command import report

EXIT_OK, EXIT_CRASH, EXIT_BAD_INPUT, EXIT_SKIPPED, EXIT_INTERRUPTED = 0, 1, 2, 3, 130
_EXIT_CODES = (
    "Exit codes: 0 every image scored; 1 a bug; 2 bad input or options, nothing written; "
    "3 finished, but some images could not be read (--on-error skip); 130 interrupted."
)

app = typer.Typer(
    help="Anomaly detection with pretrained JEPA-family vision encoders.\n\n" + _EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_stdout, _stderr = Console(), Console(stderr=True)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    os.environ["SKJEPA_DEBUG"] = "1" if debug else ""


@app.command()
def score(
    tests: Annotated[list[Path], typer.Argument(metavar="TEST_DIR...", help="Folders of images to score.")],
    fit: Annotated[Path, typer.Option("--fit", metavar="NORMAL_DIR", help="Folder of normal images.")],
    encoder: Annotated[
        str, typer.Option(help="'bundled', a timm name, local-dir:PATH or a .safetensors file.")
    ] = "bundled",
    out: Annotated[Path, typer.Option(help="Table to write: .parquet or .csv.")] = Path("scores.parquet"),
    picture: Annotated[Path | None, typer.Option(help="Picture to write (default: next to the table, .png).")] = None,
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Write no picture.")] = False,
    alpha: Annotated[float, typer.Option(help="Flag at most this share of new normal images (conformal).")] = 0.05,
    calibration: Annotated[float, typer.Option(help="Share of the normal images held out for that.")] = 0.2,
    contamination: Annotated[
        float | None, typer.Option(help="Flag by this share of the normal images instead; then no p-values.")
    ] = None,
    kind: Annotated[
        str, typer.Option("--formula", help="'joint', 'density' or 'jepa' (the paper's score alone).")
    ] = "joint",
    image_size: Annotated[int | None, typer.Option(help="Side the encoder receives (default: its own).")] = None,
    weights: Annotated[Path | None, typer.Option(help="File or folder with the weights of a timm encoder.")] = None,
    views: Annotated[int, typer.Option(help="Random views an image (Eq. 4); 1 is the image itself.")] = 1,
    limit: Annotated[int | None, typer.Option(help="At most so many images of each folder, drawn at random.")] = None,
    store: Annotated[
        Path | None, typer.Option(help="Folder that keeps finished images: the run resumes from it.")
    ] = None,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'cuda:1' ...")] = "auto",
    memory_budget: Annotated[
        float | None, typer.Option(help="GiB that a batch may take (default: half of the free).")
    ] = None,
    n_jobs: Processes = None,
    dask: Scheduler = None,
    read_threads: ReadThreads = None,
    on_error: Annotated[str, typer.Option(help="An unreadable image: 'raise' or 'skip' (with a warning).")] = "raise",
    seed: Annotated[int, typer.Option(help="Of the calibration split, the views and --limit.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> int:
    """Fit on a folder of normal images, score other folders, write a table and a picture.

    Example: skjepa score --fit normal/ incoming/ --out scores.parquet
    """
    from skjepa import JEPAScoreDetector, job, load_encoder
    from skjepa.pools import workers
    from skjepa.sources import folder_source

    out = job.check_output(out, job.TABLE_SUFFIXES)
    picture = (
        None if no_picture else job.check_output(picture or out.with_suffix(".png"), (".png", ".pdf", ".svg", ".jpg"))
    )
    if picture is not None and any(picture.resolve().is_relative_to(folder.resolve()) for folder in (fit, *tests)):
        raise ValueError(
            f"{picture} would lie among the images: write it elsewhere (--picture, --out) or give --no-picture"
        )
    normal = _limited(folder_source(fit), limit, seed)
    sources = {name: _limited(folder_source(path), limit, seed) for name, path in job.short_names(tests).items()}
    detector = JEPAScoreDetector(
        load_encoder(encoder, image_size=image_size, weights=weights),
        formula=kind,
        views=views,
        contamination=0.1 if contamination is None else contamination,
        target_fpr=alpha if contamination is None else None,
        calibration=calibration if contamination is None else None,
        device=device,
        memory_budget=None if memory_budget is None else int(memory_budget * 2**30),
        n_jobs=read_threads,
        on_error=on_error,
        random_state=seed,
        verbose=0 if quiet else 1,
    )
    _warn_of_overlap(fit, tests)
    started = time.perf_counter()
    groups = []
    with workers(n_jobs, dask):
        _stderr.print(f"fit: {len(normal)} normal images of {escape(str(fit))}")
        normal_pass = detector.extract(normal, store=store)
        detector.fit(normal_pass)
        for name, source in sources.items():
            _stderr.print(f"score: {len(source)} images of {escape(name)}")
            groups.append(job.score_group(detector, name, source, store=store))
    surroundings, about = job.about_run(
        detector, normal_pass, encoder=encoder, folders=job.short_names(tests), normal_folder=fit
    )
    job.write_table(job.score_table(groups, surroundings=surroundings, about=about), out)
    if picture is not None:
        job.score_picture(detector, groups, picture, title=f"Encoder {Path(encoder).name}, score {kind!r}")
    held_out = detector.calibration_scores_
    rows = job.summary([] if held_out is None else held_out, groups)
    rule = f"conformal p <= {alpha:g}" if contamination is None else f"contamination {contamination:g}"
    _stdout.print(
        job.summary_table(
            rows,
            title=f"Encoder {Path(encoder).name}, fitted on {normal_pass.shape[0]} normal images",
            caption=f"flagged: {rule}"
            if held_out is None
            else f"flagged: {rule}; AUROC, AUPR (images as positive) and FPR@95 (of normal images, when 95 % of "
            "these are caught): against the held-out normal images",
        )
    )
    written = f"{out}" + (f" and {picture}" if picture else "")
    _stdout.print(f"{written} written; {time.perf_counter() - started:.1f} s", highlight=False, soft_wrap=True)
    return EXIT_SKIPPED if normal_pass.meta["skipped"] or any(group.errors for group in groups) else EXIT_OK


app.command()(bench)
app.command()(prune)
app.command()(report)


@app.command()
def pretrain(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images to train on, at any depth; no labels.")],
    out: Annotated[Path, typer.Option(help="Encoder to write: .safetensors.")],
    network: Annotated[str, typer.Option(help="'convnet' or 'vit'.")] = "convnet",
    image_size: Annotated[int, typer.Option(help="Side of the images the encoder sees, in pixels.")] = 32,
    components: Annotated[int, typer.Option(help="K, length of the scored embedding.")] = 64,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images (default: 40).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step, two views of each (default: 128).")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of AdamW, at its highest (default: 0.002).")] = None,
    objective: Annotated[
        str, typer.Option(help="Of the scored output: 'sigreg', 'vicreg', 'info_nce' or 'invariance' (collapses).")
    ] = "sigreg",
    precision: Annotated[
        str, typer.Option(help="'float32', 'bfloat16', or 'auto': bfloat16 where the device computes in it.")
    ] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint next to the encoder.")] = False,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'cuda:1' ...")] = "auto",
    n_jobs: Annotated[int | None, typer.Option(help="Threads that read images.")] = None,
    on_error: Annotated[str, typer.Option(help="An unreadable image: 'raise' or 'skip' (with a warning).")] = "raise",
    seed: Annotated[int, typer.Option(help="Of weights, batches and views.")] = 0,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> int:
    """Train a small encoder on a folder of unlabelled images.

    Example: skjepa pretrain images/ --out my.safetensors && skjepa score --encoder my.safetensors --fit normal/ new/
    """
    from dataclasses import replace

    from skjepa import job
    from skjepa.sources import folder_source
    from skjepa.training import RECIPE, train_encoder

    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    started = time.perf_counter()
    trained = train_encoder(
        folder_source(folder),
        job.check_output(out, (".safetensors",)),
        network=network,
        image_size=image_size,
        n_components=components,
        config=replace(RECIPE, objective=objective, precision=precision, seed=seed, **settings),
        resume=resume,
        device=device,
        n_jobs=n_jobs,
        on_error=on_error,
        progress=not quiet,
    )
    last = trained.history[-1]
    _stdout.print(
        f"{trained.path}: {trained.n_images} images, {last['epoch']} epochs, {time.perf_counter() - started:.0f} s; "
        f"loss {last['loss']:.3f}, participation ratio {last['participation_ratio']:.1f} of {components}, "
        f"normality statistic {last['normality']:.4f}",
        highlight=False,
        soft_wrap=True,
    )
    return EXIT_SKIPPED if trained.skipped else EXIT_OK


@app.command()
def encoders() -> int:
    """List the encoders known to work, with what one exact score costs."""
    from skjepa.catalog import encoder_costs

    rate = _matrix_rate()
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
    _stdout.print(table)
    _stdout.print(
        "size: pixels a side, the encoder's own; * with image_size=, as in the published figures. K: length of the "
        "embedding, and passes an image. TFLOP: of an exact score, one forward and K backward passes. seconds: of an "
        f"image on this machine's CPU, at the {rate / 1e12:.2g} TFLOP/s that a float32 matrix product reached just "
        "now; a lower bound, to divide by your GPU's advantage.",
        highlight=False,
    )
    return EXIT_OK


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for scores.parquet, scores.png and summary.json.")] = Path(
        "demo-output"
    ),
    seed: Annotated[int, typer.Option(help="Of the splits.")] = 0,
) -> int:
    """Run the main job on images that the installed packages carry: no download."""
    from skjepa.demo import run_demo

    run_demo(out, seed=seed, console=_stdout)
    return EXIT_OK


def _warn_of_overlap(fit: Path, tests: list[Path]) -> None:
    normal = fit.resolve()
    for test in tests:
        if normal.is_relative_to(test.resolve()) or test.resolve().is_relative_to(normal):
            warnings.warn(f"{test} shares images with {fit}: they will look more normal than they are", stacklevel=2)


def _limited(source, limit: int | None, seed: int):
    import numpy as np

    from skjepa._validation import check_integer

    if limit is None or len(source) <= check_integer("--limit", limit, minimum=1):
        return source
    chosen = np.sort(np.random.default_rng(seed).choice(len(source), limit, replace=False))
    return source[chosen]


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


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    _stderr.print(f"[yellow]warning:[/yellow] {escape(str(message))}", highlight=False, soft_wrap=True)


def main(args: list[str] | None = None) -> None:
    """Entry point: errors become one sentence and an exit code, never a half-written file."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", UserWarning)
        warnings.showwarning = _show_warning
        sys.exit(_run(args) or EXIT_OK)


def _run(args: list[str] | None) -> int | None:
    try:
        return app(args=args, standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        _stderr.print("interrupted")
        return EXIT_INTERRUPTED
    except (ValueError, TypeError, OSError, MemoryError) as error:
        return _fail(error, EXIT_BAD_INPUT)
    except Exception as error:
        if hasattr(error, "show"):  # a wrong option: the command line library words it, whichever version it is
            error.show()
            return EXIT_BAD_INPUT
        return _fail(error, EXIT_CRASH)


def _fail(error: Exception, code: int) -> int:
    if os.environ.get("SKJEPA_DEBUG"):
        raise error
    hint = "" if code == EXIT_BAD_INPUT else f" ({type(error).__name__}; run `skjepa --debug ...` for the traceback)"
    _stderr.print(f"[red]error:[/red] {escape(str(error))}{hint}", highlight=False, soft_wrap=True)
    return code
