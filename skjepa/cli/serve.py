"""`skjepa serve`: a saved detector behind HTTP."""

import importlib.util
from pathlib import Path
from typing import Annotated

import typer

from skjepa.cli.common import saved_detector
from skjepa.cli.options import Device, EncoderName, ImageSize, Weights

_NEEDED = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")


def serve(
    detector: Annotated[Path, typer.Argument(metavar="DETECTOR", help="Folder of a saved detector.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all of this machine.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen at; 0 takes a free one.")] = 8000,
    encoder: EncoderName = "auto",
    image_size: ImageSize = None,
    weights: Weights = None,
    device: Device = "auto",
    max_body: Annotated[int, typer.Option(help="MiB of a request.")] = 32,
    max_pixels: Annotated[int, typer.Option(help="Pixels of an image, in millions.")] = 50,
    max_samples: Annotated[int, typer.Option(help="Images or rows of a request.")] = 64,
    max_waiting: Annotated[int, typer.Option(help="Images or rows that may wait; more are answered 503.")] = 256,
    batch: Annotated[int, typer.Option(help="Images or rows that are scored together.")] = 32,
    timeout: Annotated[float, typer.Option(help="Seconds until a request is answered.")] = 60.0,
) -> None:
    """Answer POST /score with score, p-value, label and reason. Stops on SIGTERM when what it has is finished.

    Example: skjepa serve detector/ --port 8000 & curl -F images=@picture.png localhost:8000/score
    """
    if missing := [name for name in _NEEDED if importlib.util.find_spec(name) is None]:
        raise ValueError(f"serve needs {', '.join(missing)}: pip install 'skjepa[serve]'")
    from skjepa.deployment.requests import Limits
    from skjepa.deployment.service import serve as run

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
    run(loaded, host=host, port=port, limits=limits)
