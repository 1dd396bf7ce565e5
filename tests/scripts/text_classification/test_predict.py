import csv
import io
import json
import shutil
import socket
import sys

import pytest
from tiny_bert import tiny_texts

from project.checkpoint import load_checkpoint
from project.text_classification.model import load
from scripts.text_classification import predict, train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    return train.main(tiny_texts(tmp_path_factory.mktemp("run"), "--max_epochs=0"))


@pytest.fixture
def alone(trained, tmp_path, monkeypatch):
    """A folder with nothing but the checkpoint, without the network, the encoder and the training data."""

    class Offline(socket.socket):
        def connect(self, address):
            raise AssertionError(f"tried to connect to {address}")

    monkeypatch.setattr(socket, "socket", Offline)
    monkeypatch.chdir(tmp_path)
    shutil.copy(trained.best, tmp_path / "model.ckpt")
    root = trained.folder.parents[1]
    for name in ("encoder", "texts.csv"):
        (root / name).rename(root / f"{name}.gone")
    yield tmp_path
    for name in ("encoder", "texts.csv"):
        (root / f"{name}.gone").rename(root / name)


def test_the_checkpoint_alone_predicts_a_line_of_json_for_each_line(alone, capsys):
    (alone / "texts.txt").write_bytes("\ufeffmy pin is blocked\r\n\nwhere is my card\n".encode() + b"caf\xe9")
    capsys.readouterr()
    predict.main(["--ckpt=model.ckpt", "texts.txt", "--top_k=2"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["my pin is blocked", "", "where is my card", "caf\\xe9"]
    assert [row.get("error") for row in rows] == [None, "empty", None, "not UTF-8"]
    expected = load("model.ckpt").predict(["my pin is blocked", "where is my card"], top_k=2)
    for row, classes in zip([rows[0], rows[2]], expected, strict=True):
        assert list(row["classes"]) == list(classes)
        assert list(row["classes"].values()) == pytest.approx(list(classes.values()), abs=1e-5)


def test_of_a_table_the_texts_are_read(alone, capsys):
    (alone / "table.csv").write_text("id,Sentence,label\n1,my pin is blocked,pin\n2,,pin\n", encoding="utf-8")
    (alone / "table.jsonl").write_text('{"text": "my pin is blocked"}\n{"text": " "}\n', encoding="utf-8")
    for name in ("table.csv", "table.jsonl"):
        capsys.readouterr()
        predict.main(["--ckpt=model.ckpt", name])
        rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [(row["text"], row.get("error")) for row in rows] == [("my pin is blocked", None), ("", "empty")]


def test_the_input_is_read_and_a_table_written(alone, monkeypatch):
    lines = [f"{text}, number {i}" for i in range(50) for text in ("=my pin", "a refund")]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    predict.main(["--ckpt=model.ckpt", "-", "--output=out.csv", "--batch_size=2"])
    with open("out.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["text"].lstrip("'") for row in rows] == lines and rows[0]["text"].startswith("'=")
    assert {row["label"] for row in rows} <= {"arrival", "pin", "refund"} and not any(row["error"] for row in rows)
    shares = [float(rows[0][name]) for name in ("probability", "probability_2", "probability_3")]
    assert sum(shares) == pytest.approx(1, abs=1e-5) and shares == sorted(shares, reverse=True)


def test_a_promise_that_the_checkpoint_keeps_marks_what_is_unsure(trained, alone, fails, capsys):
    content = load_checkpoint("model.ckpt").content
    assert content["promises"] == []  # too few validation texts
    (alone / "texts.txt").write_text("my pin\nzzz\n")
    assert "makes no promise" in fails(predict.main, "--ckpt=model.ckpt", "texts.txt", "--unsure=0.9")
    promise = [0.9, 0.999, 30.0, 28.0]
    predict.torch.save({**content, "promises": [promise]}, "sure.ckpt")
    capsys.readouterr()
    predict.main(["--ckpt=sure.ckpt", "texts.txt", "--unsure=0.9"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert all(row["unsure"] == (max(row["classes"].values()) < 0.999) for row in rows)
    assert "at most 0.9 were right" in fails(predict.main, "--ckpt=sure.ckpt", "texts.txt", "--unsure=0.99")


def test_what_cannot_be_read_or_written_is_one_line(alone, fails):
    (alone / "empty.txt").write_text("\n\n")
    assert "no line holds a text: 2 are empty" in fails(predict.main, "--ckpt=model.ckpt", "empty.txt")
    assert "gone.txt" in fails(predict.main, "--ckpt=model.ckpt", "gone.txt")
    assert "is the file of the texts" in fails(predict.main, "--ckpt=model.ckpt", "empty.txt", "--output=empty.txt")
    assert "--device nothing: not available" in fails(
        predict.main, "--ckpt=model.ckpt", "empty.txt", "--device=nothing"
    )
