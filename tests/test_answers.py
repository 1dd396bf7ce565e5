"""Which classes come first: the same by numpy, for what is shown, and by torch, for what is measured."""

import numpy as np
import pytest
import torch

from project import UserError, answers, metrics


@pytest.mark.parametrize("k", [1, 3, 5, 9])
def test_the_order_is_that_of_the_metrics(k):
    """Of equal probabilities, the first class comes first."""
    rng = np.random.default_rng(0)
    probabilities = rng.integers(0, 4, (200, 5)).astype(np.float32) / 10  # with many ties
    values, classes = answers.most_probable(probabilities, k)
    expected = metrics.most_probable(torch.from_numpy(probabilities), k)
    assert values.tolist() == expected[0].tolist() and classes.tolist() == expected[1].tolist()
    assert (classes[:, 0] == probabilities.argmax(axis=1)).all() and values.dtype == np.float32


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_refused(bad):
    probabilities = np.array([[0.5, 0.5], [bad, 0.5]], np.float32)
    with pytest.raises(UserError, match="the model's output is not a number"):
        answers.check_finite(probabilities)
    answers.check_finite(probabilities[:1])
