"""What a run keeps and shows while it trains: its configuration, its speed, its progress."""

import time
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from project.files import write_text


class RunFolder(Callback):
    """Put the resolved configuration into the run's folder, as `config.yaml`, and into every checkpoint, as `config`.

    Args:
        folder: The run's folder, whatever the logger; None where nothing is to be kept.
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
    """The folder of the run, on the process that writes; None if there is none."""
    folders = [c.folder for c in trainer.callbacks if isinstance(c, RunFolder)]  # type: ignore[attr-defined]
    return folders[0] if folders and trainer.is_global_zero else None


class Throughput(Callback):
    """Log `train/images_per_second`: training samples of all devices together, validation left out."""

    def __init__(self) -> None:
        self.started: float | None = None
        self.num_samples = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = None  # so that the time of the validation is not counted

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.started is None:  # the clock starts after an epoch's first batch, which waits for the workers
            self.started, self.num_samples = time.perf_counter(), 0
            return
        self.num_samples += len(batch[0])
        speed = self.num_samples * trainer.world_size / (time.perf_counter() - self.started)
        pl_module.log("train/images_per_second", speed, rank_zero_only=True)


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar, on stderr, with no more metrics than fit beside it."""

    def __init__(self) -> None:
        super().__init__(console_kwargs={"stderr": True})
        self.shown: dict[str, Any] = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The metrics to show; in training they are read only in steps in which the logger reads them anyway."""
        if not trainer.training or is_logging_step(trainer):
            metrics = super().get_metrics(trainer, pl_module)
            self.shown = {name: value for name, value in metrics.items() if name != "v_num"}
        return self.shown


def is_logging_step(trainer: Trainer) -> bool:
    """Whether metrics are logged after this optimizer step, which synchronizes with the device."""
    every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and trainer.global_step % every == 0
