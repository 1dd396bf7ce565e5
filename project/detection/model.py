"""The model: a detector of torchvision with its losses, metrics and optimizer."""

import os
from typing import Any, ClassVar, Literal, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import Metric

from project import INFINITY, UserError, check_ranges, shortest
from project.detection.metrics import DetectionMetrics
from project.detection.networks import TRUNK, Arch, as_images, check_backbone, first_class, freeze, make_detector, norms
from project.metrics import Mean
from project.optim import GROUP_NAMES, OptimizerName, Schedule, make_optimizers, param_groups

Target = dict[str, Tensor]
Batch = tuple[list[Tensor], list[Target]]


class ResNetDetector(LightningModule):
    """Faster R-CNN, RetinaNet or FCOS on a ResNet with a feature pyramid, for the given classes.

    The arguments before the `*` are set by the program; those after it are the options `--model.NAME`.

    Args:
        class_names: Names of the classes, without the background. They are saved with the weights, like everything else
            that a reload needs.
        score_threshold: From which score on a detection is shown. Each validation chooses it, see `DetectionMetrics`.
        arch: `fasterrcnn` (arXiv 1506.01497), `retinanet` (arXiv 1708.02002) or `fcos` (arXiv 1904.01355).
        backbone: A ResNet of torchvision: `resnet18`, `resnet50`, …
        weights: Initial weights. Those of the trunk: `DEFAULT` or a torchvision name such as `IMAGENET1K_V1`,
            downloaded once; the path of a `.pth` or `.safetensors` state dict or of a classifier's checkpoint of this
            project. Or those of a whole detector, whose layers for the classes are replaced: `COCO_V1`, or the path of
            a state dict or a detector's checkpoint. Or `none` for random weights.
        image_size: What the shorter side of each image is resized to, in pixels; the longer one is at most 5/3 of it.
        channels: Of each level of the feature pyramid and of the heads, a multiple of 32. Half as many need a quarter
            of the multiplications there; torchvision's own weights are for 256.
        trainable_layers: How many stages of the trunk are trained, the last ones first: 0 trains none, 5 all. By
            default 3, or with random weights 5.
        norm: `frozen` keeps the statistics of BatchNorm in the trunk, since those of a batch of a few images are too
            noisy to normalize with; `batch` updates them. By default frozen, or with random weights `batch`, since
            there is nothing to keep.
        optimizer: SGD has Nesterov momentum; Adam's decay is an L2 penalty, AdamW's is decoupled (arXiv 1711.05101).
        lr: Peak learning rate of all that is new: the pyramid and the heads.
        backbone_lr_factor: Learning rate of the trunk relative to that.
        momentum: Momentum of SGD.
        weight_decay: Applied to weight matrices and kernels only, never to norms and biases.
        schedule: After the warm-up, decay to 0 along a cosine, or stay constant.
        warmup_ratio: Fraction of all steps in which the learning rate rises linearly.

    Raises:
        UserError: An option is out of range; or the weights cannot be obtained, or belong to another network.
    """

    TASK = "object detection"  # in checkpoints, of which those of other tasks are refused
    MONITOR = "val/map"  # selects the best checkpoint, by default
    RANGES: ClassVar = {
        "image_size": (32, 4096),
        "channels": (64, 1024),
        "trainable_layers": (0, 5),
        "lr": (0, INFINITY),
        "backbone_lr_factor": (0, INFINITY),
        "momentum": (0, 1),
        "weight_decay": (0, INFINITY),
        "warmup_ratio": (0, 1),
    }
    MAIN_OPTIONS: ClassVar = {  # those that `--help` shows
        "arch": "the detector: fasterrcnn, retinanet or fcos",
        "backbone": "its trunk: resnet18, resnet34, resnet50, …",
        "weights": "pretrained weights: a name, a file, or none [the newest of torchvision for the trunk]",
        "image_size": "what the shorter side of images is resized to, in pixels",
        "lr": "learning rate of the heads",
    }
    REMOVED = ()  # options of older versions
    RENAMED: ClassVar[dict[str, dict[str, str]]] = {}  # values of older versions
    # Options that a resumed run cannot change; the last ones are in the state of its optimizer
    FIXED = ("arch", "backbone", "channels", "optimizer", "lr", "backbone_lr_factor", "momentum", "weight_decay")
    GROUPS = GROUP_NAMES  # of the optimizer's parameters

    def __init__(
        self,
        class_names: list[str],
        score_threshold: float = 0.5,
        *,
        arch: Arch = "fasterrcnn",
        backbone: str = "resnet50",
        weights: str = "DEFAULT",
        image_size: int = 640,
        channels: int = 256,
        trainable_layers: int | None = None,
        norm: Literal["frozen", "batch"] | None = None,
        optimizer: OptimizerName = "adamw",
        lr: float = 5e-4,
        backbone_lr_factor: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 0.05,
        schedule: Schedule = "cosine",
        warmup_ratio: float = 0.1,
    ) -> None:
        super().__init__()
        # Both as they are trained, since a reload from a checkpoint has no initial weights
        trainable_layers = (5 if weights == "none" else 3) if trainable_layers is None else trainable_layers
        norm = norm or ("batch" if weights == "none" else "frozen")
        self.save_hyperparameters()
        self.check_options(**self.hparams)
        self.class_names = class_names
        self.net = make_detector(arch, backbone, weights, len(class_names), image_size, channels)
        freeze(self.net, trainable_layers)
        self.net.to(memory_format=torch.channels_last)  # the memory layout in which convolutions are fastest
        self.decayed = {name for name, p in self.net.named_parameters() if p.ndim > 1 and name.endswith("weight")}
        self.train_metrics = cast(dict[str, Metric], nn.ModuleDict({"loss": Mean()}))  # over an epoch
        self.eval_metrics = DetectionMetrics(len(class_names))
        self.eval_results: dict[str, Any] = {}  # of the last validation or test

    @classmethod
    def check_options(cls, **options: Any) -> None:
        """Reject what `__init__` would, as far as possible without the weights. Raises `UserError`."""
        check_ranges("model.", cls.RANGES, options)
        check_backbone(options["backbone"])
        if options["channels"] % 32:
            raise UserError(f"--model.channels {options['channels']}: must be a multiple of 32")
        threshold = options.get("score_threshold", 0.5)
        if not isinstance(threshold, float) or not 0 <= threshold <= 1:
            raise UserError(f"the model's score threshold is {threshold!r:.40}, not a number from 0 to 1")

    @classmethod
    def monitors(cls) -> dict[str, Literal["min", "max"]]:
        """The metrics that can select the best checkpoint, and whether they are to be small or large."""
        return dict.fromkeys(("val/map", "val/map50", "val/map75"), "max")

    def describe(self) -> str:
        """One line for the log on what is trained."""
        h = self.hparams
        parameters = list(self.net.parameters())
        total, trained = (sum(p.numel() for p in ps) for ps in (parameters, [p for p in parameters if p.requires_grad]))
        start = h["weights"]
        start = {"none": "random weights"}.get(start, shortest(start) if os.path.isfile(start) else f"{start} weights")
        return (
            f"{h['arch']} on {h['backbone']} from {start}: {trained / 1e6:.1f} M of {total / 1e6:.1f} M parameters are "
            f"trained; BatchNorm statistics of the trunk: {'kept' if h['norm'] == 'frozen' else 'of each batch'}"
        )

    def forward(self, images: list[Tensor]) -> list[Target]:
        """Detect objects.

        Args:
            images: uint8 `(3, H, W)` each, RGB, of any sizes; the list may be empty.

        Returns:
            For each image up to 100 detections, the highest score first: `boxes` float32 `(n, 4)`, left, top, right and
            bottom in pixels; `scores` float32 `(n,)`; `labels` int64 `(n,)`, counted from 0.
        """
        found = self.net(as_images(images)) if images else []
        shift = first_class(self.hparams["arch"])
        return [{**of_image, "labels": of_image["labels"] - shift} for of_image in found]

    def losses(self, images: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """The losses by torchvision's names, scalars; arguments as in `training_step`."""
        shift = first_class(self.hparams["arch"])
        shifted = [{"boxes": target["boxes"], "labels": target["labels"] + shift} for target in targets]
        return self.net(as_images(images), shifted)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss, a scalar, for images uint8 `(3, H, W)` and their `boxes` `(n, 4)` and `labels` `(n,)`."""
        images, targets = batch
        losses = self.losses(images, targets)
        loss = torch.stack(list(losses.values())).sum()
        mean_loss = self.train_metrics["loss"]
        mean_loss.update(loss.detach(), len(images))
        self.log("train/loss_step", loss, prog_bar=True)
        self.log_dict({f"train/{name.removeprefix('loss_')}_loss": value for name, value in losses.items()})
        # `EpochLines` logs it, before the checkpoint of the epoch is saved
        self.log("train/loss_epoch", mean_loss, on_step=False, on_epoch=True, logger=False)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch to the metrics; it may be empty, for padding is left out."""
        self.eval_metrics.update(self(batch[0]), batch[1])

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """As `validation_step`."""
        self.validation_step(batch, batch_idx)

    def on_validation_epoch_end(self) -> None:
        """Choose the score threshold, and log the metrics."""
        self.eval_results = self.eval_metrics.compute()
        self.eval_metrics.reset()
        if not self.trainer.sanity_checking:
            self.hparams["score_threshold"] = self.eval_results["score_threshold"]  # the next checkpoint keeps it
        for name in ("map", "map50", "map75"):
            self.log(f"val/{name}", self.eval_results[name], prog_bar=name == "map")

    def on_test_epoch_end(self) -> None:
        """Keep the metrics."""
        self.eval_results = self.eval_metrics.compute()
        self.eval_metrics.reset()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        # Whatever is not the trunk is new
        names = ((name if name.startswith(TRUNK) else f"head.{name}", p) for name, p in self.net.named_parameters())
        decayed = {name if name.startswith(TRUNK) else f"head.{name}" for name in self.decayed}
        groups = param_groups(names, "head.", decayed, h["lr"], h["backbone_lr_factor"], h["weight_decay"])
        return make_optimizers(self, groups, h["optimizer"], h["lr"], h["momentum"], h["schedule"], h["warmup_ratio"])

    def train(self, mode: bool = True) -> "ResNetDetector":
        """Keep BatchNorm in eval mode if its statistics are frozen."""
        super().train(mode)
        if self.hparams["norm"] == "frozen":
            for layer in norms(self.net):
                layer.eval()
        return self

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with the threshold of the last validation."""
        self.hparams["score_threshold"] = checkpoint["hyper_parameters"].get("score_threshold", 0.5)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store `weights` as `none`: a reload takes them from the checkpoint, and must not fetch the initial ones."""
        checkpoint["task"] = self.TASK
        checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], "weights": "none"}
