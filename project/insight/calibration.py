"""Probabilities that can be used: a temperature that makes them honest, and thresholds that keep a promise.

Imports no torch.
"""

import math

import numpy as np

from project.answers import PROMISES, Promises

MIN_GAIN = 1.92  # of the log-likelihood: less can be chance (95 %, likelihood ratio test of one parameter)
MIN_ANSWERED = 20  # images: fewer support no promise


def fitted_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The temperature that makes probabilities most likely (Guo et al. 2017, arXiv 1706.04599), from 0.2 to 5.

    Args:
        probabilities: float32 `(N, C)`, at temperature 1.
        labels: int `(N,)`.
    """
    logs = np.log(np.maximum(probabilities.astype(np.float64), 1e-30))
    low, high = math.log(0.2), math.log(5)
    ratio = (math.sqrt(5) - 1) / 2
    while high - low > 1e-4:  # golden section: the loss has one minimum
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, b) if loss_at(logs, labels, a) < loss_at(logs, labels, b) else (a, high)
    return math.exp((low + high) / 2)


def loss_at(logs: np.ndarray, labels: np.ndarray, log_temperature: float) -> float:
    """The mean cross-entropy, in nats, of logarithms of probabilities `(N, C)` at a temperature."""
    scaled = logs / math.exp(log_temperature)
    return float((np.logaddexp.reduce(scaled, axis=1) - scaled[np.arange(len(labels)), labels]).mean())


def honest_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The fitted temperature; 1 if what it gains can be chance. Arguments as for `fitted_temperature`."""
    found = fitted_temperature(probabilities, labels)
    logs = np.log(np.maximum(probabilities.astype(np.float64), 1e-30))
    gain = len(labels) * (loss_at(logs, labels, 0.0) - loss_at(logs, labels, math.log(found)))
    return found if gain > MIN_GAIN else 1.0


def promises_of(confidence: np.ndarray, right: np.ndarray) -> Promises:
    """From which confidence on answers are right as often as promised, for promises of 0.50 to 0.99.

    Args:
        confidence: Probability of the predicted class of each validation image, `(N,)`.
        right: Whether it is the true one, bool `(N,)`.

    Returns:
        `[promise, threshold, answered, right]` for each promise that the images support: the lowest threshold above
        which the share of right answers is at least the promise, how many of the images these are, and how many right.
    """
    order = np.argsort(-confidence, kind="stable")
    hits = np.cumsum(right[order])
    ends = np.flatnonzero(np.append(np.diff(confidence[order]) != 0, True)) if len(order) else np.array([], int)
    ends = ends[ends + 1 >= MIN_ANSWERED]  # images of equal confidence are answered together
    shares = hits[ends] / (ends + 2)  # as if there were one more mistake: a threshold that is chosen looks too good
    found = []
    for promise in PROMISES:
        if len(kept := ends[shares >= promise - 1e-12]):
            last = int(kept[-1])
            found.append([promise, float(confidence[order[last]]), float(last + 1), float(hits[last])])
    return found
