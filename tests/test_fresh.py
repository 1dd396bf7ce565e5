"""A fresh process without torch reads and answers like this one."""

import shutil

import numpy as np
import pytest

from project import UserError
from project.exported import Exported
from project.fresh import answers
from project.images import load_for_evaluation


def test_a_process_without_torch_sees_and_answers_the_same(trained, exported, monkeypatch, tmp_path):
    files = sorted(str(path) for path in (trained.parents[1] / "data/test").rglob("*.png"))
    monkeypatch.chdir(tmp_path)
    found = answers(exported, files)
    model = Exported(exported)
    pixels = np.stack([load_for_evaluation(path, model.preprocessing) for path in files])
    assert (found.pixels == pixels).all()
    assert np.abs(found.probabilities - model(pixels)).max() < 1e-5
    assert found.load_seconds > 0 and (found.memory_mb is None or found.memory_mb > 10)


def test_what_stops_it_is_one_line(exported, tmp_path):
    shutil.copy(exported, tmp_path / "damaged.onnx")
    (tmp_path / "damaged.onnx").write_bytes(exported.read_bytes()[:1000])
    with pytest.raises(UserError, match="a new process cannot use damaged") as error:
        answers(tmp_path / "damaged.onnx", [])
    assert "\n" not in str(error.value)
