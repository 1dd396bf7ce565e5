"""What more images would bring: the error of a linear probe on subsets, continued as a n^-b + c.

It is the curve of a head on frozen features, and so a lower bound for what fine-tuning gains from more images.
"""

from typing import NamedTuple

import numpy as np

from project.insight.probe import Probe, finite_rows, one_thread

PARTS = 6  # nested subsets: all, and 1/sqrt(2) of each before, down to about a sixth
DRAWS = 2  # of each subset, whose errors are averaged
LEAST = 10  # images a class in all, and wrong images of the smallest subset
POWERS = np.linspace(0.1, 1.0, 19)  # b
PENALTIES = [3.0, 1.0, 0.3, 0.1, 0.03]  # relative to the mean eigenvalue


class Growth(NamedTuple):
    """Accuracies of a linear probe on the validation images: now, and expected with 2 and 4 times as many images."""

    images: int
    now: float
    twice: float
    four_times: float


def growth(
    features: np.ndarray,
    labels: np.ndarray,
    val_features: np.ndarray,
    val_labels: np.ndarray,
    num_classes: int,
    total: int | None = None,
) -> Growth | None:
    """Estimate what twice and four times as many training images would bring.

    Args:
        features: Of the training images, `(N, F)`.
        labels: int64 `(N,)`.
        val_features: `(M, F)`.
        val_labels: int64 `(M,)`.
        num_classes: Number of classes.
        total: Number of training images that there are, if these are only some of them.

    Returns:
        None if there are too few images to say.
    """
    kept, judged = finite_rows(features), finite_rows(val_features)
    features, labels = features[kept], labels[kept]
    val_features, val_labels = val_features[judged], val_labels[judged]
    if len(labels) < LEAST * num_classes or len(np.unique(labels)) < 2 or len(val_labels) < 2 * LEAST:
        return None
    sizes = [round(len(labels) / 2 ** (k / 2)) for k in range(PARTS)]
    with one_thread():
        errors = []
        for size in sizes:
            drawn = [error(features[i], labels[i], val_features, val_labels) for i in subsets(labels, size)]
            errors.append(sum(drawn) / len(drawn))
    if min(errors) * len(val_labels) < LEAST:
        return None  # too few errors to see them fall
    a, b, c = fit_curve(np.array(sizes), np.array(errors))
    total = len(labels) if total is None else total
    part, now, twice, four_times = (float(a * n**-b + c) for n in (len(labels), total, 2 * total, 4 * total))
    accuracy = 1 - errors[0] + part  # less what is expected of n images: the curve through the last point
    return Growth(total, accuracy - now, accuracy - twice, accuracy - four_times)


def subsets(labels: np.ndarray, size: int) -> list[np.ndarray]:
    """Some random subsets of this size, int64 `(size,)` each; just one of all images."""
    draws = [np.random.default_rng(seed).permutation(len(labels))[:size] for seed in range(DRAWS)]
    return draws if size < len(labels) else draws[:1]


def error(features: np.ndarray, labels: np.ndarray, val_features: np.ndarray, val_labels: np.ndarray) -> float:
    """The least error on validation images of ridge regressions that are fitted on training images."""
    classes, own = np.unique(labels, return_inverse=True)
    rows = np.arange(len(labels))
    probe = Probe(features, rows, own, rows, len(classes))
    scores = [probe.predict(val_features, penalty).argmax(1).numpy() for penalty in PENALTIES]
    return min(float((classes[predicted] != val_labels).mean()) for predicted in scores)


def fit_curve(sizes: np.ndarray, errors: np.ndarray) -> tuple[float, float, float]:
    """The a, b and c of error = a n^-b + c with the least squares, a and c not below zero.

    For each b it is linear in a and c.
    """
    best = (np.inf, 0.0, 1.0, float(errors.min()))
    for b in POWERS:
        x = sizes**-b
        a = ((x - x.mean()) * (errors - errors.mean())).sum() / ((x - x.mean()) ** 2).sum()
        c = errors.mean() - a * x.mean()
        if c < 0:
            a, c = (x * errors).sum() / (x * x).sum(), 0.0
        if a < 0:
            a, c = 0.0, errors.mean()
        best = min(best, (((a * x + c - errors) ** 2).sum(), a, b, c))
    return best[1], best[2], best[3]
