"""Calibration and coverage agree with the metrics, with counting, and with what chance does."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryCalibrationError

from project.insight.trust import calibration_error, coverage_curve, error_of_perfect_model, groups


def drawn(n=2000, power=1.0, seed=0):
    random = np.random.default_rng(seed)
    confidence = random.uniform(0.4, 1, n).astype(np.float32)
    return confidence, random.uniform(size=n) < confidence**power


def test_the_error_is_that_of_the_metric():
    confidence, right = drawn()
    metric = BinaryCalibrationError(n_bins=15)  # of one probability, it bins max(p, 1 - p): so here of p
    expected = 0.0
    edges = np.linspace(0, 1, 16)
    for low, high in pairwise(edges):
        inside = (confidence > low) & (confidence <= high)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - right[inside].mean())
    assert calibration_error(confidence, right) == pytest.approx(expected, abs=1e-5)
    sure = confidence > 0.5
    metric.update(torch.from_numpy(confidence[sure]), torch.from_numpy(right[sure]).int())
    assert calibration_error(confidence[sure], right[sure]) == pytest.approx(metric.compute().item(), abs=1e-5)


def test_a_perfect_model_shows_as_much_as_it_is_said_to():
    errors = [calibration_error(*drawn(300, seed=seed)) for seed in range(200)]
    mean, upper = error_of_perfect_model(drawn(300)[0])
    assert np.mean(errors) == pytest.approx(mean, rel=0.1) and 0.9 < np.mean(np.array(errors) < upper) < 0.99
    assert calibration_error(*drawn(300, power=4)) > upper
    assert error_of_perfect_model(drawn(30_000)[0])[0] < mean / 5


def test_groups_hold_every_image_once_and_say_how_often_it_is_right():
    confidence, right = drawn(400)
    found = groups(confidence, right)
    assert len(found) == 8 and [p.x for p in found] == sorted(p.x for p in found)
    assert np.mean([p.y for p in found]) == pytest.approx(right.mean())
    assert all(p.low <= p.y <= p.high for p in found)
    assert len(groups(*drawn(30))) == 1 and groups(*drawn(0)) == []


def test_coverage_counts_the_surest_images_and_ties_together():
    confidence = np.array([0.9, 0.8, 0.8, 0.8, 0.5], np.float32)
    right = np.array([True, False, True, True, False])
    found = coverage_curve(confidence, right)
    assert [(p.x, p.y) for p in found] == [(0.2, 1.0), (0.8, 0.75), (1.0, 0.6)]
    assert coverage_curve(confidence[:0], right[:0]) == []
    assert len(coverage_curve(*drawn(5000))) <= 60 and coverage_curve(*drawn(5000))[-1].x == 1
