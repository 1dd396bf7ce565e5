import numpy as np
import pytest

from project.insight import neighbours
from project.insight.neighbours import largest, nearest, reduced


@pytest.mark.parametrize("width", [6, 100, 1000, 1003])
def test_largest(width):
    values = np.random.default_rng(0).permuted(np.tile(np.arange(float(width)), (7, 1)), axis=1)
    chosen = np.take_along_axis(values, largest(values, 5), axis=1)
    assert (np.sort(chosen, axis=1) == np.arange(width - 5, width)).all()


def test_cells_find_nearly_what_an_exact_search_finds(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((40, 16))[rng.integers(40, size=4000)] + 0.4 * rng.standard_normal((4000, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    exact = nearest(vectors[:500], vectors, 5)
    monkeypatch.setattr(neighbours, "EXACT", 100)
    in_cells = nearest(vectors[:500], vectors, 5)
    assert np.mean([len({*a} & {*b}) for a, b in zip(exact, in_cells, strict=True)]) > 4.7


def test_features_that_are_not_finite_or_all_equal_are_like_nothing():
    features = np.random.default_rng(0).standard_normal((20, 6)).astype(np.float32)
    features[3, 2], features[4, 0] = np.nan, np.inf
    vectors = reduced(features, np.arange(20))
    assert (vectors[3:5] == 0).all() and np.linalg.norm(np.delete(vectors, [3, 4], axis=0), axis=1) == pytest.approx(1)
    assert np.isfinite(reduced(np.ones((5, 3)), np.arange(5))).all()
