"""Small real images with squares to detect, as a COCO data set, and options for a run on them that takes seconds."""

import json
from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Trainer
from PIL import Image

from project.detection.metrics import DetectionMetrics
from project.detection.model import ResNetDetector

COLOURS = {"blue": (30, 40, 220), "red": (220, 40, 30)}
FAST = [
    "--model.arch=fcos",
    "--model.backbone=resnet18",
    "--model.weights=none",
    "--model.image_size=64",
    "--model.channels=64",
    "--data.batch_size=2",
    "--data.num_workers=0",
    "--data.max_size=96",
    "--max_epochs=1",
    "--log_every_n_steps=1",
    "--accelerator=cpu",
    "--precision=32-true",
    "--enable_progress_bar=false",
]


def squares(folder: Path, train: int = 5, val: int = 3, test: int = 3) -> Path:
    """Write `images/*.png` with up to two squares each, in the middle one none, and `annotations/*.json`."""
    number = 0
    for split, count in {"train": train, "val": val, "test": test}.items():
        content: dict = {"images": [], "annotations": []}
        content["categories"] = [{"id": i + 1, "name": name} for i, name in enumerate(COLOURS)]
        for i in range(count):
            random = np.random.default_rng(number)
            pixels = random.integers(0, 40, (72, 96, 3)).astype(np.uint8)
            number += 1
            name = f"{split}-{i}.png"
            content["images"].append({"id": number, "file_name": name, "width": 96, "height": 72})
            for k, colour in enumerate(COLOURS.values()) if i != 1 else ():
                left, top, side = (
                    8 + 44 * k + int(random.integers(8)),
                    int(random.integers(30)),
                    24 + int(random.integers(8)),
                )
                pixels[top : top + side, left : left + side] = colour
                box = {"id": 10 * number + k, "image_id": number, "category_id": k + 1, "iscrowd": 0}
                content["annotations"].append({**box, "bbox": [left, top, side, side], "area": side**2})
            path = folder / split / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
        (folder / split / "annotations.json").write_text(json.dumps(content))
    return folder


def batch(count: int = 2, size: tuple[int, int] = (72, 96)):
    """Images with two boxes each, and one more without any."""
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 255, (3, *size), dtype=torch.uint8, generator=generator) for _ in range(count + 1)]
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [50.0, 20.0, 80.0, 50.0]])
    targets = [{"boxes": boxes, "labels": torch.tensor([0, 1]), "image_id": torch.tensor(i)} for i in range(count)]
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0).long(), "image_id": torch.tensor(count)}
    return images, [*targets, nothing]


def make(arch="fcos", **options):
    """A small detector with random weights."""
    small = {"backbone": "resnet18", "weights": "none", "image_size": 64, "channels": 64}
    return ResNetDetector(list(COLOURS), arch=arch, **{**small, **options})


def trainer(**options):
    """A Trainer that writes nothing."""
    quiet = {
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
        "enable_checkpointing": False,
    }
    return Trainer(accelerator="cpu", use_distributed_sampler=False, num_sanity_val_steps=0, **{**quiet, **options})


def results(data, change=lambda target: target):
    """The metrics of a detector that finds each box of the test images, changed, in pixels of the images as read."""
    metrics = DetectionMetrics(len(COLOURS))
    data.choose_test_split("test")
    for images, targets in data.test_dataloader():
        assert all(max(image.shape) == data.max_size for image in images)
        found = [change({**t, "scores": torch.full((len(t["labels"]),), 0.9)}) for t in targets]
        metrics.update(found, targets)
    return metrics.compute()
