"""scripts/detection/predict.py and evaluate.py on a checkpoint of a short run."""

import csv
import json
import os
import subprocess
import sys

import pytest
import torch
from helpers import ROOT, save_image
from PIL import Image
from squares import squares

from scripts.detection import evaluate, predict


def test_what_is_found_is_written_in_three_forms_and_bad_files_are_named(detector, tmp_path, caplog):
    images = [save_image(tmp_path / "images" / f"{i}.png", size=(96, 72), seed=i) for i in range(3)]
    (tmp_path / "images/broken.png").write_bytes(b"no image")
    outputs = [
        f"--output={tmp_path / 'found.csv'}",
        f"--coco={tmp_path / 'found.json'}",
        f"--draw={tmp_path / 'drawn'}",
    ]
    predict.main([f"--ckpt={detector}", *outputs, "--threshold=0.05", "--accelerator=cpu", str(tmp_path / "images")])
    rows = list(csv.DictReader((tmp_path / "found.csv").read_text(encoding="utf-8-sig").splitlines()))
    found = json.loads((tmp_path / "found.json").read_text())
    assert {row["path"] for row in rows} == {str(path) for path in (*images, tmp_path / "images/broken.png")}
    [broken] = [row for row in rows if "broken" in row["path"]]
    assert broken["error"] and "broken.png" in caplog.text
    detections = [row for row in rows if row["label"]]
    assert len(detections) == len(found)
    for row, result in zip(detections, found, strict=True):
        left, top, width, height = result["bbox"]
        assert row["label"] == result["category_name"] in ("blue", "red") and result["file_name"] == row["path"]
        assert float(row["right"]) == pytest.approx(left + width, abs=0.1) and 0 <= top <= top + height <= 72
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["00000-0.png", "00001-1.png", "00002-2.png"]
    assert Image.open(tmp_path / "drawn/00000-0.png").size == (96, 72)


def test_a_line_for_each_image(detector, tmp_path, capsys):
    save_image(tmp_path / "a.png")
    predict.main([f"--ckpt={detector}", "--threshold=1", str(tmp_path / "a.png")])
    assert capsys.readouterr().out == f"{tmp_path / 'a.png'}: nothing\n"


def test_without_a_readable_file_it_fails(fails, detector, tmp_path):
    (tmp_path / "a.png").write_bytes(b"")
    line = fails(predict.main, f"--ckpt={detector}", tmp_path / "a.png")
    assert "no file could be read" in line and "0 bytes" in line


def test_the_checkpoint_of_another_task_is_refused(fails, trained, tmp_path):
    path = trained / "checkpoints/best.ckpt"
    save_image(tmp_path / "a.png")
    for call in ((predict.main, tmp_path / "a.png"), (evaluate.main,)):
        assert f"{path} is of image classification, not of object detection" in fails(
            call[0], f"--ckpt={path}", *call[1:]
        )


def test_an_evaluation_repeats_the_metrics_of_the_run(detector, tmp_path):
    of_run = json.loads((detector.parents[1] / "metrics.json").read_text())
    metrics = evaluate.main([f"--ckpt={detector}", "--accelerator=cpu", "--precision=32-true"])
    assert metrics["map"] == of_run["map"] and metrics["per_class"] == of_run["per_class"]
    assert (detector.parents[1] / "evaluations/test/report.html").exists()
    root = squares(tmp_path / "other", train=2, val=1, test=1)
    other = evaluate.main([f"--ckpt={detector}", f"--data.root={root}", f"--output={tmp_path / 'results'}"])
    assert other["num_images"] == 4 and other["split"] == "all"
    torch.testing.assert_close(other["score_threshold"], of_run["score_threshold"])


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_several_processes_with_uneven_parts_have_the_same_metrics(detector, tmp_path, devices):
    root = squares(tmp_path / "other", train=3, val=1, test=3)
    found = []
    for number in (1, devices):
        given = [f"--data.root={root}", f"--devices={number}", f"--output={tmp_path / str(number)}"]
        command = [sys.executable, ROOT / "scripts/detection/evaluate.py", f"--ckpt={detector}", *given]
        command += ["--accelerator=cpu", "--precision=32-true", "--data.num_workers=0", "--data.batch_size=2"]
        subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=500)
        found.append(json.loads((tmp_path / str(number) / "metrics.json").read_text()))
    alone, together = found
    assert together["num_images"] == alone["num_images"] == 7 and together["num_boxes"] == alone["num_boxes"]
    for name in ("map", "map50", "map75"):
        assert together[name] == pytest.approx(alone[name], abs=1e-6)
    for name, of_class in alone["per_class"].items():
        assert together["per_class"][name] == pytest.approx(of_class, abs=1e-6)
