"""What a run records and displays while it trains."""

import logging
import re

import pytest
import train
import yaml
from helpers import FAST, make, make_data
from lightning.pytorch import Callback, Trainer

from project.callbacks import EpochLines, ProgressBar, RunFolder, Throughput, is_logging_step, run_folder


def quiet_trainer(*callbacks: Callback, **options) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **{**quiet, "max_epochs": 1, **options})


def test_the_config_is_in_the_folder_and_in_every_checkpoint(split, tmp_path):
    config = {"seed": 1, "data": {"root": "Läufe"}}
    trainer = quiet_trainer(RunFolder(tmp_path / "run", config), enable_progress_bar=False)
    trainer.fit(make(), datamodule=make_data(split))
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text()) == config
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    import torch

    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["config"] == config
    assert run_folder(trainer) == tmp_path / "run" and run_folder(quiet_trainer()) is None


def test_throughput_counts_all_batches_but_the_first(split):
    logged = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            logged.append("train/images_per_second" in trainer.callback_metrics)

    throughput = Throughput()
    trainer = quiet_trainer(throughput, Watch(), enable_progress_bar=False)
    trainer.fit(make(), datamodule=make_data(split))  # 18 images in batches of 4
    assert throughput.num_samples == 14 and logged == [False, True, True, True, True]


def test_the_progress_bar_reads_metrics_only_in_logging_steps(split, capsys):
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append((trainer.global_step, is_logging_step(trainer)))

    bar = ProgressBar()
    trainer = quiet_trainer(bar, Watch(), log_every_n_steps=2)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer.fit(make(), datamodule=make_data(split))
    assert seen == [(1, False), (2, True), (3, False), (4, True), (5, False)]
    assert {"train/loss_step", "val/top1"} <= bar.shown.keys() and "v_num" not in bar.shown
    assert "Epoch" in capsys.readouterr().err


def test_one_line_an_epoch_with_or_without_a_progress_bar(split, caplog):
    caplog.set_level(logging.INFO)
    for bar in (True, False):
        caplog.clear()
        lines = EpochLines("val/top1")
        trainer = quiet_trainer(lines, enable_progress_bar=bar, max_epochs=3, check_val_every_n_epoch=2)
        trainer.fit(make(), datamodule=make_data(split))
        first, second, third = [r.message for r in caplog.records if r.name == "project.callbacks"]
        assert re.fullmatch(r"Epoch 1 of 3: train loss \d\.\d{3}, \d+\.\d s, 0:00:\d\d left", first)
        assert "val loss" in second and "val top1" in second and second.count("(new best)") == 1
        assert re.fullmatch(r"Epoch 3 of 3: train loss \d\.\d{3}, \d+\.\d s", third)
        assert lines.best == pytest.approx(trainer.callback_metrics["val/top1"].item())


def test_lines_of_an_epoch_without_a_planned_end_and_after_a_best_one(split, caplog):
    caplog.set_level(logging.INFO)
    lines = EpochLines("val/top1")
    trainer = quiet_trainer(lines, max_epochs=-1, max_steps=5, enable_progress_bar=False)
    begin = lines.on_train_start
    lines.on_train_start = lambda *args: (begin(*args), setattr(lines, "best", 1.0))
    trainer.fit(make(), datamodule=make_data(split))
    (line,) = [r.message for r in caplog.records if r.name == "project.callbacks"]
    assert line.startswith("Epoch 1: train loss") and "left" not in line and "new best" not in line


def test_an_epoch_that_is_resumed_in_its_middle_has_its_line(flat, tmp_path, train_until, caplog):
    caplog.set_level(logging.INFO)
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--save_every_steps=1"]
    train_until([*options, "--max_epochs=2"], epoch=0, batch_idx=2)
    caplog.clear()
    train.main([f"--default_root_dir={tmp_path}", "--ckpt_path=last"])
    lines = [r.message for r in caplog.records if r.name == "project.callbacks"]
    assert [line[:12] for line in lines] == ["Epoch 1 of 2", "Epoch 2 of 2"]
