"""The files of an evaluation hold each image, and the wrong ones are shown, the surest first."""

import csv
import logging

import numpy as np
import pytest
import torch
from helpers import make, make_data
from lightning.pytorch import Trainer

from project.classification.datasets import eval_reader
from project.classification.evaluation import mistakes_figure, save
from project.predictions import table
from project.scoring import evaluate


@pytest.fixture
def trainer():
    options = ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"]
    return Trainer(accelerator="cpu", use_distributed_sampler=False, **dict.fromkeys(options, False))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return make().eval()


def rows_of(evaluations, data) -> list[dict[str, str]]:
    header, *rows = table(evaluations, data.class_names)
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_the_picture_shows_the_surest_mistakes_with_both_classes(trainer, model, split):
    data = make_data(split)
    (found,) = evaluate(trainer, model, data, ["test"])
    rows = [row for row in rows_of([found], data) if row["predicted"] != row["label"]]
    rows.sort(key=lambda row: float(row["probability"]), reverse=True)
    (axes,) = mistakes_figure([found], data).axes
    heading, *titles = [text.get_text() for text in axes.texts]
    assert heading == f"test: {len(rows)} of 9 wrong; the surest first"
    assert [title.rpartition(" ")[0] for title in titles] == [
        f"true {row['label']}\npredicted {row['predicted']}" for row in rows
    ]
    surest = eval_reader(data.preprocessing)(rows[0]["path"]).permute(1, 2, 0).numpy()
    assert (np.asarray(axes.images[0].get_array()) == surest).all()


def test_the_picture_has_at_most_16_mistakes_and_says_so(trainer, model, split):
    for parameter in model.head.parameters():
        torch.nn.init.zeros_(parameter)
    data = make_data(split)
    data.choose_test_split("all")
    (axes,) = mistakes_figure(evaluate(trainer, model, data, ["all"]), data).axes
    assert axes.texts[0].get_text() == "all: 24 of 36 wrong; the 16 surest" and len(axes.images) == 16


def test_a_missing_file_or_no_mistake_still_gives_a_picture(trainer, model, split):
    data = make_data(split)
    found = evaluate(trainer, model, data, ["val", "test"])
    for i in found[1].wrong:
        with open(found[1].samples[i][0], "wb"):
            pass
    data.decoded = {}  # as after training
    right = found[0].predictions._replace(labels=found[0].predictions.classes[:, 0])
    found[0] = found[0]._replace(predictions=right)
    (axes,) = mistakes_figure(found, data).axes
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == "val: none of 9 wrong"
    assert texts.count("cannot be read") == len(found[1].wrong) > 0 and not axes.images


def test_all_is_written_and_the_pictures_are_named(trainer, model, split, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="project")
    data = make_data(split)
    found = evaluate(trainer, model, data, ["val", "test"])
    save(trainer, found, data, tmp_path / "new", {"checkpoint": "a.ckpt"})
    names = ["confusion_matrix.png", "metrics.json", "mistakes.png", "predictions.csv"]
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == names
    assert max((tmp_path / "new").iterdir(), key=lambda path: path.stat().st_mtime_ns).name == "metrics.json"
    assert (tmp_path / "new/predictions.csv").read_bytes().startswith(b"\xef\xbb\xbfpath,split,label,predicted,")
    with open(tmp_path / "new/predictions.csv", newline="", encoding="utf-8-sig") as file:
        assert len(list(csv.DictReader(file))) == 18
    counts = ", ".join(f"{len(e.wrong)} of 9 {e.split}" for e in found)
    assert f"new/mistakes.png ({counts} images)" in caplog.text
    assert "new/predictions.csv" in caplog.text
