"""The nearest neighbours of each of many vectors, without a matrix of all pairs. Imports no torch."""

import numpy as np

DIMENSIONS = 64  # that features keep: with 512, no more copies are among the nearest neighbours
FITTED = 10_000  # rows that the directions are fitted to
ROUNDS = 4  # of subspace iteration; of k-means
EXACT = 60_000  # vectors up to which all are compared with all: in a minute, on one core
PROBES = 8  # cells in which a vector's neighbours are looked for
BLOCK = 1 << 22  # similarities that are held at once
GROUP = 32  # of which the largest are found by the largest of each group


def reduced(features: np.ndarray, dimensions: int = DIMENSIONS) -> np.ndarray:
    """The principal components of centred features, each row of length 1: float32 `(N, at most dimensions)`.

    A row that is not finite becomes zero, and is like nothing.

    Args:
        features: `(N, F)`, of any float type; read in blocks.
        dimensions: How many components are kept.
    """
    number, width = features.shape
    some = np.random.default_rng(0).permutation(number)[:FITTED]
    sample, finite = _finite(features[np.sort(some)])
    mean = sample.sum(axis=0) / max(finite.sum(), 1)
    sample = (sample - mean) * finite[:, None]
    basis = np.random.default_rng(0).standard_normal((width, min(dimensions, width)), dtype=np.float32)
    for _ in range(ROUNDS):
        basis = np.linalg.qr(sample.T @ (sample @ basis))[0]
    result = np.empty((number, basis.shape[1]), np.float32)
    rows = max(BLOCK // width, 1)
    for start in range(0, number, rows):
        block, finite = _finite(features[start : start + rows])
        part = ((block - mean) @ basis) * finite[:, None]
        result[start : start + rows] = part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12)
    return result


def _finite(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The rows as float32, zero where one is not finite or absurdly large, and which are not."""
    rows = np.asarray(rows, np.float32)
    finite = (np.abs(rows) < 1e15).all(axis=1)  # squares of more are infinite
    return np.where(finite[:, None], rows, 0), finite


def nearest(queries: np.ndarray, base: np.ndarray, count: int) -> np.ndarray:
    """The rows of `base` that have the largest product with each query: int64 `(Q, at most count)`, in no order.

    Among more than `EXACT` rows, they are looked for in the `PROBES` cells that are the nearest, so that a few are
    missed.

    Args:
        queries: `(Q, D)`.
        base: `(B, D)`, of rows of the same length, float32 or int8.
        count: How many are wanted.
    """
    count = min(count, len(base))
    if len(base) <= EXACT:
        rows, wide = max(BLOCK // len(base), 1), np.asarray(base.T, np.float32)
        blocks = (queries[start : start + rows] for start in range(0, len(queries), rows))
        return np.concatenate([largest(np.asarray(block, np.float32) @ wide, count) for block in blocks])
    return _in_cells(queries, base, count)


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Where the largest values of each row `(Q, B)` are: int64 `(Q, count)`, in no order."""
    width = values.shape[1]
    groups = width // GROUP
    if groups < 4 * count:
        return np.argpartition(values, width - count, axis=1)[:, width - count :]
    # The largest ones are in the groups with the largest maxima; the maximum of many is fast, sorting is not
    maxima = values[:, : groups * GROUP].reshape(-1, GROUP, groups).max(axis=1)
    best = np.argpartition(maxima, groups - count, axis=1)[:, groups - count :]
    places = (best[:, :, None] + groups * np.arange(GROUP)).reshape(len(values), -1)
    rest = np.broadcast_to(np.arange(groups * GROUP, width), (len(values), width - groups * GROUP))
    places = np.concatenate([places, rest], axis=1)
    chosen = np.take_along_axis(values, places, axis=1)
    return np.take_along_axis(places, np.argpartition(chosen, -count, axis=1)[:, -count:], axis=1)


def _in_cells(queries: np.ndarray, base: np.ndarray, count: int) -> np.ndarray:
    """`nearest` in the cells of a k-means."""
    centres = _centres(base, int(len(base) ** 0.5))
    cell = nearest(base, centres, 1)[:, 0]
    order = np.argsort(cell, kind="stable")
    ends = np.searchsorted(cell[order], np.arange(len(centres) + 1))
    probes = nearest(queries, centres, PROBES)
    asking = np.argsort(probes.ravel(), kind="stable")
    starts = np.searchsorted(probes.ravel()[asking], np.arange(len(centres) + 1))
    found = np.full((len(queries), count), -1, np.int64)
    level = np.full((len(queries), count), -np.inf, np.float32)
    for number in range(len(centres)):
        members = order[ends[number] : ends[number + 1]]
        askers = asking[starts[number] : starts[number + 1]] // PROBES
        rows, wide = max(BLOCK // max(len(members), 1), 1), np.asarray(base[members].T, np.float32)
        for start in range(0, len(askers) if len(members) else 0, rows):
            part = askers[start : start + rows]
            values = np.asarray(queries[part], np.float32) @ wide
            places = largest(values, min(count, len(members)))
            values = np.concatenate([level[part], np.take_along_axis(values, places, axis=1)], axis=1)
            places = np.concatenate([found[part], members[places]], axis=1)
            best = np.argpartition(values, -count, axis=1)[:, -count:]
            level[part] = np.take_along_axis(values, best, axis=1)
            found[part] = np.take_along_axis(places, best, axis=1)
    return found


def _centres(base: np.ndarray, number: int) -> np.ndarray:
    """Centres of a k-means of rows on a sphere, fitted to some of them, each of length 1: `(number, D)`."""
    rng = np.random.default_rng(0)
    some = np.sort(rng.permutation(len(base))[: 50 * number])
    sample = np.asarray(base[some], np.float32)
    centres = sample[rng.permutation(len(sample))[:number]]
    for _ in range(ROUNDS):
        cell = nearest(sample, centres / np.linalg.norm(centres, axis=1, keepdims=True).clip(1e-12), 1)[:, 0]
        order = np.argsort(cell, kind="stable")
        present, starts = np.unique(cell[order], return_index=True)
        centres[present] = np.add.reduceat(sample[order], starts)
    return centres / np.linalg.norm(centres, axis=1, keepdims=True).clip(1e-12)
