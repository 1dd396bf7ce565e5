"""The curve of errors is continued as it goes on, and nothing is said of too few images."""

import numpy as np
import pytest

from project.insight.growth import fit_curve, growth


def images(count: int, seed: int, distance: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian clouds of four classes in 64 dimensions, float32 `(count, 64)`, and labels."""
    centres = np.random.default_rng(0).normal(size=(4, 64)) * distance / 4
    labels = np.arange(count) % 4
    return (centres[labels] + np.random.default_rng(seed).normal(size=(count, 64))).astype(np.float32), labels


@pytest.mark.parametrize(("b", "c"), [(0.5, 0.1), (0.3, 0.0), (1.0, 0.25)])
def test_a_curve_is_found_again(b, c):
    sizes = np.array([1000, 707, 500, 354, 250, 177])
    a, power, floor = fit_curve(sizes, 2.0 * sizes**-b + c)
    assert (a * 4000.0**-power + floor) == pytest.approx(2.0 * 4000**-b + c, abs=1e-4)


def test_the_expected_gain_is_that_of_more_images():
    val = images(4000, 1)
    found = growth(*images(800, 2), *val, 4)
    later = growth(*images(1600, 3), *val, 4)
    assert found is not None and later is not None and found.images == 800
    assert found.now < found.twice < found.four_times
    assert abs(found.twice - later.now) < 0.03


def test_too_few_images_say_nothing():
    val = images(100, 1)
    assert growth(*images(30, 2), *val, 4) is None
    assert growth(*images(400, 2), *images(8, 1), 4) is None
    assert growth(*images(400, 2, distance=20), *images(100, 1, distance=20), 4) is None  # none is wrong
    assert growth(np.full((400, 8), np.nan), np.arange(400) % 4, *val, 4) is None


def test_features_that_tell_nothing_promise_nothing():
    labels = np.arange(400) % 4
    found = growth(np.ones((400, 8)), labels, np.ones((100, 8)), labels[:100], 4)
    assert found is not None and found.twice == pytest.approx(found.now, abs=0.02)
