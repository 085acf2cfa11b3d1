"""Read the images or rows of a request to the service, within bounds and without following any path."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import HTTPException, Request
from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import ClientDisconnect

from skjepa.data.images import ImageReadError, image_from_bytes

_RAW = ("image/", "application/octet-stream")
_READ_ALL_THE_SAME = 8  # times the limit, up to which a body that is too large is read
_NAME = 200  # characters of a file name that an answer repeats


@dataclass(frozen=True)
class Limits:
    """Limits of a service.

    Attributes
    ----------
    body_bytes : int
        Bytes of one request.
    all_bodies_bytes : int
        Bytes of all requests that are being read.
    body_seconds : float
        Seconds until the body of a request has arrived.
    pixels : int
        Pixels of one image.
    waiting_pixels : int
        Pixels of all decoded images that wait.
    samples : int
        Samples of one request.
    waiting : int
        Samples that wait to be scored.
    batch : int
        Samples that are scored together.
    gather_seconds : float
        Seconds for which the first sample of a batch waits for others.
    answer_seconds : float
        Seconds until a request is answered.
    decoders : int
        Images that are decoded at a time.
    connections : int
        Clients at a time.
    """

    body_bytes: int = 32 << 20
    all_bodies_bytes: int = 256 << 20
    body_seconds: float = 30.0
    pixels: int = 50_000_000
    waiting_pixels: int = 200_000_000
    samples: int = 64
    waiting: int = 256
    batch: int = 32
    gather_seconds: float = 0.003
    answer_seconds: float = 60.0
    decoders: int = 2
    connections: int = 256


class Reader:
    """Read requests within limits.

    Parameters
    ----------
    limits : Limits
    n_features : int or None
        Width of rows; None where images are scored.
    """

    def __init__(self, limits: Limits, n_features: int | None) -> None:
        self.limits, self.n_features = limits, n_features
        self._bytes = 0
        self._decoders = asyncio.Semaphore(limits.decoders)

    async def samples(self, request: Request) -> tuple[list[str], list[Any], int]:
        """Return the names of the samples, the samples, and their number of pixels.

        Raises
        ------
        HTTPException
            Status 400, 408, 413, 415, 422 or 503, with the reason.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if self.n_features is not None and kind != "application/json":
            raise HTTPException(415, 'this detector scores rows of numbers: send JSON, {"rows": [[...], ...]}')
        if self.n_features is None and kind != "multipart/form-data" and not kind.startswith(_RAW):
            raise HTTPException(
                415, "this detector scores images: send files as multipart/form-data, or one image as the body"
            )
        with self._room() as room:
            body = await self._body(request, room)
            if self.n_features is not None:
                rows = self._rows(body)
                return [f"row {i}" for i in range(len(rows))], list(rows), 0
            files = [("image", body)] if kind.startswith(_RAW) else await self._files(request, body)
            read = [await self._picture(name, content) for name, content in files]
        if refused := [str(picture) for picture in read if isinstance(picture, ImageReadError)]:
            raise HTTPException(422, refused)
        pictures = [picture for picture in read if isinstance(picture, Image.Image)]
        return [name for name, _ in files], pictures, sum(picture.width * picture.height for picture in pictures)

    @contextmanager
    def _room(self) -> Iterator[list[int]]:
        """Count the bytes of one body towards the total while it is in memory."""
        held = [0]
        try:
            yield held
        finally:
            self._bytes -= held[0]

    async def _body(self, request: Request, held: list[int]) -> bytes:
        limit, declared = self.limits.body_bytes, request.headers.get("content-length", "")
        is_too_large = declared.isdecimal() and int(declared) > limit
        n_bytes = 0
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                async for chunk in request.stream():
                    n_bytes += len(chunk)
                    is_too_large = is_too_large or n_bytes > limit
                    if n_bytes > _READ_ALL_THE_SAME * limit:
                        break
                    if is_too_large:  # read on, because a client that is cut off while sending sees no answer
                        continue
                    held[0] += len(chunk)
                    self._bytes += len(chunk)
                    if self._bytes > self.limits.all_bodies_bytes:
                        raise HTTPException(503, "too many requests are being read; try again", {"Retry-After": "1"})
                    parts.append(chunk)
        except TimeoutError:
            raise HTTPException(408, f"the body did not arrive within {self.limits.body_seconds:g} seconds") from None
        except ClientDisconnect:
            raise HTTPException(400, "the client disconnected") from None
        if is_too_large:
            raise HTTPException(413, f"a request may have at most {limit:,} bytes: send fewer samples per request")
        return b"".join(parts)

    async def _files(self, request: Request, body: bytes) -> list[tuple[str, bytes]]:
        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            form = await Request(request.scope, receive).form(max_files=self.limits.samples, max_fields=0)
        except Exception as error:  # the parser may raise anything for a damaged body
            raise HTTPException(
                400, f"the body is not multipart/form-data: {getattr(error, 'detail', error)}"
            ) from error
        files = [item for _, item in form.multi_items() if isinstance(item, UploadFile)]
        read = [((file.filename or f"image {i}")[:_NAME], await file.read()) for i, file in enumerate(files)]
        await form.close()
        if not read:
            raise HTTPException(422, "the request holds no file: send at least one image")
        return read

    async def _picture(self, name: str, content: bytes) -> Image.Image | ImageReadError:
        async with self._decoders:
            try:
                return await asyncio.to_thread(image_from_bytes, content, name, max_pixels=self.limits.pixels)
            except (ImageReadError, UserWarning) as error:
                return error if isinstance(error, ImageReadError) else ImageReadError(f"{name}: {error}")

    def _rows(self, body: bytes) -> np.ndarray:
        try:
            content = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, f"the body cannot be read as JSON: {error}") from error
        rows = content.get("rows") if isinstance(content, dict) else None
        if not isinstance(rows, list) or not rows:
            raise HTTPException(422, 'the JSON holds no list of rows: send {"rows": [[...], ...]}')
        if len(rows) > self.limits.samples:
            raise HTTPException(413, f"a request may have at most {self.limits.samples} rows; got {len(rows)}")
        for i, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != self.n_features:
                found = f"{len(row)}" if isinstance(row, list) else type(row).__name__
                raise HTTPException(422, f"row {i}: a row must have {self.n_features} numbers; got {found}")
            if any(isinstance(value, bool) or not isinstance(value, int | float) for value in row):
                raise HTTPException(422, f"row {i}: a row must hold numbers alone")
        try:
            numbers = np.array(rows, dtype=np.float64)
        except OverflowError:
            numbers = np.array([[np.inf]])
        if not np.isfinite(numbers).all():
            raise HTTPException(422, "rows must hold finite numbers")
        return numbers
