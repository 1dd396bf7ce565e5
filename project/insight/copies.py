"""Exact and near copies among images: cropped, mirrored, brighter, saved again, or taken a moment later.

Candidates are the nearest neighbours by features and by hash. A candidate is a copy if fine details agree in one of
many windows, and far more than is usual among the neighbours of these images: in a set of trousers, all are alike.
Imports no torch.
"""

from itertools import pairwise
from typing import NamedTuple

import numpy as np

from project.insight.glances import SIDE, Glances
from project.insight.neighbours import nearest, reduced

NEIGHBOURS = 5  # of each kind: by features, by hash
GATE = 0.5  # correlation of the whole images, of themselves or with one mirrored, below which details are not compared
MIN_DETAIL = 0.6  # correlation of the details of copies, at least
MIN_RATIO = 1.1  # log((1 - usual) / (1 - detail)) of copies, at least
CAP = 0.95  # quantile of all usual levels, above which an image's is not believed: it may have many copies
FLAT = 1.5  # grey levels: the standard deviation of details, below which there are none
BLUR = 2.0  # pixels: details are what this blur takes away
BLOCK = 256  # images whose windows are held at once
PAIRS = 1 << 16  # pairs that are looked at, at once


class Copies(NamedTuple):
    """P pairs of images of which one is a copy of the other, or both are of a third.

    Attributes:
        pairs: Their indices i < j, int64 `(P, 2)`, in the order of i, then j. Of several files with the same bytes, the
            first is paired with each other one, and stands for them in the pairs of near copies.
        score: Correlation of their details, float32 `(P,)`; 1 for the same bytes.
        exact: Whether their bytes are the same, bool `(P,)`.
    """

    pairs: np.ndarray
    score: np.ndarray
    exact: np.ndarray


def find_copies(glances: Glances, features: np.ndarray | None) -> Copies:
    """Find the copies among N images; those that are not readable, and nearly blank ones, are copies of nothing.

    Args:
        glances: Of the N files.
        features: Of a backbone, `(N, F)` of any float type; None to look for candidates by hash alone.
    """
    readable = np.flatnonzero(glances.readable)
    _, first, group = np.unique(glances.digests[readable], axis=0, return_index=True, return_inverse=True)
    original = readable[first[group.ravel()]]  # `first` is the smallest index of equal ones
    same = np.stack([original, readable], axis=1)[original != readable]
    alone = readable[original == readable]
    pairs, detail = _near(glances, features, alone)
    pairs = np.concatenate([same, alone[pairs]])
    score = np.concatenate([np.ones(len(same), np.float32), detail])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Copies(pairs[order], score[order], (np.arange(len(pairs)) < len(same))[order])


def groups_of(copies: Copies, number: int) -> np.ndarray:
    """A number for each of `number` images that is the same for images which are copies of each other, int64 `(N,)`."""
    group = np.arange(number)
    i, j = copies.pairs.T
    while (group[i] != group[j]).any():
        low = np.minimum(group[i], group[j])
        np.minimum.at(group, i, low)
        np.minimum.at(group, j, low)
        group = group[group]
    return group


