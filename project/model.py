"""The model: a pretrained ResNet with a new head, its loss, its optimizer and its schedule."""

import math
import os
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args
from urllib.error import URLError

import safetensors.torch
import torch
import torchvision
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from project import UserError, check_range, shortest
from project.data import IGNORE
from project.metrics import EvalMetrics

# Every ResNet that torchvision builds
Arch = Literal[
    "resnet18",
    "resnet34",
    "resnet50",
    "resnet101",
    "resnet152",
    "resnext50_32x4d",
    "resnext101_32x8d",
    "resnext101_64x4d",
    "wide_resnet50_2",
    "wide_resnet101_2",
]

# The parts of a ResNet, from the head down: the order in which gradual unfreezing reaches them
PARTS = {"fc": "head", "layer4": "layer4", "layer3": "layer3", "layer2": "layer2", "layer1": "layer1"}
STEM = "stem"  # conv1 and bn1


class ResNetClassifier(LightningModule):
    """A torchvision ResNet whose `fc` is replaced by dropout and a linear layer for the classes at hand.

    Args:
        class_names: Names of the classes, in the order of the outputs. They, and everything else a reload needs, are
            saved with the weights.
        preprocessing: How an image is brought to the size that the model sees, and the `mean` and `std` (RGB, for
            values from 0 to 1) with which `forward` normalizes it.
        class_weights: Weight of each class in the training loss; all 1 by default.
        arch: The architecture.
        weights: Where training starts. `DEFAULT` or a torchvision name such as `IMAGENET1K_V1`, downloaded once; the
            path of a `.pth` or `.safetensors` state dict, or a checkpoint of this project; or `none`, for random ones.
        fine_tune: `full` trains all layers; `head` only the new head, on a frozen backbone with its BatchNorm in eval
            mode; `gradual` starts like that and unfreezes the backbone from the top, part by part, in the first half.
        dropout: Probability of dropping a feature in front of the linear layer.
        optimizer: SGD has Nesterov momentum; Adam's decay is an L2 penalty, AdamW's is decoupled (arXiv 1711.05101).
        lr: Peak learning rate of the head.
        backbone_lr_factor: The backbone's learning rate is this times the head's: what is pretrained needs less change.
        momentum: For SGD.
        weight_decay: For weight matrices and kernels only, never for norms and biases.
        schedule: After the warm-up: down to 0 along a cosine, or constant.
        warmup_ratio: Share of all steps in which the learning rate rises linearly.
        label_smoothing: Share of the target spread over all classes, in training.
        head_start: Before training, fit the head on the features of the frozen backbone, see `project/head_start.py`.
            By default where there are pretrained weights.

    Raises:
        UserError: The weights cannot be had, or belong to another architecture.
    """

    mean: Tensor
    std: Tensor
    class_weights: Tensor | None

    def __init__(
        self,
        class_names: list[str],
        preprocessing: dict[str, Any],
        class_weights: list[float] | None = None,
        arch: Arch = "resnet50",
        weights: str = "DEFAULT",
        fine_tune: Literal["full", "head", "gradual"] = "full",
        dropout: float = 0.0,
        optimizer: Literal["sgd", "adam", "adamw"] = "adamw",
        lr: float = 1e-3,
        backbone_lr_factor: float = 0.3,
        momentum: float = 0.9,
        weight_decay: float = 0.05,
        schedule: Literal["cosine", "constant"] = "cosine",
        warmup_ratio: float = 0.1,
        label_smoothing: float = 0.0,
        head_start: bool | None = None,
    ) -> None:
        super().__init__()
        check_range("model.dropout", dropout, 0, 1)
        check_range("model.lr", lr, 0)
        check_range("model.backbone_lr_factor", backbone_lr_factor, 0)
        check_range("model.momentum", momentum, 0, 1)
        check_range("model.weight_decay", weight_decay, 0)
        check_range("model.warmup_ratio", warmup_ratio, 0, 1)
        check_range("model.label_smoothing", label_smoothing, 0, 1)
        self.save_hyperparameters()
        self.class_names = class_names
        self.head_start = weights != "none" if head_start is None else head_start

        self.net = torchvision.models.get_model(arch, weights=None)
        if weights != "none":
            load_backbone(self.net, arch, weights)
        self.net.fc = nn.Sequential(nn.Dropout(dropout), nn.Linear(self.net.fc.in_features, len(class_names)))
        self.net.to(memory_format=torch.channels_last)  # the layout that convolutions are fastest in
        # By name, for FSDP flattens all parameters before the optimizer is made.
        self.decayed = {name for name, parameter in self.net.named_parameters() if parameter.ndim > 1}
        # The parts that do not learn at present. Gradual unfreezing empties this set as training goes on.
        self.frozen = set() if fine_tune == "full" else {*PARTS.values(), STEM} - {"head"}
        if fine_tune == "head":
            self.net.requires_grad_(False)
            self.net.fc.requires_grad_(True)

        # Not persistent: they come back from the hyperparameters, and `net` stays a plain torchvision state dict.
        for name in ("mean", "std"):
            value = 255 * torch.tensor(preprocessing[name]).view(1, 3, 1, 1)
            self.register_buffer(name, value, persistent=False)
        weights_of_classes = None if class_weights is None else torch.tensor(class_weights)
        self.register_buffer("class_weights", weights_of_classes, persistent=False)

        self.train_top1 = MulticlassAccuracy(len(class_names), average="micro", validate_args=False)
        self.val_metrics = EvalMetrics(len(class_names))
        self.test_metrics = EvalMetrics(len(class_names))
        self.results: dict[str, Tensor] = {}  # of the last validation or test

    def describe(self) -> str:
        """One line on what is trained, for the log."""
        h = self.hparams
        parameters = list(self.net.parameters())
        total, learning = (
            sum(p.numel() for p in ps) for ps in (parameters, [p for p in parameters if p.requires_grad])
        )
        start = h["weights"]
        start = {"none": "random weights"}.get(start, shortest(start) if os.path.isfile(start) else f"{start} weights")
        return f"{h['arch']} from {start}: {learning / 1e6:.1f} M of {total / 1e6:.1f} M parameters are trained"

    def forward(self, images: Tensor) -> Tensor:
        """Classify images.

        Args:
            images: uint8 or float `(B, 3, H, W)`, RGB from 0 to 255; or their `features`.

        Returns:
            Logits, float32 `(B, num_classes)`.
        """
        return self.net.fc(images if images.ndim == 2 else self.features(images)).float()

    def features(self, images: Tensor) -> Tensor:
        """What the head sees of images: the backbone's output, averaged over the image, `(B, num_features)`.

        Args:
            images: uint8 or float `(B, 3, H, W)`, RGB from 0 to 255; normalization is done here.
        """
        x = ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        for name, part in self.net.named_children():
            if name != "fc":
                x = part(x)
        return x.flatten(1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, targets = batch  # targets: int64 (B,), or float (B, num_classes) after MixUp or CutMix
        logits = self(images)
        loss = F.cross_entropy(
            logits, targets, weight=self.class_weights, label_smoothing=self.hparams["label_smoothing"]
        )
        labels = targets if targets.ndim == 1 else targets.argmax(dim=1)
        self.train_top1(logits, labels)
        # Two calls, so that processes wait for each other's losses once an epoch, not in every step
        self.log("train/loss_step", loss, prog_bar=True)
        self.log("train/loss_epoch", loss, on_step=False, on_epoch=True, batch_size=len(images), sync_dist=True)
        self.log("train/top1", self.train_top1, on_step=True, on_epoch=True, batch_size=len(images))
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits = self(images)
        self.val_metrics.update(logits, labels)
        # Without a look at the values, which would wait for the device: a batch of padding alone counts as 0
        num_counted = (labels != IGNORE).sum().clamp(min=1)
        loss = F.cross_entropy(logits, labels, ignore_index=IGNORE, reduction="sum") / num_counted
        top1 = (logits.argmax(dim=1) == labels).sum() / num_counted
        self.log_dict({"val/loss_step": loss, "val/top1_step": top1}, on_step=True, on_epoch=False)

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        self.test_metrics.update(self(images), labels)

    def predict_step(self, batch: tuple[Tensor, Any], batch_idx: int) -> tuple[Tensor, Any]:
        """Probabilities, float32 `(B, num_classes)`, and what the loader gave with the images."""
        images, notes = batch
        return self(images).softmax(dim=1), notes

    def setup(self, stage: str) -> None:
        # FSDP saves the optimizer's state of channels_last kernels right, and loads it with their values in disorder.
        if isinstance(self.trainer.strategy, FSDPStrategy):
            self.net.to(memory_format=torch.contiguous_format)

    def on_train_start(self) -> None:
        self._unfreeze()  # a run that is resumed within an epoch does not start that epoch again

    def on_train_epoch_start(self) -> None:
        self._unfreeze()

    def _unfreeze(self) -> None:
        if self.hparams["fine_tune"] != "gradual":
            return
        assert self.trainer.max_epochs is not None
        done = self.current_epoch / self.trainer.max_epochs
        self.frozen = {part for part in [*PARTS.values(), STEM] if done < unfrozen_from(part)}
        self.train()
        if self.trainer.world_size == 1:  # saves their backward pass; DDP could not follow, there lr 0 has to do
            for name, module in self.net.named_children():
                module.requires_grad_(part_of(name) not in self.frozen)

    def on_validation_epoch_end(self) -> None:
        self._log_results("val", self.val_metrics)

    def on_test_epoch_end(self) -> None:
        self._log_results("test", self.test_metrics)

    def _log_results(self, stage: str, metrics: EvalMetrics) -> None:
        self.results = metrics.compute()
        metrics.reset()
        for name, value in self.results.items():
            if value.ndim == 0:
                self.log(f"{stage}/{name}", value, prog_bar=name == "top1")

    def configure_optimizers(self) -> OptimizerLRScheduler:
        h = self.hparams
        groups: dict[tuple[str, bool], dict[str, Any]] = {}
        for name, parameter in self.net.named_parameters():
            if not parameter.requires_grad:
                continue
            part = part_of(name)
            if h["fine_tune"] != "gradual" and part != "head":
                part = "backbone"
            decay = name in self.decayed
            group = groups.setdefault(
                (part, decay),
                {
                    "name": part if decay else f"{part} (no decay)",
                    "part": part,
                    "params": [],
                    "lr": h["lr"] * (1.0 if part == "head" else h["backbone_lr_factor"]),
                    "weight_decay": h["weight_decay"] if decay else 0.0,
                },
            )
            group["params"].append(parameter)

        # One kernel for all parameters. In mixed precision Lightning cannot clip the gradients for it.
        clipped = self.trainer.gradient_clip_val and "mixed" in str(self.trainer.precision)
        fused = self.device.type in ("cpu", "cuda") and not clipped
        optimizer: torch.optim.Optimizer
        if h["optimizer"] == "sgd":
            nesterov = h["momentum"] > 0
            optimizer = torch.optim.SGD(
                groups.values(), lr=h["lr"], momentum=h["momentum"], nesterov=nesterov, fused=fused
            )
        else:
            kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[h["optimizer"]]
            optimizer = kind(groups.values(), lr=h["lr"], fused=fused)
        total_steps = self.trainer.estimated_stepping_batches
        if h["fine_tune"] == "gradual" and (self.trainer.max_epochs or 0) < 1:
            raise UserError("--model.fine_tune gradual needs an end to plan for: set --max_epochs")
        factors: list[Callable[[int], float]] = [
            partial(self.lr_factor, total_steps=total_steps, part=group["part"]) for group in groups.values()
        ]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def lr_factor(self, step: int, total_steps: float, part: str) -> float:
        """The schedule, as a factor from 0 to 1 of a part's peak learning rate: warm-up, then cosine or constant."""
        if math.isinf(total_steps):  # --max_epochs -1: no end to steer for
            return 1.0
        if part in self.frozen:
            return 0.0
        warmup = self.hparams["warmup_ratio"] * total_steps
        if step < warmup:
            return (step + 1) / (warmup + 1)
        if self.hparams["schedule"] == "constant":
            return 1.0
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1.0, total_steps - warmup)))

    def train(self, mode: bool = True) -> "ResNetClassifier":
        """Frozen layers stay in eval mode, or BatchNorm would go on learning the statistics of the new images."""
        super().train(mode)
        for name, module in self.net.named_children():
            if part_of(name) in self.frozen:
                module.eval()
        return self

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """A reload takes its weights from the checkpoint: it must not fetch those that training began with."""
        checkpoint["hyper_parameters"] = {**checkpoint["hyper_parameters"], "weights": "none"}


