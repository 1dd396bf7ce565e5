"""The closed form equals as many fits as there are groups."""

import numpy as np
import pytest
import torch

from project.insight.probe import Probe, finite_rows, one_thread


def refitted(x: np.ndarray, y: np.ndarray, rest: np.ndarray, penalty: float) -> np.ndarray:
    """Scores of all rows by a ridge regression with a free bias on some rows, `(N, C)`."""
    mean, bias = x[rest].mean(0), y[rest].mean(0)
    centred = x[rest] - mean
    weight = np.linalg.solve(centred.T @ centred + penalty * np.eye(x.shape[1]), centred.T @ (y[rest] - bias))
    return (x - mean) @ weight + bias


@pytest.mark.parametrize("width", [196, 20])  # more features than images, and fewer
@pytest.mark.parametrize("sizes", [[1], [1, 2, 3], [30]])  # of the groups
def test_the_closed_form_equals_as_many_fits_as_groups(width, sizes):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(60, width)).astype(np.float32), generator.permutation(60) % 3
    x[:, 0] += y
    groups = np.repeat(np.arange(60), np.resize(sizes, 60))[:60]
    probe = Probe(x, np.arange(60), y, groups, 3)
    z = (x - probe.mean.numpy()) / probe.scale.numpy()
    for strength in (1.0, 0.01):
        expected = np.zeros((60, 3))
        for group in np.unique(groups):
            penalty = strength * probe.values.mean().item()
            expected[groups == group] = refitted(z, np.eye(3)[y], groups != group, penalty)[groups == group]
        found = np.zeros((60, 3))
        for rows in probe.batches():
            found[rows.flatten()] = probe.scores(rows, strength).flatten(0, 1)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_other_images_are_predicted_as_by_a_plain_fit():
    generator = np.random.default_rng(0)
    x, y, other = generator.normal(size=(60, 20)), np.arange(60) % 3, generator.normal(size=(5, 20))
    probe = Probe(x, np.arange(60), y, np.arange(60), 3)
    z = (np.concatenate([x, other]) - probe.mean.numpy()) / probe.scale.numpy()
    expected = refitted(z, np.eye(3)[[*y, *[0] * 5]], np.arange(65) < 60, 0.1 * probe.values.mean().item())[60:]
    np.testing.assert_allclose(probe.predict(other, 0.1), expected, atol=1e-6)


def test_which_rows_are_finite():
    features = np.zeros((5, 2), np.float16)
    features[1, 0], features[3, 1] = np.nan, -np.inf
    assert finite_rows(features).tolist() == [True, False, True, False, True] and finite_rows(features[:0]).shape == (
        0,
    )


def test_one_thread_only_within():
    before = torch.get_num_threads()
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == before
