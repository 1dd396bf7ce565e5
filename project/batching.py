"""Batches of what many clients ask at the same time."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

MAX_BATCH = 8  # images; larger batches are hardly faster


class Batches:
    """Natural batching: the images that wait when the model is free are its next batch. Nothing waits for company.

    Args:
        model: From images, uint8 `(B, S, S, 3)`, to rows `(B, C)`; called in a thread of its own.
        observe: Told the size of each batch.
    """

    def __init__(self, model: Callable[[np.ndarray], np.ndarray], observe: Callable[[int], None]) -> None:
        self.model, self.observe = model, observe
        self.waiting: deque[tuple[np.ndarray, asyncio.Future[np.ndarray]]] = deque()
        self.thread = ThreadPoolExecutor(1)
        self.running: asyncio.Task[None] | None = None

    async def classify(self, image: np.ndarray) -> np.ndarray:
        """The row `(C,)` of an image, uint8 `(S, S, 3)`. Raises what the model raises."""
        future: asyncio.Future[np.ndarray] = asyncio.get_running_loop().create_future()
        self.waiting.append((image, future))
        if self.running is None or self.running.done():
            self.running = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        while self.waiting:
            batch = [self.waiting.popleft() for _ in range(min(MAX_BATCH, len(self.waiting)))]
            batch = [(image, future) for image, future in batch if not future.cancelled()]  # whose client is gone
            if not batch:
                continue
            self.observe(len(batch))
            images, futures = zip(*batch, strict=True)
            try:
                rows = await asyncio.get_running_loop().run_in_executor(self.thread, self.model, np.stack(images))
                if len(rows) != len(futures):
                    raise ValueError(f"{len(rows)} answers for {len(futures)} images")
            except Exception as error:
                settle(futures, [error] * len(futures))
            else:
                settle(futures, rows)


def settle(futures: Sequence[asyncio.Future[np.ndarray]], results: Iterable[np.ndarray | Exception]) -> None:
    """Give each future, unless it was given up, its result or error."""
    for future, result in zip(futures, results, strict=True):
        if future.cancelled():
            continue
        if isinstance(result, Exception):
            future.set_exception(result)
        else:
            future.set_result(result)
