"""Each undocumented name of Lightning that we use exists, and does what we use it for."""

import logging

import pytest
import torch
from helpers import make, make_data
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from torch.utils.data import DataLoader

from project import lightning_internals as internals


@pytest.fixture
def trainer() -> Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(accelerator="cpu", max_epochs=2, num_sanity_val_steps=0, **quiet)


def test_signals_are_left_alone(trainer, split):
    import signal

    def ours(signum, frame):
        pass

    signal.signal(signal.SIGTERM, ours)
    internals.leave_signals_alone(trainer)
    trainer.fit(make(), datamodule=make_data(split))
    assert signal.getsignal(signal.SIGTERM) is ours


def test_counters_of_batches_and_epochs(trainer, split):
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            counters = internals.batches_done(trainer), internals.batches_done_in_all(trainer)
            seen.append((*counters, internals.epoch_is_over(trainer)))

        def on_train_epoch_end(self, trainer, pl_module):
            seen.append(internals.epoch_is_over(trainer))

    trainer.callbacks.append(Watch())
    trainer.val_check_interval = 3
    trainer.fit(make(), datamodule=make_data(split, batch_size=6))  # 3 batches per epoch
    one = [(1, 0, False), (2, 1, False), (3, 2, False), True]
    assert seen == [*one, (1, 3, False), (2, 4, False), (3, 5, False), True]
    assert internals.batches_between_validations(trainer) == 3


def test_children_are_forgotten(trainer):
    several = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=False, enable_checkpointing=False)
    several.strategy.launcher.procs.append("a process")
    internals.forget_children(several)
    assert several.strategy.launcher.procs == []
    internals.forget_children(trainer)  # it has started none


def test_the_steps_of_restoring_are_called_in_their_order(trainer, split, tmp_path):
    trainer.fit(make(), datamodule=make_data(split))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Trainer(accelerator="cpu", max_epochs=2, logger=False, enable_checkpointing=False)
    called = []

    def wrap(step):
        return lambda *args: called.append(bool(again.optimizers)) or step(*args)

    internals.around_restoring(again, wrap)
    again.fit(make(), datamodule=make_data(split), ckpt_path=str(tmp_path / "a.ckpt"), weights_only=True)
    assert called == [False, True]
    now, saved = internals.counters(again, torch.load(tmp_path / "a.ckpt", weights_only=True))
    assert now.keys() == saved.keys()


def test_advice_on_what_is_settled_is_not_given(trainer, split, caplog, recwarn):
    internals.silence_advice()  # pytest takes back what the import did
    for name in internals.QUIET_LOGGERS:
        assert logging.getLogger(name).level == logging.WARNING
    data = make_data(split)
    trainer.fit(make(), datamodule=data)
    trainer.test(make(), DataLoader([(torch.zeros(3, 32, 32, dtype=torch.uint8), 0)]), verbose=False)
    texts = [str(warning.message) for warning in recwarn if "lightning" in str(warning.filename)]
    assert not [text for text in texts if "workers" in text or "training batches" in text]


def test_the_progress_bar_counts_epochs_from_one(split, capsys):
    bar = internals.BarFromOne()
    assert callable(RichProgressBar._get_train_description)  # a rename would silently bring back the count from 0
    told = []

    class Watch(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            told.append(bar.progress.tasks[bar.train_progress_bar_id].description)

    quiet = {"logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
    several = Trainer(accelerator="cpu", callbacks=[bar, Watch()], max_epochs=2, limit_train_batches=1, **quiet)
    several.fit(make(), datamodule=make_data(split))
    assert ["Epoch 1/2" in told[0], "Epoch 2/2" in told[1]] == [True, True], told
    several.fit_loop.max_epochs = -1
    assert bar._get_train_description(4).strip() == "Epoch 5"
