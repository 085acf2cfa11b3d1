"""Command `skjepa score`: find the images in folders that are unlike normal ones."""

import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from skjepa.cli import atypical, checks
from skjepa.cli.bill import settle, settle_fitted
from skjepa.cli.common import (
    chosen_encoder,
    measured,
    print_json,
    require_readable,
    running,
    store_if_interrupted,
    summary_table,
)
from skjepa.cli.labels import check_labels, judged, read_labels
from skjepa.cli.normal_images import (
    Threshold,
    check_store,
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
    OnError,
    Processes,
    Quiet,
    ReadThreads,
    SavedDetector,
    Scheduler,
    StoreFolder,
    Tiles,
    Views,
    Weights,
    Yes,
)

if TYPE_CHECKING:
    from skjepa.detectors.jepa_score import JEPAScoreDetector
    from skjepa.reporting.scored_groups import ScoredGroup

_stdout, _stderr = Console(), Console(stderr=True)
_PICTURES = (".png", ".pdf", ".svg", ".jpg")
_TABLES = (".parquet", ".csv")


def score(
    tests: Annotated[
        list[Path],
        typer.Argument(metavar="TEST_DIR", help="Folders of images to score.", callback=checks.image_folder),
    ],
    normal: Annotated[
        Path | None,
        typer.Option(
            "--normal",
            "--fit",
            metavar="NORMAL_DIR",
            help="Folder of normal images to fit on.",
            callback=checks.image_folder,
        ),
    ] = None,
    saved: SavedDetector = None,
    out: Annotated[
        Path,
        typer.Option(help="Table to write, one row per image: .parquet or .csv.", callback=checks.output(_TABLES)),
    ] = Path("scores.parquet"),
    labels: Annotated[
        str | None,
        typer.Option(
            metavar="TABLE|NAME",
            help="Which images are normal, to measure how well the others are separated: a .csv or .parquet with the "
            "columns id and label (0 normal, 1 anomalous), or the name of the sub-folders of normal images, such "
            "as good.",
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option(
            help="Histogram and most atypical images (default: next to the table).", callback=checks.output(_PICTURES)
        ),
    ] = None,
    no_picture: Annotated[bool, typer.Option("--no-picture", help="Write no picture.")] = False,
    maps: Annotated[
        Path | None,
        typer.Option(
            help="Folder for maps of where each flagged image is odd, with spots.json.", callback=checks.new_folder
        ),
    ] = None,
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
    """Find the images that are unlike normal ones: fit on a folder, score other folders, write a table and a picture.

    Prints the most atypical images with p-value and reason. AUROC, AUPR and FPR@95 are printed with --labels, or for
    several folders compared with the held-out normal images.

    Example: skjepa score --normal normal/ incoming/ --out scores.csv
    Example: skjepa score --detector detector incoming/ --store store
    Example: skjepa score --normal train/good test/ --labels good
    """
    from skjepa._utils.files import short_names

    if (normal is None) == (saved is None):
        raise ValueError("give --normal, a folder of normal images, or --detector, a saved detector, and not both")
    folders = short_names(tests)
    picture = None if no_picture else picture or out.with_suffix(".png")
    image_folders = [*tests, *([] if normal is None else [normal])]
    _refuse_among_images("--picture, --out", picture, image_folders)
    _refuse_among_images("--maps", maps, image_folders)
    check_labels(labels, tests)
    threshold, sides = Threshold(alpha, calibration, contamination), checks.sides_of(tiles)
    threshold.check()
    if normal is not None:
        rule = threshold.of(n_images(normal, limit), method=method)
        threshold.check_subspace(method, rule)
        check_what_is_measured(
            formula, method, layers, directions, local=local, tiles=checks.sides_of(tiles), store=store
        )
        _warn_of_overlap(normal, tests)
    store_if_interrupted(store)

    from skjepa.cli.common import saved_detector
    from skjepa.data.sources import folder_source
    from skjepa.extraction.processes.pools import workers
    from skjepa.reporting import map_files, score_table, scored_groups

    sources = {name: folder_source(path).sample(limit, seed) for name, path in folders.items()}
    known = None if labels is None else read_labels(labels, sources)
    run = running(device, memory_budget, read_threads, on_error, quiet)
    started = time.perf_counter()
    normal_pass = None
    with workers(n_jobs, dask):
        if normal is None:
            assert saved is not None  # the check above ensures that one of the two is given
            detector = saved_detector(saved, encoder, image_size, weights).set_params(**run)
            check_store(detector.tiles, store)
            _refuse_another_fit(detector, local, sides)
            require_readable(sources.values(), on_error)
            settle_fitted(detector, list(sources.values()), budget=budget, yes=yes, quiet=quiet)
        else:
            passed_on = measured(method, directions, layers) | run
            settings = {"formula": formula, "local": local, "views": views, "random_state": seed}
            settings["tiles"] = sides
            normal_source = folder_source(normal).sample(limit, seed)
            loaded = chosen_encoder(encoder, image_size, weights, normal_source, quiet=quiet)
            detector = unfitted(loaded, rule, **settings, **passed_on)
            everything = [normal_source, *sources.values()]
            require_readable(everything, on_error)
            reason = settle(detector, everything, budget=budget, yes=yes, quiet=quiet, store=store)
            normal_pass = fitted(detector, normal_source, normal, threshold, store=store, reason=reason)
        groups = []
        for name, source in sources.items():
            _stderr.print(f"score: {len(source)} images of {escape(name)}", soft_wrap=True)
            groups.append(scored_groups.score_group(detector, name, source, store=store))
        mapped = [] if maps is None else map_files.write_maps(detector, groups, maps)
    shown = Path(detector.models_[0].settings["encoder"]).name
    surroundings, about = scored_groups.about_run(
        detector,
        None if normal_pass is None else normal_pass.measured,
        encoder=shown,
        folders=folders,
        normal_folder=normal,
    )
    score_table.write_table(score_table.score_table(groups, surroundings=surroundings, about=about), out)
    if picture is not None:
        scored_groups.score_picture(detector, groups, picture, title=f"Encoder {shown}, score {detector.formula!r}")
    held_out = None if detector.is_cross_calibrated else detector.calibration_scores_
    rows = scored_groups.summary(() if held_out is None or len(groups) == 1 or known else held_out, groups)
    if known is not None:
        judged(groups, rows, known)
    oddest = atypical.most_atypical(groups, getattr(detector, "appearance_", None))
    written = [path for path in (out, picture, maps) if path is not None]
    seconds, follow = time.perf_counter() - started, atypical.report_command(out, tests)
    if as_json:
        facts = {"groups": rows, "rule": rule_of(detector), "table": out, "picture": picture, "seconds": seconds}
        facts |= {"atypical": oddest, "next": follow}
        print_json(facts if maps is None else {**facts, "maps": maps, "mapped": len(mapped)})
    else:
        # Printed outside the table, which would limit the width of the lines.
        _stdout.print(f"Encoder {escape(shown)}, fitted on {detector.n_samples_fit_} normal images", highlight=False)
        caption = f"{rule_in_words(detector)}.{_metrics_in_words(rows, known is not None)}"
        _stdout.print(summary_table(rows))
        _stdout.print(escape(caption[0].upper() + caption[1:]), highlight=False)
        if oddest:
            _stdout.print()
            atypical.print_atypical(_stdout, oddest)
        _print_what_to_do_next(written, seconds, follow, groups)
    skipped = normal_pass is not None and normal_pass.n_unreadable
    return 3 if skipped or any(group.errors for group in groups) else 0


def _refuse_another_fit(detector: "JEPAScoreDetector", local: bool, sides: int | list[int] | None) -> None:
    """Raise if --local or --tiles ask for what a saved detector has not learned."""
    wanted = {"--local": local and not detector.local, "--tiles": sides is not None and sides != detector.tiles}
    for option in (name for name, is_wanted in wanted.items() if is_wanted):
        raise ValueError(
            f"{option} belongs to the fit, and the saved detector was fitted without it: give it to skjepa fit, and "
            "leave it out here"
        )


def _metrics_in_words(rows: Sequence[dict[str, Any]], is_labelled: bool) -> str:
    if not any("auroc" in row for row in rows):
        return ""
    against = "normal images by --labels" if is_labelled else "held-out normal images"
    what = "anomalous images" if is_labelled else "images of the folder"
    return (
        f" AUROC: share of pairs in which one of the {what} scores lower than one of the {against}; 0.5 is chance. "
        f"AUPR: area under precision and recall. FPR@95: share of the {against} that is flagged when 95 % of the "
        f"{what} are."
    )


def _print_what_to_do_next(
    written: Sequence[Path], seconds: float, follow: str, groups: Sequence["ScoredGroup"]
) -> None:
    files = ", ".join(map(str, written[:-1])) + (" and " if written[1:] else "") + str(written[-1])
    lines = ["", f"{files} written in {seconds:.1f} s.", f"Next: {follow}"]
    unreadable = sum(len(group.errors) for group in groups)
    if unreadable:
        first = next(iter(next(group.errors for group in groups if group.errors).values()))
        lines.insert(
            1, f"{unreadable} of the images could not be read; reasons are in the column error, for example: {first}"
        )
    _stdout.print("\n".join(lines), highlight=False, soft_wrap=True, markup=False)


def _refuse_among_images(option: str, path: Path | None, folders: Sequence[Path]) -> None:
    if path is not None and any(path.resolve().is_relative_to(folder.resolve()) for folder in folders):
        instead = " or give --no-picture" if "--picture" in option else ""
        raise ValueError(f"{path} would lie among the images: write it elsewhere ({option}){instead}")


def _warn_of_overlap(fit: Path, tests: Sequence[Path]) -> None:
    normal = fit.resolve()
    for test in tests:
        if normal.is_relative_to(test.resolve()) or test.resolve().is_relative_to(normal):
            warnings.warn(f"{test} shares images with {fit}: they will look more normal than they are", stacklevel=2)
