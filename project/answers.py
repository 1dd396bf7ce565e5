"""From probabilities to the answers that are shown: which classes come first. Imports no torch."""

import logging
import math
from typing import Any

import numpy as np

from project import UserError

log = logging.getLogger(__name__)

PROMISES = [share / 100 for share in range(50, 100)]  # of how often answers are right

Promises = list[list[float]]  # [promise, threshold, answered, right], see `project.insight.calibration.promises_of`


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


def promise_for(promises: Promises, wanted: float) -> list[float] | None:
    """The first of the promises that is at least as strict as what is wanted; None if there is none."""
    return next((row for row in promises if row[0] >= wanted - 1e-9), None)


def is_promises(value: Any) -> bool:
    """Whether a value that was read from a file is what `promises_of` returns."""
    if not isinstance(value, list) or len(value) > len(PROMISES):
        return False
    rows = all(isinstance(row, list) and len(row) == 4 and all(type(x) in (int, float) for x in row) for row in value)
    return rows and all(0 <= row[0] <= 1 and 0 <= row[1] <= 1 and 0 <= row[3] <= row[2] < math.inf for row in value)


def sure_from(promises: Promises, wanted: float, unit: str) -> float:
    """The probability from which on the answers of a model are right as often as wanted, such as 0.95.

    Args:
        promises: Those of the model, at least one.
        wanted: The share.
        unit: What the samples are, for messages.

    Raises:
        UserError: It promises less.
    """
    if (row := promise_for(promises, wanted)) is None:
        most = f"at most {promises[-1][0]:g} were right, however sure the answers"
        raise UserError(f"--unsure {wanted:g}: on the validation {unit}, {most}")
    _, threshold, answered, right = row
    log.info(f"Sure from {threshold:.3f} on: {right:.0f} of {answered:.0f} such validation {unit} were right")
    return threshold
