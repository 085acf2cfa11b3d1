"""Command `skjepa prune`: list the images of a folder that are worth keeping."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from skjepa._utils.files import TABLE_SUFFIXES
from skjepa.cli import checks
from skjepa.cli.bill import settle
from skjepa.cli.common import chosen_encoder, measured, print_json, running, store_if_interrupted
from skjepa.cli.normal_images import check_what_is_measured
from skjepa.cli.options import (
    FORMULAS,
    AsJson,
    Budget,
    Device,
    EncoderName,
    ImageSize,
    Layers,
    MemoryBudget,
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

if TYPE_CHECKING:
    from skjepa.curation.rules import Pruned


_stdout, _stderr = Console(), Console(stderr=True)
_LISTS = (".txt", ".csv", ".parquet")
_SHOWN = 20


def prune(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER|TABLE", help="Images to choose from, or a table of their scores: .parquet or .csv."
        ),
    ],
    keep: Annotated[
        float | None,
        typer.Option(
            help="Share of the images to keep, the most normal ones.", callback=checks.number(above=0.0, below=1.0)
        ),
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option(
            help="Instead of --keep: drop images unlike --normal, and on average at most this share of normal images.",
            callback=checks.number(above=0.0, below=1.0),
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            help="List of kept images: .txt (one name per line), .csv or .parquet (with scores).",
            callback=checks.output(_LISTS),
        ),
    ] = Path("kept.txt"),
    scores: Annotated[
        Path | None,
        typer.Option(
            help="Table of all images to write, from which a further run can start.",
            callback=checks.output(TABLE_SUFFIXES),
        ),
    ] = None,
    normal: Annotated[
        Path | None,
        typer.Option(
            metavar="NORMAL_DIR",
            help="Clean images to learn from (default: FOLDER itself, junk included).",
            callback=checks.image_folder,
        ),
    ] = None,
    per_class: Annotated[
        bool, typer.Option("--per-class", help="Keep this share of each sub-folder, so that no rare class vanishes.")
    ] = False,
    drop_copies: Annotated[bool, typer.Option("--drop-copies", help="Keep one of identical files.")] = False,
    folds: Annotated[
        int,
        typer.Option(
            help="Number of models: each scores a part of FOLDER that it was not fitted on.",
            callback=checks.integer(2),
        ),
    ] = 5,
    rounds: Annotated[
        int,
        typer.Option(
            help="Number of rounds: each is fitted on the images that the previous round keeps.",
            callback=checks.integer(1),
        ),
    ] = 1,
    calibration: Annotated[
        float,
        typer.Option(help="Share of NORMAL_DIR held out for --alpha, or a number of folds.", callback=checks.held_out),
    ] = 0.2,
    formula: Annotated[
        str | None,
        typer.Option(
            help="Score: 'joint', 'density' or 'jepa', the paper's score alone (default: 'joint' with --normal, else "
            "'jepa', because a cluster of junk would make the others look normal).",
            callback=checks.one_of(FORMULAS),
        ),
    ] = None,
    encoder: EncoderName = "auto",
    image_size: ImageSize = None,
    weights: Weights = None,
    method: Method = "auto",
    directions: NDirections = None,
    layers: Layers = "auto",
    budget: Budget = None,
    yes: Yes = False,
    store: StoreFolder = None,
    device: Device = "auto",
    memory_budget: MemoryBudget = None,
    n_jobs: Processes = None,
    dask: Scheduler = None,
    read_threads: ReadThreads = None,
    on_error: OnError = "skip",
    seed: Annotated[
        int, typer.Option(help="Seed of the folds and of the calibration split.", callback=checks.seed)
    ] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Write a list of the images worth keeping. No image is moved or deleted.

    Example: skjepa prune images/ --keep 0.7 --per-class --out kept.txt --scores scores.parquet
    """
    if (keep is None) == (alpha is None):
        raise ValueError("give --keep, a share, or --alpha, a false-positive rate, and not both")
    of_table = source.suffix.lower() in TABLE_SUFFIXES and not source.is_dir()
    if of_table and normal is not None:
        raise ValueError(f"--normal has no effect on {source}, a table of scores")
    if alpha is not None and normal is None and not of_table:
        raise ValueError("--alpha needs clean images to calibrate on: give --normal, or --keep instead of --alpha")
    if of_table:
        checks.require_table("TABLE", source)
    else:
        checks.require_images("FOLDER", source)
        formula = formula or ("jepa" if normal is None else "joint")
        check_what_is_measured(formula, method, layers, directions)
    store_if_interrupted(store)

    from skjepa.curation import collection
    from skjepa.data.sources import folder_source
    from skjepa.detectors.jepa_score import JEPAScoreDetector
    from skjepa.extraction.processes.pools import workers
    from skjepa.reporting.score_table import write_table

    if of_table:
        pruned = _of_table(source, keep=keep, target_fpr=alpha, per_class=per_class, drop_copies=drop_copies)
    else:
        images = folder_source(source)
        if encoder == "auto" and formula == "jepa":
            encoder = "bundled"  # K backward passes per image, for which larger encoders are too slow
        detector = JEPAScoreDetector(
            chosen_encoder(encoder, image_size, weights, images, quiet=quiet),
            formula=formula or "joint",
            calibration=calibration,
            random_state=seed,
            **measured(method, directions, layers),
            **running(device, memory_budget, read_threads, on_error, quiet),
        )
        clean = None if normal is None else folder_source(normal)
        with workers(n_jobs, dask):
            sources = [images] if clean is None else [images, clean]
            settle(detector, sources, budget=budget, yes=yes, quiet=quiet, store=store)
            pruned = collection.prune(
                images,
                keep=keep,
                target_fpr=alpha,
                normal=clean,
                detector=detector,
                per_class=per_class,
                drop_copies=drop_copies,
                folds=folds,
                rounds=rounds,
                store=store,
                random_state=seed,
            )
    if scores is not None:
        write_table(pruned.table(), scores)
    _write_list(pruned, out)
    if as_json:
        print_json({"kept": out, "scores": scores, "copies": len(pruned.copy_of), "classes": pruned.counts()})
    else:
        _report(pruned)
        written = f"{out}" + (f" and {scores}" if scores else "")
        _stdout.print(escape(f"{written} written"), highlight=False, soft_wrap=True)
    return 3 if pruned.errors else 0


