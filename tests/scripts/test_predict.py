import csv
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import evaluate
import numpy as np
import predict
import pytest
from helpers import (
    COLOURS,
    ROOT,
    bad_checkpoints,
    needs_posix,
    save_image,
)
from onnx_samples import CLASSES, SIZE, make_onnx, write
from PIL import Image

from project.classification.model import ResNetClassifier
from project.listing import find_images

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


@needs_posix
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


@needs_posix
@pytest.mark.timeout(60)
def test_predict_refuses_a_pipe_and_expands_the_home_folder(fails, away, monkeypatch):
    os.mkfifo(away / "pipe.jpg")
    assert "pipe.jpg: not a file, but a pipe" in fails(predict.main, *CPU, "--ckpt=model.ckpt", "pipe.jpg")
    assert "pipe.jpg: not a file, but a pipe" in fails(predict.main, *CPU, "--ckpt=model.ckpt", ".")
    monkeypatch.setenv("HOME", str(away))
    save_image(away / "images/a.png")
    assert find_images(["~/images"]) == [str(away / "images/a.png")]


def of_all_kinds(folder):
    """JPEGs of all orientations, other modes and formats, thin images, and what cannot be read."""
    folder.mkdir()
    upright = Image.open(save_image(folder / "plain.png", COLOURS["red"], (50, 34)))
    left_half_green = Image.new("RGB", (50, 34), COLOURS["green"])
    left_half_green.paste(upright.crop((0, 0, 25, 34)), (25, 0))
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        left_half_green.save(folder / f"orientation-{orientation}.jpg", exif=exif)
    upright.convert("CMYK").save(folder / "cmyk.jpg")
    upright.convert("L").save(folder / "grey.jpg")
    upright.quantize(16).save(folder / "palette.png")
    upright.quantize(16).save(folder / "palette.gif")
    upright.convert("LA").save(folder / "la.png")
    see_through = upright.convert("RGBA")
    see_through.putalpha(Image.linear_gradient("L").resize(upright.size))
    see_through.save(folder / "rgba.webp")
    deep = (np.asarray(upright.convert("L"), np.uint16) * 257).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    Image.fromarray(deep).save(folder / "deep.tiff")
    Image.fromarray(deep.astype(np.float32)).save(folder / "float.tiff")
    for size in ((1, 1), (1, 60), (60, 1), (31, 33), (500, 3)):
        save_image(folder / f"thin-{size[0]}-{size[1]}.png", COLOURS["blue"], size)
    (folder / "empty.png").touch()
    (folder / "cut.jpg").write_bytes((folder / "cmyk.jpg").read_bytes()[:300])
    return folder


def rows_of(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_exported_model_answers_as_its_checkpoint(trained, exported, tmp_path, capsys, runtime):
    images = of_all_kinds(tmp_path / "images")
    checkpoint = [f"--ckpt={trained / 'checkpoints/best.ckpt'}", *CPU, "--precision=32-true", "--num_workers=0"]
    outputs, lines = [], []
    for i, options in enumerate((checkpoint, [f"--ckpt={exported}", f"--runtime={runtime}", "--batch_size=5"])):
        predict.main([*options, str(images), f"--output={tmp_path / f'{i}.csv'}"])
        outputs.append(rows_of(tmp_path / f"{i}.csv"))
        capsys.readouterr()
        predict.main([*options, str(images), str(tmp_path / "none.png")])
        lines.append([re.sub(r"[\d.]+%", "", line) for line in capsys.readouterr().out.splitlines() if "/" in line])
    lines[0] = [line.split("; less like")[0] for line in lines[0]]  # which is known of checkpoints only
    assert all(0 <= float(row.pop("unlike") or 0) <= 1 for row in outputs[0])
    assert lines[0] == lines[1] and len(lines[0]) == len(outputs[0]) + 1
    assert [row.keys() for row in outputs[0]] == [row.keys() for row in outputs[1]] and len(outputs[0]) == 25
    for ours, theirs in zip(*outputs, strict=True):
        for name, value in ours.items():
            if "probability" in name and value:
                assert float(value) == pytest.approx(float(theirs[name]), abs=2e-5), ours["path"]
            else:
                assert value == theirs[name], ours["path"]
    assert [bool(row["error"]) for row in outputs[1]].count(True) == 2
    assert len({row["probability"] for row in outputs[1]}) > 15  # they differ


def test_an_exported_model_needs_no_torch(exported, tmp_path):
    image = save_image(tmp_path / "a.png", COLOURS["red"])
    program = "import predict, sys; predict.main(sys.argv[1:]); print(*sys.modules)"
    command = [sys.executable, "-c", program, f"--ckpt={exported}", image]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "scripts")])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    answer, modules = done.stdout.splitlines()
    assert answer.startswith(f"{image}: ") and "%" in answer
    assert not {"torch", "torchvision", "lightning", "matplotlib"} & set(modules.split())


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--ckpt=a.onnx", "--accelerator=cpu"], "--accelerator cpu: does not apply to a.onnx"),
        (["--ckpt=a.onnx", "--precision=16-mixed"], "--precision 16-mixed: does not apply to a.onnx"),
        (["--ckpt=a.ckpt", "--runtime=openvino"], "--runtime openvino: does not apply to a.ckpt"),
        (["--ckpt=best", "--runtime=onnxruntime"], "--runtime onnxruntime: does not apply to best"),
        (["--ckpt=none.onnx"], "model none.onnx: cannot be read (No such file or directory)"),
    ],
)
def test_options_that_do_not_apply_are_refused(fails, tmp_path, monkeypatch, options, expected):
    monkeypatch.chdir(tmp_path)
    for script, rest in ((predict, ["a.png"]), (evaluate, ["--data.root=."])):
        assert expected in fails(script.main, *options, *rest)


