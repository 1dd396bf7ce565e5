"""scripts/detection/export.py on the checkpoint of a short run."""

import pytest
from squares import FAST, squares

from scripts.detection import export, train


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    squares(folder / "squares")
    return train.main([*FAST, f"--data.root={folder / 'squares'}", f"--default_root_dir={folder}"]).best


def test_the_file_is_compared_and_named_and_never_replaced(fails, detector, tmp_path, caplog):
    caplog.set_level("INFO", logger="project")
    path = export.main([f"--ckpt={detector}"])
    assert path == detector.parents[1] / "model.onnx" and path.exists()
    assert "are the same as in PyTorch" in caplog.text
    assert "exists, and is kept" in fails(export.main, f"--ckpt={detector}")
    gone = f"--images={tmp_path / 'gone'}"
    line = fails(export.main, f"--ckpt={detector}", f"--output={tmp_path / 'a.onnx'}", gone)
    assert "gone: no such folder" in line and not (tmp_path / "a.onnx").exists()
