"""Declare the options that several commands share, each with its check."""

from pathlib import Path
from typing import Annotated

import typer

from skjepa.cli import checks

FORMULAS = ("joint", "density", "jepa")
METHODS = ("auto", "forward", "exact", "sketch", "subspace")
ON_ERROR = ("skip", "raise")

NormalFolder = Annotated[
    Path, typer.Argument(metavar="NORMAL_DIR", help="Folder of normal images.", callback=checks.image_folder)
]
EncoderName = Annotated[
    str,
    typer.Option(
        help="'auto' ('bundled' for images up to 64 pixels, else 'lite0'), a timm name, local-dir:FOLDER, "
        "transformers:NAME or a .safetensors file; `skjepa encoders` lists those known to work.",
        callback=checks.encoder,
    ),
]
ImageSize = Annotated[
    int | None,
    typer.Option(help="Side of the images the encoder gets, in pixels (default: its own).", callback=checks.integer(1)),
]
Weights = Annotated[
    Path | None,
    typer.Option(help="File or folder with the weights of a timm encoder.", callback=checks.weights),
]
Alpha = Annotated[
    float | None,
    typer.Option(
        help="Highest share of new normal images to flag, on average, set by held-out normal images (default: 0.05).",
        callback=checks.number(above=0.0, below=1.0),
    ),
]
HeldOut = Annotated[
    float | None,
    typer.Option(
        help="Normal images held out for --alpha: a share, or a number of folds (default: 0.2, or 5 folds if that is "
        "too few images).",
        callback=checks.held_out,
    ),
]
Contamination = Annotated[
    float | None,
    typer.Option(
        help="Flag this share of the normal images instead of --alpha. There are no p-values then.",
        callback=checks.number(above=0.0, below=0.5, closed=">"),
    ),
]
Formula = Annotated[
    str,
    typer.Option(
        help="Score: 'joint' (the default score), 'density' or 'jepa' (the paper's score alone).",
        callback=checks.one_of(FORMULAS),
    ),
]
Views = Annotated[
    int,
    typer.Option(
        help="Number of random views per image to average; 1 uses the image itself.", callback=checks.integer(1)
    ),
]
Method = Annotated[
    str,
    typer.Option(
        help="Backward passes per image: 'forward' (none), 'exact' (one per output of the encoder, K in all), 'sketch' "
        "(--directions random ones), 'subspace' (as many learned ones), or 'auto' (exact up to K = 64 and 20 GFLOP, "
        "else forward).",
        callback=checks.one_of(METHODS),
    ),
]
NDirections = Annotated[
    int | None,
    typer.Option(
        "--directions",
        help="Backward passes of 'sketch' and 'subspace' (default: K / 4).",
        callback=checks.integer(1),
    ),
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Time limit for all images, such as 90s, 10m or 1.5h. --method auto makes as many backward passes as fit; "
        "a method that takes longer is refused.",
        callback=checks.duration,
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a run of more than a minute.")]
Layers = Annotated[
    str,
    typer.Option(help="Hidden layers the score reads: 'auto' (ends of stages), 'none', or names separated by commas."),
]
Local = Annotated[
    bool,
    typer.Option("--local", help="Also learn what is normal at each position of an image, to find small defects."),
]
Tiles = Annotated[
    str | None,
    typer.Option(
        metavar="SIDE[,SIDE]",
        help="Cut images into overlapping squares of this many pixels, to find small defects in large images.",
        callback=checks.tile_sides,
    ),
]
Limit = Annotated[
    int | None,
    typer.Option(help="Use at most this many images of each folder, drawn at random.", callback=checks.integer(1)),
]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        help="Folder that keeps finished images. The same command continues from it after an interruption.",
        callback=checks.new_folder,
    ),
]
Device = Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'cuda:1' ...", callback=checks.device)]
MemoryBudget = Annotated[
    float | None,
    typer.Option(
        help="Memory that a batch may take, in GiB (default: half of what is free).",
        callback=checks.number(above=0.0),
    ),
]
Processes = Annotated[
    int | None,
    typer.Option(
        help="Processes that score images, at most one per GPU where there are GPUs; -1: one per core.",
        callback=checks.processes,
    ),
]
Scheduler = Annotated[
    str | None,
    typer.Option(metavar="SCHEDULER", help="Score on a dask cluster: address of its scheduler, or scheduler file."),
]
ReadThreads = Annotated[
    int | None, typer.Option(help="Threads that read images, in each process.", callback=checks.processes)
]
OnError = Annotated[
    str,
    typer.Option(
        help="Unreadable images: 'skip' (the table gives the reason, exit code 3) or 'raise' (stop before the fit).",
        callback=checks.one_of(ON_ERROR),
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar and no questions.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object and nothing else.")]
_detector = typer.Option(
    "--detector", metavar="FOLDER", help="Detector that `skjepa fit` saved.", callback=checks.saved_detector
)
SavedDetector = Annotated[Path | None, _detector]
NeededDetector = Annotated[Path, _detector]
