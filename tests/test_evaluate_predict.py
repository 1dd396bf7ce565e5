"""scripts/evaluate.py and scripts/predict.py: with nothing but the checkpoint, from any folder, without a network."""

import csv
import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import evaluate
import predict
import pytest
from conftest import COLOURS, fill, save_image
from project.model import ResNetClassifier
from test_train import bad_checkpoints

ROOT = Path(__file__).parents[1]
CPU = ["--accelerator=cpu"]


@pytest.fixture
def away(trained, tmp_path, monkeypatch):
    """A lone copy of the checkpoint, another working folder, the training data out of reach, and no network."""

    class Offline(socket.socket):
        def connect(self, address):
            assert self.family == socket.AF_UNIX, f"asked the network for {address}"
            super().connect(address)

    monkeypatch.setattr(socket, "socket", Offline)
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained / "checkpoints/best.ckpt", tmp_path / "model.ckpt")
    data = trained.parents[1] / "data"
    data.rename(data.with_name("gone"))
    yield tmp_path
    data.with_name("gone").rename(data)


def test_evaluate_repeats_the_figures_of_the_training(trained, tmp_path, capsys):
    evaluate.main([*CPU, "--ckpt", str(trained / "checkpoints/best.ckpt"), "--output", str(tmp_path)])
    again, first = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, trained))
    assert again.keys() == first.keys() and again["num_samples"] == first["num_samples"]
    assert again["per_class"] == first["per_class"] and again["loss"] == pytest.approx(first["loss"], rel=1e-4)
    assert (tmp_path / "confusion_matrix.png").stat().st_size > 5000
    printed = capsys.readouterr().out
    assert "macro_f1" in printed and "green" in printed and "recall" in printed


def test_evaluate_writes_beside_the_checkpoint(away):
    evaluate.main([*CPU, "--ckpt=model.ckpt", f"--data.root={fill(away / 'new', 5)}", "--split=all"])
    metrics = json.loads((away / "metrics.json").read_text())
    assert metrics["split"] == "all" and metrics["num_samples"] == 15


def test_evaluate_says_that_the_data_is_gone(fails, away):
    assert "no such folder" in fails(evaluate.main, *CPU, "--ckpt=model.ckpt")


