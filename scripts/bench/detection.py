"""Our detector beside torchvision's reference recipe and Ultralytics, on Pascal VOC data with lists of splits.

    python scripts/bench/detection.py --root bccd --epochs 8 --seeds 3 [--ultralytics ENVIRONMENT/bin/python]

All get the same files, splits and image size; ours and torchvision's also the same network and number of epochs. The
reference recipe is that of torchvision's references/detection for one device: SGD for two images a step, with an eighth
of the rate for eight devices (0.02 for Faster R-CNN, 0.01 for FCOS and RetinaNet), momentum 0.9, decay 1e-4, a linear
warm-up over the first epoch, a tenth of the rate at 16/26 and 22/26 of the epochs, flips, frozen BatchNorm, three
trained stages; images are decoded anew in each epoch. Unlike there, batches are not grouped by proportions, for all
images of BCCD have the same. Ultralytics trains from its yaml, without downloaded weights, for as many minutes as ours
took. Every model is measured by the same code on the test split, once: torchvision's after its last epoch, the others
with their best one by the validation split.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import functional as F

sys.path.append(str(Path(__file__).resolve().parents[2]))
from project.detection.data import BoxData
from project.detection.matching import Boxes
from project.detection.metrics import average_precision
from project.detection.networks import first_class, make_detector

ROOT = Path(__file__).resolve().parents[2]
TRUNK = ROOT / "project/sample/resnet18-tiny-imagenet.safetensors"


def of_split(root: Path, split: str) -> list[str]:
    """The names of the images of a split."""
    return (root / f"ImageSets/Main/{split}.txt").read_text().split()


class VOC(Dataset):
    """A split as the reference scripts read it: PIL images, decoded in each epoch, flipped at random."""

    def __init__(self, root: Path, split: str, classes: list[str], train: bool) -> None:
        self.root, self.classes, self.train = root, classes, train
        self.names = of_split(root, split)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, i: int) -> tuple[Any, dict[str, Any]]:
        image = F.to_tensor(Image.open(self.root / f"JPEGImages/{self.names[i]}.jpg").convert("RGB"))
        boxes, labels = [], []
        for found in ElementTree.parse(self.root / f"Annotations/{self.names[i]}.xml").iter("object"):
            place = {edge.tag: float(edge.text or 0) for edge in found.find("bndbox") or ()}
            box = [place[name] for name in ("xmin", "ymin", "xmax", "ymax")]
            if box[0] < box[2] and box[1] < box[3]:
                boxes.append(box)
                labels.append(self.classes.index(found.findtext("name") or ""))
        target = {"boxes": torch.tensor(boxes).reshape(-1, 4), "labels": torch.tensor(labels, dtype=torch.int64)}
        if self.train and torch.rand(()) < 0.5:
            image = image.flip(2)
            target["boxes"][:, [0, 2]] = image.shape[2] - target["boxes"][:, [2, 0]]
        return image, target


def as_lists(batch: list[Any]) -> tuple[Any, ...]:
    """Images and targets apart."""
    return tuple(zip(*batch, strict=True))


def reference(args: argparse.Namespace, classes: list[str], seed: int) -> dict[str, float]:
    """Train by torchvision's recipe."""
    torch.manual_seed(seed)
    net: Any = make_detector(args.arch, "resnet18", str(TRUNK), len(classes), args.image_size, 256)
    body, shift = net.backbone.body, first_class(args.arch)
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(any(layer in name for layer in ("layer4", "layer3", "layer2")))
    options = {
        "batch_size": 2,
        "num_workers": args.workers,
        "collate_fn": lambda batch: tuple(zip(*batch, strict=True)),
    }
    loader = DataLoader(VOC(args.root, "train", classes, True), shuffle=True, drop_last=True, **options)
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(
        parameters, lr=(0.02 if args.arch == "fasterrcnn" else 0.01) / 8, momentum=0.9, weight_decay=1e-4
    )
    steps = [round(args.epochs * k / 26) for k in (16, 22)]
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, steps, gamma=0.1)
    warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 1e-3, total_iters=min(1000, len(loader) - 1))
    start, spent, images = time.time(), 0.0, 0
    for epoch in range(args.epochs):
        net.train()
        for module in body.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        since = None
        for batch, targets in loader:
            shifted = [{**target, "labels": target["labels"] + shift} for target in targets]
            loss = torch.stack(list(net(list(batch), shifted).values())).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if epoch == 0:
                warm_up.step()
            if since is None:  # the first step waits for the workers
                since = time.time()
            else:
                images += len(batch)
        spent += time.time() - (since or 0)
        schedule.step()
    net.eval()
    found = []
    with torch.inference_mode():
        for batch, _ in DataLoader(VOC(args.root, "test", classes, False), **options):
            found += [(d["boxes"], d["scores"], d["labels"] - shift) for d in net(list(batch))]
    result = measured(args, classes, found)
    return {**result, "images_per_second": images / spent, "minutes": (time.time() - start) / 60}


def measured(args: argparse.Namespace, classes: list[str], found: list[Any]) -> dict[str, float]:
    """map and map50 of detections `(boxes, scores, labels)` on the test split."""
    data = VOC(args.root, "test", classes, False)
    true = [data[i][1] for i in range(len(data))]
    truth = [Boxes(t["boxes"], t["labels"], torch.ones(len(t["labels"]))) for t in true]
    values = average_precision([Boxes(b, labels, s) for b, s, labels in found], truth, len(classes))
    return {"map": values["map"], "map50": values["map50"]}


