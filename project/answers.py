"""From probabilities to the answers that are shown: which classes come first. Imports no torch."""

import numpy as np

from project import UserError


def most_probable(probabilities: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """The `k` highest probabilities of each sample and their classes; of equal ones the first, as in the metrics.

    Args:
        probabilities: float32 `(N, num_classes)`.
        k: Number of classes; if there are fewer, all.

    Returns:
        Probabilities float32 `(N, k)` and classes int64 `(N, k)`.
    """
    classes = np.argsort(-probabilities, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(probabilities, classes, axis=1), classes


def check_finite(probabilities: np.ndarray) -> None:
    """Refuse probabilities that are no numbers. Raises `UserError`."""
    if not np.isfinite(probabilities).all():
        raise UserError("the model's output is not a number: its weights, or its mean and std, are damaged")
