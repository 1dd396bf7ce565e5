"""The model: a pretrained network with a new head, its loss, metrics and optimizer."""

import os
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from project import INFINITY, UserError, check_ranges, shortest
from project.answers import check_finite
from project.backbones import Head, make_net, normalization, replace_head
from project.checkpoint import load_model, open_checkpoint
from project.classification.datasets import eval_reader
from project.metrics import EvalMetrics, Mean, most_probable
from project.optim import GROUP_NAMES, OptimizerName, Schedule, make_optimizers, param_groups
from project.preprocessing import Preprocessing, check_preprocessing
from project.pruning import fit_widths
from project.scoring import Scored
from project.weights import find_architecture


class ResNetClassifier(Scored):
    """A network whose last layer is replaced by dropout and a linear layer for the given classes.

    By default it is a ResNet, but any that `project/backbones.py` can build will do.

    The arguments before the `*` are set by the program; those after it are the options `--model.NAME`.

    Args:
        class_names: Names of the classes, in the order of the outputs. They are saved with the weights, like everything
            else that a reload needs.
        preprocessing: How images are resized and cropped, and the mean and standard deviation with which `forward`
            normalizes them.
        class_weights: Weight of each class in the training loss; all 1 by default.
        net: The network, if `make_net` has already built it; otherwise it is built from `arch` and `weights`.
        teacher_sha256: The hash of the teacher's file, if there is one; a resumed run learns from the same.
        temperature: What the logits are divided by, see `project/classification/confidence.py`; 1 in training.
        arch: A classification network of torchvision (`resnet50`, `efficientnet_b0`, `vit_b_16`, …), or of timm:
            `timm/NAME`.
        weights: Initial weights: `DEFAULT` or a torchvision name such as `IMAGENET1K_V1`, downloaded once; the path of
            a `.pth` or `.safetensors` state dict or of a checkpoint of this project; or `none` for random weights.
        fine_tune: `full` trains all layers; `head` trains only the new head, on a frozen backbone with BatchNorm in
            eval mode. `gradual`, which unfroze the backbone step by step, did not improve top-1: it now means `full`.
        dropout: Probability of dropping a feature before the linear layer.
        optimizer: SGD has Nesterov momentum; Adam's decay is an L2 penalty, AdamW's is decoupled (arXiv 1711.05101).
        lr: Peak learning rate of the head.
        backbone_lr_factor: Learning rate of the backbone relative to the head's: pretrained layers need less change.
        momentum: Momentum of SGD.
        weight_decay: Applied to weight matrices and kernels only, never to norms and biases.
        schedule: After the warm-up, decay to 0 along a cosine, or stay constant.
        warmup_ratio: Fraction of all steps in which the learning rate rises linearly.
        label_smoothing: Fraction of the target that is spread over all classes, in training.
        head_start: Linear probing before fine-tuning (LP-FT, arXiv 2202.10054): first fit the head on the features of
            the frozen backbone, see `project/classification/head_start.py`. By default if the weights are pretrained.
        teacher: A checkpoint of this project with the same classes, from whose probabilities the model learns besides
            the labels, see `project/classification/distillation.py`. If `weights` are a checkpoint with these classes,
            too, such as a pruned one, their head and preprocessing are kept, and there is no head start.

    Raises:
        UserError: An option is out of range; or the weights cannot be obtained, or belong to another architecture.
    """

    MONITOR = "val/top1"  # selects the best checkpoint, by default
    RANGES: ClassVar = {
        "dropout": (0, 1),
        "lr": (0, INFINITY),
        "backbone_lr_factor": (0, INFINITY),
        "momentum": (0, 1),
        "weight_decay": (0, INFINITY),
        "warmup_ratio": (0, 1),
        "label_smoothing": (0, 1),
    }
    MAIN_OPTIONS: ClassVar = {  # those that `--help` shows
        "arch": "the network: resnet18, resnet34, resnet50, …",
        "weights": "pretrained weights: a name, a file, or none [the newest of torchvision]",
        "fine_tune": "full: all layers; head: only the new last one, which is much faster",
        "lr": "learning rate of the head",
    }
    REMOVED = ()  # options of older versions
    RENAMED: ClassVar = {"fine_tune": {"gradual": "full"}}  # values of older versions
    # Options that a resumed run cannot change; the last ones are in the state of its optimizer
    FIXED = ("arch", "fine_tune", "optimizer", "lr", "backbone_lr_factor", "momentum", "weight_decay")

    GROUPS = GROUP_NAMES  # of the optimizer's parameters

    net: nn.Module
    mean: Tensor
    std: Tensor
    class_weights: Tensor | None
    keeps_head = False  # that the weights come with, see `keep_head`
    teacher: Any = None  # see `Teacher`, which is no module
    unlike: Callable[[Tensor], Tensor] | None = None  # see `Confidence`, in prediction

    def __init__(
        self,
        class_names: list[str],
        preprocessing: Preprocessing,
        class_weights: list[float] | None = None,
        net: nn.Module | None = None,
        teacher_sha256: str | None = None,
        temperature: float = 1.0,
        *,
        arch: str = "resnet50",
        weights: str = "DEFAULT",
        fine_tune: Literal["full", "head", "gradual"] = "full",
        dropout: float = 0.0,
        optimizer: OptimizerName = "adamw",
        lr: float = 1e-3,
        backbone_lr_factor: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 0.05,
        schedule: Schedule = "cosine",
        warmup_ratio: float = 0.1,
        label_smoothing: float = 0.0,
        head_start: bool | None = None,
        teacher: str | None = None,
    ) -> None:
        super().__init__(class_names)
        self.save_hyperparameters(ignore="net")
        self.check_options(**self.hparams)
        self.head_start = has_head_start(weights, head_start)
        self.preprocessing, self.temperature = preprocessing, temperature
        self.net = make_net(arch, weights, preprocessing["crop_size"]) if net is None else net
        self.head_name = replace_head(self.net, arch, dropout, len(class_names))
        self.net.to(memory_format=torch.channels_last)  # the memory layout in which convolutions are fastest
        # By name, because FSDP flattens all parameters before the optimizer is created.
        self.decayed = {name for name, p in self.net.named_parameters() if p.ndim > 1 and name.endswith("weight")}
        if self.frozen:
            self.net.requires_grad_(False)
            self.head.requires_grad_(True)
        # Not persistent: the hyperparameters restore them, and the state dict is that of the network alone.
        for name, value in normalization(preprocessing).items():
            self.register_buffer(name, value, persistent=False)
        loss_weights = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", loss_weights, persistent=False)
        top1 = MulticlassAccuracy(len(class_names), average="micro", validate_args=False)
        self.train_metrics = cast(dict[str, Metric], nn.ModuleDict({"loss": Mean(), "top1": top1}))  # over an epoch
        self.val_metrics = EvalMetrics(len(class_names))

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Reject what `__init__` would, as far as possible without the weights. Raises `UserError`."""
        check_ranges("model.", cls.RANGES, options)
        find_architecture(options["arch"])
        if options.get("teacher") is not None and options["fine_tune"] == "head":
            raise UserError("--model.teacher: it teaches all layers; use --model.fine_tune full")
        temperature = options.get("temperature", 1.0)
        if not isinstance(temperature, float) or not 0.01 <= temperature <= 100:
            raise UserError(f"the model's temperature is {temperature!r:.40}, not a number from 0.01 to 100")
        if "preprocessing" in options:
            check_preprocessing(options["preprocessing"])
            normalization(options["preprocessing"])

    @classmethod
    def monitors(cls) -> dict[str, Literal["min", "max"]]:
        """The metrics that can select the best checkpoint, and whether they are to be small or large."""
        return {f"val/{name}": mode for name, mode in EvalMetrics.modes().items()}

    @property
    def head(self) -> Head:
        """Dropout and the new last layer."""
        return cast(Head, self.net.get_submodule(self.head_name))

    @property
    def frozen(self) -> bool:
        """Whether only the head is trained."""
        return self.hparams["fine_tune"] == "head"

    def fit_widths(self, state: Mapping[str, Tensor]) -> None:
        """Cut the network to the widths of a state dict of this model, that of a pruned one. Raises `ValueError`."""
        if fit_widths(self.net, {name.removeprefix("net."): tensor for name, tensor in state.items()}):
            self.net.to(memory_format=torch.channels_last)

    def describe(self) -> str:
        """One line for the log on what is trained."""
        h = self.hparams
        parameters = list(self.net.parameters())
        total, trained = (sum(p.numel() for p in ps) for ps in (parameters, [p for p in parameters if p.requires_grad]))
        start = h["weights"]
        start = {"none": "random weights"}.get(start, shortest(start) if os.path.isfile(start) else f"{start} weights")
        note = " (gradual unfreezing is gone: all of them from the start)" if h["fine_tune"] == "gradual" else ""
        return f"{h['arch']} from {start}: {trained / 1e6:.1f} M of {total / 1e6:.1f} M parameters are trained{note}"

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: uint8 or float `(B, 3, H, W)`, RGB from 0 to 255; or their features, `(B, F)`.

        Returns:
            Logits, float32 `(B, num_classes)`.
        """
        logits = (self.head(images) if images.ndim == 2 else self.net(self.normalized(images))).float()
        return logits if self.temperature == 1 else logits / self.temperature

    def features(self, images: Tensor) -> Tensor:
        """The backbone's output, which is the input of the head, `(B, F)`; arguments as for `forward`."""
        with self.head.bypassed():
            return self.net(self.normalized(images))

    def normalized(self, images: Tensor) -> Tensor:
        """Images as the network wants them: float32 `(B, 3, H, W)`, in channels_last."""
        return ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """The loss, a scalar, for images `(B, 3, H, W)` or features `(B, F)` with their targets.

        Targets are int64 `(B,)`, or after MixUp or CutMix float `(B, num_classes)`.
        """
        images, targets = batch
        logits = self(images)
        loss = F.cross_entropy(
            logits, targets, weight=self.class_weights, label_smoothing=self.hparams["label_smoothing"]
        )
        if self.teacher is not None:
            loss = self.teacher.blend(loss, images, logits)
        labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
        mean_loss, top1 = self.train_metrics["loss"], self.train_metrics["top1"]
        mean_loss.update(loss.detach(), len(images))
        self.log("train/loss_step", loss, prog_bar=True)
        self.log("train/top1_step", top1(logits, labels))
        # `EpochLines` logs these two, before the checkpoint of the epoch is saved
        self.log("train/loss_epoch", mean_loss, on_step=False, on_epoch=True, logger=False)
        self.log("train/top1_epoch", top1, on_step=False, on_epoch=True, logger=False)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        """Add a batch of images or features to the metrics; labels are int64 `(B,)`, with `IGNORE` for padding."""
        images, labels = batch
        self.val_metrics.update(self(images), labels)

    def predict_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> tuple[Tensor, Tensor | None, Any]:
        """Probabilities, float32 `(B, num_classes)`, what `unlike` says, `(B,)`, and what the loader has noted."""
        images, notes = batch
        features = self.features(images)
        return self(features).softmax(dim=1), self.unlike and self.unlike(features.cpu()), notes

    @torch.inference_mode()
    def predict(self, paths: Iterable[str | Path], top_k: int = 3, batch_size: int = 32) -> list[dict[str, float]]:
        """Classify image files, on the device and in the precision that the model is in.

        Args:
            paths: Image files.
            top_k: Number of classes to name.
            batch_size: Images per step.

        Returns:
            For each file its classes with their probabilities, the most probable first.

        Raises:
            BadImage: A file cannot be read; the message names it.
            UserError: What the model predicts is not a number.
        """
        self.eval()
        results = []
        rest = iter(paths)
        while some := list(islice(rest, batch_size)):
            images = torch.stack([eval_reader(self.hparams["preprocessing"])(str(path)) for path in some])
            values, classes = most_probable(self(images.to(self.device)).softmax(dim=1), top_k)
            check_finite(values.cpu().numpy())
            for indices, shares in zip(classes.tolist(), values.tolist(), strict=True):
                results.append({self.class_names[i]: share for i, share in zip(indices, shares, strict=True)})
        return results

    def setup(self, stage: str) -> None:
        # FSDP saves the optimizer state of channels_last kernels correctly, but restores it in the wrong element order.
        if isinstance(self.trainer.strategy, FSDPStrategy):
            self.net.to(memory_format=torch.contiguous_format)

    def on_validation_epoch_end(self) -> None:
        self.log_results("val", self.val_metrics)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        rates = (h["lr"], h["backbone_lr_factor"], h["weight_decay"])
        groups = param_groups(self.net.named_parameters(), f"{self.head_name}.", self.decayed, *rates)
        return make_optimizers(self, groups, h["optimizer"], h["lr"], h["momentum"], h["schedule"], h["warmup_ratio"])

    def train(self, mode: bool = True) -> "ResNetClassifier":
        """Keep a frozen backbone in eval mode; otherwise BatchNorm would adapt its statistics to the new images."""
        super().train(mode)
        if self.frozen:
            self.net.eval()
            self.head.train(mode)
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store `weights` as `none`: a reload takes them from the checkpoint, and must not fetch the initial ones."""
        checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], "weights": "none"}


def load(checkpoint: str | Path = "best", default_root_dir: str | Path = ".") -> ResNetClassifier:
    """The trained model of a checkpoint, in eval mode on the CPU: `load("best").predict(["photo.jpg"])`.

    Args:
        checkpoint: A path, or `best` or `last` of the newest run.
        default_root_dir: Where to look for the newest run: the folder that contains `lightning_logs`.

    Raises:
        UserError: The file is missing, damaged or unsafe, or this project did not write it.
    """
    return load_model(open_checkpoint(str(checkpoint), default_root_dir, ResNetClassifier), ResNetClassifier)


def has_head_start(weights: str, head_start: bool | None) -> bool:
    """Whether these options ask for a head start: by default, if there are pretrained weights."""
    return weights != "none" if head_start is None else head_start
