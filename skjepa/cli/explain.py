"""Command `skjepa explain`: explain in words why images score as they do."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from skjepa.cli import checks
from skjepa.cli.atypical import NO_REASON, remarks_on
from skjepa.cli.common import print_json, running
from skjepa.cli.options import AsJson, Device, EncoderName, ImageSize, NeededDetector, Weights

if TYPE_CHECKING:
    from skjepa.data.sources import Source
    from skjepa.inspection.appearance import NormalAppearance

_stdout, _stderr = Console(), Console(stderr=True)


def explain(
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Images to explain, or folders of images.")],
    saved: NeededDetector = ...,  # type: ignore[assignment]
    normal: Annotated[
        Path | None,
        typer.Option(
            metavar="NORMAL_DIR",
            help="Normal images for words on how an image looks (default: statistics saved with the detector).",
            callback=checks.image_folder,
        ),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Print the number behind each reason.")] = False,
    encoder: EncoderName = "auto",
    image_size: ImageSize = None,
    weights: Weights = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> int:
    """Explain in words why images score as they do, such as "blurrier or smoother than any normal image".

    Words on sharpness, brightness, contrast, colour and size compare the pixels with the normal images, without the
    encoder. Words on layers name the terms of the score that are unusual (p-value at most 0.05).

    Example: skjepa explain incoming/04.png incoming/11.png --detector detector --verbose
    """
    files = _files(images)

    from skjepa.cli.common import saved_detector
    from skjepa.data.sources import as_source, folder_source
    from skjepa.inspection.appearance import learn_appearance, sampled

    detector = saved_detector(saved, encoder, image_size, weights)
    detector.set_params(**running(device, None, None, "skip", quiet=True))
    appearance = getattr(detector, "appearance_", None)
    if normal is not None:
        appearance = learn_appearance(sampled(folder_source(normal)))
    elif appearance is None:
        _stderr.print(
            "note: this detector has no statistics of how normal images look (it was saved from Python or by an "
            "earlier version); give --normal NORMAL_DIR to compute them",
            soft_wrap=True,
        )
    source = as_source([str(file) for file in files])
    told = _explained(detector, source, appearance)
    if as_json:
        print_json({"images": told})
    else:
        for one in told:
            _print(one, verbose)
    return 3 if any("error" in one for one in told) else 0


def _files(images: list[Path]) -> list[Path]:
    """Return the given files and the images in the given folders; raise if a file does not exist."""
    from skjepa.data.folders import image_files

    files: list[Path] = []
    for path in images:
        files += image_files(path) if path.is_dir() else [checks.require_file("IMAGE", path)]
    return list(dict.fromkeys(files))


def _explained(detector: Any, source: "Source", appearance: "NormalAppearance | None") -> list[dict[str, Any]]:
    from skjepa.inspection.plain_words import reasons_in_words
    from skjepa.reporting.scored_groups import score_group

    group = score_group(detector, "", source)
    assert group.explained is not None  # score_group has explained it
    told: list[dict[str, Any]] = []
    for i, name in enumerate(source.ids.tolist()):
        row = group.row_of_explained(i)
        if row is None:
            told.append({"id": name, "error": group.errors[i]})
            continue
        reasons = reasons_in_words(group.explained, row, remarks_on(source, i, appearance))
        told.append(
            {
                "id": name,
                "score": float(group.scores[i]),
                "p_value": None if group.p_values is None else float(group.p_values[i]),
                "flagged": bool(group.decisions[i] < 0),
                "reasons": [{"words": reason.words, "numbers": reason.numbers} for reason in reasons],
            }
        )
    return told


def _print(told: dict[str, Any], verbose: bool) -> None:
    if "error" in told:
        _stderr.print(escape(told["error"]), highlight=False, soft_wrap=True)
        return
    verdict = "[red]flagged[/red]" if told["flagged"] else "not flagged"
    value = f", p-value {told['p_value']:.3g}" if told["p_value"] is not None else ""
    value += f", score {told['score']:.4g}" if verbose or not value else ""
    _stdout.print(f"{escape(told['id'])}: {verdict}{value}", highlight=False, soft_wrap=True)
    if not told["reasons"]:
        _stdout.print(f"    {NO_REASON if told['flagged'] else 'nothing unusual'}", highlight=False)
    for reason in told["reasons"]:
        numbers = f"  [dim]({escape(reason['numbers'])})[/dim]" if verbose else ""
        _stdout.print(f"    {escape(reason['words'])}{numbers}", highlight=False, soft_wrap=True)
