import csv
import json
import os
import subprocess
import sys

import pytest
from helpers import ROOT
from tiny_bert import tiny_texts

from project import UserError
from project.checkpoint import load_checkpoint
from scripts.text_classification import evaluate, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train.main(tiny_texts(tmp_path_factory.mktemp("run"), "--max_epochs=0"))


def test_an_evaluation_agrees_with_that_of_the_run(trained):
    metrics = evaluate.main([f"--ckpt={trained.best}", "--precision=32-true"])
    same = ("split", "num_samples", "top1", "macro_f1", "per_class")
    assert {name: metrics[name] for name in same} == {name: trained.metrics[name] for name in same}
    folder = trained.folder / "evaluations/test"
    assert {path.name for path in folder.iterdir()} == {
        "confusion_matrix.png",
        "metrics.json",
        "predictions.csv",
        "report.html",
    }
    with open(folder / "predictions.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    right = sum(row["label"] == row["predicted"] for row in rows)
    assert len(rows) == 24 and right / 24 == pytest.approx(metrics["top1"], abs=1e-6)
    assert "text" in rows[0]


def test_all_of_other_texts_is_evaluated_whatever_of_the_classes_they_have(trained, tmp_path):
    other = tmp_path / "other.csv"
    other.write_text("text,label\nmy pin,pin\ngive me a refund,refund\n")
    metrics = evaluate.evaluate(trained.best, other, output=tmp_path / "results", precision="32-true")
    assert (metrics["split"], metrics["num_samples"]) == ("all", 2)
    assert json.loads((tmp_path / "results/metrics.json").read_text())["data"] == str(other)
    other.write_text("text,label\nmy pin,another\n")
    with pytest.raises(UserError, match="another"):
        evaluate.evaluate(trained.best, other, output=tmp_path / "more")


@pytest.mark.slow
@pytest.mark.parametrize("devices", [2, 3])
def test_several_processes_with_uneven_parts_have_the_same_metrics(trained, tmp_path, devices):
    root = tmp_path / "other.csv"
    with open(trained.folder.parents[1] / "texts.csv", encoding="utf-8") as file:
        root.write_text("".join(file.readlines()[:18]), encoding="utf-8")  # 17 texts, of one class
    found = []
    for number in (1, devices):
        given = [f"--data.root={root}", f"--devices={number}", f"--output={tmp_path / str(number)}"]
        command = [sys.executable, ROOT / "scripts/text_classification/evaluate.py", f"--ckpt={trained.best}", *given]
        command += ["--accelerator=cpu", "--precision=32-true", "--data.batch_size=4", "--split=all"]
        subprocess.run(command, check=True, cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=500)
        found.append(json.loads((tmp_path / str(number) / "metrics.json").read_text()))
    alone, together = found
    assert together["num_samples"] == alone["num_samples"] == 17 and together["per_class"] == alone["per_class"]
    for name in ("loss", "top1", "macro_f1", "ece"):
        assert together[name] == pytest.approx(alone[name], abs=1e-6)


@pytest.mark.slow
def test_two_processes_train_one_model(tmp_path):
    command = [sys.executable, ROOT / "scripts/text_classification/train.py", *tiny_texts(tmp_path, "--max_epochs=2")]
    command += ["--devices=2", "--strategy=ddp", "--data.batch_size=7"]
    subprocess.run(command, check=True, capture_output=True, timeout=500)
    (run,) = (tmp_path / "lightning_logs").iterdir()
    assert json.loads((run / "metrics.json").read_text())["num_samples"] == 24
    steps = -(-30 // 7)  # 60 texts, half of them for each process
    assert load_checkpoint(run / "checkpoints/last.ckpt").content["global_step"] == 2 * steps
