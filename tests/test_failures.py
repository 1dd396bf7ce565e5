"""Failures of the machine are one line that says what to do."""

import os
import signal
import time

import torch
import train
from helpers import FAST, last_of

from project.classification.model import ResNetClassifier


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
    assert last_of(tmp_path)["global_step"] >= 10
