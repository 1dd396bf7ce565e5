import os
from pathlib import Path

import pytest
import train
from helpers import (
    FAST,
    fill,
    last_of,
)

from project.callbacks import RunFolder
from project.checkpoint import open_checkpoint
from project.classification.model import ResNetClassifier


def test_a_loss_that_is_not_finite_stops_the_run_with_its_step_and_images(fails, flat, tmp_path, monkeypatch):
    step = ResNetClassifier.training_step

    def poisoned(self, batch, batch_idx):
        loss = step(self, batch, batch_idx)
        return loss * float("nan") if (self.current_epoch, batch_idx) == (1, 1) else loss

    monkeypatch.setattr(ResNetClassifier, "training_step", poisoned)
    line = fails(train.main, *FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--max_epochs=3")
    assert "the loss is not finite any more at step 5 (epoch 1, batch 1, learning rate" in line
    assert "its 8 images, listed in" in line and "--model.lr" in line
    listed = (tmp_path / "lightning_logs/version_0/not_finite.txt").read_text().splitlines()
    assert len(listed) == 8 and all(Path(path).is_file() for path in listed)
    last = last_of(tmp_path)
    assert last["global_step"] == 3 and all(t.isfinite().all() for t in last["state_dict"].values())


@pytest.mark.slow
@pytest.mark.parametrize("damage", [os.remove, lambda path: open(path, "w").close()], ids=["deleted", "emptied"])
def test_a_file_that_breaks_in_training_stops_or_is_left_out(fails, flat, tmp_path, damage, monkeypatch, caplog):
    broken = []

    def breaking(self, trainer, pl_module):
        if trainer.current_epoch == 1 and not broken:
            broken.append(trainer.datamodule.samples["train"][0][0])
            broken.append(trainer.datamodule.samples["val"][0][0])
            for path in broken:
                damage(path)

    monkeypatch.setattr(RunFolder, "on_train_epoch_start", breaking)
    options = [*FAST, f"--data.root={flat}", "--max_epochs=3"]
    line = fails(train.main, *options, f"--default_root_dir={tmp_path / 'stop'}")
    assert any(path in line for path in broken)
    assert last_of(tmp_path / "stop")["global_step"] >= 3

    fill(flat, 10)
    broken.clear()
    train.main([*options, f"--default_root_dir={tmp_path / 'skip'}", "--data.bad_images=skip"])
    assert all(f"{path}: " in caplog.text for path in broken) and "left out" in caplog.text
    assert last_of(tmp_path / "skip")["global_step"] == 9


def test_saves_by_steps_go_round_those_that_a_validation_follows(flat, tmp_path, train_until):
    """A save is due after the 4th of 10 batches, but a validation follows: it is made after the 5th."""
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--data.batch_size=2"]
    train_until([*options, "--save_every_steps=4", "--val_check_interval=4"], epoch=0, batch_idx=7)
    assert last_of(tmp_path)["global_step"] == 5


def test_an_error_within_a_step_saves_nothing_that_a_step_has_begun_to_change(fails, flat, tmp_path, monkeypatch):
    def failing(self, batch, batch_idx):
        self(batch[0])  # BatchNorm has seen the batch
        raise MemoryError

    train.main([*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}"])
    before = Path(open_checkpoint("last", tmp_path).path).read_bytes()
    monkeypatch.setattr(ResNetClassifier, "training_step", failing)
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--max_epochs=2", "--ckpt_path=last"]
    fails(train.main, *options)
    assert Path(open_checkpoint("last", tmp_path).path).read_bytes() == before
