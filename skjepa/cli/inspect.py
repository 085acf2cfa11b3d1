"""Command `skjepa inspect`: list the problems of a folder of images, without an encoder."""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from skjepa.cli import checks
from skjepa.cli.common import print_json
from skjepa.cli.options import AsJson, Quiet

if TYPE_CHECKING:
    import numpy as np

    from skjepa.data.near_duplicates import Look
    from skjepa.inspection.appearance import Remark

_stdout, _stderr = Console(), Console(stderr=True)
_THREADS = 8


@dataclass
class _Seen:
    """Name, size and statistics of an image, or the error if it could not be read."""

    name: str
    error: str = ""
    size: tuple[int, int] = (0, 0)
    statistics: "np.ndarray | None" = None
    look: "Look | None" = None
    remarks: "Sequence[Remark]" = ()


def inspect(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Images to look through.", callback=checks.image_folder)
    ],
    normal: Annotated[
        Path | None,
        typer.Option(
            metavar="NORMAL_DIR",
            help="Normal images to compare with (default: the other images of FOLDER).",
            callback=checks.image_folder,
        ),
    ] = None,
    top: Annotated[int, typer.Option(help="Print at most this many images.", callback=checks.integer(1))] = 20,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the number behind each reason.")] = False,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Look through a folder of images: unreadable files, sizes, near-duplicates, and images unlike the rest.

    Compares sharpness, brightness, contrast, colour and size. It takes milliseconds per image and needs no encoder. Use
    `skjepa score` to compare what the images show.

    Example: skjepa inspect incoming/ --normal normal/
    """
    from skjepa.data.near_duplicates import alike

    seen = _look_through(folder, normal, quiet=quiet)
    read = [one for one in seen if not one.error]
    twins = [[read[i].name for i in group] for group in alike([one.look for one in read])]
    odd = sorted((one for one in read if one.remarks), key=lambda one: -len(one.remarks))
    unreadable = [one for one in seen if one.error]
    if as_json:
        print_json(_facts(read, unreadable, twins, odd))
    else:
        _print(folder, normal, read, unreadable, twins, odd, top=top, verbose=verbose)
    return 3 if unreadable else 0


def _look_through(folder: Path, normal: Path | None, *, quiet: bool) -> list[_Seen]:
    import numpy as np
    from tqdm.auto import tqdm

    from skjepa.data.folders import image_files
    from skjepa.data.images import read_image
    from skjepa.data.near_duplicates import look_of
    from skjepa.inspection.appearance import learn_appearance, standing_out, statistics_of

    files = image_files(folder)
    appearance = None if normal is None else learn_appearance(_readable(image_files(normal)))

    def look(file: Path) -> _Seen:
        name = file.relative_to(folder).as_posix()
        try:
            image = read_image(file)
        except (OSError, ValueError) as error:
            return _Seen(name, str(error))
        remarks = () if appearance is None else appearance.remarks(image)
        return _Seen(name, "", image.size, statistics_of(image)[0], look_of(image), remarks)

    with ThreadPoolExecutor(_THREADS) as threads:
        seen = list(tqdm(threads.map(look, files), total=len(files), unit="img", disable=quiet))
    read = [one for one in seen if one.statistics is not None]
    if appearance is None and read:
        for one, remarks in zip(read, standing_out(np.stack([one.statistics for one in read])), strict=True):
            one.remarks = remarks
    return seen


def _readable(files: Sequence[Path]) -> Iterator[Any]:
    """Yield readable images of the files, at most as many as the comparison uses."""
    import numpy as np

    from skjepa.data.images import read_image
    from skjepa.inspection.appearance import MOST

    chosen = np.random.default_rng(0).permutation(len(files))[:MOST]
    for i in chosen.tolist():
        try:
            yield read_image(files[i])
        except (OSError, ValueError):
            continue


def _facts(read: list[_Seen], unreadable: list[_Seen], twins: list[list[str]], odd: list[_Seen]) -> dict[str, Any]:
    reasons = [
        {"id": one.name, "reasons": [{"words": r.words, "numbers": r.numbers} for r in one.remarks]} for one in odd
    ]
    return {
        "images": len(read),
        "unreadable": {one.name: one.error for one in unreadable},
        "sizes": {f"{width}x{height}": n for (width, height), n in Counter(one.size for one in read).most_common()},
        "near_duplicates": twins,
        "odd": reasons,
    }


def _print(
    folder: Path,
    normal: Path | None,
    read: list[_Seen],
    unreadable: list[_Seen],
    twins: list[list[str]],
    odd: list[_Seen],
    *,
    top: int,
    verbose: bool,
) -> None:
    _stdout.print(f"{escape(str(folder))}: {len(read)} images, {_sizes(read)}", highlight=False, soft_wrap=True)
    for one in unreadable[:5]:
        _stdout.print(f"unreadable: {escape(one.error)}", highlight=False, soft_wrap=True)
    if len(unreadable) > 5:
        _stdout.print(f"... and {len(unreadable) - 5} more unreadable images", highlight=False)
    if twins:
        example = ", ".join(twins[0][:3]) + (" ..." if len(twins[0]) > 3 else "")
        again = sum(len(group) - 1 for group in twins)
        _stdout.print(
            f"{again} of the images are near-duplicates of another, for example {escape(example)}",
            highlight=False,
            soft_wrap=True,
        )
    beside = "the rest" if normal is None else f"all images of {normal}"
    if not odd:
        _stdout.print(escape(f"None looks unlike {beside} in sharpness, brightness, contrast, colour or size."))
    else:
        title = f"{len(odd)} of {len(read)} images look unlike {beside}"
        _stdout.print(_table(title + (f"; {top} of them" if len(odd) > top else ""), odd[:top], verbose))
    _stdout.print(
        f"Next: skjepa score --normal {normal or 'NORMAL_DIR'} {folder}", highlight=False, soft_wrap=True, markup=False
    )


def _sizes(read: list[_Seen]) -> str:
    sizes = {one.size for one in read}
    if len(sizes) == 1:
        width, height = next(iter(sizes))
        return f"each {width} x {height} pixels"
    widths, heights = zip(*sizes, strict=True) if sizes else ([0], [0])
    return f"{min(widths)} to {max(widths)} pixels wide, {min(heights)} to {max(heights)} high"


def _table(title: str, odd: Sequence[_Seen], verbose: bool) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.add_column("image", overflow="fold", ratio=2)
    table.add_column("reason", overflow="fold", ratio=5)
    for one in odd:
        said = [f"{r.words}; {r.numbers}" if verbose else r.words for r in one.remarks]
        table.add_row(escape(one.name), escape("\n".join(said) if verbose else "; ".join(said)))
    return table
