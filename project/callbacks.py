"""What a run leaves behind: its configuration, and pictures and speed in TensorBoard."""

import time
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.tensorboard.writer import SummaryWriter

from project.metrics import confusion_figure
from project.model import ResNetClassifier


class SaveConfig(Callback):
    """Put the resolved configuration beside the run, as `config.yaml`, and into every checkpoint, as `config`.

    Args:
        config: JSON types only, so that checkpoints stay loadable with `weights_only=True`.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = trainer.log_dir  # asked by every process, because it is broadcast
        if stage == "fit" and trainer.is_global_zero and folder and trainer.loggers:
            path = Path(folder, "config.yaml")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(yaml.safe_dump(self.config, sort_keys=False, allow_unicode=True), encoding="utf-8")

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["config"] = self.config


class Monitor(Callback):
    """Images a second; a confusion matrix after each validation; a grid of training images as the network sees them."""

    def __init__(self) -> None:
        self.started: float | None = None
        self.num_images = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.started = None  # so that the time of the validation is not counted

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ResNetClassifier)
        images, labels = batch
        if self.started is None:  # the clock starts after an epoch's first batch, which waits for the workers
            board = tensorboard(trainer)
            if board and trainer.current_epoch == 0 and batch_idx == 0 and images.ndim == 4:
                board.add_figure("train/images", image_grid(images, labels, pl_module.class_names), trainer.global_step)
            self.started, self.num_images = time.perf_counter(), 0
            return
        self.num_images += len(images)
        if trainer._logger_connector.should_update_logs:
            speed = self.num_images * trainer.world_size / (time.perf_counter() - self.started)
            pl_module.log("train/images_per_second", speed, rank_zero_only=True)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ResNetClassifier)
        if not trainer.sanity_checking and (board := tensorboard(trainer)):
            picture = confusion_figure(pl_module.results["confusion"], pl_module.class_names)
            board.add_figure("val/confusion_matrix", picture, trainer.global_step)


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar, on stderr, with no more metrics than fit beside it."""

    def __init__(self) -> None:
        super().__init__(console_kwargs={"stderr": True})
        self.shown: dict[str, Any] = {}

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        # To read a value is to wait for the device: in training only where the logger waits for it anyway
        if not trainer.training or trainer._logger_connector.should_update_logs:
            metrics = super().get_metrics(trainer, pl_module)
            self.shown = {name: value for name, value in metrics.items() if name != "v_num"}
        return self.shown


def tensorboard(trainer: Trainer) -> SummaryWriter | None:
    """TensorBoard's writer, on the process that writes, if TensorBoard is the logger."""
    if trainer.is_global_zero and isinstance(trainer.logger, TensorBoardLogger):
        return trainer.logger.experiment
    return None


def image_grid(images: Tensor, labels: Tensor, class_names: list[str], limit: int = 16) -> Figure:
    """Training images, augmented as the network gets them, under the names of their classes.

    Args:
        images: uint8 or float `(B, 3, H, W)`, 0 to 255.
        labels: int64 `(B,)`, or float `(B, num_classes)` where images are mixed: then the strongest class is named.
        class_names: Names in the order of the labels.
        limit: At most this many images are shown.
    """
    images = images[:limit].detach().to("cpu", torch.uint8).permute(0, 2, 3, 1)
    mixed = labels.ndim == 2
    labels = (labels.argmax(dim=1) if mixed else labels).cpu()
    columns = min(8, len(images))
    rows = -(-len(images) // columns)
    figure = Figure(figsize=(1.5 * columns, 1.75 * rows), layout="constrained")
    for i, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.axis("off")
        if i < len(images):
            axes.imshow(images[i].numpy())
            axes.set_title(class_names[labels[i]] + (" (mixed)" if mixed else ""), fontsize=9)
    return figure
