"""A web server for an exported model, without torch: images in, probabilities as JSON out, and a page for people.

Whatever a client sends, it gets an answer of the 2xx or 4xx kind, or 503 when there is too much to do; others are
served meanwhile. Bounded are the size and duration of a request, the bytes of all requests, the memory that decoding
takes, and the number of images that wait.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from email import message_from_string
from io import BytesIO
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel
from starlette.requests import ClientDisconnect

from project import PACKAGE, UserError, as_utf8, decoding, first_few, num_cores
from project.batching import Batches
from project.exported import Exported
from project.images import load_for_evaluation
from project.request_metrics import Metrics, Watched

log = logging.getLogger(__name__)

BODY_SECONDS = 30  # for the body of a request
MAX_HELD = 100_000_000  # bytes of all bodies
MAX_DECODED = 300_000_000  # bytes that decoding takes; scripts/serve.py sets it, for the whole process
MAX_WAITING, MAX_WAITING_BYTES = 256, 64_000_000  # prepared images
MAX_FILES, MAX_PARTS, MAX_PART_HEADERS = 32, 64, 8_192  # of a form
STATIC = PACKAGE / "static"
BUSY = {"Retry-After": "1"}


class Identity(BaseModel):
    """Which model answers."""

    file: str
    sha256: str
    precision: str
    runtime: str


class Prediction(BaseModel):
    """What is in one image: the most probable classes, or why it could not be read."""

    file: str | None = None
    label: str | None = None
    unsure: bool | None = None  # below the model's threshold; the label is then `unsure`
    probabilities: dict[str, float] | None = None
    error: str | None = None


class Answer(BaseModel):
    """A prediction for each file, in their order."""

    model: Identity
    predictions: list[Prediction]


class Health(BaseModel):
    """The server answers."""

    status: str
    model: Identity
    classes: int
    image_size: int
    threshold: float | None
    max_upload: int


class Service:
    """A model with its threads and its limits.

    Args:
        model: The model.
        max_upload: Bytes that the body of a request may have.

    Raises:
        UserError: The model does not answer for a first batch, or not with probabilities.
    """

    def __init__(self, model: Exported, max_upload: int) -> None:
        self.model, self.max_upload = model, max_upload
        self.size = model.preprocessing["crop_size"]
        self.names = np.array([as_utf8(name) for name in model.class_names], object)
        file = as_utf8(Path(model.path).name)
        self.identity = Identity(file=file, sha256=model.sha256, precision=model.precision, runtime=model.runtime)
        try:
            first = model(np.zeros((2, self.size, self.size, 3), np.uint8))
        except MemoryError as error:
            raise UserError(f"model {model.path}: not enough memory for two images at a time") from error
        if len(first) != 2 or not np.allclose(first.sum(1), 1, atol=1e-3):  # also if it is no number
            raise UserError(f"model {model.path}: its answers are no probabilities: they do not sum up to 1")
        self.metrics = Metrics()
        self.batches = Batches(model, self.metrics.batches.observe)
        self.decoders = ThreadPoolExecutor(num_cores())
        self.max_waiting = max(1, min(MAX_WAITING, MAX_WAITING_BYTES // (3 * self.size**2)))
        self.max_held = max(MAX_HELD, 2 * max_upload)
        self.waiting = self.held = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of a request, which counts as held as long as the `with` block lasts.

        Raises:
            HTTPException: It is too large (413) or too slow (408), or too much is held already (503).
        """
        buffer, copies = BytesIO(), 2 if is_form(request) else 1
        limit = HTTPException(413, f"the body is larger than {self.max_upload:,} bytes")
        try:
            if int(request.headers.get("content-length", 0)) > self.max_upload:
                raise limit
            try:
                async with asyncio.timeout(BODY_SECONDS):
                    async for chunk in request.stream():
                        if buffer.tell() + len(chunk) > self.max_upload:
                            raise limit
                        if self.held + copies * len(chunk) > self.max_held:
                            raise HTTPException(503, "too many uploads at the same time", BUSY)
                        self.held += copies * buffer.write(chunk)
            except TimeoutError:
                raise HTTPException(408, f"the body took more than {BODY_SECONDS} seconds") from None
            yield buffer.getvalue()
        finally:
            self.held -= copies * buffer.tell()

    async def answer(self, request: Request, top_k: int) -> Answer:
        """The answer to a request. Raises `HTTPException`, and `ClientDisconnect` if nobody waits for it."""
        async with self.body(request) as body:
            files = files_of(request, body)
            predictions = await unless_gone(request, self.predict(files, top_k))
        errors = [f"{one.file}: {one.error}" if one.file else one.error for one in predictions if one.error]
        # RFC 7240: whoever prefers lenient handling finds the errors in the answer
        if len(errors) == len(files) and "handling=lenient" not in request.headers.get("prefer", ""):
            raise HTTPException(422, first_few(errors))
        return Answer(model=self.identity, predictions=predictions)

    def health(self) -> Health:
        """The model and its limits."""
        return Health(
            status="ok",
            model=self.identity,
            classes=len(self.names),
            image_size=self.size,
            threshold=self.model.threshold,
            max_upload=self.max_upload,
        )

    async def predict(self, files: list[tuple[str | None, bytes]], top_k: int) -> list[Prediction]:
        """A prediction for each file, given as name and content. Raises `HTTPException` (422, 503)."""
        if len(files) > self.max_waiting:
            raise HTTPException(422, f"more than {self.max_waiting} images of this size at a time")
        if self.waiting + len(files) > self.max_waiting:
            raise HTTPException(503, "too many images wait to be classified", BUSY)
        self.waiting += len(files)
        try:
            # A request keeps no more than all decoders busy, so that others get their turn
            turn = asyncio.Semaphore(num_cores())
            tasks = [asyncio.ensure_future(self._predict(*file, top_k, turn)) for file in files]
            try:
                return await asyncio.gather(*tasks)
            finally:  # what is left of a form that has failed
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            self.waiting -= len(files)

    async def _predict(self, name: str | None, content: bytes, top_k: int, turn: asyncio.Semaphore) -> Prediction:
        run, held = asyncio.get_running_loop().run_in_executor, [content]
        try:
            async with turn:
                image = await run(self.decoders, lambda: load_for_evaluation(held[0], self.model.preprocessing))
        except decoding.BadImage as error:
            self.metrics.images.labels("unreadable").inc()
            return Prediction(file=name, error=str(as_utf8(str(error))))
        finally:
            held.clear()  # a decoder that is still to come to a client who has gone holds no upload
        try:
            row = await self.batches.classify(image)
        except Exception as error:  # of the runtime's own types, such as for memory that is missing
            log.error(f"the model did not answer: {error}")
            raise HTTPException(503, "the model did not answer", BUSY) from error
        if not np.isfinite(row).all():
            self.metrics.images.labels("failed").inc()
            raise HTTPException(503, "the model's answer is not finite")
        order = np.argsort(-row, kind="stable")[:top_k]
        threshold = self.model.threshold
        unsure = None if threshold is None else bool(row[order[0]] < threshold)  # without one, nothing is known
        self.metrics.images.labels("unsure" if unsure else "classified").inc()
        # The shortest decimals that are the same float32
        probabilities = {self.names[i]: float(str(row[i])) for i in order}
        label = "unsure" if unsure else self.names[order[0]]
        return Prediction(file=name, label=label, unsure=unsure, probabilities=probabilities)