def test_answers_below_the_threshold_are_unsure(tmp_path, capsys, fails):
    image = save_image(tmp_path / "a.png", size=(SIZE, SIZE))
    (tmp_path / "bad.png").touch()
    for threshold, word in (("0.99", "yes"), ("0.01", "no")):
        model = write(tmp_path / "model.onnx", make_onnx(threshold=threshold))
        predict.main([f"--ckpt={model}", str(tmp_path / "bad.png"), str(image), f"--output={tmp_path / 'o.csv'}"])
        bad, good = rows_of(tmp_path / "o.csv")
        assert list(good)[-2:] == ["unsure", "error"] and good["unsure"] == word and good["label"] in CLASSES
        assert bad["unsure"] == "" and bad["error"]
        capsys.readouterr()
        predict.main([f"--ckpt={model}", str(image), "--top_k=1"])
        shown = f"{good['label']} {float(good['probability']):.1%}"
        assert capsys.readouterr().out == f"{image}: {f'unsure ({shown})' if word == 'yes' else shown}\n"


def test_exported_models_of_other_tasks_and_damaged_ones_are_refused(fails, tmp_path):
    def broken(model):
        weights = next(w for w in model.graph.initializer if w.name == "b2")
        weights.raw_data = np.full(8, np.nan, np.float32).tobytes()

    image = save_image(tmp_path / "a.png")
    for content, expected in {
        make_onnx(task="detection"): "made for another task, detection",
        make_onnx(broken): "the model's output is not a number",
        b"hello": "damaged, or no ONNX file",
    }.items():
        path = write(tmp_path / "model.onnx", content)
        assert expected in fails(predict.main, f"--ckpt={path}", image)
        assert expected in fails(evaluate.main, f"--ckpt={path}", f"--data.root={tmp_path}")


def test_an_exported_model_fails_as_a_checkpoint_does(fails, tmp_path):
    model = write(tmp_path / "model.onnx", make_onnx())
    (tmp_path / "bad.png").touch()
    assert "no file could be read: " in fails(predict.main, f"--ckpt={model}", tmp_path / "bad.png")
    image = save_image(tmp_path / "a.png")
    assert "the results: No space left on device" in fails(predict.main, f"--ckpt={model}", image, "--output=/dev/full")


def test_threads_read_ahead_in_order_and_no_further():
    begun, gate = [], threading.Event()

    def read(name):
        begun.append(name)
        gate.wait(10)
        return name

    results = predict.in_threads(read, map(str, range(100)), threads=3, ahead=10)
    gate.set()
    assert [next(results) for _ in range(5)] == [str(i) for i in range(5)]
    assert len(begun) <= 5 + 10 + 1
    assert list(results) == [str(i) for i in range(5, 100)]
