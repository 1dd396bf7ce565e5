"""Linear probing before fine-tuning: compute the frozen backbone's features once, and fit the best linear head to them.

A new head is random, and the gradients that it first sends into the backbone undo what pretraining has learned.
So the head is first fitted on features, which takes seconds; fine-tuning starts from there ("linear probing, then
fine-tuning", LP-FT, Kumar et al. 2022, arXiv 2202.10054). If the backbone stays frozen, all epochs use the features.
"""

import logging
import os
import random
import shutil
from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from project import UserError
from project.classification import HEAD_START
from project.classification.data import ImageData
from project.classification.features import cached_features
from project.classification.model import ResNetClassifier
from project.linear_head import evaluate_head, fit_head
from project.splits import Samples
from project.trainer import best_of, is_limited, save_checkpoints

log = logging.getLogger(__name__)

MAX_IMAGES = 50_000  # more do not improve a linear head, and these still fit into memory
NORM_IMAGES = 256  # each image has many values per channel: the statistics are accurate to a few per cent


class HeadStart(Callback):
    """Before training, fit the head, log its validation metrics as step 0, and save it as the first checkpoint.

    The work is done in `setup`, where the model is still a plain module under any strategy, and before other callbacks
    copy it (weight averaging).
    """

    def __init__(self) -> None:
        self.val_features: Tensor | None = None  # (M, F), from the backbone that the head was fitted on
        self.train: tuple[Samples, Tensor] | None = None  # the training images that it had the features `(N, F)` of
        self.val_metrics: dict[str, Tensor] = {}
        self.scale = 1.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fit the head, and if the backbone is frozen, let all epochs use its features."""
        model, data = pl_module, trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(model, ResNetClassifier) and isinstance(data, ImageData)
        frozen = model.frozen and data.cache_features
        if stage == "fit" and model.frozen and not frozen:
            log.info("Frozen backbone: each epoch runs it over augmented images (--data.cache_features true: once)")
        if stage != "fit" or not (frozen or model.head_start):
            return
        if is_limited(trainer):
            log.info("Head start and feature cache are skipped, since the number of batches is limited")
            return
        train = data.samples["train"]
        if not frozen and len(train) > MAX_IMAGES:
            train = random.Random(0).sample(train, MAX_IMAGES)
        model.to(trainer.strategy.root_device)
        if not frozen and (trainer.max_epochs != 0 or model.keeps_head):
            adapt_norms(trainer, model, data, norm_samples(train, data.batch_size))
        train = [] if model.keeps_head else train  # nothing is fitted
        features = cached_features(trainer, model, data, train + data.samples["val"])
        of_train, self.val_features = features[: len(train)], features[len(train) :]
        self.train = (train, of_train) if train else None
        if frozen:
            data.use_features({"train": of_train, "val": self.val_features})
            log.info("Frozen backbone: all epochs use its features of the images, without augmentation")
        if model.head_start:
            labels, val_labels = data.labels(train), data.labels(data.samples["val"])
            if not model.keeps_head:
                norm = model.head.linear.weight.norm()
                set_head(trainer, model, data, (of_train, labels), (self.val_features, val_labels))
                self.scale = 1.0 if frozen else min(1.0, (norm / model.head.linear.weight.norm()).item())
            self.val_metrics = evaluate_head(trainer, model, self.val_features, val_labels)
            if model.keeps_head:
                which = "The head that these weights come with is kept: before training it gets"
            else:
                which = "Head start: the new head alone, on the frozen backbone, gets"
            log.info(f"{which} val top1 {self.val_metrics['val/top1']:.4f}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log and save the fitted head, before the first training step."""
        if not self.val_metrics:
            return
        for logger in trainer.loggers:
            logger.log_metrics({name: value.item() for name, value in self.val_metrics.items()}, step=0)
        save_checkpoints(trainer, True, self.val_metrics)
        self._keep(trainer, pl_module.frozen)  # type: ignore[arg-type]
        self.rescale_head(pl_module)
        if trainer.max_epochs == 0:  # otherwise there will soon be one
            save_checkpoints(trainer, False, self.val_metrics)

    def _keep(self, trainer: Trainer, frozen: bool) -> None:
        """Keep this first `best.ckpt` under a second name, for averages with it: a link, or else a copy."""
        best = best_of(trainer)
        if best is not None and trainer.max_epochs != 0 and trainer.is_global_zero and not frozen:
            kept = Path(best.best_model_path).with_name(HEAD_START)
            kept.unlink(missing_ok=True)
            try:
                os.link(best.best_model_path, kept)
            except OSError:
                shutil.copyfile(best.best_model_path, kept)

    def rescale_head(self, model: LightningModule) -> None:
        """Scale the fitted head down to the norm of a new one, which does not change the predicted classes.

        A confident head sends small gradients, so that the backbone learns less: without this, the test loss was higher
        on all three data sets with all three seeds (docs/benchmarks.md).
        """
        assert isinstance(model, ResNetClassifier)
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.mul_(self.scale)


