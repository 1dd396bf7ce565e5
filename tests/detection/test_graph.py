"""The detector as an ONNX file."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from squares import batch, make

from project import UserError
from project.detection import graph
from project.detection.graph import INPUT, OUTPUTS, differing, write_onnx


def sure(arch):
    """A detector whose scores are spread, so that it finds much."""
    torch.manual_seed(0)
    model = make(arch).eval()
    for name, parameter in model.net.named_parameters():
        if "cls_logits" in name or "cls_score" in name:
            torch.nn.init.normal_(parameter, std=0.5)
    model.hparams["score_threshold"] = 0.3
    return model


@pytest.mark.parametrize(
    "arch",
    ["fcos", pytest.param("fasterrcnn", marks=pytest.mark.slow), pytest.param("retinanet", marks=pytest.mark.slow)],
)
def test_the_file_finds_what_the_model_finds_in_images_of_any_size(arch, tmp_path):
    model = sure(arch)
    path = tmp_path / "model.onnx"
    images, others = batch(1)[0], batch(1, size=(64, 110))[0]
    write_onnx(model, path, images)
    differ, total = differing(path, model, [*images, *others])
    assert differ == 0 and total > 10
    properties = {p.key: p.value for p in onnx.load(path).metadata_props}
    assert properties["class_names"] == '["blue", "red"]' and properties["score_threshold"] == "0.3"
    found = onnxruntime.InferenceSession(path).run(list(OUTPUTS), {INPUT: images[0].numpy()})
    assert [part.dtype for part in found] == [np.float32, np.float32, np.int64]


def test_a_file_of_another_model_differs(tmp_path):
    model = sure("fcos")
    path = tmp_path / "model.onnx"
    write_onnx(model, path, batch(1)[0])
    with torch.no_grad():
        model.net.head.regression_head.bbox_reg.bias += 0.5
    differ, total = differing(path, model, batch(1)[0])
    assert differ > total / 2


def test_where_nothing_is_found_nothing_is_exported(tmp_path):
    model = make().eval()
    torch.nn.init.constant_(model.net.head.classification_head.cls_logits.bias, -20)
    with pytest.raises(UserError, match=r"nothing is found in 2 images: name others with --images"):
        write_onnx(model, tmp_path / "model.onnx", batch(1)[0])


def test_what_the_exporter_cannot_do_is_one_line(tmp_path, monkeypatch):
    def refuses(*args, **options):
        raise RuntimeError("unsupported operator\nand a long story")

    monkeypatch.setattr(graph.torch.onnx, "export", refuses)
    with pytest.raises(UserError, match=r"^fcos cannot be exported to ONNX by torch .* \(unsupported operator\)$"):
        write_onnx(sure("fcos"), tmp_path / "model.onnx", batch(1)[0])
    assert not (tmp_path / "model.onnx").exists()