def part_of(name: str) -> str:
    """The part of a ResNet that a parameter belongs to: `head`, `layer4` to `layer1` or `stem`."""
    return PARTS.get(name.split(".")[0], STEM)


def unfrozen_from(part: str) -> float:
    """When gradual unfreezing reaches a part, as a share of training: the head 0, layer4 0.1, …, the stem 0.5."""
    return [*PARTS.values(), STEM].index(part) / 10


def preprocessing_for(arch: Arch, weights: str) -> dict[str, Any]:
    """What a set of weights expects of an evaluated image; for a file or `none`, what torchvision's first ones did.

    Returns:
        `resize_size` and `crop_size` in pixels, `interpolation`, `mean` and `std` for RGB from 0 to 1.
    """
    named = named_weights(arch, weights)
    preset = named.transforms() if named else torchvision.transforms._presets.ImageClassification(crop_size=224)
    return {
        "resize_size": preset.resize_size[0],
        "crop_size": preset.crop_size[0],
        "interpolation": preset.interpolation.value,
        "mean": list(preset.mean),
        "std": list(preset.std),
    }


def named_weights(arch: Arch, weights: str) -> torchvision.models.WeightsEnum | None:
    """Look up `DEFAULT` or a torchvision weights name; None for `none` and for a path.

    Raises:
        UserError: Neither a name that torchvision has for this architecture nor a file.
    """
    if weights == "none" or Path(weights).is_file():
        return None
    known = torchvision.models.get_model_weights(arch)
    names = known.__members__
    prefix, _, name = weights.rpartition(".")  # torchvision prints them as ResNet50_Weights.IMAGENET1K_V2
    if name not in names or prefix not in ("", known.__name__):
        raise UserError(
            f"--model.weights {weights}: no such file, and no torchvision weights of {arch}, "
            f"which are: {', '.join(names)} (the newest), none"
        )
    return names[name]


