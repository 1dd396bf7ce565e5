"""Train once with one tool, for scripts/bench/benchmark.py: python scripts/bench/peers.py TOOL JOB.json

Every tool gets the same files, splits, initial weights, image size and number of epochs, and otherwise uses its own
documented defaults, which its function states. The result is one line of JSON: `points`, pairs of the seconds since the
command and the validation accuracy after each epoch; `first_step`, the seconds until the first training step;
`test_top1` of the model that the tool returns to its user; `images_per_second`, over all epochs without validation;
and `peak_mb` of memory.
"""

import csv
import json
import logging
import os
import resource
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torchvision
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL.JpegImagePlugin import JpegImageFile
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

sys.path.append(str(Path(__file__).parents[1]))  # for scripts/train.py
from project.backbones import make_net

STARTED = float(os.environ.get("BENCHMARK_STARTED", time.time()))  # when the parent process started this one
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Recorder:
    """Times and accuracies of a run, recorded in the same way for all tools."""

    def __init__(self) -> None:
        self.points: list[tuple[float, float]] = []
        self.first_step = 0.0
        self.num_images = 0
        self.training = 0.0  # seconds
        self.since: float | None = None

    def step(self, num_images: int) -> None:
        """Call this after each training step."""
        self.first_step = self.first_step or time.time() - STARTED
        self.num_images += num_images

    def epoch_starts(self) -> None:
        """Call this before each training epoch."""
        self.since = time.time()

    def epoch_ends(self) -> None:
        """Call this after each training epoch, before the validation."""
        if self.since is not None:
            self.training += time.time() - self.since
        self.since = None

    def validated(self, top1: float) -> None:
        """Call this after each validation."""
        self.points.append((time.time() - STARTED, top1))

    def report(self, test_top1: float) -> None:
        """Print the result as one line of JSON."""
        usage = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        result = {
            "points": self.points,
            "first_step": self.first_step,
            "test_top1": test_top1,
            "images_per_second": self.num_images / self.training if self.training else None,
            "peak_mb": usage[0] / 1024,  # of the main process; a worker shares most of its pages
        }
        print(json.dumps(result), flush=True)


recorder = Recorder()


class Clock(Callback):
    """Call the recorder from Lightning's hooks."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        head_start = next(c for c in trainer.callbacks if type(c).__name__ == "HeadStart")  # type: ignore[attr-defined]
        if head_start.val_metrics:
            recorder.validated(head_start.val_metrics["val/top1"].item())

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        recorder.epoch_starts()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, i: int
    ) -> None:
        recorder.step(len(batch[1]))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        recorder.epoch_ends()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            recorder.validated(trainer.callback_metrics["val/top1"].item())


def ours(job: dict[str, Any]) -> None:
    """scripts/train.py with its defaults; with `full_size`, JPEGs are decoded at full size."""
    import train

    if job.get("full_size"):
        JpegImageFile.draft = lambda *args: None  # type: ignore[method-assign,assignment]

    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "data.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split"])
        writer.writerows([path, label, split] for split, samples in job["samples"].items() for path, label in samples)
    options = [f"--data.root={folder / 'data.csv'}", f"--data.image_size={job['image_size']}"]
    options += [f"--model.arch={job['arch']}", f"--model.weights={job['weights']}", f"--seed={job['seed']}"]
    options += [f"--max_epochs={job['epochs']}", f"--default_root_dir={folder}", "--callbacks+=peers.Clock"]
    train.main([*options, "--enable_progress_bar=false", *job.get("options", [])])
    (metrics,) = folder.glob("lightning_logs/*/metrics.json")
    recorder.report(json.loads(metrics.read_text())["top1"])


# Shared by the peers


class Files(Dataset[Any]):
    """Images read with Pillow, as in torchvision's ImageFolder, but from a list of samples."""

    def __init__(self, samples: list[list[str]], class_names: list[str], transform: Callable[[Any], Tensor]) -> None:
        self.samples = [(path, class_names.index(label)) for path, label in samples]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        path, label = self.samples[i]
        return self.transform(torchvision.datasets.folder.default_loader(path)), label


