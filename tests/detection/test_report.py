"""What an evaluation leaves behind."""

import csv
import json

import pytest
import torch
from squares import results, squares, trainer

from project.detection.data import BoxData
from project.detection.evaluation import judged
from project.detection.report import next_steps, page, save


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return BoxData(root=str(squares(tmp_path_factory.mktemp("squares"))), num_workers=0, max_size=48)


def test_all_files_are_written_and_agree(data, tmp_path, capsys):
    evaluation = judged(results(data), data, "test", 0.5)
    summary = save(trainer(), [evaluation], data.class_names, tmp_path, {"checkpoint": "best.ckpt", "data": data.root})
    assert json.loads((tmp_path / "metrics.json").read_text()) == summary
    assert summary["map50"] == pytest.approx(1) and summary["checkpoint"] == "best.ckpt"
    rows = list(csv.DictReader((tmp_path / "predictions.csv").read_text(encoding="utf-8-sig").splitlines()))
    assert len(rows) == summary["num_boxes"] == 4 and rows[0]["verdict"] == "right"
    assert (tmp_path / "boxes.png").stat().st_size > 1000
    assert "No mistake at this score" in (tmp_path / "report.html").read_text()
    assert "test split, 3 images" in capsys.readouterr().out


def test_what_to_do_next_has_counts(data):
    def wrong(target):
        far = torch.tensor([[0.0, 0.0, 5.0, 5.0]])
        boxes, labels = torch.cat([target["boxes"], far]), torch.cat([target["labels"] * 0, torch.tensor([1])])
        return {**target, "boxes": boxes, "labels": labels, "scores": torch.full((len(labels),), 0.9)}

    evaluation = judged(results(data, wrong), data, "test", 0.5)
    steps = next_steps(evaluation, data.class_names)
    assert "red: 3 of 3 detections are false alarms." in steps[0]
    assert "2 of 2 boxes of red are taken for blue" in steps[1]
    assert "red" in page(evaluation, data.class_names)


def test_missed_boxes_are_counted_and_their_size_is_compared(data):
    def none(target):
        return {**target, "boxes": target["boxes"][:0], "labels": target["labels"][:0], "scores": torch.zeros(0)}

    steps = next_steps(judged(results(data, none), data, "test", 0.5), data.class_names)
    assert "2 of 2 boxes are missed. None is found" in steps[0]
