"""scripts/detection/train.py: from the data to the results, resumed, and refused."""

import json

import pytest
import torch
from squares import FAST, squares

from project.checkpoint import open_checkpoint
from project.detection.model import ResNetDetector
from scripts.detection import train


@pytest.fixture
def data(tmp_path):
    return squares(tmp_path / "squares")


def last_of(root):
    return open_checkpoint("last", root).content


def test_a_run_leaves_checkpoints_metrics_pictures_and_a_report(data, tmp_path, caplog):
    caplog.set_level("INFO", logger="project")
    run = train.main([*FAST, f"--data.root={data}", f"--default_root_dir={tmp_path}"])
    names = {path.name for path in run.folder.iterdir()}
    assert {"config.yaml", "metrics.json", "predictions.csv", "boxes.png", "report.html", "checkpoints"} <= names
    summary = json.loads((run.folder / "metrics.json").read_text())
    assert summary == run.metrics and summary["split"] == "test" and summary["val"]["num_images"] == 3
    assert summary["checkpoint"] == str(run.best) and summary["num_boxes"] == 4
    threshold = torch.load(run.best, weights_only=True)["hyper_parameters"]["score_threshold"]
    assert summary["score_threshold"] == threshold
    assert "predict.py --ckpt" in caplog.text


@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_frozen_statistics_stay_in_a_run_and_others_do_not(data, tmp_path, norm):
    run = train.main([*FAST, f"--data.root={data}", f"--default_root_dir={tmp_path}", f"--model.norm={norm}"])
    state = torch.load(run.best, weights_only=True)["state_dict"]
    means = [tensor for name, tensor in state.items() if name.endswith("running_mean")]
    assert means and all(bool((mean == 0).all()) == (norm == "frozen") for mean in means)  # 0 is where they start


@pytest.mark.slow
def test_a_resumed_run_continues_bit_for_bit(fails, data, tmp_path, monkeypatch):
    options = [*FAST, f"--data.root={data}", "--max_epochs=2", "--save_every_steps=1"]
    train.main([*options, f"--default_root_dir={tmp_path / 'whole'}"])
    step = ResNetDetector.training_step

    def killed(self, batch, batch_idx):
        if (self.current_epoch, batch_idx) == (1, 1):
            raise SystemExit(9)
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(ResNetDetector, "training_step", killed)
        train.main([*options, f"--default_root_dir={tmp_path / 'cut'}"])
    last = [f"--default_root_dir={tmp_path / 'cut'}", "--ckpt_path=last"]
    assert "was trained with --model.norm batch, and goes on" in fails(train.main, *last, "--model.norm=frozen")
    train.main(last)
    whole, cut = (last_of(tmp_path / run) for run in ("whole", "cut"))
    assert whole["global_step"] == cut["global_step"] == 4
    assert all(torch.equal(whole["state_dict"][name], cut["state_dict"][name]) for name in whole["state_dict"])
    figures = [tmp_path / run / "lightning_logs/version_0/metrics.json" for run in ("whole", "cut")]
    a, b = (json.loads(path.read_text()) for path in figures)
    assert a["map"] == b["map"] and a["score_threshold"] == b["score_threshold"]


def test_no_epoch_is_refused_since_there_is_no_head_start(fails, data, tmp_path):
    line = fails(train.main, *FAST, f"--data.root={data}", f"--default_root_dir={tmp_path}", "--max_epochs=0")
    assert "--max_epochs 0: a detector has no head start" in line
    assert not (tmp_path / "lightning_logs").exists()


def test_the_checkpoint_of_a_classifier_is_not_resumed(fails, trained, data, tmp_path):
    path = trained / "checkpoints/last.ckpt"
    line = fails(train.main, f"--ckpt_path={path}", f"--data.root={data}", f"--default_root_dir={tmp_path}")
    assert f"checkpoint {path} is of image classification, not of object detection" in line
