"""`skjepa fit` and `skjepa score`: a detector of a folder of normal images, and what it says of other folders."""

import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from skjepa.cli.bill import settle, settle_fitted
from skjepa.cli.common import chosen_encoder, measured, print_json, running
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
    Views,
    Weights,
    Yes,
)

if TYPE_CHECKING:
    from skjepa.data.sources import Source
    from skjepa.detectors.jepa_score import JEPAScoreDetector
    from skjepa.extraction.extraction import Extraction


_stdout, _stderr = Console(), Console(stderr=True)
_PICTURES = (".png", ".pdf", ".svg", ".jpg")


def fit(
    normal: NormalFolder,
    out: Annotated[Path, typer.Option(help="Folder to save the detector in.")] = Path("detector"),
    encoder: EncoderName = "auto",
    alpha: Alpha = 0.05,
    calibration: HeldOut = 0.2,
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
    views: Views = 1,
    limit: Limit = None,
    store: StoreFolder = None,
    device: Device = "auto",
    memory_budget: MemoryBudget = None,
    n_jobs: Processes = None,
    dask: Scheduler = None,
    read_threads: ReadThreads = None,
    on_error: OnError = "raise",
    seed: Annotated[int, typer.Option(help="Of the calibration split, the views and --limit.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Fit a detector on a folder of normal images and save it, as JSON and safetensors.

    Example: skjepa fit normal/ --out detector && skjepa score --detector detector incoming/
    """
    from skjepa.data.sources import folder_source
    from skjepa.extraction.processes.pools import workers

    _check_folder(out)
    source = _limited(folder_source(normal), limit, seed)
    detector = _unfitted(
        source,
        encoder,
        image_size,
        weights,
        contamination,
        alpha,
        calibration,
        quiet,
        formula=formula,
        local=local,
        views=views,
        random_state=seed,
        **measured(method, directions, layers),
        **running(device, memory_budget, read_threads, on_error, quiet),
    )
    started = time.perf_counter()
    with workers(n_jobs, dask):
        reason = settle(detector, [source], budget=budget, yes=yes, quiet=quiet, store=store)
        normal_pass = _fitted(detector, source, normal, store, reason)
    detector.save(out)
    seconds = time.perf_counter() - started
    skipped = len(normal_pass.errors)
    if as_json:
        facts = {"detector": out, "images": len(source), "unreadable": skipped, "threshold": detector.offset_}
        print_json({**facts, "rule": _rule(detector), "seconds": seconds})
    else:
        _stdout.print(
            f"{out} written: fitted on {len(normal_pass)} normal images, flags by {_rule(detector)}; {seconds:.1f} s",
            highlight=False,
            soft_wrap=True,
        )
    return 3 if skipped else 0


def score(
    tests: Annotated[list[Path], typer.Argument(metavar="TEST_DIR...", help="Folders of images to score.")],
    normal: Annotated[
        Path | None, typer.Option("--fit", metavar="NORMAL_DIR", help="Folder of normal images, to fit on first.")
    ] = None,
    saved: Annotated[
        Path | None, typer.Option("--detector", metavar="FOLDER", help="What `skjepa fit` saved, instead of --fit.")
    ] = None,
    encoder: EncoderName = "auto",
    out: Annotated[Path, typer.Option(help="Table to write: .parquet or .csv.")] = Path("scores.parquet"),
    picture: Annotated[Path | None, typer.Option(help="Picture to write (default: next to the table, .png).")] = None,
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Write no picture.")] = False,
    maps: Annotated[
        Path | None,
        typer.Option(help="Folder for pictures of where flagged images are odd, and a list of spots (with --local)."),
    ] = None,
    alpha: Alpha = 0.05,
    calibration: HeldOut = 0.2,
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
    views: Views = 1,
    limit: Limit = None,
    store: StoreFolder = None,
    device: Device = "auto",
    memory_budget: MemoryBudget = None,
    n_jobs: Processes = None,
    dask: Scheduler = None,
    read_threads: ReadThreads = None,
    on_error: OnError = "raise",
    seed: Annotated[int, typer.Option(help="Of the calibration split, the views and --limit.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Fit on a folder of normal images, score other folders, write a table and a picture.

    Example: skjepa score --fit normal/ incoming/ --out scores.parquet
    Example: skjepa score --detector detector incoming/ --store store
    Example: skjepa score --fit normal/ incoming/ --local --maps maps
    """
    from skjepa._utils import files
    from skjepa.cli import common
    from skjepa.data.sources import folder_source
    from skjepa.extraction.processes.pools import workers
    from skjepa.reporting import map_files, score_table, scored_groups

    if (normal is None) == (saved is None):
        raise ValueError("give --fit, a folder of normal images, or --detector, a saved detector, and not both")
    out = files.check_output(out, score_table.TABLE_SUFFIXES)
    picture = None if no_picture else files.check_output(picture or out.with_suffix(".png"), _PICTURES)
    folders = score_table.short_names(tests)
    _check_picture(picture, [*tests, *([] if normal is None else [normal])])
    _check_picture(maps, [*tests, *([] if normal is None else [normal])], option="--maps")
    sources = {name: _limited(folder_source(path), limit, seed) for name, path in folders.items()}
    run = running(device, memory_budget, read_threads, on_error, quiet)
    started = time.perf_counter()
    normal_pass = None
    with workers(n_jobs, dask):
        if normal is None:
            assert saved is not None  # one of the two is given
            detector = common.saved_detector(saved, encoder, image_size, weights).set_params(**run)
            settle_fitted(detector, list(sources.values()), budget=budget, yes=yes, quiet=quiet)
        else:
            normal_source = _limited(folder_source(normal), limit, seed)
            detector = _unfitted(
                normal_source,
                encoder,
                image_size,
                weights,
                contamination,
                alpha,
                calibration,
                quiet,
                formula=formula,
                local=local,
                views=views,
                random_state=seed,
                **measured(method, directions, layers),
                **run,
            )
            _warn_of_overlap(normal, tests)
            measured_here = [normal_source, *sources.values()]
            reason = settle(detector, measured_here, budget=budget, yes=yes, quiet=quiet, store=store)
            normal_pass = _fitted(detector, normal_source, normal, store, reason)
        groups = []
        for name, source in sources.items():
            _stderr.print(f"score: {len(source)} images of {escape(name)}")
            groups.append(scored_groups.score_group(detector, name, source, store=store))
        mapped = [] if maps is None else map_files.write_maps(detector, groups, maps)
    shown = Path(detector.models_[0].settings["encoder"]).name
    surroundings, about = scored_groups.about_run(
        detector, normal_pass, encoder=shown, folders=folders, normal_folder=normal
    )
    score_table.write_table(score_table.score_table(groups, surroundings=surroundings, about=about), out)
    if picture is not None:
        scored_groups.score_picture(detector, groups, picture, title=f"Encoder {shown}, score {detector.formula!r}")
    held_out = detector.calibration_scores_
    rows = scored_groups.summary([] if held_out is None else held_out, groups)
    seconds = time.perf_counter() - started
    if as_json:
        facts = {"groups": rows, "rule": _rule(detector), "table": out, "picture": picture, "seconds": seconds}
        print_json(facts if maps is None else {**facts, "maps": maps, "mapped": len(mapped)})
    else:
        against = "AUROC, AUPR (images as positive) and FPR@95 (of normal images, when 95 % of these are caught)"
        caption = f"flagged: {_rule(detector)}" + (
            "" if held_out is None else f"; {against}: against the held-out normal images"
        )
        title = f"Encoder {shown}, fitted on {detector.n_samples_fit_} normal images"
        _stdout.print(common.summary_table(rows, title=title, caption=caption))
        written = f"{out}" + (f" and {picture}" if picture else "")
        written += "" if maps is None else f", maps of {len(mapped)} flagged images in {maps}"
        _stdout.print(f"{written} written; {seconds:.1f} s", highlight=False, soft_wrap=True)
    skipped = normal_pass is not None and normal_pass.errors
    return 3 if skipped or any(group.errors for group in groups) else 0


def _unfitted(
    source: "Source",
    encoder: str,
    image_size: int | None,
    weights: Path | None,
    contamination: float | None,
    alpha: float,
    calibration: float,
    quiet: bool,
    **settings: Any,
) -> "JEPAScoreDetector":
    from skjepa.detectors.jepa_score import JEPAScoreDetector

    rule: dict[str, Any] = {"target_fpr": alpha, "calibration": calibration} if contamination is None else {}
    return JEPAScoreDetector(
        chosen_encoder(encoder, image_size, weights, source, quiet=quiet),
        contamination=0.1 if contamination is None else contamination,
        **rule,
        **settings,
    )


def _fitted(
    detector: "JEPAScoreDetector", source: "Source", folder: Path, store: Path | None, reason: str | None
) -> "Extraction":
    _stderr.print(f"fit: {len(source)} normal images of {escape(str(folder))}")
    normal_pass = detector.extract(source, store=store)
    normal_pass.meta["method_reason"] = reason or normal_pass.meta.get("method_reason")
    detector.fit(normal_pass)
    return normal_pass


def _rule(detector: "JEPAScoreDetector") -> str:
    if detector.calibration_scores_ is not None and detector.target_fpr is not None:
        return f"conformal p <= {detector.target_fpr:g}"
    return f"contamination {detector.contamination:g}"


def _check_picture(picture: Path | None, folders: list[Path], option: str = "--picture, --out") -> None:
    if picture is not None and any(picture.resolve().is_relative_to(folder.resolve()) for folder in folders):
        raise ValueError(
            f"{picture} would lie among the images: write it elsewhere ({option})"
            + (" or give --no-picture" if option == "--picture, --out" else "")
        )


def _check_folder(out: Path) -> None:
    """Said before hours of work, not after."""
    from skjepa.persistence.folder import OBJECT_FILE

    if out.exists() and not (out / OBJECT_FILE).is_file():
        raise FileExistsError(f"{out} exists and is not a saved detector; choose another name")
    if not out.absolute().parent.is_dir():
        raise FileNotFoundError(f"no folder {out.parent} to save {out.name} in")


def _warn_of_overlap(fit: Path, tests: list[Path]) -> None:
    normal = fit.resolve()
    for test in tests:
        if normal.is_relative_to(test.resolve()) or test.resolve().is_relative_to(normal):
            warnings.warn(f"{test} shares images with {fit}: they will look more normal than they are", stacklevel=2)


def _limited(source: "Source", limit: int | None, seed: int) -> "Source":
    from skjepa._utils.validation import check_integer

    return source.sample(None if limit is None else check_integer("--limit", limit, minimum=1), seed)