def load_backbone(net: nn.Module, arch: Arch, weights: str) -> None:
    """Load everything but the head into a torchvision ResNet.

    Raises:
        UserError: No network and nothing cached; an unreadable or unsafe file; weights of another architecture.
    """
    state = read_weights(arch, weights)
    body = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    shapes = body_shapes(net)
    if {name: tensor.shape for name, tensor in body.items()} != shapes:
        fitting = [a for a in get_args(Arch) if same_names_and_shapes(body, a)]
        hint = f"they are those of {fitting[0]}: use --model.arch {fitting[0]}" if fitting else "they are of no ResNet"
        raise UserError(f"--model.weights {weights} does not fit --model.arch {arch}; {hint}")
    net.load_state_dict(body, strict=False)


def same_names_and_shapes(body: dict[str, Tensor], arch: str) -> bool:
    with torch.device("meta"):
        return {k: v.shape for k, v in body.items()} == body_shapes(torchvision.models.get_model(arch, weights=None))


def body_shapes(net: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in net.state_dict().items() if not name.startswith("fc.")}


def read_weights(arch: Arch, weights: str) -> dict[str, Tensor]:
    """A torchvision ResNet's state dict, from the cache, the network or a file. Nothing is unpickled but tensors."""
    named = named_weights(arch, weights)
    if named is not None:
        try:
            return dict(named.get_state_dict(progress=True, check_hash=True, weights_only=True, map_location="cpu"))
        except (URLError, OSError, RuntimeError, pickle.UnpicklingError) as error:
            cache = Path(torch.hub.get_dir()) / "checkpoints" / named.url.rpartition("/")[2]
            raise UserError(
                f"cannot get the {named.name} weights of {arch} ({error}). Three ways out: connect to the network, or "
                f"put {named.url} there as {cache}; name a .pth or .safetensors file with --model.weights; "
                "or train from scratch with --model.weights none"
            ) from error
    state = read_file(weights, "--model.weights")
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"--model.weights {weights}: not a state dict (names with tensors)")
    # "net." is how a checkpoint of this project names its ResNet, "module." how DistributedDataParallel does
    return {str(name).removeprefix("module.").removeprefix("net."): tensor for name, tensor in state.items()}


def read_file(path: str, role: str) -> Any:
    """Read a safetensors file, or one that `torch.save` wrote, onto the CPU. Pickled code is refused, never run.

    Args:
        path: The file.
        role: What the file is to the user, for the messages.

    Raises:
        UserError: Unreadable, damaged or unsafe.
    """
    try:
        if path.endswith(".safetensors"):
            return safetensors.torch.load_file(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's remarks on odd pickles: those are refused anyway
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{role} {path}: refused, it holds more than tensors and plain values, or is damaged"
        ) from error
    except Exception as error:  # damaged files end in many types: RuntimeError, EOFError, IndexError, KeyError, …
        raise UserError(f"{role} {path}: damaged, or not such a file ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0] or type(error).__name__
