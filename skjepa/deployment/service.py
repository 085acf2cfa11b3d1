"""Serve a fitted detector over HTTP, with bounds on everything that a client can request."""

import asyncio
import logging
import os
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, asynccontextmanager
from typing import Any

import numpy as np
import uvicorn
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
from pydantic import BaseModel

from skjepa import __version__
from skjepa.deployment.batching import Batcher, BusyError
from skjepa.deployment.drift_alarm import SCORE, DriftAlarm
from skjepa.deployment.requests import Limits, Reader
from skjepa.deployment.score_monitor import ScoreMonitor
from skjepa.deployment.stream_values import place_values
from skjepa.deployment.workers import SHARED_COUNTS
from skjepa.detectors.jepa_score import JEPAScoreDetector
from skjepa.detectors.judgement import Judgement
from skjepa.extraction.extraction import Extraction
from skjepa.inspection.terms import Explanation

_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"images": {"type": "array", "items": {"type": "string", "format": "binary"}}},
                }
            },
            "image/*": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {
                "schema": {
                    "type": "object",
                    "properties": {"rows": {"type": "array", "items": {"type": "array", "items": {"type": "number"}}}},
                }
            },
        },
    }
}
SECONDS_TO_FINISH = 60
"""Seconds that requests in progress have to finish after SIGTERM."""


class Answer(BaseModel):
    """The result for one sample."""

    name: str
    score: float
    decision: float
    p_value: float | None
    label: int
    reason: str


class Answers(BaseModel):
    """The results for all samples of a request, in their order."""

    results: list[Answer]


class Scorer:
    """Compute score, decision, p-value, label and reason from one pass, and pass the values to a drift monitor.

    Parameters
    ----------
    detector : JEPAScoreDetector
        Fitted detector.
    drift_level : float
        Level of the monitor, see `make_app`.
    on_alarm : callable
        Called with each alarm.
    """

    def __init__(self, detector: JEPAScoreDetector, drift_level: float, on_alarm: Callable[[DriftAlarm], None]) -> None:
        self.detector, self._steady, self._on_alarm = detector, ExitStack(), on_alarm
        self.monitor = ScoreMonitor.of(detector, level=drift_level)
        shape = detector.models_[0].settings["input_shape"] or ()
        self.n_features = shape[0] if len(shape) == 1 else None

    def __call__(self, samples: list[Any]) -> list[dict[str, Any]]:
        X, found, explained = self._judged(samples)
        places = place_values(self.detector, X) if isinstance(X, Extraction) else {}
        for alarm in self.monitor.update({SCORE: found.scores, **explained.parts, **places}):
            self._on_alarm(alarm)
        p_values = [None] * len(samples) if found.p_values is None else found.p_values.tolist()
        return [
            {"score": score, "decision": decision, "p_value": p, "label": label, "reason": explained.reason(i)}
            for i, (score, decision, p, label) in enumerate(
                zip(found.scores.tolist(), found.decisions.tolist(), p_values, found.labels.tolist(), strict=True)
            )
        ]

    def _judged(self, samples: list[Any]) -> tuple[Any, Judgement, Explanation]:
        X: Any = samples if self.n_features is None else np.stack(samples)
        if not self.detector.needs_samples:
            X = self.detector.extract(X)
        return X, *self.detector.judge_and_explain(X)

    def begin(self) -> None:
        """Enter `steady` in this thread and run a first pass to warm up, which checks the encoder once."""
        self._steady.enter_context(self.detector.steady())
        shape = self.detector.models_[0].settings["input_shape"] or ()
        if self.n_features is not None:
            self._judged([np.zeros(self.n_features)])
        else:
            self._judged([np.zeros((*shape[1:], 3), dtype=np.uint8)])

    def end(self) -> None:
        """Leave `steady`; call it in the thread of `begin`."""
        self._steady.close()


class Metrics:
    """Collect the numbers for `/metrics` in a separate registry; with several processes, the numbers of all of them.

    Parameters
    ----------
    n_waiting : callable
        Returns the number of waiting samples. It counts this process only, so several processes do not report it.
    """

    def __init__(self, n_waiting: Callable[[], int]) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("skjepa_requests", "Requests to /score, by status", ["status"], registry=self.registry)
        self.samples = Counter("skjepa_samples", "Samples scored, by label", ["label"], registry=self.registry)
        self.seconds = Histogram("skjepa_request_seconds", "Seconds from request to answer", registry=self.registry)
        sizes, registry = (1, 2, 4, 8, 16, 32, 64, 128), self.registry
        self.batch = Histogram("skjepa_batch_samples", "Samples scored together", buckets=sizes, registry=registry)
        self.alarms = Counter("skjepa_drift_alarms", "Drift alarms, by stream", ["stream"], registry=self.registry)
        self.is_shared = SHARED_COUNTS in os.environ
        if not self.is_shared:
            waiting = Gauge("skjepa_waiting_samples", "Samples that wait to be scored", registry=self.registry)
            waiting.set_function(n_waiting)

    def page(self) -> bytes:
        if not self.is_shared:
            return generate_latest(self.registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)
        return generate_latest(registry)


