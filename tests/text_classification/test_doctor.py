"""What the doctor of texts writes and says within a run."""

import csv
import json
import logging

import numpy as np
import pytest
from text_data import make_texts, rows, write

from project.text_classification import doctor
from project.text_classification.doctor import COLUMNS, examine

ODD = ["=1+1", '<script>alert("x")</script>', "مرحبا 👩‍👩‍👧", "two\nlines, and a comma"]


@pytest.fixture
def made(tmp_path):
    """A function that makes data of 100 texts to train, 20 to validate, 20 to test, and of these texts in addition."""

    def make(extra=(), **options):
        splits = ["train"] * 100 + ["val"] * 20 + ["test"] * 20
        every = [(*row, split) for row, split in zip(rows(140), splits, strict=True)]
        lines = [json.dumps(dict(zip(("text", "label", "split"), row, strict=True))) for row in [*every, *extra]]
        return make_texts(write(tmp_path / "t.jsonl", lines), **options)

    return make


def features(data):
    """Features of texts that tell their classes well."""
    rng = np.random.default_rng(0)
    labels = {split: data.labels(some).numpy()[:, None] for split, some in data.samples.items()}
    return {split: 4 * part + rng.standard_normal((len(part), 8)) for split, part in labels.items()}


def test_of_clean_texts_nothing_is_said(made, tmp_path, caplog):
    data = made()
    caplog.clear()
    with caplog.at_level(logging.INFO):
        examine(data, features(data), tmp_path)
    assert not caplog.records
    assert "Nothing was found." in (tmp_path / "data_report.html").read_text(encoding="utf-8")


def test_the_list_and_the_page_show_any_text_as_it_is(made, tmp_path, caplog):
    data = made([*((text, "a", "train") for text in ODD), *((text, "b", "test") for text in ODD)])
    with caplog.at_level(logging.INFO):
        examine(data, features(data), tmp_path)
    said = [record.getMessage() for record in caplog.records if record.name == doctor.__name__]
    assert said[0].startswith("Data:  4 of 24 test texts are also in an earlier split") and len(said) <= 7
    assert said[-1].endswith("data_report.html")
    with open(tmp_path / "data_issues.csv", newline="", encoding="utf-8-sig") as file:
        read = list(csv.DictReader(file))
    assert tuple(read[0]) == COLUMNS
    leaks = {row["text"].removeprefix("'"): row for row in read if row["kind"] == "leak"}
    assert leaks.keys() == set(ODD)
    for i, text in enumerate(ODD):
        assert leaks[text]["place"].endswith(f"t.jsonl, line {145 + i}")
        assert leaks[text]["other_place"].endswith(f"t.jsonl, line {141 + i}")
    page = (tmp_path / "data_report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;" in page and "مرحبا" in page
    assert "http" not in page.split("</head>")[1]


def test_nobody_looks_if_not_wanted(made, tmp_path, caplog, monkeypatch):
    assert examine(made(doctor=False), None, tmp_path) is None
    monkeypatch.setattr(doctor, "MAX_UNASKED", 139)
    with caplog.at_level(logging.INFO):
        assert examine(made(), None, tmp_path) is None
    assert "has not looked at 140 texts unasked (--data.doctor true)" in caplog.text
    assert not list(tmp_path.glob("data_*"))
    assert examine(made(doctor=True), None, tmp_path) is not None


def test_what_fails_is_a_warning(made, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    assert examine(made(), None, tmp_path / "file") is not None
    assert "doctor cannot write to" in caplog.text
    assert examine(made(), {"train": np.zeros((3, 2))}, tmp_path) is None and "doctor has failed" in caplog.text
