"""Pictures of images with their boxes."""

import numpy as np
import torch
from squares import squares

from project.detection.evaluation import Evaluation
from project.detection.matching import Boxes, verdict_on
from project.detection.pictures import boxes_figure, draw, drawn, mistakes

NAMES = ["blue", "red"]


def evaluation(folder):
    """One image in which the first box is missed, and something else is found instead."""
    squares(folder, train=1, val=1, test=1)
    true = Boxes(torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([0]), torch.ones(1))
    found = Boxes(torch.tensor([[60.0, 30.0, 90.0, 60.0]]), torch.tensor([1]), torch.tensor([0.8]))
    path = str(folder / "train/train-0.png")
    return Evaluation({"split": "val"}, [path], [found], [true], [verdict_on(found, true)])


def test_missed_boxes_are_yellow_and_false_alarms_red(tmp_path):
    picture = drawn(evaluation(tmp_path), 0, NAMES, side=96)
    assert picture.shape == (96, 96, 3)
    assert (picture[12:84] == np.array([0xFF, 0xD6, 0x00])).all(axis=2).any()
    assert (picture[12:84] == np.array([0xFF, 0x17, 0x44])).all(axis=2).any()
    assert (picture[0] == 255).all() and mistakes(evaluation(tmp_path).verdicts[0]) == "1 missed, 1 false"


def test_an_image_that_is_gone_has_no_picture(tmp_path):
    of_one = evaluation(tmp_path)
    (tmp_path / "train/train-0.png").unlink()
    assert drawn(of_one, 0, NAMES) is None
    assert boxes_figure([of_one], NAMES) is not None


def test_a_large_image_is_drawn_smaller_with_its_boxes_in_place(tmp_path):
    squares(tmp_path, train=1, val=1, test=1)
    path = str(tmp_path / "train/train-0.png")
    picture = draw(path, [torch.tensor([0.0, 0.0, 48.0, 36.0])], [""], ["#00c853"], 48)
    green = (picture == np.array([0x00, 0xC8, 0x53])).all(axis=2)
    assert picture.shape == (36, 48, 3) and green[:, 24].any() and not green[20:, :].any()
    assert draw(path, [], [], [], 48).shape == (36, 48, 3)
