"""scripts/detection/export.py on the checkpoint of a short run."""

import re

import pytest
import torch

from scripts.detection import export


def eager(detector, path):
    """A copy of the checkpoint whose detector is sure of much, which takes more training than here."""
    content = torch.load(detector, weights_only=True)
    torch.manual_seed(0)
    torch.nn.init.normal_(content["state_dict"]["net.head.classification_head.cls_logits.weight"], std=0.5)
    torch.nn.init.zeros_(content["state_dict"]["net.head.classification_head.cls_logits.bias"])
    content["hyper_parameters"]["score_threshold"] = 0.2
    torch.save(content, path)
    return path


@pytest.mark.slow
def test_the_file_is_compared_and_named_and_never_replaced(fails, detector, tmp_path, caplog):
    caplog.set_level("INFO", logger="project")
    given = [f"--ckpt={eager(detector, tmp_path / 'eager.ckpt')}", f"--output={tmp_path / 'a.onnx'}"]
    assert export.main(given) == tmp_path / "a.onnx"
    [count] = re.findall(r"Compared:    (\d+) detections in 8 images are the same as in PyTorch", caplog.text)
    assert int(count) > 0 and (tmp_path / "a.onnx").exists()
    assert "exists, and is kept" in fails(export.main, *given)
    (tmp_path / "a.onnx").unlink()
    assert "gone: no such folder" in fails(export.main, *given, f"--images={tmp_path / 'gone'}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["eager.ckpt"]


@pytest.mark.slow
def test_a_detector_that_finds_nothing_is_not_exported(fails, detector, tmp_path):
    line = fails(export.main, f"--ckpt={detector}", f"--output={tmp_path / 'a.onnx'}")
    assert "name others with --images" in line and not list(tmp_path.iterdir())
