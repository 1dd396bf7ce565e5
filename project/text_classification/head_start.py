"""Linear probing before fine-tuning: compute the frozen encoder's features once, and fit the best linear head to them.

A new head is random, and the gradients that it first sends into the encoder undo what pretraining has learned. So the
head is first fitted on features, which takes seconds; fine-tuning starts from there ("linear probing, then
fine-tuning", LP-FT, Kumar et al. 2022, arXiv 2202.10054). If the encoder stays frozen, all epochs use the features.
"""

import json
import logging
from hashlib import blake2b
from importlib.metadata import version

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from project.features import cached
from project.linear_head import evaluate_head, fit_head
from project.loading import gather_in_order
from project.progress import shown
from project.text_classification.data import TextData
from project.text_classification.model import TextClassifier
from project.trainer import is_limited, save_checkpoints

log = logging.getLogger(__name__)

MAX_TEXTS = 50_000  # more do not improve a linear head


class HeadStart(Callback):
    """Before training, fit the head, log its validation metrics as step 0, and save it as the first checkpoint.

    The work is done in `setup`, where the model is still a plain module under any strategy.

    Attributes:
        features: Those of the texts of `train` and `val`, `(N, F)`, from the encoder that the head was fitted on.
        val_metrics: What the fitted head reaches; empty without a head start.
    """

    def __init__(self) -> None:
        self.features: dict[str, Tensor] = {}
        self.val_metrics: dict[str, Tensor] = {}
        self.scale = 1.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Fit the head, and if the encoder is frozen, let all epochs use its features."""
        model, data = pl_module, trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(model, TextClassifier) and isinstance(data, TextData)
        if stage != "fit" or not (model.frozen or model.head_start):
            return
        if is_limited(trainer):
            log.info("Head start and feature cache are skipped, since the number of batches is limited")
            return
        model.to(trainer.strategy.root_device)
        self.features = {split: cached_features(trainer, model, data, split) for split in ("train", "val")}
        if model.frozen:
            data.use_features(self.features)
            log.info("Frozen encoder: all epochs use its features of the texts")
        if model.head_start:
            labels = {split: data.labels(data.samples[split]) for split in self.features}
            norm = model.head.linear.weight.norm()
            set_head(trainer, model, self.features, labels)
            self.scale = 1.0 if model.frozen else min(1.0, (norm / model.head.linear.weight.norm()).item())
            self.val_metrics = evaluate_head(trainer, model, self.features["val"], labels["val"])
            top1 = self.val_metrics["val/top1"]
            log.info(f"Head start: the new head alone, on the frozen encoder, gets val top1 {top1:.4f}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log and save the fitted head, before the first training step."""
        if not self.val_metrics:
            return
        for logger in trainer.loggers:
            logger.log_metrics({name: value.item() for name, value in self.val_metrics.items()}, step=0)
        save_checkpoints(trainer, True, self.val_metrics)
        self.rescale_head(pl_module)
        if trainer.max_epochs == 0:  # otherwise there will soon be one
            save_checkpoints(trainer, False, self.val_metrics)

    def rescale_head(self, model: LightningModule) -> None:
        """Scale the fitted head down to the norm of a new one, which does not change the predicted classes.

        A confident head sends small gradients, so that the encoder learns less.
        """
        assert isinstance(model, TextClassifier)
        with torch.no_grad():
            for parameter in model.head.parameters():
                parameter.mul_(self.scale)


def cached_features(trainer: Trainer, model: TextClassifier, data: TextData, split: str) -> Tensor:
    """The encoder's features of a split as in evaluation, `(N, F)` on the CPU: from the cache, or computed and cached.

    The cache key covers all that they depend on: texts, tokenizer, weights, pooling, precision and version of the code.

    Args:
        trainer: Provides the device, the precision and the processes.
        model: The classifier, on the device.
        data: Provides the texts, in batches of like lengths.
        split: Name of the split.
    """
    texts = [text for text, _ in data.samples[split]]
    key = blake2b(digest_size=16)
    settings = [model.config, data.max_length, model.hparams["pooling"], trainer.precision, version("transformers")]
    key.update(json.dumps([settings, texts, model.tokenizer.content]).encode())
    for name, tensor in model.net.state_dict().items():
        key.update(name.encode() + tensor.cpu().numpy().tobytes())
    shape = (len(texts), model.head.linear.in_features)
    return cached(trainer, key.hexdigest(), shape, lambda: compute_features(trainer, model, data, split))


@torch.no_grad()
def compute_features(trainer: Trainer, model: TextClassifier, data: TextData, split: str) -> Tensor:
    """Run the encoder over a split, divided among the processes; returns all features, float32 `(N, F)` on the CPU.

    Arguments as for `cached_features`.
    """
    model.eval()
    mine = []
    batches = shown(data.split_loader(split), "Computing features", here=trainer.is_global_zero)
    try:
        with trainer.precision_plugin.forward_context():
            for inputs, _ in batches:
                on_device = {name: part.to(model.device, non_blocking=True) for name, part in inputs.items()}
                mine.append(model.features(on_device).float())
    finally:
        model.train()
    return gather_in_order(trainer, torch.cat(mine), len(data.samples[split]))


def set_head(trainer: Trainer, model: TextClassifier, features: dict[str, Tensor], labels: dict[str, Tensor]) -> None:
    """Set the model's head to the best one for its features, fitted on at most `MAX_TEXTS` of them.

    Args:
        trainer: Provides the device, and makes the head the same on all processes.
        model: Its head is set.
        features: Of `train` and `val`, `(N, F)`.
        labels: Likewise, int64 `(N,)`.
    """
    device = trainer.strategy.root_device
    some = torch.randperm(len(labels["train"]), generator=torch.Generator().manual_seed(0))[:MAX_TEXTS].sort().values
    features, labels = ({**of, "train": of["train"][some]} for of in (features, labels))
    (x, val_x), (y, val_y) = ([of[split].to(device) for split in ("train", "val")] for of in (features, labels))
    weight, bias, _ = fit_head(x, y, val_x, val_y, len(model.class_names), model.class_weights)
    weight, bias = trainer.strategy.broadcast((weight, bias))  # devices of different kinds round differently
    with torch.no_grad():
        model.head.linear.weight.copy_(weight)
        model.head.linear.bias.copy_(bias)
