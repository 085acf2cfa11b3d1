"""Command `skjepa report`: make an HTML page from a table of scores."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from skjepa.cli import checks
from skjepa.cli.common import print_json
from skjepa.cli.options import AsJson, EncoderName, ImageSize, Quiet, SavedDetector, Weights

_stdout = Console()


def report(
    table: Annotated[
        Path,
        typer.Argument(
            metavar="TABLE", help="Table that `skjepa score` wrote: .parquet or .csv.", callback=checks.table_file
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            help="Page to write (default: next to the table, .html).", callback=checks.output((".html", ".htm"))
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the images, if the table is a .csv or they were moved; once for each folder that was "
            "scored, in the same order.",
            callback=checks.folder,
        ),
    ] = None,
    normal: Annotated[
        Path | None,
        typer.Option(
            metavar="NORMAL_DIR",
            help="Folder of the normal images, if they were moved; the page shows the nearest ones.",
            callback=checks.image_folder,
        ),
    ] = None,
    detector: SavedDetector = None,
    encoder: EncoderName = "auto",
    image_size: ImageSize = None,
    weights: Weights = None,
    title: Annotated[str | None, typer.Option(help="Heading of the page (default: name of the table).")] = None,
    gallery: Annotated[int, typer.Option(help="Images in each gallery, at most.", callback=checks.integer(1))] = 24,
    no_duplicates: Annotated[
        bool,
        typer.Option(
            "--no-duplicates", help="Do not search for near-duplicates, so that only the images on the page are read."
        ),
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Write one HTML file that shows which images are odd and why. It works offline and needs no other file.

    With --detector, neighbours, maps and diagnosis are computed where the table (a .csv) has none; that takes one
    forward pass per image.

    Example: skjepa score --normal normal/ incoming/ && skjepa report scores.parquet
    """
    from skjepa.cli.common import saved_detector
    from skjepa.reporting.report_file import report_of_table
    from skjepa.reporting.words import size_in_words

    out = table.with_suffix(".html") if out is None else out
    written = report_of_table(
        table,
        out,
        images=images or (),
        normal=normal,
        detector=None if detector is None else saved_detector(detector, encoder, image_size, weights),
        title=title,
        gallery=gallery,
        duplicates=not no_duplicates,
        progress=not quiet,
    )
    if as_json:
        print_json({"page": written, "bytes": written.stat().st_size})
        return 0
    size = size_in_words(written.stat().st_size)
    _stdout.print(f"{escape(str(written))} written, {size}: open it in a browser", highlight=False, soft_wrap=True)
    return 0
