"""A fourth task needs no change of an existing file, and gets runs, resumes, safe checkpoints and one-line errors."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import WEIGHTS, last_of
from PIL import Image

from project.checkpoint import load_model, open_checkpoint
from project.trainer import best_of

FILE = Path(__file__).with_name("fourth_task.py")
OPTIONS = ["--accelerator=cpu", "--enable_progress_bar=false", "--data.num_workers=0", "--data.batch_size=2"]


@pytest.fixture
def task():
    spec = importlib.util.spec_from_file_location("fourth_task", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path):
    """Bright squares on dark ground, one in a quarter of each image."""
    rng = np.random.default_rng(0)
    for split, count in {"train": 16, "val": 3}.items():
        (tmp_path / "data" / split).mkdir(parents=True)
        for i in range(count):
            mask = np.zeros((64, 64), np.uint8)
            top, left = 32 * rng.integers(0, 2, 2)
            mask[top : top + 32, left : left + 32] = 1
            image = rng.integers(0, 60, (64, 64, 3)) + 150 * mask[..., None]
            Image.fromarray(image.astype(np.uint8)).save(tmp_path / "data" / split / f"{i}.png")
            Image.fromarray(mask).save(tmp_path / "data" / split / f"{i}.mask.png")
    return tmp_path / "data"


@pytest.mark.slow
def test_it_learns_and_its_best_checkpoint_is_safe_to_load(task, root, tmp_path):
    trainer = task.main(
        [
            *OPTIONS,
            f"--data.root={root}",
            f"--default_root_dir={tmp_path}",
            WEIGHTS,
            "--max_epochs=5",
            "--model.lr=0.003",
        ]
    )
    assert float(best_of(trainer).best_model_score) > 0.6  # all background: 0.37
    model = load_model(open_checkpoint("best", tmp_path), task.ResNetFCN)
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 2, 64, 64)


@pytest.mark.slow
def test_stopped_within_an_epoch_it_ends_as_if_it_had_not_been(task, root, tmp_path, monkeypatch):
    options = [*OPTIONS, f"--data.root={root}", "--max_epochs=2", "--save_every_steps=4"]
    task.main([*options, f"--default_root_dir={tmp_path / 'whole'}"])
    step = task.ResNetFCN.training_step

    def killed(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (1, 6):
            raise SystemExit(9)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(task.ResNetFCN, "training_step", killed)
        task.main([*options, f"--default_root_dir={tmp_path / 'killed'}"])
    task.main(["--ckpt_path=last", f"--default_root_dir={tmp_path / 'killed'}"])
    whole, resumed = (last_of(tmp_path / name)["state_dict"] for name in ("whole", "killed"))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_mistakes_end_in_one_line(task, root, fails):
    assert "--model.lr -1" in fails(task.main, *OPTIONS, f"--data.root={root}", "--model.lr=-1")
    assert "no masks" in fails(task.main, *OPTIONS, f"--data.root={root.parent}")


def test_it_is_short():
    assert len(FILE.read_text(encoding="utf-8").splitlines()) < 200
