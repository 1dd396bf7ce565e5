"""The page says what metrics.json and predictions.csv say, to the last image, and nothing in it stops a run."""

import csv
import json
import os
import re
import shutil

import evaluate
import pytest
from helpers import run_train
from insight_page import check_offline

from project.insight.issues import Issue, write_issues


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report") / "out"
    evaluate.main([f"--ckpt={trained / 'checkpoints/best.ckpt'}", f"--output={folder}", "--accelerator=cpu"])
    return folder


def rows_of(folder, split="test"):
    with open(folder / "predictions.csv", newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        return [row for row in csv.DictReader(file) if row["split"] == split]


def words_of(folder):
    return check_offline((folder / "report.html").read_text()).words


def check_equal(folder):
    """The page, the metrics and the table count alike."""
    rows, words = rows_of(folder), words_of(folder)
    metrics = json.loads((folder / "metrics.json").read_text())
    right = sum(row["predicted"] == row["label"] for row in rows)
    assert f"Right on {right} of {len(rows)} test images: {100 * metrics['top1']:.1f}%" in words
    assert metrics["num_samples"] == len(rows) and round(metrics["top1"] * len(rows)) == right
    low, high = metrics["top1_interval"]
    assert f"Between {100 * low:.1f}% and {100 * high:.1f}%" in words
    assert f"the metric ece, {metrics['ece']:.4f}" in words
    for name, values in metrics["per_class"].items():
        of_class = [row for row in rows if row["label"] == name]
        good = sum(row["predicted"] == name for row in of_class)
        answers = sum(row["predicted"] == name for row in rows)
        assert good == round(values["recall"] * values["support"])
        said = f"{good} of {answers}" if answers else "never said"
        assert re.search(rf"{name}( below the rest)?{good} of {len(of_class)}\d+ to \d+%.*?{said}", words), name
    wrong = sorted(
        (row for row in rows if row["predicted"] != row["label"]), key=lambda row: -float(row["probability"])
    )
    surest = words[words.index("The surest mistakes") :] if wrong else ""
    for row in wrong[:12]:
        answer = f"it says {row['predicted']}, {100 * float(row['probability']):.1f}%"
        assert f"labelled {row['label']}{answer}{os.path.basename(row['path'])}" in surest


def test_the_page_of_a_run_and_of_an_evaluation_agree_with_their_files(trained, evaluated):
    check_equal(evaluated)
    check_equal(trained)
    assert "validation images" in words_of(trained) and "validation images" not in words_of(evaluated)


def test_leaked_images_are_told_with_the_figure_without_them(trained, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    rows = rows_of(trained)
    copies = [row["path"] for row in rows[:3]]
    data = str(trained.parents[1] / "data")
    issues = [Issue("leak", "x.png", "train", score=0.9, other=path) for path in copies]
    issues += [Issue("label", rows[5]["path"], "test", score=0.7), Issue("label", rows[6]["path"], "test", score=0.6)]
    write_issues(run / "data_issues.csv", issues, data)
    evaluate.main([f"--ckpt={run / 'checkpoints/best.ckpt'}", f"--output={tmp_path / 'out'}", "--accelerator=cpu"])
    rest = [row["predicted"] == row["label"] for row in rows[3:]]
    words = words_of(tmp_path / "out")
    assert "3 of these test images look like copies of images in another split. Without them" in words
    assert f"right on {sum(rest)} of {len(rest)}" in words
    assert "2 labels may be wrong, of which about 1 are" in words
    check_equal(tmp_path / "out")

    (run / "data_issues.csv").write_text("something,else\n1,2\n")
    evaluate.main([f"--ckpt={run / 'checkpoints/best.ckpt'}", f"--output={tmp_path / 'other'}", "--accelerator=cpu"])
    assert "No report.html" in caplog.text and (tmp_path / "other/metrics.json").exists()


def test_an_exported_model_has_a_page_without_maps(exported, trained, tmp_path):
    data = trained.parents[1] / "data"
    evaluate.main([f"--ckpt={exported}", f"--data.root={data}", "--split=test", f"--output={tmp_path / 'out'}"])
    check_equal(tmp_path / "out")
    if "The surest mistakes" in words_of(tmp_path / "out"):
        assert "an exported model has no gradients" in words_of(tmp_path / "out")


def test_classes_and_files_may_have_any_name(split, tmp_path):
    for part in ("train", "val", "test"):
        (split / part / "red").rename(split / part / "<img src=x onerror=alert(1)>")
        folder = split / part / "blue"
        for file in folder.iterdir():
            os.rename(file, os.path.join(os.fsencode(folder), b"<b>\xe9 " + os.fsencode(file.name)))
    run = run_train(tmp_path, split)
    check_offline((run / "report.html").read_text())
    assert "<img src=x onerror=alert(1)>" in words_of(run) and "Right on " in words_of(run)


def test_a_page_that_cannot_be_written_is_one_warning(trained, tmp_path, monkeypatch, caplog):
    from project.classification import report

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(report.p, "write_page", full)
    evaluate.main([f"--ckpt={trained / 'checkpoints/best.ckpt'}", f"--output={tmp_path / 'out'}", "--accelerator=cpu"])
    assert caplog.text.count("No report.html") == 1 and "No space left" in caplog.text
    assert (tmp_path / "out/metrics.json").exists() and not (tmp_path / "out/report.html").exists()
