"""What the server counts, for Prometheus, and the headers that each of its answers has."""

import time
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from starlette.datastructures import MutableHeaders

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)


class Metrics:
    """Counters and histograms, and memory, files and CPU time of the process."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter("requests", "Requests by path and status", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "request_seconds",
            "From the headers of a request to the end of its answer",
            buckets=SECONDS,
            registry=registry,
        )
        self.batches = Histogram("batch_images", "Images of a batch", buckets=range(1, 9), registry=registry)
        self.images = Counter("images", "Images: classified, unsure or unreadable", ["result"], registry=registry)


class Watched:
    """Counts each request once, when it ends, and adds `HEADERS` to its answer.

    Args:
        app: The application.
        metrics: What is counted.
        paths: Those that are counted by name; all others are `other`, for clients make up any number of them.
    """

    def __init__(self, app: Any, metrics: Metrics, paths: set[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def watched(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        try:
            await self.app(scope, receive, watched)
        finally:
            path = scope["path"] if scope["path"] in self.paths else "other"
            self.metrics.requests.labels(path, status).inc()
            if path == "/predict":
                self.metrics.seconds.observe(time.perf_counter() - start)
