"""scripts/export.py as its users call it: the files, the certificate, what is refused, and what is kept."""

import json
import os
import shutil
from pathlib import Path

import export
import pytest
from helpers import bad_checkpoints, fill

from project.exported import Exported
from project.files import sha256


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("project.timing.LEAST", 0.0)
    monkeypatch.setattr("project.timing.ROUNDS", 1)


@pytest.fixture
def best(trained, tmp_path):
    """A copy of a checkpoint outside its run."""
    return Path(shutil.copy(trained / "checkpoints/best.ckpt", tmp_path / "best.ckpt"))


@pytest.mark.slow
def test_files_and_certificate_lie_beside_the_checkpoint_and_a_second_export_in_a_folder_of_its_own(
    best, caplog, capsys
):
    caplog.set_level("INFO", logger="project")
    folder = export.main([f"--ckpt={best}", "--precision=int8", "--temperature=1.5", "--threshold=0.6"])
    assert folder == best.parent / "export"
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "model.int8.onnx", "certificate.json"}
    found = json.loads((folder / "certificate.json").read_text())
    assert found["verdict"] == {"model.onnx": "accepted", "model.int8.onnx": "accepted"}
    assert found["checkpoint"]["sha256"] == sha256(best)
    assert found["checkpoint"]["class_names"] == ["blue", "green", "red"]
    assert found["machine"]["cpu"] and found["versions"]["onnxruntime"] and found["temperature"] == 1.5
    for name in ("model.onnx", "model.int8.onnx"):
        exported = Exported(folder / name)
        assert found["figures"][name]["sha256"] == sha256(folder / name)
        assert exported.metadata["checkpoint_sha256"] == found["checkpoint"]["sha256"]
        assert json.loads(exported.metadata["temperature"]) == 1.5 and exported.threshold == 0.6
    assert found["figures"]["pytorch"]["ece"] != found["figures"]["model.onnx"]["ece"]
    text = capsys.readouterr().out
    assert "agreement" in text and "times PyTorch" in text and "model.int8.onnx" in text
    assert f"{folder.name}/model.int8.onnx IMAGE_OR_FOLDER" in caplog.text and "serve.py --model" in caplog.text
    assert export.main([f"--ckpt={best}", "--precision=fp32"]).name == "export_1"
    assert not list(best.parent.glob(".export-*"))


@pytest.mark.slow
def test_int8_that_is_not_good_enough_is_refused_with_the_way_out(best, fails, monkeypatch, tmp_path):
    monkeypatch.setattr("project.classification.export.reason_against", lambda *_: "it loses 0.2 of the top-1")
    line = fails(export.main, f"--ckpt={best}", "--precision=int8")
    assert "model.int8.onnx is refused and not written: it loses 0.2 of the top-1" in line and "--max_drop" in line
    folder = best.parent / "export"
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "certificate.json"}
    verdict = json.loads((folder / "certificate.json").read_text())["verdict"]
    assert verdict == {"model.onnx": "accepted", "model.int8.onnx": "refused: it loses 0.2 of the top-1"}


@pytest.mark.slow
def test_int8_that_is_no_faster_is_left_out_and_that_is_said(best, monkeypatch, caplog):
    monkeypatch.setattr(export.Export, "measure", with_gains(export.Export.measure, 0.9))
    folder = export.main([f"--ckpt={best}"])
    assert {path.name for path in folder.iterdir()} == {"model.onnx", "certificate.json"}
    assert "No model.int8.onnx: for this network and CPU it is no faster (0.9 x PyTorch) than fp32" in caplog.text
    assert json.loads((folder / "certificate.json").read_text())["verdict"]["model.int8.onnx"].startswith("left out")


def with_gains(measure, gain):
    def measured(self):
        return dict.fromkeys(measure(self), 1.0) | {"model.int8.onnx": gain}

    return measured


@pytest.mark.slow
def test_other_answers_of_onnx_runtime_are_refused_and_nothing_is_written(best, fails, monkeypatch):
    monkeypatch.setattr("project.classification.export.MAX_DIFFERENCE", -1.0)
    line = fails(export.main, f"--ckpt={best}")
    assert "the probabilities of the ONNX file differ from PyTorch's" in line and "nothing is written" in line
    assert [path.name for path in best.parent.iterdir()] == ["best.ckpt"]


def test_bad_input_is_one_line(best, fails, tmp_path, exported):
    assert "--max_drop 2.0: must be from 0 to 1" in fails(export.main, f"--ckpt={best}", "--max_drop=2")
    assert "must be at least 1" in fails(export.main, f"--ckpt={best}", "--calibration_images=0")
    assert "must be one of" in fails(export.main, f"--ckpt={best}", "--precision=int4", status=2)
    assert "no such file" in fails(export.main, f"--ckpt={tmp_path / 'none.ckpt'}")
    assert "is an exported model" in fails(export.main, f"--ckpt={exported}")
    for name, path in bad_checkpoints(best, tmp_path).items():
        assert name == "best" or str(path) in fails(export.main, f"--ckpt={path}")
    assert not (best.parent / "export").exists()
    (tmp_path / "empty").mkdir()
    assert "empty" in fails(export.main, f"--ckpt={best}", f"--data.root={tmp_path / 'empty'}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/model.onnx").touch()
    line = fails(export.main, f"--ckpt={best}", f"--output={tmp_path / 'out'}")
    assert "already holds model.onnx, which is kept" in line
    if getattr(os, "getuid", lambda: 0)():
        os.chmod(tmp_path, 0o500)
        assert "cannot write to" in fails(export.main, f"--ckpt={best}")
        os.chmod(tmp_path, 0o700)


def test_other_classes_are_refused_before_anything_is_made(best, fails, tmp_path):
    fill(tmp_path / "other", 4, ("cat", "dog"))
    line = fails(export.main, f"--ckpt={best}", f"--data.root={tmp_path / 'other'}")
    assert "cat" in line and not (best.parent / "export").exists()
