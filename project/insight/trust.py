"""Whether stated probabilities can be trusted, from how sure a model was of each image and whether it was right."""

from typing import NamedTuple

import numpy as np

from project.metrics import wilson_interval

BINS = 15  # as in the metric `ece`
DRAWS = 1000


class Point(NamedTuple):
    """A point of a chart with the interval of its height; all from 0 to 1."""

    x: float
    y: float
    low: float
    high: float


def binned(confidence: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """How many images, how many right ones, and the sum of the confidence in each of 15 bins of equal width.

    Args:
        confidence: The probability of the predicted class of each image, `(N,)`.
        right: Whether it is the true one, bool `(N,)`.
    """
    bins = np.clip(np.ceil(confidence.astype(np.float64) * BINS).astype(int) - 1, 0, BINS - 1)
    counts, hits = np.bincount(bins, minlength=BINS), np.bincount(bins, weights=right, minlength=BINS)
    return counts, hits, np.bincount(bins, weights=confidence, minlength=BINS)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """The expected calibration error; arguments as for `binned`, not empty."""
    _, hits, stated = binned(confidence, right)
    return float(np.abs(hits - stated).sum() / len(confidence))


def error_of_perfect_model(confidence: np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The calibration error that chance alone gives a model that is exactly as often right as it says.

    Args:
        confidence: The probability of the predicted class of each image, `(N,)`, not empty.
        seed: Of the draws.

    Returns:
        The mean, and the bound that 95 % of such models stay below.
    """
    counts, _, stated = binned(confidence, np.zeros(len(confidence), bool))
    share = np.clip(stated / np.maximum(counts, 1), 0, 1)
    hits = np.random.default_rng(seed).binomial(counts, share, size=(DRAWS, BINS))
    errors = np.abs(hits - stated).sum(axis=1) / len(confidence)
    return float(errors.mean()), float(np.quantile(errors, 0.95))


def groups(confidence: np.ndarray, right: np.ndarray, most: int = 8) -> list[Point]:
    """How often a model is right among images of which it is about equally sure, the least sure first.

    Args:
        confidence: As for `binned`.
        right: Likewise.
        most: Number of groups of equal size, of at least 20 images each.

    Returns:
        For each group the mean confidence, and the share of right images with its interval.
    """
    order = np.argsort(confidence, kind="stable")
    parts = [part for part in np.array_split(order, max(1, min(most, len(order) // 20))) if len(part)]
    return [point(float(confidence[part].mean()), int(right[part].sum()), len(part)) for part in parts]


def coverage_curve(confidence: np.ndarray, right: np.ndarray, most: int = 60) -> list[Point]:
    """How often a model is right among the images of which it is surest.

    Args:
        confidence: As for `binned`.
        right: Likewise.
        most: Number of points.

    Returns:
        For each share of all images from 5 % on, the share of right ones among them, with its interval. Images of equal
        confidence come together.
    """
    order = np.argsort(-confidence, kind="stable")
    last = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True)) + 1 if len(order) else np.array([], int)
    last = last[last >= 0.05 * len(order)]
    hits = np.cumsum(right[order])
    chosen = last[np.unique(np.linspace(0, len(last) - 1, min(most, len(last))).round().astype(int))]
    return [point(n / len(order), int(hits[n - 1]), int(n)) for n in chosen]


def point(x: float, right: int, total: int) -> Point:
    """A share with its interval at x."""
    return Point(x, right / max(total, 1), *wilson_interval(right, total))
