"""A fourth task, semantic segmentation by a ResNet-FCN, as a user of the project would add it: no file is changed.

python tests/segmentation/fourth_task.py --data.root DIR      # DIR/train|val/NAME.png with NAME.mask.png beside it
"""

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchmetrics.segmentation import MeanIoU
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.fcn import FCNHead

from project import IGNORE, INFINITY, UserError, check_ranges
from project.backbones import make_net
from project.cache import lasting_fingerprints
from project.cli import run
from project.loading import EpochSampler, ResumableData
from project.optim import GROUP_NAMES, make_optimizer, make_schedule, param_groups
from project.runs import fit, start
from project.trainer import make_trainer

CLASSES = ["background", "object"]


class MaskDataset(Dataset[tuple[Tensor, Tensor]]):
    """Images, float32 `(3, H, W)` from 0 to 1, with the class of each pixel, int64 `(H, W)`."""

    def __init__(self, samples: list[tuple[str, str]], flip: float) -> None:
        self.samples, self.flip = samples, flip

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, Tensor]:
        i, seed = item
        torch.default_generator.manual_seed(seed)
        path, mask = self.samples[i]  # of padding, the last image …
        image = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1) / 255
        labels = torch.from_numpy(np.array(Image.open(mask))).long()
        if i == EpochSampler.PADDING:
            labels = torch.full_like(labels, IGNORE)  # … of which no pixel counts
        return (image.flip(2), labels.flip(1)) if torch.rand(()) < self.flip else (image, labels)


class MaskData(ResumableData):
    """Images of one size with masks, whose pixels are class indices."""

    RANGES: ClassVar = {"batch_size": (1, INFINITY), "flip": (0, 1)}
    MAIN_OPTIONS: ClassVar = {"root": "DIR/train|val/NAME.png with NAME.mask.png beside it"}
    RENAMED: ClassVar = {}
    REMOVED = ()
    class_names = CLASSES

    def __init__(
        self, *, root: str | None = None, batch_size: int = 4, num_workers: int | None = None, flip: float = 0.5
    ) -> None:
        super().__init__(batch_size, num_workers)
        self.check_options(root=root, batch_size=batch_size, flip=flip)
        self.root, self.flip = str(root), flip
        pairs = {split: sorted(Path(self.root, split).glob("*.mask.png")) for split in ("train", "val")}
        self.samples = {k: [(str(m).replace(".mask", ""), str(m)) for m in masks] for k, masks in pairs.items()}
        if not all(self.samples.values()):
            raise UserError(f"--data.root {root}: no masks NAME.mask.png in train or in val")

    @classmethod
    def check_options(cls, **options: object) -> None:
        """Reject what `__init__` would. Raises `UserError`."""
        if options["root"] is None:
            raise UserError("no data: name a folder with --data.root")
        check_ranges("data.", cls.RANGES, options)

    @property
    def fingerprints(self) -> dict[str, Tensor]:
        return {split: lasting_fingerprints(pairs, self.root) for split, pairs in self.samples.items()}

    def describe(self) -> str:
        """One line for the log."""
        return f"{self.root}: {', '.join(f'{len(pairs)} {split}' for split, pairs in self.samples.items())} images"

    def train_dataloader(self) -> DataLoader:
        return self.train_loader(MaskDataset(self.samples["train"], self.flip))

    def val_dataloader(self) -> DataLoader:
        return self.eval_loader(MaskDataset(self.samples["val"], flip=0))

    def on_after_batch_transfer(self, batch: tuple[Tensor, Tensor], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        if self.trainer is not None and self.trainer.training:
            self.seed_step()
        return batch


class ResNetFCN(LightningModule):
    """A ResNet with the head of an FCN (Long et al. 2015, arXiv 1411.4038); `weights` as for the classifier."""

    MONITOR = "val/iou"
    RANGES: ClassVar = {"lr": (0, INFINITY)}
    MAIN_OPTIONS: ClassVar = {"arch": "resnet18, resnet50, …"}
    REMOVED = ()
    RENAMED: ClassVar = {}
    FIXED = ("arch", "lr")
    GROUPS = GROUP_NAMES

    def __init__(self, class_names: list[str], *, arch: str = "resnet18", weights: str = "none", lr: float = 1e-3):
        super().__init__()
        self.save_hyperparameters()
        trunk = IntermediateLayerGetter(make_net(arch, weights, 224), {"layer4": "out"})
        width = [m for m in trunk.modules() if isinstance(m, nn.BatchNorm2d)][-1].num_features
        self.net = nn.ModuleDict({"trunk": trunk, "head": FCNHead(width, len(class_names))})
        self.iou = MeanIoU(len(class_names), input_format="index")

    @classmethod
    def check_options(cls, **options: object) -> None:
        """Reject what `__init__` would. Raises `UserError`."""
        check_ranges("model.", cls.RANGES, options)

    @classmethod
    def monitors(cls) -> dict[str, Literal["min", "max"]]:
        return {"val/iou": "max", "val/loss": "min"}

    def describe(self) -> str:
        """One line for the log."""
        return f"FCN on {self.hparams['arch']} from {self.hparams['weights']}"

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, C, H, W)` of images, float32 `(B, 3, H, W)`."""
        return F.interpolate(self.net["head"](self.net["trunk"](images)["out"]), images.shape[2:], mode="bilinear")

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss_epoch", loss, on_step=False, on_epoch=True, logger=False)
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        images, labels = batch
        logits, known = self(images), labels != IGNORE
        self.log("val/loss", F.cross_entropy(logits, labels, ignore_index=IGNORE), batch_size=len(images))
        self.iou.update(logits.argmax(dim=1)[known][None], labels[known][None])
        self.log("val/iou", self.iou)

    def configure_optimizers(self):
        decayed = {name for name, p in self.net.named_parameters() if p.ndim > 1}
        groups = param_groups(self.net.named_parameters(), "head.", decayed, self.hparams["lr"], 0.3, 0.05)
        optimizer = make_optimizer(groups, "adamw", self.hparams["lr"], 0.9, fused=False)
        schedule = make_schedule(optimizer, "cosine", 0.1, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main(argv: list[str] | None = None) -> Trainer:
    """Train. Raises `UserError`."""
    with start(__doc__, MaskData, ResNetFCN, [], argv) as this:
        trainer = make_trainer(this.options.monitor, **this.trainer)
        this.check_folder(trainer)
        data = MaskData(**this.options.data)
        fit(trainer, ResNetFCN(data.class_names, **this.options.model), data, this)
        return trainer


if __name__ == "__main__":
    run(main)
