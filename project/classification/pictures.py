"""Pictures of a run: the first batch as the network sees it, the confusion matrix, and the images that are wrong."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from project import printable
from project.callbacks import run_folder
from project.figures import MAX_IMAGES, grid_figure
from project.loggers import log_figure
from project.metrics import confusion_figure


class Pictures(Callback):
    """Log a grid of training images as the network sees them, and a confusion matrix after each validation."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        images, labels = batch
        first = trainer.is_global_zero and trainer.current_epoch == 0 and batch_idx == 0
        if first and images.ndim == 4:  # not if they are features
            figure = image_grid(images, labels, pl_module.class_names)
            log_figure(trainer, "train/images", figure, run_folder(trainer))

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        confusion = pl_module.eval_results.get("confusion")
        if trainer.is_global_zero and not trainer.sanity_checking and confusion is not None:
            figure = confusion_figure(confusion, pl_module.class_names)
            log_figure(trainer, "val/confusion_matrix", figure, run_folder(trainer))


def image_grid(images: Tensor, labels: Tensor, class_names: list[str]) -> Figure:
    """A grid of up to 16 training images, augmented as the network sees them, with the names of their classes.

    Args:
        images: uint8 or float `(B, 3, H, W)`, 0 to 255.
        labels: int64 `(B,)`, or float `(B, num_classes)` for mixed images, of which the strongest class is named.
        class_names: Class names, in the order of the labels.
    """
    pixels = images[:MAX_IMAGES].detach().to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    mixed = labels.ndim == 2
    names = [class_names[i] for i in (labels.argmax(dim=1) if mixed else labels).tolist()]
    titles = [printable(name, 14) + ("\n(mixed)" if mixed else "") for name in names[:MAX_IMAGES]]
    return grid_figure({"": list(zip(pixels, titles, strict=True))}, width=4.2)


def trust_figure(
    reliability: Sequence[tuple[float, float, float, float]], coverage: Sequence[tuple[float, float, float, float]]
) -> Figure:
    """How often a model is right where it states a probability, and where it answers for the surest images only.

    Args:
        reliability: What `groups` in `project/insight/trust.py` returned.
        coverage: What `coverage_curve` returned.
    """
    figure = Figure(figsize=(8, 3.6), dpi=110)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.08, right=0.97, bottom=0.15, top=0.95, wspace=0.25)
    x, y, low, high = np.array(reliability).reshape(-1, 4).T
    left.plot([0, 1], [0, 1], "--", color="grey", linewidth=1)
    left.errorbar(x, y, yerr=np.maximum([y - low, high - y], 0), fmt="o", color="tab:blue")
    left.set(xlabel="it says", ylabel="is right", xlim=(0, 1.02), ylim=(0, 1.02))
    x, y, low, high = np.array(coverage).reshape(-1, 4).T
    right.fill_between(x, low, high, alpha=0.25, color="tab:blue", linewidth=0)
    right.plot(x, y, color="tab:blue")
    right.set(xlabel="share of the images that it answers for", xlim=(0, 1))
    return figure
