"""Every use of Lightning's undocumented parts, with one function for each and a test that calls it.

`pyproject.toml` limits the version of Lightning. If a new version renames something,
`tests/test_lightning_internals.py` fails, and only this file needs to change.
"""

import logging
import warnings
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from torch import Tensor

# Loggers that advise on matters settled here
QUIET_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.tuner.batch_size_scaling",
    "lightning.fabric.utilities.seed",
)
# Warnings that do the same, as regular expressions
QUIET_WARNINGS = (
    "does not have many workers",
    "The number of training batches",
    "Checkpoint directory .* exists",
    "The dirpath has changed",
    "Experiment logs directory .* exists and is not empty",  # it is the run folder, and what was logged stays
    "Found .* in eval mode at the start of training",  # a frozen backbone should be
    "your dataloader is not resumable",  # our sampler makes it resumable
    "It is recommended to use .*sync_dist=True",  # our metrics are already reduced over all processes
    ".isinstance.treespec, LeafSpec.. is deprecated",  # Lightning's own use of torch
    "Glyph .* missing from",  # matplotlib's, one for each letter; project/metrics.py says it once
)


def silence_advice() -> None:
    """Silence Lightning's advice on what is settled here."""
    for name in QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    for text in QUIET_WARNINGS:
        warnings.filterwarnings("ignore", f".*{text}")


silence_advice()


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep Lightning from handling signals; `project/cli.py` and `project/safety.py` do that.

    Lightning's handlers communicate with the other processes from within a signal handler, which can deadlock, and
    under SLURM save in the middle of a step. It offers no way to disable them (issue 1455 of its repository).
    """
    connector = trainer._signal_connector
    assert callable(connector.register_signal_handlers)  # a rename would silently bring back Lightning's handlers
    connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def batches_done(trainer: Trainer) -> int:
    """Number of training batches of the current epoch whose step is done.

    Lightning increments its own counter, `completed`, only after the hook in which we save.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]


def batches_done_in_all(trainer: Trainer) -> int:
    """Index of the current training batch, counted over all epochs."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def epoch_is_over(trainer: Trainer) -> bool:
    """Whether the current epoch is past its last batch but has not ended."""
    progress = trainer.fit_loop.epoch_progress.current
    return progress.processed > progress.completed  # type: ignore[attr-defined]


def start_epoch_again(checkpoint: dict[str, Any]) -> None:
    """Change the content of a checkpoint that was saved after a batch so that its epoch starts from the first one.

    Steps and batches that are counted over all epochs stay.
    """
    loop = checkpoint["loops"]["fit_loop"]
    batches = loop["epoch_loop.batch_progress"]
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["total"]["completed"] = batches["total"]["processed"]  # or Lightning would count the last batch as done
    loop["epoch_loop.state_dict"]["_batches_that_stepped"] += 1  # as it does for a batch


def around_restoring(trainer: Trainer, wrap: Callable[[Callable[..., None]], Callable[..., None]]) -> None:
    """Replace the two steps in which Lightning restores a checkpoint by `wrap(step)`.

    The first one restores the model and the callbacks, the second one the optimizers, schedules and counters.
    """
    connector = trainer._checkpoint_connector
    for name in ("_restore_modules_and_callbacks", "restore_training_state"):
        setattr(connector, name, wrap(getattr(connector, name)))


def counters(trainer: Trainer, checkpoint: dict[str, Any]) -> tuple[dict[str, Any], Any]:
    """What the trainer has counted of epochs, batches and steps, and what the content of a checkpoint says of them.

    Raises:
        KeyError, TypeError: It says nothing.
    """
    return trainer.fit_loop.state_dict(), checkpoint["loops"]["fit_loop"]


def batches_between_validations(trainer: Trainer) -> int | float | None:
    """Training batches between validations, with `--val_check_interval` resolved; infinity for never."""
    return trainer.val_check_batch


def save_with_metrics(trainer: Trainer, callback: ModelCheckpoint, metrics: dict[str, Tensor]) -> None:
    """Let a checkpoint callback save now, as after a validation with these metrics, which are scalars.

    If it monitors a metric that is not among them, it does not save.
    """
    candidates = {**callback._monitor_candidates(trainer), **metrics}
    if callback.monitor is None or callback.monitor in candidates:
        callback._save_topk_checkpoint(trainer, candidates)


def forget_children(trainer: Trainer) -> None:
    """Allow the processes that this one started to exit with any status; otherwise Lightning kills this one, too."""
    launcher: Any = trainer.strategy.launcher
    if hasattr(launcher, "procs"):  # the launcher of a single process has none
        launcher.procs.clear()


class BarFromOne(RichProgressBar):
    """Lightning's rich progress bar, which counts epochs from 0, but from 1."""

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_epochs
        text = f"Epoch {current_epoch + 1}" + (f"/{epochs}" if epochs is not None and epochs > 0 else "")
        return text.ljust(len(self.validation_description))  # or the bars of training and validation would not align
