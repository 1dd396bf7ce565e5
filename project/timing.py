"""How fast models are, measured in turns, so that what else the machine does slows all of them alike."""

import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from project import num_cores

ROUNDS = 5
BATCHES = (1, 32)
LEAST = 0.15  # seconds for each model and round
REST = 0.05  # seconds before a turn: the threads of the one before may still spin
CPU_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8")


def in_turns(models: dict[str, Callable[[np.ndarray], Any]], images: np.ndarray) -> dict[str, dict[str, float]]:
    """Time models on batches of 1 and 32 images, in turns.

    Args:
        models: By name; each is called with images.
        images: uint8 `(N, S, S, 3)`, at least one; repeated for larger batches.

    Returns:
        By name `p50_ms` and `p99_ms`, of one call with one image, and `images_per_s_1`, `images_per_s_32`, which are
        medians over the turns.
    """
    results: dict[str, dict[str, float]] = {name: {} for name in models}
    for size in BATCHES:
        batch = images[np.arange(size) % len(images)]
        calls: dict[str, list[float]] = {name: [] for name in models}
        turns: dict[str, list[float]] = {name: [] for name in models}
        for model in models.values():
            model(batch)
        for _ in range(ROUNDS):
            for name, model in models.items():
                time.sleep(REST)
                times = timed(model, batch)
                calls[name] += times
                turns[name].append(median(times))
        for name, found in results.items():
            found[f"images_per_s_{size}"] = size / median(turns[name])
            if size == 1:
                found["p50_ms"], found["p99_ms"] = (1e3 * float(np.percentile(calls[name], p)) for p in (50, 99))
    return results


def timed(model: Callable[[np.ndarray], Any], batch: np.ndarray) -> list[float]:
    """Seconds of each call in one turn."""
    times: list[float] = []
    while not times or sum(times) < LEAST:
        start = time.perf_counter()
        model(batch)
        times.append(time.perf_counter() - start)
    return times


def machine() -> dict[str, Any]:
    """The CPU, those of its features that decide how fast a network is, and the number of threads."""
    try:
        lines = dict(
            line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if line.count(":") == 1
        )
    except OSError:
        lines = {}
    fields = {name.strip(): value.strip() for name, value in lines.items()}
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "threads": num_cores(),
    }
