"""Command `skjepa pretrain`: train a small encoder on your own images."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from skjepa.cli import checks
from skjepa.cli.common import if_interrupted, print_json
from skjepa.cli.options import AsJson, Device, OnError, Quiet, ReadThreads

_stdout = Console()
NETWORKS = ("convnet", "vit")
OBJECTIVES = ("sigreg", "vicreg", "info_nce", "invariance")
PRECISIONS = ("auto", "float32", "bfloat16")


def pretrain(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="Images to train on, also in sub-folders; no labels.", callback=checks.image_folder
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Encoder to write: .safetensors.", callback=checks.output((".safetensors",)))
    ],
    network: Annotated[str, typer.Option(help="'convnet' or 'vit'.", callback=checks.one_of(NETWORKS))] = "convnet",
    image_size: Annotated[
        int, typer.Option(help="Side of the images the encoder gets, in pixels.", callback=checks.integer(8))
    ] = 32,
    components: Annotated[
        int, typer.Option(help="Length of the scored embedding (K).", callback=checks.integer(1))
    ] = 64,
    epochs: Annotated[
        int | None, typer.Option(help="Passes over the images (default: 40).", callback=checks.integer(1))
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Images per step, two views of each (default: 128).", callback=checks.integer(2))
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(help="Highest learning rate of AdamW (default: 0.002).", callback=checks.number(above=0.0)),
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="Loss of the scored output: 'sigreg', 'vicreg', 'info_nce' or 'invariance' (collapses).",
            callback=checks.one_of(OBJECTIVES),
        ),
    ] = "sigreg",
    precision: Annotated[
        str,
        typer.Option(
            help="'float32', 'bfloat16', or 'auto': bfloat16 where the device computes in it.",
            callback=checks.one_of(PRECISIONS),
        ),
    ] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run from the checkpoint next to --out.")
    ] = False,
    keep_checkpoint: Annotated[
        bool, typer.Option("--keep-checkpoint", help="Keep the checkpoint, so that --resume can add --epochs later.")
    ] = False,
    device: Device = "auto",
    read_threads: ReadThreads = None,
    n_jobs: Annotated[int | None, typer.Option(hidden=True, callback=checks.processes)] = None,
    on_error: OnError = "skip",
    seed: Annotated[int, typer.Option(help="Seed of weights, batches and views.", callback=checks.seed)] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Train a small encoder on a folder of unlabelled images.

    Example: skjepa pretrain images/ --out my.safetensors && skjepa score --encoder my.safetensors --normal normal/ new/
    """
    if network == "vit" and image_size % 8:
        raise ValueError(f"--image-size of a vit must be a multiple of 8; got {image_size}")
    if_interrupted(lambda: _kept(out))

    from dataclasses import replace

    from skjepa.data.sources import folder_source
    from skjepa.pretraining.images import RECIPE, train_encoder

    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    started = time.perf_counter()
    trained = train_encoder(
        folder_source(folder),
        out,
        network=network,
        image_size=image_size,
        n_components=components,
        config=replace(RECIPE, objective=objective, precision=precision, seed=seed, **settings),
        resume=resume,
        keep_checkpoint=keep_checkpoint,
        device=device,
        n_jobs=read_threads or n_jobs,
        on_error=on_error,
        progress=not quiet,
    )
    last, seconds = trained.history[-1], time.perf_counter() - started
    if as_json:
        print_json({"encoder": trained.path, "images": trained.n_images, "seconds": seconds, "last": last})
    else:
        _stdout.print(
            f"{trained.path}: {trained.n_images} images, {last['epoch']} epochs, {seconds:.0f} s; "
            f"loss {last['loss']:.3f}, participation ratio {last['participation_ratio']:.1f} of {components}, "
            f"normality statistic {last['normality']:.4f}",
            highlight=False,
            soft_wrap=True,
        )
        _stdout.print(f"Next: skjepa score --encoder {out} --normal NORMAL_DIR FOLDER", markup=False, soft_wrap=True)
    return 3 if trained.skipped else 0


def _kept(out: Path) -> str:
    """Return what an interrupted run has kept, and how to continue."""
    from skjepa.pretraining.images import checkpoint_of

    checkpoint = checkpoint_of(out)
    if not checkpoint.exists():
        return "nothing was written, because no epoch had finished"
    return f"finished epochs are kept in {checkpoint}; the same command with --resume continues"