def ours(args: argparse.Namespace, seed: int) -> dict[str, float]:
    """Train with scripts/detection/train.py."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "scripts/detection/train.py"), f"--data.root={args.root}"]
        command += [
            f"--model.arch={args.arch}",
            "--model.backbone=resnet18",
            f"--model.weights={TRUNK}",
            f"--model.image_size={args.image_size}",
        ]
        command += [f"--max_epochs={args.epochs}", f"--seed={seed}", f"--default_root_dir={folder}"]
        command += ["--data.bad_boxes=skip", f"--data.num_workers={args.workers}", "--enable_progress_bar=false"]
        start = time.time()
        subprocess.run([*command, *args.ours], check=True, stdout=subprocess.DEVNULL)
        (run,) = Path(folder, "lightning_logs").iterdir()
        metrics = json.loads((run / "metrics.json").read_text())
        speeds = EventAccumulator(str(run)).Reload().Scalars("speed/images_per_second")
        spent = (time.time() - start) / 60
    return {**{k: metrics[k] for k in ("map", "map50")}, "images_per_second": speeds[-1].value, "minutes": spent}


ULTRALYTICS = """
import json, sys
from ultralytics import YOLO
data, minutes, size, seed, images, result = sys.argv[1:]
model = YOLO("yolo11n.yaml")
model.train(data=data, time=float(minutes) / 60, imgsz=int(size), seed=int(seed), device="cpu", pretrained=False,
            project=result, workers=2, plots=False)
best = YOLO(model.trainer.best)
found = []
for path in json.loads(images):
    r = best.predict(path, imgsz=int(size), conf=0.001, verbose=False)[0].boxes
    found.append((r.xyxy.tolist(), r.conf.tolist(), r.cls.int().tolist()))
json.dump(found, open(result + "/found.json", "w"))
"""


def ultralytics(args: argparse.Namespace, classes: list[str], seed: int, minutes: float) -> dict[str, float]:
    """Train with Ultralytics for so many minutes."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for split in ("train", "val", "test"):
            for kind in ("images", "labels"):
                (place / kind / split).mkdir(parents=True)
            data = VOC(args.root, split, classes, False)
            for i, name in enumerate(data.names):
                image, target = data[i]
                (place / f"images/{split}/{name}.jpg").symlink_to(args.root.resolve() / f"JPEGImages/{name}.jpg")
                scale = torch.tensor([image.shape[2], image.shape[1]]).repeat(2)
                corners = target["boxes"] / scale
                centres = torch.cat([(corners[:, :2] + corners[:, 2:]) / 2, corners[:, 2:] - corners[:, :2]], dim=1)
                rows = zip(target["labels"].tolist(), centres.tolist(), strict=True)
                text = "\n".join(" ".join(map(str, (label, *box))) for label, box in rows)
                (place / f"labels/{split}/{name}.txt").write_text(text)
        names = "\n".join(f"  {i}: {name}" for i, name in enumerate(classes))
        (place / "data.yaml").write_text(
            f"path: {place}\ntrain: images/train\nval: images/val\ntest: images/test\nnames:\n{names}\n"
        )
        images = json.dumps([str(place / f"images/test/{name}.jpg") for name in of_split(args.root, "test")])
        # `imgsz` is the longer side there
        options = [str(place / "data.yaml"), str(minutes), str(args.image_size * 4 // 3), str(seed), images, folder]
        start = time.time()
        environment = {**os.environ, "YOLO_OFFLINE": "true", "YOLO_CONFIG_DIR": folder}
        subprocess.run([args.ultralytics, "-c", ULTRALYTICS, *options], check=True, env=environment, cwd=folder)
        spent = (time.time() - start) / 60
        found = json.loads((place / "found.json").read_text())
    tensors = [
        (torch.tensor(b).reshape(-1, 4), torch.tensor(s), torch.tensor(c, dtype=torch.int64)) for b, s, c in found
    ]
    return {**measured(args, classes, tensors), "images_per_second": float("nan"), "minutes": spent}


def main() -> None:
    """Run all in turns, and print the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--arch", choices=["fasterrcnn", "retinanet", "fcos"], default="fcos")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first_seed", type=int, default=0)
    parser.add_argument("--image_size", type=int, default=240, help="shorter side, in pixels")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--ultralytics", help="Python of an environment with the package ultralytics")
    parser.add_argument("--ours", nargs="*", default=[], help="more options for ours")
    args = parser.parse_args()
    classes = BoxData(root=str(args.root), bad_boxes="skip", check=False).class_names
    results: dict[str, list[dict[str, float]]] = {}
    for seed in range(args.first_seed, args.first_seed + args.seeds):
        mine = ours(args, seed)
        results.setdefault("ours", []).append(mine)
        results.setdefault("torchvision's reference", []).append(reference(args, classes, seed))
        if args.ultralytics:
            results.setdefault("Ultralytics", []).append(ultralytics(args, classes, seed, mine["minutes"]))
        for name, rows in results.items():
            print(seed, name, {k: round(v, 4) for k, v in rows[-1].items()}, flush=True)
    for name, rows in results.items():
        print(f"{name}: { ({k: round(mean(row[k] for row in rows), 4) for k in rows[0]}) }")


if __name__ == "__main__":
    main()
