"""Options that several commands have, each said once."""

from pathlib import Path
from typing import Annotated

import typer

NormalFolder = Annotated[Path, typer.Argument(metavar="NORMAL_DIR", help="Folder of normal images.")]
EncoderName = Annotated[
    str,
    typer.Option(
        help="'auto' ('bundled' for images up to 64 pixels, else 'lite0'), a timm name, local-dir:PATH or a "
        ".safetensors file."
    ),
]
ImageSize = Annotated[int | None, typer.Option(help="Side the encoder receives (default: its own).")]
Weights = Annotated[Path | None, typer.Option(help="File or folder with the weights of a timm encoder.")]
Alpha = Annotated[float, typer.Option(help="Flag at most this share of new normal images (conformal).")]
HeldOut = Annotated[float, typer.Option(help="Share of the normal images held out for that.")]
Contamination = Annotated[
    float | None, typer.Option(help="Flag by this share of the normal images instead; then no p-values.")
]
Formula = Annotated[str, typer.Option(help="'joint', 'density' or 'jepa' (the paper's score alone).")]
Views = Annotated[int, typer.Option(help="Random views an image (Eq. 4); 1 is the image itself.")]
Method = Annotated[
    str,
    typer.Option(
        help="Backward passes per image: 'forward' (none), 'exact' (all K), 'sketch' (--directions random ones), "
        "'subspace' (as many learned ones), or 'auto' (exact up to K = 64 and 20 GFLOP, else forward)."
    ),
]
NDirections = Annotated[
    int | None, typer.Option("--directions", help="Backward passes of 'sketch' and 'subspace' (default: K / 4).")
]
Budget = Annotated[
    str | None,
    typer.Option(
        metavar="TIME",
        help="Time that all images may take, such as 90s, 10m or 1.5h: 'auto' makes as many passes as fit, other "
        "methods are refused where they take longer.",
    ),
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before a run of more than a minute.")]
Layers = Annotated[
    str, typer.Option(help="Hidden layers to read: 'auto' (ends of stages), 'none', or names with commas between.")
]
Local = Annotated[
    bool, typer.Option("--local", help="Also learn what is normal at each place of a picture: for small defects.")
]
Limit = Annotated[int | None, typer.Option(help="At most so many images of each folder, drawn at random.")]
StoreFolder = Annotated[Path | None, typer.Option(help="Folder that keeps finished images: the run resumes from it.")]
Device = Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', 'cuda:1' ...")]
MemoryBudget = Annotated[float | None, typer.Option(help="GiB that a batch may take (default: half of the free).")]
Processes = Annotated[
    int | None, typer.Option(help="Processes that score, no more than GPUs where there are any; -1: one a core.")
]
Scheduler = Annotated[
    str | None, typer.Option(metavar="SCHEDULER", help="Score on a dask cluster: its address, or scheduler file.")
]
ReadThreads = Annotated[int | None, typer.Option(help="Threads that read images, in each process.")]
OnError = Annotated[str, typer.Option(help="An unreadable image: 'raise' or 'skip' (with a warning).")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object, and nothing else.")]
