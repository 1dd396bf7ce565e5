"""Callbacks for what a run records and displays: its configuration, throughput and progress."""

import logging
import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from project.files import write_text
from project.lightning_internals import BarFromOne

log = logging.getLogger(__name__)


class RunFolder(Callback):
    """Save the resolved configuration in the run folder, as `config.yaml`, and in every checkpoint, as `config`.

    Args:
        folder: The run folder, whichever logger is used; None to write no file.
        config: JSON types only, so that checkpoints stay loadable with `weights_only=True`.
    """

    def __init__(self, folder: Path | None, config: dict[str, Any]) -> None:
        self.folder = folder
        self.config = config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.is_global_zero and self.folder is not None:
            text = yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True)
            write_text(self.folder / "config.yaml", text)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config


def run_folder(trainer: Trainer) -> Path | None:
    """The run folder, on the process that writes to it; None on others, or if there is none."""
    folders = [c.folder for c in trainer.callbacks if isinstance(c, RunFolder)]  # type: ignore[attr-defined]
    return folders[0] if folders and trainer.is_global_zero else None


class Throughput(Callback):
    """Log `train/images_per_second`, over all devices; validation between epochs is not counted."""

    def __init__(self) -> None:
        self.started: float | None = None
        self.num_samples = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = None  # leaves out the validation between epochs

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.started is None:  # the clock starts after the epoch's first batch, which waits for the workers
            self.started, self.num_samples = time.perf_counter(), 0
            return
        self.num_samples += len(batch[0])
        speed = self.num_samples * trainer.world_size / (time.perf_counter() - self.started)
        pl_module.log("train/images_per_second", speed, rank_zero_only=True)


class EpochLines(Callback):
    """Log one line per epoch, in a terminal or to a file: losses, the monitored metric, time taken and remaining.

    Args:
        monitor: The validation metric to show; larger is better.
    """

    def __init__(self, monitor: str) -> None:
        self.monitor = monitor
        self.best = -math.inf
        self.started = self.epoch_started = 0.0  # training and the epoch, in this process
        self.first_epoch = 0
        self.validated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checkpoints = [c for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None) == self.monitor]
        score = getattr(checkpoints[0], "best_model_score", None) if checkpoints else None
        self.best = -math.inf if score is None else float(score)  # of the head start, or before a resume
        self.started = self.epoch_started = time.monotonic()  # a run resumed within an epoch does not start that again
        self.first_epoch = trainer.current_epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epoch_started = time.monotonic()
        self.validated = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        names = {"train/loss_epoch": "train loss", "val/loss": "val loss", self.monitor: self.monitor.replace("/", " ")}
        shown = [name for name in names if name.startswith("train") or self.validated]
        metrics = {name: float(trainer.callback_metrics[name]) for name in shown if name in trainer.callback_metrics}
        parts = [f"{names[name]} {value:.3f}" for name, value in metrics.items()]
        if metrics.get(self.monitor, -math.inf) > self.best:
            self.best = metrics[self.monitor]
            parts[-1] += " (new best)"
        now, done, planned = time.monotonic(), trainer.current_epoch + 1, trainer.max_epochs or -1
        parts.append(f"{now - self.epoch_started:.1f} s")
        if planned > done:
            left = (now - self.started) / (done - self.first_epoch) * (planned - done)
            parts.append(f"{timedelta(seconds=round(left))} left")
        log.info(f"Epoch {done}{f' of {planned}' if planned > 0 else ''}: {', '.join(parts)}")


class ProgressBar(BarFromOne):
    """Lightning's rich progress bar, on stderr, without the version number, and with epochs counted from 1."""

    def __init__(self) -> None:
        super().__init__(console_kwargs={"stderr": True})
        self.shown: dict[str, Any] = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics to show; during training, they are read only in steps in which the logger reads them anyway."""
        if not trainer.training or is_logging_step(trainer):
            metrics = super().get_metrics(trainer, pl_module)
            self.shown = {name: value for name, value in metrics.items() if name != "v_num"}
        return self.shown


def is_logging_step(trainer: Trainer) -> bool:
    """Whether metrics are logged after this optimizer step; reading them synchronizes with the device."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and trainer.global_step % every == 0
