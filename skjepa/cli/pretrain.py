"""`skjepa pretrain`: a small encoder of one's own images."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from skjepa.cli.common import print_json
from skjepa.cli.options import AsJson, Device, OnError, Quiet

_stdout = Console()


def pretrain(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Images to train on, at any depth; no labels.")],
    out: Annotated[Path, typer.Option(help="Encoder to write: .safetensors.")],
    network: Annotated[str, typer.Option(help="'convnet' or 'vit'.")] = "convnet",
    image_size: Annotated[int, typer.Option(help="Side of the images the encoder sees, in pixels.")] = 32,
    components: Annotated[int, typer.Option(help="K, length of the scored embedding.")] = 64,
    epochs: Annotated[int | None, typer.Option(help="Passes over the images (default: 40).")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images a step, two views of each (default: 128).")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Of AdamW, at its highest (default: 0.002).")] = None,
    objective: Annotated[
        str, typer.Option(help="Of the scored output: 'sigreg', 'vicreg', 'info_nce' or 'invariance' (collapses).")
    ] = "sigreg",
    precision: Annotated[
        str, typer.Option(help="'float32', 'bfloat16', or 'auto': bfloat16 where the device computes in it.")
    ] = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint next to the encoder.")] = False,
    device: Device = "auto",
    n_jobs: Annotated[int | None, typer.Option(help="Threads that read images.")] = None,
    on_error: OnError = "raise",
    seed: Annotated[int, typer.Option(help="Of weights, batches and views.")] = 0,
    as_json: AsJson = False,
    quiet: Quiet = False,
) -> int:
    """Train a small encoder on a folder of unlabelled images.

    Example: skjepa pretrain images/ --out my.safetensors && skjepa score --encoder my.safetensors --fit normal/ new/
    """
    from dataclasses import replace

    from skjepa._utils import files
    from skjepa.data.sources import folder_source
    from skjepa.pretraining.images import RECIPE, train_encoder

    given = {"epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate}
    settings: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    started = time.perf_counter()
    trained = train_encoder(
        folder_source(folder),
        files.check_output(out, (".safetensors",)),
        network=network,
        image_size=image_size,
        n_components=components,
        config=replace(RECIPE, objective=objective, precision=precision, seed=seed, **settings),
        resume=resume,
        device=device,
        n_jobs=n_jobs,
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
    return 3 if trained.skipped else 0
