import csv
import json
import os
import subprocess
from pathlib import Path

import evaluate
import predict
import pytest
from helpers import (
    COLOURS,
    bad_checkpoints,
    save_image,
)

from project.classification.model import ResNetClassifier

CPU = ["--accelerator=cpu"]


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
    assert "--split dev: must be one of auto, train" in fails(evaluate.main, "--ckpt=x", "--split=dev", status=2)
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
    with open(away / "out.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == ["images/a.png", "images/m.png", "images/z.png", "nowhere.png"]
    assert [bool(row["error"]) for row in rows] == [False, True, False, True]
    assert rows[1]["label"] == "" and "empty" in rows[1]["error"] and "no such file" in rows[3]["error"]
    assert rows[0]["label"] in COLOURS and rows[0]["label_2"] in COLOURS and "label_3" not in rows[0]
    assert float(rows[0]["probability"]) >= float(rows[0]["probability_2"])
    assert "2 of 4 files could not be read" in caplog.text


def test_predict_says_what_it_passes_over(fails, away, caplog):
    save_image(away / "images/a.png")
    for name in ("b.jp2", "c.JP2", "notes.txt", "p_noext"):
        (away / "images" / name).write_text("x")
    predict.main([*CPU, "--ckpt=model.ckpt", "images", "--output=out.csv", "--num_workers=0"])
    assert "images: passed over 2 .jp2, 1 .txt, 1 without extension, which are not supported images" in caplog.text
    (away / "images/a.png").unlink()
    assert "no images under images" in fails(predict.main, *CPU, "--ckpt=model.ckpt", "images")


def test_predict_fails_if_it_can_read_nothing(fails, away):
    (away / "empty.png").write_bytes(b"")
    line = fails(predict.main, *CPU, "--ckpt=model.ckpt", "nowhere", "empty.png", "--output=out.csv", "--num_workers=0")
    assert "no file could be read: nowhere: no such file, empty.png: the file is empty" in line
    with open("out.csv", newline="", encoding="utf-8-sig") as file:
        assert [row["path"] for row in csv.DictReader(file)] == ["nowhere", "empty.png"]


def test_predict_takes_any_file_name(away, capfd):
    for name in ("ünï cödé.png".encode(), b"not-text-\xff.png", b"a,b.png"):
        save_image(away / "images/plain.png").rename(away / "images" / os.fsdecode(name))
    predict.main([*CPU, "--ckpt=model.ckpt", "images", "--output=out.csv", "--num_workers=0"])
    with open("out.csv", newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        paths = {os.fsencode(row["path"]) for row in csv.DictReader(file)}
    assert paths == {"images/ünï cödé.png".encode(), b"images/not-text-\xff.png", b"images/a,b.png"}
    predict.main([*CPU, "--ckpt=model.ckpt", "images", "--num_workers=0"])
    assert "images/not-text-\\xff.png: " in capfd.readouterr().out


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


def test_the_output_may_be_a_pipe(away):
    save_image(away / "image.png")
    os.mkfifo(away / "pipe")
    with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE) as reader:
        predict.main([*CPU, "--ckpt=model.ckpt", "image.png", "--output=pipe", "--num_workers=0"])
        assert reader.communicate(timeout=10)[0].startswith(b"\xef\xbb\xbfpath,label,probability,")


def test_predict_agrees_with_evaluate(trained, tmp_path):
    data = trained.parents[1] / "data/test"
    predict.main([*CPU, f"--ckpt={trained / 'checkpoints/best.ckpt'}", str(data), f"--output={tmp_path / 'o.csv'}"])
    with open(tmp_path / "o.csv", newline="", encoding="utf-8-sig") as file:
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


@pytest.mark.timeout(60)
def test_predict_refuses_a_pipe_and_expands_the_home_folder(fails, away, monkeypatch):
    os.mkfifo(away / "pipe.jpg")
    assert "pipe.jpg: not a file, but a pipe" in fails(predict.main, *CPU, "--ckpt=model.ckpt", "pipe.jpg")
    assert "pipe.jpg: not a file, but a pipe" in fails(predict.main, *CPU, "--ckpt=model.ckpt", ".")
    monkeypatch.setenv("HOME", str(away))
    save_image(away / "images/a.png")
    assert predict.find_images(["~/images"]) == [str(away / "images/a.png")]