def is_form(request: Request) -> bool:
    """Whether the body is a multipart form."""
    return request.headers.get("content-type", "").lower().startswith("multipart/form-data")


def files_of(request: Request, body: bytes) -> list[tuple[str | None, bytes]]:
    """Names and contents of the files in a multipart form; any other body is one file without a name.

    Raises:
        HTTPException: The form is damaged (400), or has no files or too many (422).
    """
    if not is_form(request):
        return [(None, body)]
    try:
        kind = message_from_string(f"Content-Type: {request.headers['content-type']}\n\n")
        boundary = str(kind.get_param("boundary", ""))
    except (ValueError, TypeError):  # numbered or encoded in a way that cannot be
        raise HTTPException(400, "the form is damaged: its boundary cannot be read") from None
    delimiter = b"--" + boundary.encode("latin-1", "replace")
    parts = body[len(delimiter) :].split(b"\r\n" + delimiter, MAX_PARTS)
    if len(parts) > MAX_PARTS:
        raise HTTPException(422, f"more than {MAX_PARTS} parts in the form")
    if delimiter == b"--" or not body.startswith(delimiter) or not parts[-1].startswith(b"--"):
        raise HTTPException(400, "the form is damaged: it does not begin and end with its boundary")
    files: list[tuple[str | None, bytes]] = []
    for part in parts[:-1]:
        end = part.find(b"\r\n\r\n", 0, MAX_PART_HEADERS)
        with suppress(ValueError, TypeError):  # an encoding of a name that does not exist
            headers = message_from_string(part[: max(end, 0)].decode(errors="replace").lstrip())
            if (name := headers.get_filename()) is not None:
                files.append((as_utf8(name), part[end + 4 :]))
    if not 0 < len(files) <= MAX_FILES:
        raise HTTPException(422, f"{len(files)} files in the form; from 1 to {MAX_FILES} are possible")
    return files


