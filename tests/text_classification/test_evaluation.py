from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Trainer

from project import IGNORE, UserError
from project.checkpoint import Checkpoint, load_checkpoint
from project.predictions import Evaluation, Predictions
from project.text_classification.evaluation import keep_promises, threshold_for, without_leaks


def of_val(num_right, num_wrong):
    """Right answers with a probability of 0.9, wrong ones with 0.4, and one text without a label."""
    labels = torch.tensor([0] * (num_right + num_wrong) + [IGNORE])
    classes = torch.tensor([0] * num_right + [1] * num_wrong + [1])[:, None]
    probabilities = torch.tensor([0.9] * num_right + [0.4] * num_wrong + [0.99])[:, None]
    return Evaluation({}, None, [], Predictions(classes, probabilities, probabilities[:, 0], labels))


def test_a_checkpoint_keeps_from_which_probability_on_its_answers_are_right(tmp_path):
    path = str(tmp_path / "best.ckpt")
    content = {"state_dict": {"a": torch.ones(2)}, "hyper_parameters": {}, "config": {"data": {}}}
    keep_promises(Trainer(logger=False, accelerator="cpu"), Checkpoint(path, content), of_val(60, 20))
    kept = load_checkpoint(path)
    assert torch.equal(kept.content["state_dict"]["a"], torch.ones(2))
    assert threshold_for(kept, 0.95) == pytest.approx(0.9)
    assert threshold_for(kept, 0.7) == pytest.approx(0.4)
    with pytest.raises(UserError, match=r"--unsure 0.99: on the validation texts, at most 0.98 were right"):
        threshold_for(kept, 0.99)


def test_the_figure_without_texts_of_earlier_splits():
    samples = {
        "train": [("My card!", "a")],
        "val": [("a pin", "b")],
        "test": [("my card", "a"), ("new", "a"), ("A pin", "b")],
    }
    data = SimpleNamespace(samples=samples)
    ones = torch.ones(3, 1)
    predictions = Predictions(torch.tensor([[0], [1], [1]]), ones, ones[:, 0], torch.tensor([0, 0, 1]))
    of_test = Evaluation({"split": "test"}, None, samples["test"], predictions)
    assert without_leaks(of_test, data) == {"top1_without_leaks": 0.0, "num_samples_without_leaks": 1}
    assert without_leaks(of_test, SimpleNamespace(samples={**samples, "train": [], "val": []})) == {}
    assert without_leaks(of_test._replace(summary={"split": "all"}), data) == {}


@pytest.mark.parametrize("promises", [None, [], [[1]], "x", [[0.9, "a", 1.0, 1.0]]])
def test_a_checkpoint_without_promises_says_so(promises):
    with pytest.raises(UserError, match=r"best.ckpt makes no promise"):
        threshold_for(Checkpoint("best.ckpt", {"promises": promises}), 0.9)
