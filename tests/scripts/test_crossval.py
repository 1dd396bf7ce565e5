"""Cross-validation: every image is tested once by a model that has not seen it, and a stopped one goes on."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import crossval
import pytest
from helpers import FAST, ROOT, fill


def rows(path):
    with open(path, newline="", encoding="utf-8-sig") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_each_image_is_tested_once(tmp_path):
    data = fill(tmp_path / "data", 4)
    options = [*FAST, f"--data.root={data}", f"--default_root_dir={tmp_path}", "--folds=2"]
    result = crossval.main(options)
    folder = tmp_path / "lightning_logs/crossval"
    assert json.loads((folder / "crossval.json").read_text()) == result
    assert result["top1"] == pytest.approx(sum(result["top1_of_runs"]) / 2) and len(result["runs"]) == 2
    assert result["top1_interval"][0] <= result["top1"] <= result["top1_interval"][1]
    tested = rows(folder / "predictions.csv")
    assert sorted(row["path"] for row in tested) == sorted(str(path) for path in data.rglob("*.png"))
    right = sum(row["label"] == row["predicted"] for row in tested)
    assert result["top1"] == pytest.approx(right / 12)
    for i in (1, 2):
        manifest = rows(folder / f"fold_{i}.csv")
        assert Counter(row["split"] for row in manifest) == {"train": 3, "val": 3, "test": 6}
        in_test = {row["path"] for row in manifest if row["split"] == "test"}
        assert in_test == {row["path"] for row in tested if row["fold"] == str(i)}
        assert len(list((folder / f"fold_{i}").rglob("metrics.json"))) == 1
    files = {path: path.stat().st_mtime_ns for path in folder.rglob("*.ckpt")}
    assert crossval.main(options) == result  # finished: nothing is trained again
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.ckpt")} == files
    with pytest.raises(crossval.UserError, match="choose another --name"):
        crossval.main([*options[:-1], "--folds=3"])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--folds=1"], "--folds 1: must be a number from 2"),
        (["--folds"], "must be a number from 2"),
        (["--folds", "x"], "--folds x: must be a number from 2"),
        (["--folds=2", "--seeds=2"], "one of them at a time"),
        (["--folds=7"], "has 6 images, which do not reach every one of 7 folds"),
        (["--ckpt_path=last"], "--ckpt_path"),
        (["--devices=2"], "works on one device"),
        (["--model.dropout=2"], "--model.dropout 2.0: must be from 0 to 1"),
        (["--data.root=nowhere"], "nowhere: no such folder"),
    ],
)
def test_what_cannot_be_done(fails, tmp_path, options, expected):
    data = fill(tmp_path / "data", 6)
    assert expected in fails(crossval.main, *FAST, f"--data.root={data}", f"--default_root_dir={tmp_path}", *options)


@pytest.mark.slow
def test_seeds(tmp_path):
    data = fill(tmp_path / "data", 8)
    result = crossval.main([*FAST, f"--data.root={data}", f"--default_root_dir={tmp_path}", "--seeds=2", "--name=two"])
    folder = tmp_path / "lightning_logs/two"
    seeds = [next((folder / f"seed_{i}").rglob("config.yaml")).read_text() for i in (1, 2)]
    assert "seed: 0\n" in seeds[0] and "seed: 1\n" in seeds[1] and result["seeds"] == 2


@pytest.mark.slow
def test_killed_it_goes_on(tmp_path):
    data = fill(tmp_path / "data", 20)
    command = [sys.executable, str(ROOT / "scripts/crossval.py"), *FAST, "--max_epochs=6", "--folds=2"]
    command += [f"--data.root={data}", f"--default_root_dir={tmp_path}"]
    folder = tmp_path / "lightning_logs/crossval"
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)})
    while not list((folder / "fold_2").rglob("last.ckpt")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = next((folder / "fold_1").rglob("last.ckpt")).stat().st_mtime_ns
    assert not (folder / "crossval.json").exists()
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0 and "Resuming" in done.stderr, done.stderr
    assert next((folder / "fold_1").rglob("last.ckpt")).stat().st_mtime_ns == first
    assert len(list(folder.glob("fold_*/lightning_logs/version_*"))) == 2
    assert len(rows(folder / "predictions.csv")) == 60
