"""Temperatures are the most likely ones, and promises are what the validation images support."""

import math

import numpy as np
import pytest

from project.answers import is_promises, promise_for
from project.insight.calibration import fitted_temperature, honest_temperature, promises_of


def drawn(number: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits `(N, 4)`, and labels that have the probabilities which these state."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(size=(number, 4)) * 2
    shares = softmax(logits)
    return logits, (shares.cumsum(axis=1) > generator.random((number, 1))).argmax(axis=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)


def test_the_temperature_is_the_most_likely_one():
    logits, labels = drawn(20_000)
    shares, sharper = softmax(logits), softmax(1.7 * logits)
    assert fitted_temperature(sharper.astype(np.float32), labels) == pytest.approx(1.7, rel=0.03)
    assert fitted_temperature(shares.astype(np.float32), labels) == pytest.approx(1, rel=0.03)
    assert math.isfinite(fitted_temperature(np.array([[1.0, 0.0]], np.float32), np.array([0])))


def test_a_temperature_that_can_be_chance_is_left_out():
    kept = [honest_temperature(softmax(logits), labels) for logits, labels in (drawn(300, seed) for seed in range(40))]
    assert sum(found == 1 for found in kept) >= 34  # 95 % in the mean
    logits, labels = drawn(300)
    assert honest_temperature(softmax(3 * logits), labels) == pytest.approx(3, rel=0.3)


def test_promises_are_kept_on_the_images_that_they_come_from_and_nearly_on_others():
    logits, labels = drawn(4000)
    confidence, right = softmax(logits).max(1), softmax(logits).argmax(1) == labels
    promises = promises_of(confidence[:2000], right[:2000])
    assert [row[0] for row in promises[:45]] == [k / 100 for k in range(50, 95)] and is_promises(promises)
    for promise, threshold, answered, hits in promises:
        told = confidence[:2000] >= threshold
        assert told.sum() == answered and right[:2000][told].sum() == hits and hits / answered >= promise
        assert right[2000:][confidence[2000:] >= threshold].mean() > promise - 0.03
    answered = [row[2] for row in promises]
    assert answered == sorted(answered, reverse=True) and answered[0] > answered[-1]


def test_no_promise_is_made_that_the_images_do_not_support():
    assert promises_of(np.array([]), np.array([], bool)) == []
    assert promises_of(np.full(19, 0.9), np.ones(19, bool)) == []
    found = promises_of(np.full(100, 0.9), np.arange(100) % 5 > 1)  # all are equally sure: answered together
    assert found == [[k / 100, 0.9, 100.0, 60.0] for k in range(50, 60)]  # 60 of 101 would be 0.594
    assert promise_for(found, 0.585) == found[9] and promise_for(found, 0.6) is None


@pytest.mark.parametrize("value", [None, [[0.9]], [["a", 0, 1, 1]], [[0.9, 2, 1, 1]], [[0.9, 0.5, 1, math.nan]], "x"])
def test_what_is_no_list_of_promises_is_told(value):
    assert not is_promises(value)
    assert is_promises([]) and is_promises([[0.9, 0.5, 30.0, 28]])
