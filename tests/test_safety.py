"""What ends a run badly is named in one line, and what was saved stays whole."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import train
from conftest import FAST, SAMPLE, fill
from project.model import ResNetClassifier
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project.checkpoint import DurableCheckpointIO, find_checkpoint, load_checkpoint
from project.cli import run

ROOT = Path(__file__).parents[1]


@pytest.fixture
def train_until(monkeypatch):
    """Train up to a batch of an epoch, where the run ends like one that is killed: with nothing saved."""
    step = ResNetClassifier.training_step

    def train_until(options: list[str], epoch: int, batch_idx: int) -> None:
        def watched(self, batch, i):
            if (self.current_epoch, i) == (epoch, batch_idx):
                raise SystemExit(9)
            return step(self, batch, i)

        with monkeypatch.context() as patch, pytest.raises(SystemExit):
            patch.setattr(ResNetClassifier, "training_step", watched)
            train.main(options)

    return train_until


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
    last = load_checkpoint(find_checkpoint("last", tmp_path))
    assert last["global_step"] == 3 and all(t.isfinite().all() for t in last["state_dict"].values())


def test_the_images_named_are_those_of_the_batch(flat, tmp_path, monkeypatch):
    """Those that were loaded in that step, also in the second half of an epoch that was resumed."""
    from project.images import load_crop

    loaded: list[str] = []
    monkeypatch.setattr("project.data.load_crop", lambda path, **kw: loaded.append(path) or load_crop(path, **kw))
    named = []
    step = ResNetClassifier.training_step

    def watched(self, batch, batch_idx):
        named.append(self.trainer.datamodule.files_of_batch(batch_idx))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ResNetClassifier, "training_step", watched)
    train.main([*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--max_epochs=2"])
    assert [path for batch in named for path in batch] == loaded


def test_out_of_memory_says_which_batch_size_to_try(fails, flat, tmp_path, monkeypatch):
    def hungry(self, batch, batch_idx):
        torch.empty(1 << 60, dtype=torch.uint8)

    monkeypatch.setattr(ResNetClassifier, "training_step", hungry)
    line = fails(train.main, *FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}")
    assert "out of memory with --data.batch_size 8: try --data.batch_size 4 --accumulate_grad_batches 2" in line


def test_a_killed_worker_is_named(fails, flat, tmp_path, monkeypatch):
    step = ResNetClassifier.training_step

    def killing(self, batch, batch_idx):
        if self.current_epoch == 1:
            worker = self.trainer.train_dataloader._iterator._workers[0]
            os.kill(worker.pid, signal.SIGKILL)
            time.sleep(0.2)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(ResNetClassifier, "training_step", killing)
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--data.num_workers=1"]
    line = fails(train.main, *options, "--max_epochs=3", "--data.batch_size=2")
    assert "a data worker" in line and "--ckpt_path last" in line
    assert load_checkpoint(find_checkpoint("last", tmp_path))["global_step"] >= 10


@pytest.mark.parametrize("damage", [os.remove, lambda path: open(path, "w").close()], ids=["deleted", "emptied"])
def test_a_file_that_breaks_in_training_stops_or_is_left_out(fails, flat, tmp_path, damage, monkeypatch, caplog):
    broken = []

    def breaking(self, trainer, pl_module):
        if trainer.current_epoch == 1 and not broken:
            broken.append(trainer.datamodule.samples["train"][0][0])
            broken.append(trainer.datamodule.samples["val"][0][0])
            for path in broken:
                damage(path)

    monkeypatch.setattr(train.SaveConfig, "on_train_epoch_start", breaking)
    options = [*FAST, f"--data.root={flat}", "--max_epochs=3"]
    line = fails(train.main, *options, f"--default_root_dir={tmp_path / 'stop'}")
    assert any(path in line for path in broken)
    assert load_checkpoint(find_checkpoint("last", tmp_path / "stop"))["global_step"] >= 3

    fill(flat, 10)
    broken.clear()
    train.main([*options, f"--default_root_dir={tmp_path / 'skip'}", "--data.bad_images=skip"])
    assert all(f"{path}: " in caplog.text for path in broken) and "left out" in caplog.text
    assert load_checkpoint(find_checkpoint("last", tmp_path / "skip"))["global_step"] == 9


def test_what_was_logged_after_the_checkpoint_is_not_shown_twice(flat, tmp_path, train_until):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--max_epochs=3"]
    train_until(options, epoch=1, batch_idx=2)
    train.main([*options, "--ckpt_path=last"])
    events = EventAccumulator(str(tmp_path / "lightning_logs/version_0")).Reload()
    assert [event.step for event in events.Scalars("train/loss_step")] == list(range(9))


def test_auto_starts_resumes_and_then_has_nothing_to_do(flat, tmp_path, caplog):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--ckpt_path=auto"]
    caplog.set_level("INFO", logger="project")
    train.main(options)
    train.main([*options, "--max_epochs=2"])
    train.main([*options, "--max_epochs=2"])
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]
    assert load_checkpoint(find_checkpoint("last", tmp_path))["global_step"] == 6
    assert "has finished its epochs" in caplog.text


def test_a_run_that_stopped_early_stays_stopped(fails, flat, tmp_path, caplog):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--max_epochs=9"]
    stopping = ["--callbacks+=EarlyStopping", "--callbacks.monitor=val/top1", "--callbacks.patience=1"]
    stopping += ["--callbacks.min_delta=2"]  # which no epoch brings
    caplog.set_level("INFO", logger="project")
    train.main([*options, *stopping])
    figures = tmp_path / "lightning_logs/version_0/metrics.json"
    epochs = load_checkpoint(find_checkpoint("last", tmp_path))["epoch"] + 1
    assert epochs == 2
    assert "was stopped early, after 2 epochs" in fails(train.main, *options, *stopping, "--ckpt_path=last")

    figures.unlink()  # as if it had been killed before the end
    train.main([*options, *stopping, "--ckpt_path=auto"])
    assert figures.exists() and load_checkpoint(find_checkpoint("last", tmp_path))["global_step"] == 6
    train.main([*options, *stopping, "--ckpt_path=auto"])
    assert "has finished its epochs" in caplog.text
    train.main([f"--default_root_dir={tmp_path}", "--ckpt_path=last", "--max_epochs=3", "--callbacks=null"])
    assert load_checkpoint(find_checkpoint("last", tmp_path))["global_step"] == 9


def test_names_of_checkpoints_are_refused_with_another_logger(fails, flat, tmp_path):
    """Which keeps them elsewhere, so that a run would start anew again and again."""
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--logger=false"]
    assert "give their path" in fails(train.main, *options, "--ckpt_path=auto")


def test_no_test_is_no_error(flat, tmp_path, capsys):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--limit_test_batches=0"]
    train.main(options)
    train.main([*options, "--enable_checkpointing=false", "--logger=false"])
    assert "macro_f1" not in capsys.readouterr().out


def test_a_signal_that_interrupts_a_save_ends_with_its_status(flat, tmp_path, monkeypatch):
    """torch's writer makes another error of it."""
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}"]
    write = torch.save

    def interrupted(checkpoint, file):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        write(checkpoint, file)
        raise RuntimeError("unexpected pos 23104 vs 23000")

    train.main(options)
    before = Path(find_checkpoint("last", tmp_path)).read_bytes()
    monkeypatch.setattr("project.checkpoint.torch.save", interrupted)
    with pytest.raises(SystemExit) as stop:
        run(lambda: train.main([*options, "--max_epochs=2", "--ckpt_path=last"]))
    assert stop.value.code == 130 and Path(find_checkpoint("last", tmp_path)).read_bytes() == before


