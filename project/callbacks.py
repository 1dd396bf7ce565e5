"""Callbacks for what a run records and displays: its configuration, throughput and progress."""

import logging
import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from rich.console import Console

from project.files import write_text
from project.lightning_internals import BarFromOne
from project.optim import NO_DECAY

log = logging.getLogger(__name__)

ESTIMATE_AFTER = 5.0  # seconds


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
    """Log `train/images_per_second`, or what else the data's `UNIT` is, over all devices, without validation."""

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
        self.num_samples += len(batch[1])  # the targets, for the inputs may be a dictionary
        speed = self.num_samples * trainer.world_size / (time.perf_counter() - self.started)
        pl_module.log(f"train/{trainer.datamodule.UNIT}_per_second", speed, rank_zero_only=True)  # type: ignore[attr-defined]


class LearningRates(Callback):
    """Log the learning rate of each part of the model, `lr/PART`; groups that differ in weight decay only are one."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_logging_step(trainer):
            groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
            rates = {f"lr/{group['name'].removesuffix(NO_DECAY)}": group["lr"] for group in groups}
            for logger in trainer.loggers:
                logger.log_metrics(rates, step=trainer.global_step - 1)


class EpochLines(Callback):
    """Log the training figures of each epoch and one line: losses, the monitored metric, time taken and remaining.

    If an epoch takes long, its first steps give an estimate of the whole training.

    Args:
        monitor: The validation metric to show.
        mode: Whether it is to be large or small.
    """

    def __init__(self, monitor: str, mode: Literal["min", "max"] = "max") -> None:
        self.monitor = monitor
        self.sign = 1 if mode == "max" else -1
        self.best: float | None = None
        self.started = self.epoch_started = self.first_step = 0.0  # in this process
        self.steps: int | None = 0  # since the first one; None once the time has been estimated
        self.first_epoch = 0
        self.validated = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checkpoints = [c for c in trainer.checkpoint_callbacks if getattr(c, "monitor", None) == self.monitor]
        score = getattr(checkpoints[0], "best_model_score", None) if checkpoints else None
        self.best = None if score is None else float(score)  # of the head start, or before a resume
        self.started = self.epoch_started = time.monotonic()  # a run resumed within an epoch does not start that again
        self.first_epoch = trainer.current_epoch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epoch_started = time.monotonic()
        self.validated = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.steps is None:
            return
        if self.steps == 0:  # the first step waits for the workers
            self.first_step = time.monotonic()
        self.steps += 1
        seconds = time.monotonic() - self.first_step
        if trainer.current_epoch > self.first_epoch:
            self.steps = None  # the line of the first epoch has said it
        elif seconds > ESTIMATE_AFTER and self.steps > 2:
            left = ((trainer.max_epochs or -1) - trainer.current_epoch) * trainer.num_training_batches
            if 0 < left < math.inf:
                whole = timedelta(seconds=round(seconds / (self.steps - 1) * left))
                log.info(f"Training will take about {whole}, judging from its first {self.steps} steps")
            self.steps = None

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        figures = {
            k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train/") and k.endswith("_epoch")
        }
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **figures}, step=trainer.global_step - 1)
        names = {"train/loss_epoch": "train loss", "val/loss": "val loss", self.monitor: self.monitor.replace("/", " ")}
        shown = [name for name in names if name.startswith("train") or self.validated]
        metrics = {name: float(trainer.callback_metrics[name]) for name in shown if name in trainer.callback_metrics}
        parts = [f"{names[name]} {value:.3f}" for name, value in metrics.items()]
        value = metrics.get(self.monitor)
        if value is not None and (self.best is None or self.sign * value > self.sign * self.best):
            self.best = value
            parts[-1] += " (new best)"
        now, done, planned = time.monotonic(), trainer.current_epoch + 1, trainer.max_epochs or -1
        parts.append(f"{now - self.epoch_started:.1f} s")
        if planned > done:
            left = (now - self.started) / (done - self.first_epoch) * (planned - done)
            parts.append(f"{timedelta(seconds=round(left))} left")
        log.info(f"Epoch {done}{f' of {planned}' if planned > 0 else ''}: {', '.join(parts)}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for stopper in trainer.early_stopping_callbacks:
            if stopper.stopped_epoch:  # type: ignore[attr-defined]
                log.info(f"EarlyStopping has ended the training, by {stopper.monitor}")  # type: ignore[attr-defined]


class ProgressBar(BarFromOne):
    """Lightning's rich progress bar, on stderr if that is a terminal or a notebook, with epochs counted from 1."""

    def __init__(self) -> None:
        super().__init__(console_kwargs={"stderr": True})
        console = Console(stderr=True)
        if not (console.is_terminal or console.is_jupyter):
            self.disable()  # in a file, what remains of it is one line at the end that says nothing
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


@rank_zero_only
def write_logs(trainer: Trainer) -> None:
    """Let the loggers write what they still have in memory."""
    for logger in trainer.loggers:
        logger.save()