def _near(glances: Glances, features: np.ndarray | None, alone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of near copies, as places in `alone`, `(P, 2)`, and how far their details agree."""
    if len(alone) < 2:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    grey = glances.grey[alone]
    pairs = _candidates(glances, features, alone)
    pairs = pairs[_whole(grey, pairs) > GATE]
    detail = compare(grey, pairs)
    usual = _usual(pairs, detail, len(alone))[pairs].max(axis=1)
    ratio = np.log((1 - usual) / np.maximum(1 - detail, 1e-6))
    found = (detail > MIN_DETAIL) & (ratio > MIN_RATIO)
    return pairs[found], detail[found]


def _candidates(glances: Glances, features: np.ndarray | None, alone: np.ndarray) -> np.ndarray:
    """The neighbours of each image by features, by hash and by mirrored hash: pairs i < j of places, `(P, 2)`."""
    hashes, number = glances.hashes[alone], len(alone)
    both = np.concatenate([hashes, glances.mirrored[alone]])
    found = [nearest(hashes, both, NEIGHBOURS + 1)]
    if features is not None and features.shape[1]:
        whole = len(alone) == len(features)
        found.append(nearest(vectors := reduced(features if whole else features[alone]), vectors, NEIGHBOURS + 1))
    other = np.concatenate(found, axis=1)
    other = np.where(other >= 0, other % number, np.arange(number)[:, None])
    i = np.repeat(np.arange(number), other.shape[1])
    keys = np.unique(np.minimum(i, other.ravel()) * number + np.maximum(i, other.ravel()))
    pairs = np.stack([keys // number, keys % number], axis=1)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _whole(grey: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Correlation of the whole images of pairs, the larger one of plain and mirrored: float32 `(P,)`."""
    small = grey.reshape(-1, SIDE // 2, 2, SIDE // 2, 2).mean(axis=(2, 4), dtype=np.float32)
    small -= small.mean(axis=(1, 2), keepdims=True)
    small /= np.maximum(np.linalg.norm(small, axis=(1, 2), keepdims=True), 1e-6)
    result = np.empty(len(pairs), np.float32)
    for start in range(0, len(pairs), PAIRS):
        a, b = (small[pairs[start : start + PAIRS, side]] for side in (0, 1))
        plain, mirrored = (np.einsum("nyx,nyx->n", a, other) for other in (b, b[:, :, ::-1]))
        result[start : start + PAIRS] = np.maximum(plain, mirrored)
    return result


def _usual(pairs: np.ndarray, detail: np.ndarray, number: int) -> np.ndarray:
    """The third largest detail of each image's pairs, 0 if it has fewer, at most the `CAP` quantile of all."""
    image, level = pairs.T.ravel(), np.tile(detail, 2)
    order = np.lexsort((-level, image))
    starts = np.searchsorted(image[order], np.arange(number + 1))
    has = starts[1:] - starts[:-1] >= 3
    third = np.zeros(number, np.float32)
    third[has] = level[order][starts[:-1][has] + 2]
    return np.clip(third, 0, np.quantile(third, CAP))


def _sampler(size: float, offset: float) -> np.ndarray:
    """Weights that sample `SIDE` pixels from a window of a row by linear interpolation, `(SIDE, SIDE)`."""
    at = np.clip((offset + (np.arange(SIDE) + 0.5) / SIDE * size) * SIDE - 0.5, 0, SIDE - 1)
    return np.maximum(1 - np.abs(at[:, None] - np.arange(SIDE)), 0).astype(np.float32)


SIZES = {1.0: 1, 0.95: 3, 0.9: 5, 0.8: 5}  # of windows, as a share of the side, and how many positions on each axis
LINES = [(size, k * (1 - size) / max(count - 1, 1)) for size, count in SIZES.items() for k in range(count)]
SAMPLERS = np.stack([_sampler(*line) for line in LINES])  # (14, SIDE, SIDE)
WINDOWS = np.array([(y, x) for y, a in enumerate(LINES) for x, b in enumerate(LINES) if a[0] == b[0]])  # (60, 2)
TEMPLATES = np.array([0, 22])  # the whole image, and the middle of its windows of 0.9: against shifted ones
GAUSS = np.exp(-0.5 * ((np.arange(SIDE)[:, None] - np.arange(SIDE)) / BLUR) ** 2).astype(np.float32)
GAUSS /= GAUSS.sum(axis=1, keepdims=True)


def details(grey: np.ndarray, windows: np.ndarray) -> np.ndarray:
    """The details in windows of thumbnails: float32 `(N, W, SIDE * SIDE)`, each of length 1, or 0 if there are none.

    Args:
        grey: uint8 `(N, SIDE, SIDE)`.
        windows: Rows of `WINDOWS`, `(W, 2)`.
    """
    images = grey.astype(np.float32)
    images = images - GAUSS @ images @ GAUSS.T
    lines = np.unique(windows[:, 0])
    rows = np.stack([SAMPLERS[line] @ images for line in lines], axis=1)  # (N, lines, SIDE, SIDE)
    parts = [rows[:, np.searchsorted(lines, y)] @ SAMPLERS[x].T for y, x in windows]
    result = np.stack(parts, axis=1).reshape(len(grey), len(windows), SIDE * SIDE)
    result -= result.mean(axis=2, keepdims=True)
    length = np.linalg.norm(result, axis=2, keepdims=True)
    result /= np.where(length > FLAT * SIDE, length, np.inf)
    return result


def compare(grey: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """How far the details of pairs agree: the largest correlation over windows of either, shifts and the mirror.

    Args:
        grey: Thumbnails, uint8 `(N, SIDE, SIDE)`.
        pairs: int64 `(P, 2)`.

    Returns:
        float32 `(P,)`.
    """
    owner, other = pairs.T.ravel(), pairs[:, ::-1].T.ravel()
    order = np.argsort(owner, kind="stable")
    starts = np.searchsorted(owner[order], np.arange(0, len(grey) + BLOCK, BLOCK))
    found = np.zeros(len(owner), np.float32)
    for start, end in pairwise(starts):
        mine = order[start:end]
        if len(mine):
            found[mine] = _compare_block(grey, owner[mine], other[mine])
    return np.maximum(found[: len(pairs)], found[len(pairs) :])


def _compare_block(grey: np.ndarray, owner: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The windows of owners, which are sorted, against the whole and the middle of others: `(P,)`."""
    own, counts = np.unique(owner, return_counts=True)
    windows = details(grey[own], WINDOWS)
    partners, place = np.unique(other, return_inverse=True)
    templates = details(grey[partners], WINDOWS[TEMPLATES]).reshape(-1, len(TEMPLATES), SIDE, SIDE)
    templates = np.concatenate([templates, templates[..., ::-1]], axis=1).reshape(len(partners), -1, SIDE * SIDE)
    found, start = np.empty(len(owner), np.float32), 0
    for mine, count in zip(windows, counts, strict=True):
        theirs = templates[place[start : start + count]]
        found[start : start + count] = (theirs @ mine.T).max(axis=(1, 2))
        start += count
    return found
