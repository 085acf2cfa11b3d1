"""Command `skjepa serve`: serve a saved detector over HTTP."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from skjepa.cli import checks
from skjepa.cli.common import saved_detector
from skjepa.cli.options import Device, EncoderName, ImageSize, Weights

_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def serve(
    detector: Annotated[
        Path,
        typer.Argument(metavar="DETECTOR", help="Detector that `skjepa fit` saved.", callback=checks.saved_detector),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 for all addresses of this machine.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(help="Port to listen on; 0 takes a free port.", callback=checks.integer(0))
    ] = 8000,
    encoder: EncoderName = "auto",
    image_size: ImageSize = None,
    weights: Weights = None,
    device: Device = "auto",
    max_body: Annotated[int, typer.Option(help="Largest request, in MiB.", callback=checks.integer(1))] = 32,
    max_pixels: Annotated[
        int, typer.Option(help="Largest image, in millions of pixels.", callback=checks.integer(1))
    ] = 50,
    max_samples: Annotated[
        int, typer.Option(help="Largest number of images or rows in one request.", callback=checks.integer(1))
    ] = 64,
    max_waiting: Annotated[
        int,
        typer.Option(
            help="Largest number of images or rows that wait; further requests get status 503.",
            callback=checks.integer(1),
        ),
    ] = 256,
    batch: Annotated[
        int,
        typer.Option(
            "--batch-size",
            "--batch",
            help="Largest number of images or rows that are scored together.",
            callback=checks.integer(1),
        ),
    ] = 32,
    timeout: Annotated[
        float, typer.Option(help="Seconds after which a request fails.", callback=checks.number(above=0.0))
    ] = 60.0,
    drift_level: Annotated[
        float,
        typer.Option(
            help="Probability of a false drift alarm within 10,000 normal samples.",
            callback=checks.number(above=0.0, below=1.0),
        ),
    ] = 0.01,
    workers: Annotated[
        int,
        typer.Option(
            help="Number of processes, each with its own detector; a process that dies is replaced.",
            callback=checks.integer(1),
        ),
    ] = 1,
) -> None:
    """Answer HTTP requests (POST /score) with score, p-value, label and reason.

    Ctrl-C or SIGTERM stops it after the requests in progress.

    Example: skjepa serve detector/ --port 8000 & curl -F images=@picture.png localhost:8000/score
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(f"serve needs {', '.join(missing)}: pip install 'skjepa[serve]'")
    from skjepa._utils.validation import check_integer
    from skjepa.deployment.requests import Limits
    from skjepa.deployment.service import serve as run
    from skjepa.deployment.workers import serve_by_processes

    limits = Limits(
        body_bytes=max_body << 20,
        all_bodies_bytes=max(8 * (max_body << 20), 256 << 20),
        pixels=max_pixels * 1_000_000,
        waiting_pixels=max(4 * max_pixels, 200) * 1_000_000,
        samples=max_samples,
        waiting=max_waiting,
        batch=batch,
        answer_seconds=timeout,
    )
    loaded = saved_detector(detector, encoder, image_size, weights)
    loaded.device = device
    if check_integer("--workers", workers, minimum=1) == 1:
        run(loaded, host=host, port=port, limits=limits, drift_level=drift_level)
        return
    if encoder != "auto" or weights is not None:
        raise ValueError(
            "--workers cannot be combined with --encoder or --weights, since each process loads the detector from its "
            "folder alone: serve with one process, or start several behind a proxy"
        )
    serve_by_processes(detector, workers, host=host, port=port, limits=limits, device=device, drift_level=drift_level)
