"""Requests are counted whatever becomes of them."""

import asyncio

import pytest
from prometheus_client import generate_latest

from project.request_metrics import HEADERS, Metrics, Watched


def call(app, path: str, metrics: Metrics) -> list[dict]:
    sent = []

    async def send(message):
        sent.append(message)

    asyncio.run(Watched(app, metrics, {"/predict"})({"type": "http", "path": path}, None, send))
    return sent


def test_requests_are_counted_by_path_and_status_even_when_they_fail():
    async def answers(scope, receive, send):
        await send({"type": "http.response.start", "status": 418, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def fails(scope, receive, send):
        raise RuntimeError

    metrics = Metrics()
    start, _ = call(answers, "/predict", metrics)
    assert {(name.lower().encode(), value.encode()) for name, value in HEADERS.items()} == set(start["headers"])
    for i in range(100):
        call(answers, f"/{i}", metrics)
    with pytest.raises(RuntimeError):
        call(fails, "/predict", metrics)
    text = generate_latest(metrics.registry).decode()
    counts = [line for line in text.splitlines() if line.startswith("requests_total")]
    assert sorted(counts) == [
        'requests_total{path="/predict",status="418"} 1.0',
        'requests_total{path="/predict",status="500"} 1.0',
        'requests_total{path="other",status="418"} 100.0',
    ]
    assert "request_seconds_count 2.0" in text
