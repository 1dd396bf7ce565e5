"""The table of what was predicted."""

import torch

from project import IGNORE
from project.predictions import Evaluation, Predictions, table


def test_a_row_holds_the_sample_and_its_ranked_classes():
    predictions = Predictions(
        torch.tensor([[1, 0], [0, 1], [0, 1]]),
        torch.tensor([[0.75, 0.25], [0.5, 0.5], [1.0, 0.0]]),
        torch.tensor([0.75, 0.5, 0.0]),
        torch.tensor([1, 1, IGNORE]),
    )
    evaluation = Evaluation({"split": "test"}, None, [("good", "b"), ("so, so", "b"), ("gone", "a")], predictions)
    header, *rows = table([evaluation], ["a", "b"], "text")
    assert header[:6] == ["text", "split", "label", "predicted", "probability", "label_probability"]
    assert rows[0] == ["good", "test", "b", "b", "0.750000", "0.750000", "a", "0.250000"]
    assert rows[1][3:6] == ["a", "0.500000", "0.500000"]
    assert rows[2] == ["gone", "test", "a", "", "", "", "", ""]
    assert evaluation.wrong == [1]
