"""The exported network answers as in PyTorch, whatever the batch, and one file says all that is needed to use it."""

import json

import numpy as np
import onnx
import pytest
import torch
from helpers import PREPROCESSING

from project import UserError
from project.classification.graph import write_onnx
from project.classification.model import ResNetClassifier, load
from project.exported import Exported
from project.onnx_files import read_onnx

CLASSES = ["bird", "Fuß", "犬 $x$"]


def model_of(arch, size=64):
    torch.manual_seed(0)
    preprocessing = {**PREPROCESSING, "resize_size": size, "crop_size": size}
    model = ResNetClassifier(CLASSES, preprocessing, arch=arch, weights="none")
    for module in model.modules():  # as after training: otherwise BatchNorm does nothing
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    return model.eval()


def compare(model, path, sizes=(1, 2, 5)):
    write_onnx(model, path, {})
    exported = Exported(path)
    size = model.hparams["preprocessing"]["crop_size"]
    for number in sizes:
        images = np.random.default_rng(number).integers(0, 256, (number, size, size, 3), dtype=np.uint8)
        with torch.inference_mode():
            expected = model(torch.from_numpy(images).permute(0, 3, 1, 2)).softmax(dim=1).numpy()
        assert np.abs(exported(images) - expected).max() <= 1e-5
    return exported


def test_the_answers_are_those_of_pytorch_and_the_file_says_how_to_use_it(tmp_path):
    model = model_of("resnet18")
    exported = compare(model, tmp_path / "model.onnx", (1, 2, 5, 64))
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]  # no file with weights beside it
    assert exported.class_names == CLASSES and exported.threshold is None and exported.precision == "fp32"
    assert exported.preprocessing == model.hparams["preprocessing"]
    operators = read_onnx(tmp_path / "model.onnx").operators
    assert not {"BatchNormalization", "Shape", "Reshape"} & operators.keys()
    text = (tmp_path / "model.onnx").read_bytes()
    assert str(tmp_path.parent).encode() not in text and b"site-packages" not in text and b".py" not in text


@pytest.mark.slow
def test_the_model_is_as_it_was(tmp_path):
    model = model_of("resnet18", 32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    write_onnx(model, tmp_path / "model.onnx", {}, temperature=2.0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        expected = (model(images) / 2).softmax(dim=1).numpy()
    assert np.abs(Exported(tmp_path / "model.onnx")(images.permute(0, 2, 3, 1).numpy()) - expected).max() <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "arch", ["resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2", "efficientnet_b0", "mobilenet_v3_small"]
)
def test_other_networks_answer_as_in_pytorch(tmp_path, arch):
    compare(model_of(arch), tmp_path / "model.onnx")


def test_metadata_are_kept_as_text_and_json(trained, tmp_path):
    write_onnx(load(trained / "checkpoints/best.ckpt"), tmp_path / "m.onnx", {"arch": "resnet18", "temperature": 1.5})
    metadata = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert metadata["arch"] == "resnet18" and json.loads(metadata["temperature"]) == 1.5
    assert json.loads(metadata["class_names"]) == ["blue", "green", "red"]


def test_what_cannot_be_exported_is_one_line_and_leaves_no_file(tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, x):
            if x.sum() > 0:  # depends on the values, which a graph cannot
                return x
            return -x

    model = model_of("resnet18", 32)
    model.net.relu = Odd()
    with pytest.raises(UserError, match="resnet18 cannot be exported to ONNX") as error:
        write_onnx(model, tmp_path / "model.onnx", {})
    assert "\n" not in str(error.value) and not list(tmp_path.iterdir())
