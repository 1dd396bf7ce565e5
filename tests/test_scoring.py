"""A classifier is measured by each sample once, and each sample's prediction is kept in its row."""

import pytest
import torch
from helpers import make, make_data
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader

from project import IGNORE
from project.classification.datasets import eval_reader
from project.predictions import table
from project.scoring import Scored, evaluate


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


class Echo(Scored):
    """Its inputs are the logits."""

    def forward(self, logits):
        return logits


def test_the_metrics_of_a_test_leave_out_padding():
    logits = torch.eye(3)[[0, 1, 2, 0, 0, 0]]
    labels = [0, 1, 2, 1, 2, IGNORE]
    loader = DataLoader(list(zip(logits, labels, strict=True)), batch_size=4)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    model = Echo(["a", "b", "c"])
    Trainer(accelerator="cpu", **quiet).test(model, loader, verbose=False)
    assert model.eval_results["top1"] == pytest.approx(0.6)
    assert int(model.eval_results["confusion"].sum()) == 5
