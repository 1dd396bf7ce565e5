"""Figures that are logged in training: the first batch as the network sees it, and the confusion matrix."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from project.callbacks import run_folder
from project.classification.model import ResNetClassifier
from project.loggers import log_figure
from project.metrics import confusion_figure


class Pictures(Callback):
    """Log a grid of training images as the network sees them, and a confusion matrix after each validation."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, ResNetClassifier)
        images, labels = batch
        first = trainer.is_global_zero and trainer.current_epoch == 0 and batch_idx == 0
        if first and images.ndim == 4:  # not if they are features
            figure = image_grid(images, labels, pl_module.class_names)
            log_figure(trainer, "train/images", figure, run_folder(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, ResNetClassifier)
        if trainer.is_global_zero and not trainer.sanity_checking:
            figure = confusion_figure(pl_module.eval_results["confusion"], pl_module.class_names)
            log_figure(trainer, "val/confusion_matrix", figure, run_folder(trainer))


def image_grid(images: Tensor, labels: Tensor, class_names: list[str], limit: int = 16) -> Figure:
    """A grid of training images, augmented as the network sees them, with the names of their classes.

    Args:
        images: uint8 or float `(B, 3, H, W)`, 0 to 255.
        labels: int64 `(B,)`, or float `(B, num_classes)` for mixed images, of which the strongest class is named.
        class_names: Class names, in the order of the labels.
        limit: Maximum number of images shown.
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