def test_evaluate_draws_the_same_split_again(flat, tmp_path):
    import train
    from conftest import FAST

    train.main([*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--data.split_seed=3"])
    run = tmp_path / "lightning_logs/version_0"
    evaluate.main([*CPU, f"--ckpt={run / 'checkpoints/best.ckpt'}"])
    again, first = (json.loads(path.read_text()) for path in (run / "checkpoints/metrics.json", run / "metrics.json"))
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-4)


def test_evaluate_refuses_other_classes_by_name(fails, away):
    root = fill(away / "new", 3, ("blue", "green", "zebra"))
    line = fails(evaluate.main, *CPU, "--ckpt=model.ckpt", f"--data.root={root}")
    assert "only in the data: zebra; only in the checkpoint: red" in line
    assert not (away / "metrics.json").exists()


@pytest.mark.parametrize("script", [evaluate, predict])
def test_bad_checkpoints_are_refused_and_never_executed(fails, trained, tmp_path, script):
    image = save_image(tmp_path / "a.png")
    rest = [image] if script is predict else []
    for path in bad_checkpoints(trained / "checkpoints/best.ckpt", tmp_path).values():
        assert f"checkpoint {path}: " in fails(script.main, *CPU, f"--ckpt={path}", *rest)
    assert "nowhere.ckpt: no such file" in fails(script.main, *CPU, "--ckpt=nowhere.ckpt", *rest)
    assert not (tmp_path / "ran").exists()


def test_wrong_options(fails):
    assert "(did you mean --split?)" in fails(evaluate.main, "--ckpt=x", "--splt=val", status=2)
    assert "--split dev: must be one of train" in fails(evaluate.main, "--ckpt=x", "--split=dev", status=2)
    assert "--top_k" in fails(predict.main, "--ckpt=x", "--topk=3", "a.png", status=2)
    assert "at least 1" in fails(predict.main, "--ckpt=x", "--top_k=0", "a.png")


def test_predict_prints_class_names(away, capsys):
    for name, colour in COLOURS.items():
        save_image(away / "images" / f"{name}.jpg", colour)
    predict.main([*CPU, "--ckpt=model.ckpt", "images", "images/red.jpg", "--num_workers=0"])
    lines = [line for line in capsys.readouterr().out.split("\n") if "%" in line and ": " in line]
    assert len(lines) == 4 and lines[0].startswith("images/blue.jpg: ")
    assert all(all(name in line for name in COLOURS) for line in lines)


def test_predict_writes_csv_and_reports_unreadable_files_in_their_rows(away, caplog):
    save_image(away / "images/a.png", COLOURS["red"])
    save_image(away / "images/z.png", COLOURS["red"])
    (away / "images/m.png").write_bytes(b"")
    predict.main([*CPU, "--ckpt=model.ckpt", "images", "nowhere.png", "--output=out.csv", "--top_k=2"])
    with open(away / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["images/a.png", "images/m.png", "images/z.png", "nowhere.png"]
    assert [bool(row["error"]) for row in rows] == [False, True, False, True]
    assert rows[1]["label"] == "" and "empty" in rows[1]["error"] and "no such file" in rows[3]["error"]
    assert rows[0]["label"] in COLOURS and rows[0]["label_2"] in COLOURS and "label_3" not in rows[0]
    assert float(rows[0]["probability"]) >= float(rows[0]["probability_2"])
    assert "2 of 4 files could not be read" in caplog.text


def test_predict_takes_any_file_name(away, capfd):
    for name in ("ünï cödé.png".encode(), b"not-text-\xff.png", b"a,b.png"):
        save_image(away / "images/plain.png").rename(away / "images" / os.fsdecode(name))
    predict.main([*CPU, "--ckpt=model.ckpt", "images", "--output=out.csv", "--num_workers=0"])
    with open("out.csv", newline="", errors="surrogateescape") as file:
        paths = {os.fsencode(row["path"]) for row in csv.DictReader(file)}
    assert paths == {"images/ünï cödé.png".encode(), b"images/not-text-\xff.png", b"images/a,b.png"}
    predict.main([*CPU, "--ckpt=model.ckpt", "images", "--num_workers=0"])
    assert "images/not-text-\ufffd.png: " in capfd.readouterr().out


def test_predict_keeps_what_its_output_holds_until_it_has_better(fails, away, monkeypatch):
    def hungry(self, batch, batch_idx):
        raise MemoryError

    save_image(away / "image.png")
    (away / "out.csv").write_text("earlier")
    monkeypatch.setattr(ResNetClassifier, "predict_step", hungry)
    line = fails(predict.main, *CPU, "--ckpt=model.ckpt", "image.png", "--output=out.csv", "--batch_size=8")
    assert "out of memory with --batch_size 8: try --batch_size 4" in line
    assert (away / "out.csv").read_text() == "earlier"


def test_a_full_disk_is_one_line(fails, away):
    save_image(away / "image.png")
    line = fails(predict.main, *CPU, "--ckpt=model.ckpt", "image.png", "--output=/dev/full")
    assert "the results: No space left on device" in line


def test_predict_agrees_with_evaluate(trained, tmp_path):
    data = trained.parents[1] / "data/test"
    predict.main([*CPU, f"--ckpt={trained / 'checkpoints/best.ckpt'}", str(data), f"--output={tmp_path / 'o.csv'}"])
    with open(tmp_path / "o.csv", newline="") as file:
        right = [Path(row["path"]).parent.name == row["label"] for row in csv.DictReader(file)]
    assert sum(right) / len(right) == pytest.approx(json.loads((trained / "metrics.json").read_text())["top1"])


def test_predict_bad_input(fails, away):
    (away / "empty").mkdir()
    assert "no images under empty" in fails(predict.main, *CPU, "--ckpt=model.ckpt", "empty")
    (away / "file").write_text("")
    line = fails(evaluate.main, *CPU, "--ckpt=model.ckpt", f"--data.root={away}", "--output=file")
    assert "cannot write to file" in line and "--output" in line
    line = fails(predict.main, *CPU, "--ckpt=model.ckpt", "x.png", "--output=nowhere/out.csv")
    assert "cannot write nowhere/out.csv" in line


@pytest.mark.slow
def test_two_processes_count_every_image_once(trained, tmp_path):
    """12 test images less one, on 2 processes: the uneven share is padded, and the padding is not counted."""
    data = tmp_path / "data"
    shutil.copytree(trained.parents[1] / "data", data)
    (data / "test/red/red-0.png").unlink()
    base = [sys.executable, ROOT / "scripts/evaluate.py", f"--ckpt={trained / 'checkpoints/best.ckpt'}", *CPU]
    for devices in ("1", "2"):
        command = [*base, f"--data.root={data}", f"--devices={devices}", f"--output={tmp_path / devices}"]
        subprocess.run(command, check=True, capture_output=True)
    one, two = (json.loads((tmp_path / devices / "metrics.json").read_text()) for devices in ("1", "2"))
    assert two["num_samples"] == 11 and two["per_class"] == one["per_class"]
    for name in ("loss", "top1", "macro_f1", "ece"):
        assert two[name] == pytest.approx(one[name], abs=1e-5), name
