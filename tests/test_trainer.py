import logging

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, Timer

from project import UserError, trainer


def test_precision_is_chosen_for_the_device_and_said(caplog, monkeypatch):

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(trainer, "cpu_has_fast_bf16", lambda: True)
    assert trainer.choose_precision("auto", "cpu") == "bf16-mixed"
    assert "Precision bf16-mixed: half the bits, faster on this CPU (--precision 32-true for full)" in caplog.text
    monkeypatch.setattr(trainer, "cpu_has_fast_bf16", lambda: False)
    assert trainer.choose_precision("auto", "cpu") == "32-true" and "Precision 32-true: full" in caplog.text
    assert trainer.choose_precision("16-mixed", "cpu") == "16-mixed"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, chosen in [(True, "bf16-mixed"), (False, "16-mixed")]:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert trainer.choose_precision("auto", "gpu") == chosen and f"{chosen}: half the bits, faster on this GPU" in (
            caplog.text
        )


def test_the_trainer_needs_hardly_an_option(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = trainer.make_trainer("val/top1", max_epochs=1)
    names = [type(callback).__name__ for callback in made.callbacks]
    assert {"LastCheckpoint", "StopAtNonFinite", "Throughput", "LearningRates", "ProgressBar"} <= set(names)
    assert made.max_epochs == 1 and not list(tmp_path.iterdir())


def test_best_is_chosen_by_what_the_task_names():
    made = trainer.make_trainer("val/map", accelerator="cpu", logger=False)
    assert [(c.monitor, c.mode) for c in made.checkpoint_callbacks if c.filename == "best"] == [("val/map", "max")]
    made = trainer.make_trainer("val/loss", mode="min", accelerator="cpu", logger=False)
    assert [(c.monitor, c.mode) for c in made.checkpoint_callbacks if c.filename == "best"] == [("val/loss", "min")]


def test_what_lightning_refuses_is_one_line():
    for options, expected in [
        ({"strategy": "dpp"}, "invalid strategy name"),
        ({"accelerator": "gpu"}, r"\(--accelerator auto takes the best there is\)"),
        ({"max_time": "soon"}, "--max_time soon: must be DD:HH:MM:SS"),
    ]:
        with pytest.raises(UserError, match=expected) as error:
            trainer.make_trainer("val/top1", **options)
        assert "\n" not in str(error.value)


def test_early_stopping_by_a_metric_of_the_other_direction_is_refused():
    modes = {"val/top1": "max", "val/loss": "min"}
    trainer.check_stopping([EarlyStopping("val/loss"), EarlyStopping("train/loss_epoch"), Timer("00:01:00:00")], modes)
    trainer.check_stopping(EarlyStopping("val/top1", mode="max"), modes)
    with pytest.raises(UserError, match=r"EarlyStopping by val/top1 needs --callbacks.mode=max; it has min"):
        trainer.check_stopping([EarlyStopping("val/top1")], modes)


def test_several_callbacks_or_one_or_none():
    one = EarlyStopping("val/loss")
    for given, count in ((None, 0), (one, 1), ([one, Timer()], 2)):
        made = trainer.make_trainer("val/top1", callbacks=given, accelerator="cpu")
        assert sum(isinstance(c, EarlyStopping | Timer) for c in made.callbacks) == count
