"""Natural batching."""

import asyncio
import threading

import numpy as np

from project.batching import MAX_BATCH, Batches


def images(count):
    return [np.full((2, 2, 3), i, np.uint8) for i in range(count)]


class Slow:
    """A model that tells each image's first value, and stays busy until it is told."""

    def __init__(self):
        self.free = threading.Event()

    def __call__(self, batch):
        self.free.wait(10)
        return batch[:, 0, 0, :1].astype(np.float32)


def test_what_waits_is_the_next_batch():
    model, sizes = Slow(), []

    async def main():
        batches = Batches(model, sizes.append)
        tasks = [asyncio.create_task(batches.classify(image)) for image in images(1)]
        await asyncio.sleep(0.05)  # the model is busy with one
        tasks += [asyncio.create_task(batches.classify(image)) for image in images(20)[1:]]
        await asyncio.sleep(0.05)
        model.free.set()
        return await asyncio.gather(*tasks)

    rows = asyncio.run(main())
    assert [float(row[0]) for row in rows] == list(range(20))
    assert sizes == [1, MAX_BATCH, MAX_BATCH, 3]


def test_what_was_given_up_is_not_computed():
    model, sizes = Slow(), []

    async def main():
        batches = Batches(model, sizes.append)
        tasks = [asyncio.create_task(batches.classify(image)) for image in images(6)]
        await asyncio.sleep(0.05)
        late = [asyncio.create_task(batches.classify(image)) for image in images(4)]
        await asyncio.sleep(0.05)
        for task in [tasks[0], *late[:3]]:
            task.cancel()
        model.free.set()
        return await asyncio.gather(*tasks, *late, return_exceptions=True)

    rows = asyncio.run(main())
    assert [isinstance(row, asyncio.CancelledError) for row in rows] == [True] + [False] * 5 + [True] * 3 + [False]
    assert sizes == [6, 1] and float(rows[-1][0]) == 3


def test_an_error_reaches_all_of_its_batch_and_no_other():
    def model(batch):
        if (batch == 1).any():
            raise RuntimeError("no memory")
        return batch[:, 0, 0]

    async def main():
        batches = Batches(model, lambda size: None)
        first = await asyncio.gather(*map(batches.classify, images(3)), return_exceptions=True)
        return first, await batches.classify(images(3)[2])

    first, second = asyncio.run(main())
    assert all(isinstance(row, RuntimeError) for row in first) and second.tolist() == [2, 2, 2]


def test_a_model_that_answers_for_another_number_of_images_fails_every_request_of_the_batch():
    async def main():
        batches = Batches(lambda images: images[:1].reshape(1, -1), lambda size: None)
        images = [np.zeros((2, 2, 3), np.uint8)] * 3
        return await asyncio.gather(*(batches.classify(image) for image in images), return_exceptions=True)

    found = asyncio.run(asyncio.wait_for(main(), 10))
    assert any(isinstance(one, ValueError) and "1 answers for" in str(one) for one in found)
