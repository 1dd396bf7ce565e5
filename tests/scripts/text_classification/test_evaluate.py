import csv
import json

import pytest
from tiny_bert import tiny_texts

from project import UserError
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