def test_a_second_signal_on_the_way_out_ends_at_once(tmp_path):
    """While the first one is dealt with, which here takes forever."""
    program = (
        "import signal, time; from project.cli import run\n"
        "def main():\n"
        "    try: signal.raise_signal(signal.SIGTERM)\n"
        "    finally: print('waiting', flush=True); time.sleep(600)\n"
        "run(main)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 143


def test_another_batch_size_in_the_middle_of_an_epoch_is_refused(fails, flat, tmp_path, train_until):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--save_every_steps=1"]
    train_until(options, epoch=0, batch_idx=1)
    line = fails(train.main, *options, "--ckpt_path=last", "--data.batch_size=5")
    assert "from the middle of an epoch with 8 images a step" in line and "not 5" in line


def test_a_frozen_backbone_is_that_of_the_checkpoint_when_its_run_goes_on(split, tmp_path, train_until):
    """Its features are asked for before Lightning loads the checkpoint."""
    weights = f"--model.weights={SAMPLE / 'resnet18-tiny-imagenet.safetensors'}"
    options = [*FAST, weights, f"--data.root={split}", "--model.fine_tune=head", "--precision=32-true"]
    train.main([*options, f"--default_root_dir={tmp_path / 'whole'}", "--max_epochs=3"])
    train_until([*options, f"--default_root_dir={tmp_path / 'cut'}", "--max_epochs=3"], epoch=1, batch_idx=1)
    train.main([*options, f"--default_root_dir={tmp_path / 'cut'}", "--max_epochs=3", "--ckpt_path=last"])
    whole, cut = (load_checkpoint(find_checkpoint("last", tmp_path / run))["state_dict"] for run in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_sigterm_before_training_ends_with_its_status(tmp_path):
    command = [sys.executable, ROOT / "scripts/train.py", f"--default_root_dir={tmp_path}"]
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)
    assert process.stderr is not None
    for line in process.stderr:
        if "parameters are trained" in line:  # the head start comes next
            break
    process.terminate()
    messages = process.stderr.read()
    assert process.wait() == 143 and "Traceback" not in messages


def test_saves_by_steps_go_round_those_that_a_validation_follows(flat, tmp_path, train_until):
    """Of 10 batches an epoch; after the 4th and the 8th comes a validation, and the 5th is the first that is due."""
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--data.batch_size=2"]
    train_until([*options, "--save_every_steps=4", "--val_check_interval=4"], epoch=0, batch_idx=7)
    assert load_checkpoint(find_checkpoint("last", tmp_path))["global_step"] == 5


def test_an_error_within_a_step_saves_nothing_that_a_step_has_begun_to_change(fails, flat, tmp_path, monkeypatch):
    def failing(self, batch, batch_idx):
        self(batch[0])  # BatchNorm has seen the batch
        raise MemoryError

    train.main([*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}"])
    before = Path(find_checkpoint("last", tmp_path)).read_bytes()
    monkeypatch.setattr(ResNetClassifier, "training_step", failing)
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--max_epochs=2", "--ckpt_path=last"]
    fails(train.main, *options)
    assert Path(find_checkpoint("last", tmp_path)).read_bytes() == before


def test_a_run_of_limited_epochs_goes_on_with_the_next_one(flat, tmp_path):
    options = [*FAST, f"--data.root={flat}", "--data.num_workers=1", "--limit_train_batches=2", "--data.batch_size=4"]
    options += ["--model.schedule=constant", "--model.warmup_ratio=0", "--deterministic=true"]
    train.main([*options, f"--default_root_dir={tmp_path / 'whole'}", "--max_epochs=2"])
    train.main([*options, f"--default_root_dir={tmp_path / 'cut'}", "--max_epochs=1"])
    train.main([*options, f"--default_root_dir={tmp_path / 'cut'}", "--max_epochs=2", "--ckpt_path=last"])
    whole, cut = (load_checkpoint(find_checkpoint("last", tmp_path / run))["state_dict"] for run in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_run_by_steps_is_not_resumed(fails, flat, tmp_path):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}"]
    train.main([*options, "--max_steps=2"])
    assert "--max_steps: a run that is resumed counts epochs" in fails(
        train.main, *options, "--ckpt_path=last", "--max_steps=4"
    )


def test_a_damaged_last_checkpoint_does_not_take_the_place_of_the_one_before(flat, tmp_path):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}"]
    train.main([*options, "--max_epochs=2"])
    last = Path(find_checkpoint("last", tmp_path))
    before = last.with_name("previous.ckpt").read_bytes()
    last.write_bytes(last.read_bytes()[:-100])
    io = DurableCheckpointIO()
    io.save_checkpoint(load_checkpoint(str(last.with_name("previous.ckpt"))), last)
    assert last.with_name("previous.ckpt").read_bytes() == before
    io.save_checkpoint(load_checkpoint(str(last)), last)
    assert last.with_name("previous.ckpt").read_bytes() == last.read_bytes()


def test_a_checkpoint_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """As far as a test can tell: what is asked of the system, in which order."""
    asked = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: asked.append(os.readlink(f"/proc/self/fd/{number}")) or fsync(number)
    )
    monkeypatch.setattr(os, "replace", lambda old, new: asked.append(str(new)) or replace(old, new))
    DurableCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(3)}}, tmp_path / "best.ckpt")
    assert asked == [str(tmp_path / "best.ckpt.part"), str(tmp_path / "best.ckpt"), str(tmp_path)]


def test_without_a_logger_no_file_but_checkpoints_is_written(flat, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("seed: 3\n")
    train.main([*FAST, f"--data.root={flat}", "--config=config.yaml", "--logger=false"])
    assert Path("config.yaml").read_text() == "seed: 3\n" and "macro_f1" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints", "config.yaml", "flat"]


def test_the_best_checkpoint_is_ours_whatever_others_a_user_adds(flat, tmp_path, capsys):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--callbacks+=ModelCheckpoint"]
    train.main([*options, "--callbacks.save_weights_only=true", "--callbacks.every_n_epochs=1"])
    assert "macro_f1" in capsys.readouterr().out


@pytest.mark.slow
def test_found_values_are_those_of_the_run_that_is_resumed(flat, tmp_path, caplog):
    caplog.set_level("INFO", logger="project")
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--find=batch_size"]
    train.main(options)
    found = load_checkpoint(find_checkpoint("last", tmp_path))["config"]["data"]["batch_size"]
    train.main([*options, "--data.batch_size=3", "--max_epochs=2", "--ckpt_path=auto"])
    assert load_checkpoint(find_checkpoint("last", tmp_path))["config"]["data"]["batch_size"] == found
