"""What is exported is compared on images that calibration has not seen, by the fastest recipe that agrees."""

import numpy as np
import pytest
from helpers import make_data

from project import UserError
from project.classification import export as rooms
from project.classification.export import Export, in_pytorch, read_images, temperature_of, without
from project.classification.model import load


@pytest.fixture
def export(trained, tmp_path):
    model = load(trained / "checkpoints/best.ckpt")
    data = make_data(trained.parents[1] / "data", model.hparams["preprocessing"])
    return Export(model, data, tmp_path, {"checkpoint_sha256": "0"}, 1.0, 0.01, (256, 2000))


def test_images_are_drawn_alike_each_time_and_prepared_as_in_evaluation(trained, export):
    some = read_images(export.data, "train", 5)
    assert len(some.samples) == 5 and some.samples == read_images(export.data, "train", 5).samples
    assert some.samples != read_images(export.data, "train", 5, seed=1).samples
    images = next(iter(export.data.image_loader(export.test.samples)))[0]
    assert (images.permute(0, 2, 3, 1).numpy() == export.test.pixels[: len(images)]).all()


@pytest.mark.slow
def test_files_are_compared_on_images_that_calibration_has_not_seen(export):
    export.fp32()
    assert export.int8() is None
    fp32, int8 = (export.figures[name] for name in ("model.onnx", "model.int8.onnx"))
    assert fp32["difference"]["max"] < 1e-5 and fp32["agreement"] == 1
    assert int8["agreement"] == 1 and 0 < int8["difference"]["max"] < 0.05
    assert int8["recipe"]["in_int8"] == "all convolutions"
    # of the 24 training images, 12 look as test images do
    paths = [{path for path, _ in images.samples} for images in export.parts]
    assert len(paths) == 3 and not paths[0] & paths[1] and not paths[1] & paths[2]
    described = export.describe()
    assert [described[key]["images"] for key in ("certified_on", "calibrated_on", "recipe_chosen_on")] == [12, 12, 12]
    metadata = export.exported["model.int8.onnx"].metadata
    assert metadata["precision"] == "int8" and metadata["checkpoint_sha256"] == "0"
    before = export.metrics_before()
    assert before["top1"] == fp32["top1"] and before["loss"] == pytest.approx(fp32["loss"], abs=1e-5)


@pytest.mark.slow
def test_a_recipe_that_does_not_agree_gives_way_to_the_careful_one(export, monkeypatch):
    export.fp32()
    quantized = Export.quantized

    def spoilt(self, recipe, *rest):
        exported, number = quantized(self, recipe, *rest)
        if not recipe.first_in_fp32:
            session = exported.session
            exported.session = lambda images: session(images)[:, ::-1]
        return exported, number

    monkeypatch.setattr(Export, "quantized", spoilt)
    assert export.int8() is None
    recipe = export.figures["model.int8.onnx"]["recipe"]
    assert recipe["in_int8"] == "all but the first convolution" and [*recipe["agreement_when_chosen"].values()][1] == 1


def test_copies_of_certified_images_are_not_used_for_calibration(export, caplog):
    train = read_images(export.data, "train", 10)
    pixels = np.stack([*(np.full_like(train.pixels[0], i) for i in range(9)), export.test.pixels[0]])
    left = without(train._replace(pixels=pixels), export.test)
    assert left.samples == train.samples[:9] and len(left.pixels) == 9
    assert "1 train images are copies of test images" in caplog.text
    with pytest.raises(UserError, match="all images that int8 would be fitted to are copies of test images"):
        without(export.test, export.test)


def test_the_temperature_is_fitted_on_validation_images(export, caplog):
    caplog.set_level("INFO", logger="project")
    assert 0.2 <= temperature_of(export.model, export.data) <= 5
    assert "Temperature fitted on 12 val images" in caplog.text


def test_pytorch_is_called_as_an_exported_model_is(export):
    probabilities = in_pytorch(export.model, 1.0)(export.test.pixels[:3])
    assert probabilities.shape == (3, 3) and probabilities.sum(axis=1) == pytest.approx(1)
    softer = in_pytorch(export.model, 4.0)(export.test.pixels[:3])
    assert (softer.argmax(axis=1) == probabilities.argmax(axis=1)).all() and softer.max() < probabilities.max()


@pytest.mark.slow
def test_every_file_is_measured_and_used_by_a_process_without_torch(export, monkeypatch):
    monkeypatch.setattr("project.timing.LEAST", 0.0)
    export.fp32()
    gains = export.measure()
    assert gains.keys() == {"model.onnx"} and gains["model.onnx"] > 0
    found = export.figures["model.onnx"]
    assert found["runtime"].startswith("onnxruntime") and found["precision"] == "fp32" and found["file_mb"] > 40
    assert found["load_s"] > 0 and found["images_per_s_32"] > 0 and len(found["sha256"]) == 64
    assert export.figures["pytorch"]["images_per_s_1"] > 0

    other = rooms.answers

    def changed(*args):
        found = other(*args)
        return found._replace(pixels=np.roll(found.pixels, 1))

    monkeypatch.setattr(rooms, "answers", changed)
    with pytest.raises(rooms.UserError, match="a process without torch reads other pixels for model"):
        export.measure()