def set_head(
    trainer: Trainer,
    model: ResNetClassifier,
    data: ImageData,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
) -> None:
    """Set the model's head to the best one for its features, fitted on at most `MAX_IMAGES` of them.

    Args:
        trainer: Provides the device, and makes the head the same on all processes.
        model: Its head is set.
        data: Provides the classes, and whether to balance them.
        train: Features `(N, F)` and labels int64 `(N,)`.
        val: Likewise, `(M, F)` and `(M,)`.
    """
    device = trainer.strategy.root_device
    some = torch.randperm(len(train[1]), generator=torch.Generator().manual_seed(0))[:MAX_IMAGES].sort().values
    features, labels = (tensor[some].to(device) for tensor in train)
    val_features, val_labels = (tensor.to(device) for tensor in val)
    balanced = data.balance != "none"
    class_weights = torch.tensor(data.inverse_frequencies, device=device) if balanced else None
    num_classes = len(data.class_names)
    weight, bias, _ = fit_head(features, labels, val_features, val_labels, num_classes, class_weights)
    weight, bias = trainer.strategy.broadcast((weight, bias))  # devices of different kinds round differently
    with torch.no_grad():
        model.head.linear.weight.copy_(weight)
        model.head.linear.bias.copy_(bias)


def norm_samples(train: Samples, batch_size: int) -> Samples:
    """A few images for `adapt_norms`, in full batches, since each batch has the same weight in the average."""
    some = random.Random(0).sample(train, min(len(train), NORM_IMAGES))
    return some[: len(some) // batch_size * batch_size or len(some)]


@torch.no_grad()
def adapt_norms(trainer: Trainer, model: ResNetClassifier, data: ImageData, samples: Samples) -> None:
    """Re-estimate the BatchNorm statistics on these images (AdaBN, Li et al. 2016, arXiv 1603.04779).

    In training, BatchNorm uses the statistics of the batch. A head fitted with those of the pretraining would no longer
    fit from the first step on, and its errors would damage the backbone, which the head start is meant to prevent.
    """
    kinds = (nn.BatchNorm1d, nn.BatchNorm2d)  # and what timm derives from them
    norms = [module for module in model.net.modules() if isinstance(module, kinds) and module.track_running_stats]
    if not norms:  # in networks with LayerNorm
        return
    log.info(f"BatchNorm: the statistics of {len(samples):,} training images take the place of those of before")
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over all batches
        norm.train()
    with trainer.precision_plugin.forward_context():  # around the loop, so that autocast keeps its cast weights
        for images, _ in data.image_loader(samples):
            model.features(images.to(model.device, non_blocking=True))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        for statistic in (norm.running_mean, norm.running_var):
            assert statistic is not None
            statistic.copy_(trainer.strategy.reduce(statistic, reduce_op="mean"))
            if not statistic.isfinite().all():
                raise UserError("the network's outputs are not finite on the training images: use other weights")
    model.train()