async def unless_gone(request: Request, work: Awaitable[Any]) -> Any:
    """The result of the work, which is given up when the client goes away. Raises `ClientDisconnect`."""

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(work), asyncio.ensure_future(gone())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ClientDisconnect
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


UPLOAD = {"schema": {"type": "string", "format": "binary"}}
FORM = {"schema": {"type": "object", "properties": {"file": {"type": "array", "items": UPLOAD["schema"]}}}}
REASONS = {
    400: "The form is damaged",
    408: "The body took too long",
    413: "The body is too large",
    422: "No file could be read as an image, or top_k is out of range",
    503: "Too much to do at the moment: try again",
}


class Reason(BaseModel):
    """Why there is no answer, in one line."""

    detail: str


def make_app(model: Exported, max_upload: int) -> FastAPI:
    """The web application. Raises `UserError` if the model's first answer is no probabilities."""
    service = Service(model, max_upload)
    num_classes = len(model.class_names)
    few = min(5, num_classes)
    app = FastAPI(title="Image classifier", description=service.identity.file, docs_url=None, redoc_url=None)
    app.add_middleware(Watched, metrics=service.metrics, paths={"/", "/predict", "/health", "/metrics", "/docs"})

    @app.post(
        "/predict",
        summary="Classify one image, the body of the request, or several, the files of a form",
        responses={status: {"model": Reason, "description": text} for status, text in REASONS.items()},
        openapi_extra={"requestBody": {"required": True, "content": {"image/*": UPLOAD, "multipart/form-data": FORM}}},
        response_model=Answer,
        response_model_exclude_none=True,
    )
    async def predict(request: Request, top_k: Annotated[int, Query(ge=1, le=num_classes)] = few) -> Any:
        return await service.answer(request, top_k)

    @app.get("/health", summary="Whether the server answers, and with which model")
    async def health() -> Health:
        return service.health()

    @app.get("/metrics", summary="Figures for Prometheus", response_class=Response)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return JSONResponse({"detail": f"top_k: must be a whole number from 1 to {num_classes}"}, 422)

    @app.exception_handler(ClientDisconnect)
    async def disconnected(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it, but it is counted

    add_pages(app)
    return app


def add_pages(app: FastAPI) -> None:
    """The pages for people, all of whose parts are in `STATIC`."""
    app.mount("/static", StaticFiles(directory=STATIC))

    def page(name: str) -> Callable[[], FileResponse]:
        return lambda: FileResponse(STATIC / name)

    for path, name in {"/": "index.html", "/docs": "docs.html", "/favicon.ico": "favicon.svg"}.items():
        app.add_api_route(path, page(name), include_in_schema=False)
