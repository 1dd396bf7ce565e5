"""What is known after an evaluation: counts by class, and a table of all boxes."""

import pytest
import torch
from squares import make, results, squares, trainer

from project.detection.data import BoxData
from project.detection.evaluation import evaluate, judged, table


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return BoxData(root=str(squares(tmp_path_factory.mktemp("squares"))), batch_size=2, num_workers=0, max_size=48)


def test_boxes_are_in_pixels_of_the_file_and_all_are_right(data):
    evaluation = judged(results(data), data, "test", 0.5)
    for path, found in zip(evaluation.paths, evaluation.found, strict=True):
        torch.testing.assert_close(found.boxes, data.target(path)["boxes"])
    of_blue = evaluation.summary["per_class"]["blue"]
    assert of_blue == {"AP": pytest.approx(1), "boxes": 2, "found": 2} | dict.fromkeys(
        ("taken_for_another", "missed", "false_alarms"), 0
    )
    assert evaluation.worst == [] and evaluation.summary["num_boxes"] == 4
    assert {row[-1] for row in table([evaluation], data.class_names)} == {"verdict", "right"}


def test_mistakes_are_counted_by_class_and_named_in_the_table(data):
    def wrong(target):
        return {**target, "labels": torch.zeros_like(target["labels"])}  # red is taken for blue

    evaluation = judged(results(data, wrong), data, "test", 0.5)
    assert evaluation.summary["per_class"]["red"]["taken_for_another"] == 2
    assert evaluation.confusions() == {(1, 0): 2} and evaluation.worst == [0, 2]
    rows = list(table([evaluation], data.class_names))
    assert [row[2] for row in rows[1:]] == ["blue"] * 4 and [row[-1] for row in rows].count("is red") == 2


def test_what_is_below_the_threshold_is_missed(data):
    evaluation = judged(results(data), data, "test", 0.95)
    assert evaluation.summary["per_class"]["blue"]["missed"] == 2
    rows = list(table([evaluation], data.class_names))[1:]
    assert [row[-1] for row in rows] == ["missed"] * 4 and all(row[3] == "" for row in rows)
    path, _, label, _, *corners, _ = rows[0]
    target = data.target(path)
    assert data.class_names[target["labels"][0]] == label
    assert [float(value) for value in corners] == pytest.approx(target["boxes"][0].tolist(), abs=0.1)


def test_a_model_is_evaluated_on_several_splits(data):
    model = make()
    val, test = evaluate(trainer(), model, data, ["val", "test"])
    assert (val.split, test.split) == ("val", "test") and len(val.paths) == 3
    assert test.summary["score_threshold"] == model.hparams["score_threshold"]
    assert evaluate(trainer(limit_test_batches=0), model, data, ["test"]) == []
