"""All that this project uses of Lightning's undocumented parts: one function each, and a test that calls every one.

`pyproject.toml` bounds Lightning's version. When a new one renames something, `tests/test_lightning_internals.py`
fails, and this is the only file to change.
"""

from typing import Any

from lightning.pytorch import Trainer

# Loggers whose messages advise on what is settled here
QUIET_LOGGERS = (
    "lightning.pytorch.utilities.rank_zero",
    "lightning.pytorch.trainer.connectors.checkpoint_connector",
    "lightning.pytorch.tuner.batch_size_scaling",
    "lightning.fabric.utilities.seed",
)
# Warnings of the same kind, as regular expressions
QUIET_WARNINGS = (
    "does not have many workers",
    "The number of training batches",
    "Checkpoint directory .* exists",
    "The dirpath has changed",
    "Found .* in eval mode at the start of training",  # a frozen backbone is
    "your dataloader is not resumable",  # our sampler is
    "It is recommended to use .*sync_dist=True",  # the metrics are those of all processes already
    ".isinstance.treespec, LeafSpec.. is deprecated",  # Lightning's own use of torch
)


def leave_signals_alone(trainer: Trainer) -> None:
    """Keep Lightning from handling signals; `project/cli.py` and `project/safety.py` do.

    Lightning's handlers ask the other processes from within a signal, where they may wait for each other, and under
    SLURM save in the middle of a step. It offers no way to switch them off (issue 1455 of its repository).
    """
    connector = trainer._signal_connector
    assert callable(connector.register_signal_handlers)  # a new name would bring Lightning's handlers back, silently
    connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]


def batches_done(trainer: Trainer) -> int:
    """Training batches of the current epoch whose step is done.

    Lightning's `completed` is counted up only after the hook in which a step is saved.
    """
    return trainer.fit_loop.epoch_loop.batch_progress.current.processed  # type: ignore[attr-defined]


def batches_done_in_all(trainer: Trainer) -> int:
    """Index of the current training batch, counted over all epochs."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def epoch_is_over(trainer: Trainer) -> bool:
    """Whether the current epoch is between its last batch and its end."""
    progress = trainer.fit_loop.epoch_progress.current
    return progress.processed > progress.completed  # type: ignore[attr-defined]


def batches_between_validations(trainer: Trainer) -> int | float | None:
    """Training batches from one validation to the next, `--val_check_interval` resolved; infinity for never."""
    return trainer.val_check_batch


def forget_children(trainer: Trainer) -> None:
    """Let the processes that this one has started end in any status: else Lightning kills this one, too."""
    launcher: Any = trainer.strategy.launcher
    if hasattr(launcher, "procs"):  # that of a single process has none
        launcher.procs.clear()
