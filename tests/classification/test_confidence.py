"""What is stored in best.ckpt: a temperature, promises, and the distances of the validation images."""

import csv
import json

import evaluate
import predict
import pytest
import torch
from helpers import fill, save_image

from project.checkpoint import load_checkpoint, load_model
from project.classification.confidence import Confidence, confidence_of
from project.classification.model import ResNetClassifier
from project.insight.outliers import Familiarity

CPU = ["--accelerator=cpu", "--num_workers=0"]


def test_best_knows_its_confidence_and_last_goes_on_as_it_was(trained):
    best, last = (load_checkpoint(trained / f"checkpoints/{name}.ckpt") for name in ("best", "last"))
    found = confidence_of(best, 512)
    assert found is not None and found.num_val == 12 and found.promises == []  # 12 images support none
    assert confidence_of(last, 512) is None and last.content["hyper_parameters"]["temperature"] == 1
    assert best.content["hyper_parameters"]["temperature"] > 0
    assert (found.distances.diff() >= 0).all()


def test_unlike_is_the_share_of_validation_images_that_are_nearer():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(600) % 3
    features = torch.randn(600, 16, generator=generator) + 5 * labels[:, None]
    familiarity = Familiarity.fit(features[:400], labels[:400], 3)
    distances = familiarity.distance(features[400:])
    quantiles = distances.double().quantile(torch.linspace(0, 1, 101, dtype=torch.float64)).float()
    found = Confidence([], 200, familiarity, quantiles)
    told = found.unlike(features[400:])
    rank = distances.argsort().argsort() / 199
    assert told.sub(rank).abs().max() < 0.02
    assert found.unlike(torch.full((1, 16), 100.0)).item() == 1 and found.unlike(features[:1] * torch.nan).item() == 1


def changed(trained, tmp_path, **parts):
    """The best checkpoint with other values in its confidence, or as its temperature."""
    content = load_checkpoint(trained / "checkpoints/best.ckpt").content
    if "temperature" in parts:
        content["hyper_parameters"]["temperature"] = parts.pop("temperature")
    content["confidence"] |= parts
    torch.save(content, tmp_path / "changed.ckpt")
    return tmp_path / "changed.ckpt"


PROMISES = [[0.9, 0.3, 40.0, 37.0], [0.95, 0.9999, 20.0, 19.0]]


def test_predict_answers_where_the_promise_holds_and_says_how_unlike_an_image_is(
    trained, tmp_path, capsys, caplog, fails
):
    caplog.set_level("INFO")
    path = changed(trained, tmp_path, promises=PROMISES, temperature=2.0)
    images = str(fill(tmp_path / "images", 2))
    predict.main([*CPU, f"--ckpt={path}", images, f"--output={tmp_path / 'p.csv'}", "--unsure=0.95"])
    assert "Sure from 1.000 on: 19 of 20 such validation images were right" in caplog.text
    capsys.readouterr()
    with open(tmp_path / "p.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 6 and {row["unsure"] for row in rows} == {"yes"}
    assert all(0 <= float(row["unlike"]) <= 1 for row in rows)
    predict.main([*CPU, f"--ckpt={path}", images, "--unsure=0.9"])
    assert "unsure (" not in capsys.readouterr().out
    line = fails(predict.main, *CPU, f"--ckpt={path}", images, "--unsure=0.97")
    assert "at most 0.95 were right, however sure the answers" in line
    line = fails(predict.main, *CPU, f"--ckpt={trained / 'checkpoints/last.ckpt'}", images, "--unsure=0.9")
    assert "makes no promise" in line
    save_image(tmp_path / "noise.png", (250, 250, 0))
    predict.main(
        [*CPU, f"--ckpt={changed(trained, tmp_path, distances=torch.zeros(101))}", str(tmp_path / "noise.png")]
    )
    assert "less like the training images than any validation image" in capsys.readouterr().out


def test_a_temperature_holds_everywhere(trained, tmp_path):
    path = changed(trained, tmp_path, temperature=3.0)
    hot, cold = (load_model(load_checkpoint(p), ResNetClassifier) for p in (path, trained / "checkpoints/best.ckpt"))
    images = torch.randint(0, 255, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(hot(images) * 3, cold(images) * cold.temperature)
        torch.testing.assert_close(hot(hot.features(images)), hot(images))
    data = trained.parents[1] / "data/test"
    evaluate.main([f"--ckpt={path}", f"--data.root={data}", "--accelerator=cpu", f"--output={tmp_path / 'e'}"])
    with open(tmp_path / "e/predictions.csv", newline="", encoding="utf-8-sig") as file:
        evaluated = {row["path"]: row["probability"] for row in csv.DictReader(file)}
    predict.main([*CPU, f"--ckpt={path}", str(data), f"--output={tmp_path / 'p.csv'}"])
    with open(tmp_path / "p.csv", newline="", encoding="utf-8-sig") as file:
        predicted = {row["path"]: row["probability"] for row in csv.DictReader(file)}
    assert len(evaluated) == 12 and evaluated == predicted
    assert json.loads((tmp_path / "e/metrics.json").read_text())["loss"] == pytest.approx(
        loss_of(hot, evaluated), rel=1e-3
    )


def loss_of(model, paths):
    """Mean cross-entropy of images in class folders, from the model's own predictions."""
    found = model.predict(paths, top_k=3)
    labels = [path.split("/")[-2] for path in paths]
    return -torch.tensor([shares[label] for shares, label in zip(found, labels, strict=True)]).log().mean().item()


@pytest.mark.parametrize(
    "parts",
    [
        {"temperature": 0.0},
        {"temperature": float("nan")},
        {"temperature": "hot"},
        {"promises": [[1, 2]]},
        {"distances": torch.zeros(3)},
        {"distances": "far"},
        {"num_val": "many"},
        {"familiarity": {}},
        {"familiarity": Familiarity.fit(torch.rand(9, 5), torch.arange(9) % 3, 3).as_dict()},
        {"familiarity": None},
    ],
)
def test_damaged_confidence_is_one_line(trained, tmp_path, fails, parts):
    line = fails(
        predict.main, *CPU, f"--ckpt={changed(trained, tmp_path, **parts)}", str(save_image(tmp_path / "a.png"))
    )
    assert "changed.ckpt" in line and ("temperature" in line or "confidence is damaged" in line)
