import numpy as np

from project.insight.neighbours import largest


def test_largest():
    values = np.random.default_rng(0).permuted(np.tile(np.arange(1000.0), (7, 1)), axis=1)
    chosen = np.take_along_axis(values, largest(values, 5), axis=1)
    assert (np.sort(chosen, axis=1) == np.arange(995, 1000)).all()
