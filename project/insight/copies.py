"""Exact and near copies among images: cropped, mirrored, brighter, saved again, or taken a moment later.

Candidates are the nearest neighbours by features and by hash. A candidate is a copy if its details agree, and far more
than is usual among the neighbours of these images: in a set of trousers, all are alike. Imports no torch.
"""

from typing import NamedTuple

import numpy as np

from project.insight.alignment import Rough, agreement, match
from project.insight.glances import Glances
from project.insight.neighbours import nearest, reduced

NEIGHBOURS = 5  # of each kind: by features, by hash
MIN_ROUGH = 0.6  # rough agreement, below which a pair is not looked at more closely
CLOSEST = 4  # pairs of an image that are looked at more closely: those that may be copies, and the usual one
MIN_DETAIL = 0.85  # agreement of the details of copies, at least
MIN_RATIO = 1.4  # log((1 - usual) / (1 - detail)) of copies, at least
CAP = 0.95  # quantile of all usual levels, above which an image's is not believed: it may have many copies


class Copies(NamedTuple):
    """P pairs of images of which one is a copy of the other, or both are of a third.

    Attributes:
        pairs: Their indices i < j, int64 `(P, 2)`, in the order of i, then j. Of several files with the same bytes, the
            first is paired with each other one, and stands for them in the pairs of near copies; see `groups_of`.
        score: Agreement of their details, float32 `(P,)`; 1 for the same bytes.
        exact: Whether their bytes are the same, bool `(P,)`.
    """

    pairs: np.ndarray
    score: np.ndarray
    exact: np.ndarray


def find_copies(glances: Glances, features: np.ndarray | None) -> Copies:
    """Find the copies among N images; those that are not readable, and nearly blank ones, are near copies of nothing.

    Args:
        glances: Of the N files.
        features: Of a backbone, `(N, F)` of any float type; None to look for candidates by hash alone.
    """
    readable = np.flatnonzero(glances.readable)
    _, first, group = np.unique(glances.digests[readable], axis=0, return_index=True, return_inverse=True)
    original = readable[first[group.ravel()]]  # `first` is the smallest index of equal ones
    same = np.stack([original, readable], axis=1)[original != readable]
    alone = readable[original == readable]
    near, detail = _near(glances, features, alone)
    pairs = np.concatenate([same, alone[near]])
    score = np.concatenate([np.ones(len(same), np.float32), detail])
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))
    return Copies(pairs[order], score[order], (np.arange(len(pairs)) < len(same))[order])


def groups_of(copies: Copies, number: int) -> np.ndarray:
    """For each of `number` images the first of those that are copies of each other, int64 `(number,)`."""
    group = np.arange(number)
    i, j = copies.pairs.T
    while (group[i] != group[j]).any():
        low = np.minimum(group[i], group[j])
        for side in (i, j):
            np.minimum.at(group, group[side], low)
            np.minimum.at(group, side, low)
        group = group[group]
    return group


def _near(glances: Glances, features: np.ndarray | None, alone: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of near copies, as places in `alone`, int64 `(P, 2)`, and how far their details agree."""
    if len(alone) < 2:
        return np.empty((0, 2), np.int64), np.empty(0, np.float32)
    grey = glances.grey if len(alone) == len(glances.grey) else glances.grey[alone]
    pairs = _candidates(glances, features, alone)
    rough = match(grey, pairs)
    kept = (_ranks(pairs, rough.level, len(alone)) < CLOSEST) & (rough.level > MIN_ROUGH)
    pairs, rough = pairs[kept], Rough(*(part[kept] for part in rough))
    detail = agreement(grey, pairs, rough)
    usual = _usual(pairs, detail, len(alone))[pairs].mean(axis=1)
    ratio = np.log((1 - usual) / np.maximum(1 - detail, 1e-6))
    found = (detail > MIN_DETAIL) & (ratio > MIN_RATIO)
    return pairs[found], detail[found]


def _candidates(glances: Glances, features: np.ndarray | None, alone: np.ndarray) -> np.ndarray:
    """The neighbours of each image by features, by hash and by mirrored hash: pairs i < j of places, `(P, 2)`."""
    hashes, number = glances.hashes[alone], len(alone)
    found = [nearest(hashes, np.concatenate([hashes, glances.mirrored[alone]]), NEIGHBOURS + 1)]
    if features is not None and features.shape[1]:
        vectors = reduced(features, alone)
        found.append(nearest(vectors, vectors, NEIGHBOURS + 1))
    other = np.concatenate(found, axis=1)
    own = np.arange(number)[:, None]
    other = np.where(other < 0, own, other % number)
    keys = np.unique(np.minimum(own, other) * number + np.maximum(own, other))
    pairs = np.stack([keys // number, keys % number], axis=1)
    return pairs[pairs[:, 0] != pairs[:, 1]]


def _by_image(pairs: np.ndarray, level: np.ndarray, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Each pair once for either image, ordered by image and falling level, `(2 P,)`, and where each image begins."""
    image = pairs.T.ravel()
    order = np.lexsort((-np.tile(level, 2), image))
    return order, np.searchsorted(image[order], np.arange(number + 1))


def _ranks(pairs: np.ndarray, level: np.ndarray, number: int) -> np.ndarray:
    """The place of each pair among those of one of its images, 0 for the largest level; the better of the two."""
    order, starts = _by_image(pairs, level, number)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order)) - np.repeat(starts[:-1], np.diff(starts))
    return rank.reshape(2, -1).min(axis=0)


def _usual(pairs: np.ndarray, detail: np.ndarray, number: int) -> np.ndarray:
    """The third largest detail of each image's pairs, 0 if it has fewer, at most the `CAP` quantile of all."""
    order, starts = _by_image(pairs, detail, number)
    has = np.diff(starts) >= 3
    third = np.zeros(number, np.float32)
    third[has] = np.tile(detail, 2)[order[starts[:-1][has] + 2]]
    return np.clip(third, 0, np.quantile(third, CAP))
