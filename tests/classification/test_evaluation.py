"""Each image's prediction is kept under its own path, and the wrong ones are shown, the surest first."""

import csv
import logging

import numpy as np
import pytest
import torch
from helpers import make, make_data
from lightning.pytorch import Trainer

from project.classification.datasets import eval_reader
from project.classification.evaluation import evaluate, mistakes_figure, save, table


@pytest.fixture
def trainer():
    options = ["logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"]
    return Trainer(accelerator="cpu", use_distributed_sampler=False, **dict.fromkeys(options, False))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return make().eval()


def probabilities(model, data, path) -> torch.Tensor:
    with torch.no_grad():
        return model(eval_reader(data.preprocessing)(path)[None]).softmax(dim=1)[0]


def rows_of(evaluations, data) -> list[dict[str, str]]:
    header, *rows = table(evaluations, data.class_names)
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_each_row_is_what_the_model_says_of_that_file(trainer, model, split):
    data = make_data(split, batch_size=4)
    found = evaluate(trainer, model, data, ["val", "test"])
    rows = rows_of(found, data)
    assert [(r["path"], r["split"], r["label"]) for r in rows] == [
        (path, name, label) for name in ("val", "test") for path, label in data.samples[name]
    ]
    for row in rows:
        expected = dict(zip(data.class_names, probabilities(model, data, row["path"]).tolist(), strict=True))
        ranked = sorted(expected, key=expected.get, reverse=True)
        assert [row["predicted"], row["label_2"], row["label_3"]] == ranked
        for column, name in {"probability": ranked[0], "label_probability": row["label"]}.items():
            assert float(row[column]) == pytest.approx(expected[name], abs=1e-4)
    for evaluation in found:  # the table counts as the metrics do
        wrong = sum(r["predicted"] != r["label"] for r in rows if r["split"] == evaluation.split)
        assert wrong == len(evaluation.wrong) == int(evaluation.confusion.sum() - evaluation.confusion.trace())
    assert trainer.callbacks == [c for c in trainer.callbacks if type(c).__name__ != "KeepPredictions"]


def test_features_in_place_of_images_give_the_same(trainer, model, split):
    data = make_data(split)
    images = evaluate(trainer, model, data, ["val"])
    with torch.no_grad():
        pixels = torch.stack([eval_reader(data.preprocessing)(path) for path, _ in data.samples["val"]])
        data.use_features({"val": model.features(pixels)})
    features = evaluate(trainer, model, data, ["val"])
    for a, b in zip(images[0].predictions, features[0].predictions, strict=True):
        assert torch.allclose(a.float(), b.float(), atol=1e-5)


def test_a_file_that_broke_has_a_row_without_a_prediction_and_shifts_no_other(trainer, model, split, caplog):
    data = make_data(split, bad_images="skip")
    data.decoded = {}  # read the files
    whole = rows_of(evaluate(trainer, model, data, ["test"]), data)
    with open(data.samples["test"][4][0], "wb"):
        pass
    evaluations = evaluate(trainer, model, data, ["test"])
    broken = rows_of(evaluations, data)
    assert broken[4] == {**dict.fromkeys(broken[4], ""), **{k: whole[4][k] for k in ("path", "split", "label")}}
    assert broken[:4] + broken[5:] == whole[:4] + whole[5:]
    assert evaluations[0].summary["num_samples"] == 8 and "left out" in caplog.text


def test_of_equal_probabilities_the_first_class_is_the_prediction_as_in_the_metrics(trainer, model, split):
    for parameter in model.head.parameters():
        torch.nn.init.zeros_(parameter)
    data = make_data(split)
    (found,) = evaluate(trainer, model, data, ["test"])
    assert (found.predictions.classes[:, 0] == 0).all()
    assert len(found.wrong) == 6 and found.summary["top1"] == pytest.approx(1 / 3, abs=1e-6)


def test_all_images_are_evaluated_once(trainer, model, split):
    data = make_data(split)
    data.choose_test_split("all")
    (found,) = evaluate(trainer, model, data, ["all"])
    assert found.summary["num_samples"] == len(rows_of([found], data)) == 36


def test_only_as_many_batches_as_asked_for(trainer, model, split):
    data = make_data(split)
    trainer.limit_test_batches = 0
    assert evaluate(trainer, model, data, ["val", "test"]) == []
    trainer.limit_test_batches = 1
    (found,) = evaluate(trainer, model, data, ["test"])
    assert [row["path"] for row in rows_of([found], data)] == [path for path, _ in data.samples["test"][:4]]


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