def tutorial_transforms(size: int) -> dict[str, Callable[[Any], Tensor]]:
    """The transforms of PyTorch's transfer learning tutorial, by split."""
    end = [transforms.ToTensor(), transforms.Normalize(MEAN, STD)]
    evaluation = transforms.Compose([transforms.Resize(size * 256 // 224), transforms.CenterCrop(size), *end])
    training = transforms.Compose([transforms.RandomResizedCrop(size), transforms.RandomHorizontalFlip(), *end])
    return {"train": training, "val": evaluation, "test": evaluation}


def pretrained(job: dict[str, Any]) -> nn.Module:
    """A torchvision ResNet with the job's weights and a random head."""
    net: Any = make_net(job["arch"], job["weights"], job["image_size"])
    net.fc = nn.Linear(net.fc.in_features, len(job["class_names"]))
    return net


@torch.no_grad()
def accuracy(net: nn.Module, loader: Any) -> float:
    """Top-1 accuracy over a loader, from 0 to 1."""
    net.eval()
    counts = [((net(images).argmax(dim=1) == labels).sum().item(), len(labels)) for images, labels in loader]
    net.train()
    return sum(right for right, _ in counts) / sum(total for _, total in counts)


def plain(job: dict[str, Any]) -> None:
    """The loop of PyTorch's transfer learning tutorial: fp32, SGD of lr 0.01 and momentum 0.9, batches of 32."""
    chosen = tutorial_transforms(job["image_size"])
    loaders = {
        split: DataLoader(
            Files(job["samples"][split], job["class_names"], chosen[split]),
            batch_size=32,
            shuffle=split == "train",
            num_workers=job["num_workers"],
            persistent_workers=True,
        )
        for split in ("train", "val", "test")
    }
    net = pretrained(job).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
    for _ in range(job["epochs"]):
        recorder.epoch_starts()
        for images, labels in loaders["train"]:
            loss = F.cross_entropy(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(len(labels))
        recorder.epoch_ends()
        recorder.validated(accuracy(net, loaders["val"]))
    recorder.report(accuracy(net, loaders["test"]))


def fastai(job: dict[str, Any]) -> None:
    """`vision_learner(...).fine_tune(n)`, one of its epochs with a frozen body; transforms of its vision tutorial."""
    from fastai.vision import all as fv

    size, names = job["image_size"], job["class_names"]
    rows = [(path, label) for split in ("train", "val") for path, label in job["samples"][split]]
    num_train = len(job["samples"]["train"])
    block = fv.DataBlock(
        blocks=(fv.ImageBlock, fv.CategoryBlock(vocab=names)),
        get_x=fv.ItemGetter(0),
        get_y=fv.ItemGetter(1),
        splitter=fv.IndexSplitter(range(num_train, len(rows))),
        item_tfms=fv.Resize(2 * size),
        batch_tfms=[*fv.aug_transforms(size=size), fv.Normalize.from_stats(MEAN, STD)],
    )
    dls = block.dataloaders(rows, num_workers=job["num_workers"])

    class Watch(fv.Callback):
        def before_train(self) -> None:
            recorder.epoch_starts()

        def after_batch(self) -> None:
            if self.training:
                recorder.step(len(self.yb[0]))

        def after_train(self) -> None:
            recorder.epoch_ends()

        def after_epoch(self) -> None:
            recorder.validated(float(self.learn.recorder.values[-1][-1]))

    Watch.order = fv.Recorder.order + 1  # after this epoch's metrics have been recorded
    arch = getattr(torchvision.models, job["arch"])
    learn = fv.vision_learner(dls, arch, pretrained=False, metrics=fv.accuracy, cbs=Watch())
    body = nn.Sequential(*list(pretrained(job).children())[:-2])
    learn.model[0].load_state_dict(body.state_dict())
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(job["epochs"] - 1)
    test = dls.test_dl([(path, label) for path, label in job["samples"]["test"]], with_labels=True)
    probabilities, labels = learn.get_preds(dl=test)
    recorder.report((probabilities.argmax(dim=1) == labels).float().mean().item())


def timm(job: dict[str, Any]) -> None:
    """The defaults of timm's train.py with its loader and transforms: SGD with Nesterov momentum, lr 0.1 per 256 images
    in a step, cosine schedule, weight decay 2e-5, label smoothing 0.1; but batches of 32 (its default is 128) and one
    epoch of warm-up (its default is 5 of 300). The best epoch by validation is kept."""
    from timm.data import create_loader
    from timm.loss import LabelSmoothingCrossEntropy
    from timm.optim import create_optimizer_v2
    from timm.scheduler import create_scheduler_v2

    size = (3, job["image_size"], job["image_size"])
    loaders = {
        split: create_loader(
            cast(Any, Files(job["samples"][split], job["class_names"], lambda image: image)),
            size,
            batch_size=32,
            is_training=split == "train",
            num_workers=job["num_workers"],
            device=torch.device("cpu"),
            use_prefetcher=False,
            crop_pct=0.875,
        )
        for split in ("train", "val", "test")
    }
    net = pretrained(job).train()
    optimizer = create_optimizer_v2(net, opt="sgd", lr=0.1 * 32 / 256, weight_decay=2e-5, momentum=0.9)
    scheduler, _ = create_scheduler_v2(
        optimizer, sched="cosine", num_epochs=job["epochs"], warmup_epochs=1, warmup_lr=1e-5
    )
    smoothed = LabelSmoothingCrossEntropy(0.1)
    best, kept = -1.0, {}
    for epoch in range(job["epochs"]):
        scheduler.step(epoch)
        recorder.epoch_starts()
        for images, labels in loaders["train"]:
            loss = smoothed(net(images), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recorder.step(len(labels))
        recorder.epoch_ends()
        top1 = accuracy(net, loaders["val"])
        recorder.validated(top1)
        if top1 > best:
            best, kept = top1, {name: value.clone() for name, value in net.state_dict().items()}
    net.load_state_dict(kept)
    recorder.report(accuracy(net, loaders["test"]))


def huggingface(job: dict[str, Any]) -> None:
    """Hugging Face's Trainer with its defaults: AdamW, lr 5e-5, linear decay, batches of 8; tutorial transforms."""
    import transformers

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = pretrained(job)

        def forward(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
            logits = self.net(images)
            return {"loss": F.cross_entropy(logits, labels), "logits": logits}

    class Watch(transformers.TrainerCallback):
        def on_epoch_begin(self, *args: Any, **kwargs: Any) -> None:
            recorder.epoch_starts()

        def on_step_end(self, args: Any, *rest: Any, **kwargs: Any) -> None:
            recorder.step(args.per_device_train_batch_size)

        def on_epoch_end(self, *args: Any, **kwargs: Any) -> None:
            recorder.epoch_ends()

        def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recorder.validated(kwargs["metrics"]["eval_top1"])

    chosen = tutorial_transforms(job["image_size"])
    sets = {split: Files(job["samples"][split], job["class_names"], chosen[split]) for split in chosen}
    arguments = transformers.TrainingArguments(
        output_dir=job["folder"],
        num_train_epochs=job["epochs"],
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=job["seed"],
        dataloader_num_workers=job["num_workers"],
        dataloader_persistent_workers=True,
    )
    trainer = transformers.Trainer(
        Wrapped(),
        arguments,
        data_collator=lambda rows: {
            "images": torch.stack([image for image, _ in rows]),
            "labels": torch.tensor([label for _, label in rows]),
        },
        train_dataset=sets["train"],
        eval_dataset=sets["val"],
        compute_metrics=lambda p: {"top1": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())},  # type: ignore
        callbacks=[Watch()],
    )
    trainer.train()
    metrics = trainer.predict(sets["test"]).metrics  # type: ignore[arg-type]
    recorder.report((metrics or {})["test_top1"])


TOOLS: dict[str, Callable[[dict[str, Any]], None]] = {
    "ours": ours,
    "plain": plain,
    "fastai": fastai,
    "timm": timm,
    "huggingface": huggingface,
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    job = json.loads(Path(sys.argv[2]).read_text())
    sys.modules["peers"] = sys.modules["__main__"]  # so that --callbacks+=peers.Clock uses this module's recorder
    torch.manual_seed(job["seed"])
    TOOLS[sys.argv[1]](job)
