"""What a run records and displays while it trains."""

import logging
import re

import pytest
import train
import yaml
from helpers import FAST, make, make_data
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from project.callbacks import EpochLines, LearningRates, ProgressBar, RunFolder, Throughput, is_logging_step, run_folder


def quiet_trainer(*callbacks: Callback, **options) -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    return Trainer(accelerator="cpu", callbacks=list(callbacks), **{**quiet, "max_epochs": 1, **options})


def test_the_config_is_in_the_folder_and_in_every_checkpoint(split, tmp_path):
    config = {"seed": 1, "data": {"root": "Läufe"}}
    trainer = quiet_trainer(RunFolder(tmp_path / "run", config), enable_progress_bar=False)
    trainer.fit(make(), datamodule=make_data(split))
    assert yaml.safe_load((tmp_path / "run/config.yaml").read_text(encoding="utf-8")) == config
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
    bar.enable()  # here, stderr is no terminal
    trainer = quiet_trainer(bar, Watch(), log_every_n_steps=2)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    trainer.fit(make(), datamodule=make_data(split))
    assert seen == [(1, False), (2, True), (3, False), (4, True), (5, False)]
    assert {"train/loss_step", "val/top1"} <= bar.shown.keys() and "v_num" not in bar.shown
    assert "Epoch" in capsys.readouterr().err


def test_the_progress_bar_leaves_no_line_in_a_file(monkeypatch, split, capsys):
    quiet_trainer(ProgressBar(), limit_train_batches=1).fit(make(), datamodule=make_data(split))
    assert "Epoch" not in capsys.readouterr().err
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert ProgressBar().is_enabled


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


def test_a_smaller_loss_is_a_new_best(split, caplog):
    caplog.set_level(logging.INFO)
    lines = EpochLines("val/loss", "min")
    trainer = quiet_trainer(lines, max_epochs=1, enable_progress_bar=False)
    trainer.fit(make(), datamodule=make_data(split))
    (line,) = [r.message for r in caplog.records if r.name == "project.callbacks"]
    assert re.search(r"train loss \d\.\d{3}, val loss \d\.\d{3} \(new best\), ", line)
    assert lines.best == pytest.approx(trainer.callback_metrics["val/loss"].item())


def test_a_long_epoch_says_early_how_long_training_will_take(split, caplog, monkeypatch):
    monkeypatch.setattr("project.callbacks.ESTIMATE_AFTER", 0.0)
    caplog.set_level(logging.INFO)
    trainer = quiet_trainer(EpochLines("val/top1"), max_epochs=2, enable_progress_bar=False)
    trainer.fit(make(), datamodule=make_data(split))
    first, *others = [r.message for r in caplog.records if r.name == "project.callbacks"]
    assert re.fullmatch(r"Training will take about 0:00:\d\d, judging from its first 3 steps", first)
    assert [line[:12] for line in others] == ["Epoch 1 of 2", "Epoch 2 of 2"]


def test_each_part_of_the_model_has_one_learning_rate(split):
    logged = []

    class Watch(DummyLogger):
        def log_metrics(self, metrics, step=None):
            logged.append((step, metrics))

    trainer = quiet_trainer(LearningRates(), logger=Watch(), log_every_n_steps=2, enable_progress_bar=False)
    trainer.fit(make(), datamodule=make_data(split))
    rates = [(step, metrics) for step, metrics in logged if "lr/head" in metrics]
    assert [step for step, _ in rates] == [1, 3] and {"lr/head", "lr/backbone"} == rates[0][1].keys()


def test_an_epoch_that_is_resumed_in_its_middle_has_its_line(flat, tmp_path, train_until, caplog):
    caplog.set_level(logging.INFO)
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--save_every_steps=1"]
    train_until([*options, "--max_epochs=2"], epoch=0, batch_idx=2)
    caplog.clear()
    train.main([f"--default_root_dir={tmp_path}", "--ckpt_path=last"])
    lines = [r.message for r in caplog.records if r.name == "project.callbacks"]
    assert [line[:12] for line in lines] == ["Epoch 1 of 2", "Epoch 2 of 2"]
