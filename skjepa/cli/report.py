"""`skjepa report`: a page for people from a table of scores."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from skjepa.cli.common import print_json
from skjepa.cli.options import AsJson, EncoderName, ImageSize, Quiet, Weights

_stdout = Console()


def report(
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="What `skjepa score` wrote: .parquet or .csv.")],
    out: Annotated[Path | None, typer.Option(help="Page to write (default: next to the table, .html).")] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Where the images lie now; again for each folder that was scored, in order."),
    ] = None,
    normal: Annotated[
        Path | None, typer.Option(metavar="NORMAL_DIR", help="Where the normal images lie now, for the neighbours.")
    ] = None,
    detector: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Saved detector: neighbours, maps and diagnosis from it, where the table (a .csv) has none.",
        ),
    ] = None,
    encoder: EncoderName = "auto",
    image_size: ImageSize = None,
    weights: Weights = None,
    title: Annotated[str | None, typer.Option(help="Heading (default: the table's name).")] = None,
    gallery: Annotated[int, typer.Option(help="Images in each gallery, at most.")] = 24,
    no_duplicates: Annotated[
        bool, typer.Option("--no-duplicates", help="Do not look for near-duplicates: no image is read but those shown.")
    ] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Write one HTML file that shows which images are odd. It needs no network and nothing beside it.

    Example: skjepa score --fit normal/ incoming/ && skjepa report scores.parquet
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
