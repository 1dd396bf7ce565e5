"""The split that is tested, and data that is opened again, for any task."""

import pytest
import torch

from project import UserError
from project.split_data import ClassData, reopened


class Letters(ClassData):
    """Letters of two classes, of which the first of each is drawn for val, the second for test."""

    WHAT = "letters"
    RANGES = {"batch_size": (1, 10)}  # noqa: RUF012

    def __init__(self, root="abc", **samples):
        super().__init__(1, 0)
        self.root, self.fractions, self.balance = root, (0.2, 0.2), "loss"
        self.class_names, self.samples, self.drawn = ["x", "y"], samples, ""

    def draw(self, listed):
        (some,) = listed.values()
        return {"train": some[4:], "val": some[:2], "test": some[2:4]}


SOME = [(letter, "xy"[i % 2]) for i, letter in enumerate("abcdefg")]


def test_without_a_test_split_the_validation_split_is_tested_and_that_is_said(caplog):
    data = Letters(train=SOME[2:], val=SOME[:2])
    data.choose_test_split("test")
    assert data.test_split == "val" and "which selected the checkpoint" in caplog.text


def test_missing_splits_are_drawn_when_they_are_asked_for():
    data = Letters(all=SOME)
    data.choose_test_split("all")
    assert data.test_split == "all" and data.samples["all"] == SOME and not data.drawn
    data.choose_test_split("test")
    assert data.samples["test"] == SOME[2:4] and "drew 20% for val and 20% for test" in data.drawn
    data.choose_test_split("all")
    assert sorted(data.samples["all"]) == SOME
    with pytest.raises(UserError, match=r"abc has no extra split, only"):
        data.choose_test_split("extra")


def test_classes_are_counted_in_train():
    data = Letters(train=SOME, val=[("h", "y")])
    assert data.class_counts == [4, 3] and data.class_weights == pytest.approx([7 / 8, 7 / 6])
    assert torch.equal(data.labels(data.samples["val"]), torch.tensor([1]))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"root": None}, "no data: name letters with --data.root"),
        ({"val_fraction": 0}, "must be above 0, and their sum below 1"),
        ({"test_fraction": 0.9}, "must be above 0, and their sum below 1"),
        ({"batch_size": 11}, "--data.batch_size 11"),
    ],
)
def test_options_that_cannot_be_used_are_refused(given, message):
    options = {"root": "abc", "batch_size": 1, "val_fraction": 0.2, "test_fraction": 0.2}
    Letters.check_options(**options)
    with pytest.raises(UserError, match=message):
        Letters.check_options(**{**options, **given})


def test_data_that_is_gone_or_of_another_version_is_said_to_be_so(tmp_path):
    with pytest.raises(UserError, match=r"the checkpoint was trained on it; name where it is now"):
        reopened(Letters, "best.ckpt", {"root": str(tmp_path / "gone")}, False)
    assert reopened(Letters, "best.ckpt", {"root": "new"}, True).root == "new"
    with pytest.raises(UserError, match=r"checkpoint best.ckpt was written by another version"):
        reopened(lambda root: root, "best.ckpt", {"root": str(tmp_path), "old": 1}, False)
