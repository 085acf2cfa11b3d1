"""`serve_by_processes`: several processes behind one address, each with the detector; one that dies is replaced."""

import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastapi import FastAPI

    from skjepa.deployment.requests import Limits

TOLD = "SKJEPA_SERVE"
"""Environment variable by which processes are told what to serve."""

SHARED_COUNTS = "PROMETHEUS_MULTIPROC_DIR"
"""That of prometheus-client: a folder in which processes add up what they count."""


def serve_by_processes(
    folder: str | os.PathLike,
    n_processes: int,
    *,
    host: str,
    port: int,
    limits: "Limits",
    device: str = "auto",
    drift_level: float = 0.01,
) -> None:
    """Answer requests by n processes until SIGTERM or SIGINT; requests in hand are finished first.

    The system hands each connection to one of them. One that dies loses the requests that it had, and another takes its
    place; counts of `/metrics` are those of all, also of processes that are gone.

    Parameters
    ----------
    folder : path-like
        Of a saved detector, which each process loads by itself: its encoder has a name, or was saved with it.
    n_processes : int
        Each takes an equal part of the processor cores.
    host, port
        See `serve`.
    limits : Limits
        Of each process.
    device : str
    drift_level : float
        Of all together: each process watches the samples that it scores, at an equal part of the level.
    """
    import uvicorn

    from skjepa.deployment.service import SECONDS_TO_FINISH

    told = {
        "folder": str(Path(folder).resolve()),
        "device": device,
        "limits": asdict(limits),
        "drift_level": drift_level / n_processes,
        "threads": max(1, (os.cpu_count() or 1) // n_processes),
    }
    before = {name: os.environ.get(name) for name in (TOLD, SHARED_COUNTS)}
    with tempfile.TemporaryDirectory(prefix="skjepa-serve-") as counts:
        os.environ |= {TOLD: json.dumps(told), SHARED_COUNTS: counts}
        try:
            uvicorn.run(
                "skjepa.deployment.workers:app",
                factory=True,
                workers=n_processes,
                host=host,
                port=port,
                log_level="info",
                access_log=False,
                limit_concurrency=limits.connections,
                timeout_graceful_shutdown=SECONDS_TO_FINISH,
                timeout_worker_healthcheck=60,
                server_header=False,
            )
        finally:
            for name, value in before.items():
                os.environ.pop(name) if value is None else os.environ.update({name: value})


def app() -> "FastAPI":
    """The application of one of the processes, as it was told."""
    import torch

    from skjepa.deployment.requests import Limits
    from skjepa.deployment.service import make_app
    from skjepa.detectors.jepa_score import JEPAScoreDetector

    told = json.loads(os.environ[TOLD])
    torch.set_num_threads(told["threads"])
    detector = JEPAScoreDetector.load(told["folder"])
    detector.device = told["device"]
    return make_app(detector, Limits(**told["limits"]), told["drift_level"])