def _of_table(path: Path, **rule: Any) -> "Pruned":
    """Choose what to keep from a table that `skjepa prune` or `skjepa score` wrote."""
    import numpy as np

    from skjepa.curation.rules import prune_scores
    from skjepa.data.splits import folders_of
    from skjepa.reporting.score_table import numbers, read_table

    columns = read_table(path).to_pydict()
    if missing := [name for name in ("id", "score") if name not in columns]:
        raise ValueError(f"{path} has no column {missing[0]!r}: it is not a table of scores")
    ids = [str(name) for name in columns["id"]]
    classes, p_values, copies = (columns.get(name) for name in ("class", "p_value", "copy_of"))
    return prune_scores(
        ids,
        numbers(path, "score", columns["score"]),
        p_values=None if p_values is None or not any(p_values) else numbers(path, "p_value", p_values),
        classes=folders_of(ids) if classes is None or None in classes else np.array(classes, dtype=np.str_),
        contents=None if copies is None else [first or name for first, name in zip(copies, ids, strict=True)],
        errors={i: str(reason) for i, reason in enumerate(columns.get("error", [])) if reason},
        **rule,
    )


def _write_list(pruned: "Pruned", out: Path) -> None:
    from skjepa._utils.files import written_whole
    from skjepa.reporting.score_table import write_table

    if out.suffix.lower() != ".txt":
        write_table(pruned.table().filter(pruned.kept).drop_columns(["kept", "error"]), out)
        return
    names = pruned.kept_ids
    if broken := [name for name in names if "\n" in name]:
        raise ValueError(f"the name {broken[0]!r} contains a line break: write the list as .csv or .parquet")
    with written_whole(out) as partial:
        partial.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _report(pruned: "Pruned") -> None:
    counts = pruned.counts()
    columns = ("images", "kept", "dropped", "unreadable")
    table = Table(title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.add_column("class", overflow="fold")
    for heading in columns:
        table.add_column(heading, justify="right")
    # If there are many classes, those that lose the largest share are shown.
    ranked = sorted(counts, key=lambda name: counts[name]["kept"] / counts[name]["images"])
    shown = set(ranked[:_SHOWN])
    for name, row in counts.items() if len(counts) > 1 else ():
        if name in shown:
            table.add_row(escape(name), *(str(row[column]) for column in columns))
    if len(counts) > len(shown):
        table.add_row(f"... and {len(counts) - len(shown)} classes that keep a larger share")
    table.add_row("all", *(str(sum(row[column] for row in counts.values())) for column in columns))
    _stdout.print(table)
    if pruned.copy_of:
        _stdout.print(f"{len(pruned.copy_of)} copies of other images", highlight=False)
    for i, reason in list(pruned.errors.items())[:5]:
        _stderr.print(escape(f"unreadable: {pruned.ids[i]}: {reason}"), highlight=False, soft_wrap=True)
    if len(pruned.errors) > 5:
        _stderr.print(f"... and {len(pruned.errors) - 5} more (--scores writes them all)", highlight=False)