def make_app(detector: JEPAScoreDetector, limits: Limits | None = None, drift_level: float = 0.01) -> FastAPI:
    """Make an ASGI application with POST /score, /health, /metrics, and a description at /docs.

    Parameters
    ----------
    detector : JEPAScoreDetector
        Fitted detector. Its device and memory budget apply, and one pass runs at a time.
    limits : Limits, optional
        Limits of the service.
    drift_level : float in (0, 1)
        Probability of a false drift alarm within 10,000 normal samples, see `ScoreMonitor`. The guarantee does not hold
        if the same samples are sent repeatedly.
    """
    limits = limits or Limits()

    def told(alarm: DriftAlarm) -> None:
        logging.getLogger("uvicorn.error").warning("%s", alarm)
        metrics.alarms.labels(alarm.stream).inc()

    scorer = Scorer(detector, drift_level, told)
    batcher = Batcher(
        scorer,
        max_batch=limits.batch,
        max_waiting=limits.waiting,
        max_weight=limits.waiting_pixels,
        gather_seconds=limits.gather_seconds,
        on_batch=lambda n: metrics.batch.observe(n),
    )
    metrics, reader = Metrics(lambda: batcher.n_waiting), Reader(limits, scorer.n_features)

    @asynccontextmanager
    async def lifespan(_: FastAPI):
        async with batcher.running():
            await batcher.in_thread(scorer.begin)
            yield
            await batcher.in_thread(scorer.end)

    app = FastAPI(title="skjepa", version=__version__, lifespan=lifespan)

    async def answered(request: Request) -> Answers:
        names, samples, pixels = await reader.samples(request)
        try:
            async with asyncio.timeout(limits.answer_seconds):
                found = await batcher.submit(samples, pixels)
        except BusyError as error:
            raise HTTPException(503, f"{error}: try again later", {"Retry-After": "1"}) from error
        except TimeoutError:
            raise HTTPException(
                504, f"the samples were not scored within {limits.answer_seconds:g} seconds: send fewer, or try again"
            ) from None
        except ValueError as error:
            raise HTTPException(422, str(error)) from error
        for answer in found:
            metrics.samples.labels("normal" if answer["label"] == 1 else "anomalous").inc()
        return Answers(results=[Answer(name=name, **answer) for name, answer in zip(names, found, strict=True)])

    @app.post("/score", response_model=Answers, openapi_extra=_BODY)
    async def score(request: Request) -> Any:
        """Score images, or rows of numbers: score, decision, conformal p-value, label (+1 normal, -1) and reason."""
        started, status = time.perf_counter(), "500"
        try:
            answers = await answered(request)
            status = "200"
            return answers
        except HTTPException as error:
            status = str(error.status_code)
            # The connection is closed, because the rest of the body is not read.
            headers = (
                {**(error.headers or {}), "Connection": "close"} if error.status_code in (408, 413) else error.headers
            )
            return JSONResponse({"detail": error.detail}, error.status_code, headers)
        finally:
            metrics.requests.labels(status).inc()
            metrics.seconds.observe(time.perf_counter() - started)

    @app.get("/health")
    async def health() -> dict[str, Any]:
        """Return the status of the service, its detector and its drift monitor."""
        fitted = detector.models_[0].settings
        return {
            "status": "ok",
            "version": __version__,
            "encoder": fitted["encoder"],
            "fingerprint": fitted["fingerprint"],
            "takes": "images" if scorer.n_features is None else f"rows of {scorer.n_features} numbers",
            "waiting": batcher.n_waiting,
            "drift": [str(alarm) for alarm in scorer.monitor.alarms],
        }

    @app.get("/metrics")
    async def metrics_page() -> Response:
        """Return counts and times for Prometheus."""
        return Response(metrics.page(), media_type=CONTENT_TYPE_LATEST)

    return app


def serve(
    detector: JEPAScoreDetector,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    limits: Limits | None = None,
    drift_level: float = 0.01,
) -> None:
    """Answer requests until SIGTERM or SIGINT, and finish the requests in progress first.

    Parameters
    ----------
    detector, limits, drift_level
        See `make_app`.
    host : str
        Address to listen on: by default this machine alone, ``"0.0.0.0"`` for all addresses. The service has neither
        encryption nor a password, so put a proxy in front of it.
    port : int
        Port to listen on; 0 takes a free port.
    """
    limits = limits or Limits()
    config = uvicorn.Config(
        make_app(detector, limits, drift_level),
        host=host,
        port=port,
        log_level="info",
        access_log=False,
        limit_concurrency=limits.connections,
        timeout_graceful_shutdown=SECONDS_TO_FINISH,
        server_header=False,
    )
    # uvicorn raises the signal again when it has finished; by then there is nothing left to stop.
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        uvicorn.Server(config).run()
    finally:
        signal.signal(signal.SIGTERM, before)
