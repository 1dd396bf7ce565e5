"""A process that has everything imported, and forks a training run for each line that it receives.

    python tests/faults/fault_server.py [TASK]      # classification, detection or text_classification

A run thus starts in half a second, and can be killed a thousand times. Each line is a job in JSON:

    argv      options of the task's train.py
    folder    where its messages (`out.txt`) and its steps (`steps.txt`) go
    real      use a real ResNet-18 instead of a tiny network
    window    kill the run (SIGKILL, from within) at this point …
    count     … when it gets there for the count-th time
    mutant    remove this safeguard, or replace it with what is common elsewhere
    saver     do not train: save a checkpoint at this path again and again, …
    stock     … as Lightning does, via this folder
    wait      wait for the run with this process id

It answers with the process id of the forked run, or after `wait` with its exit status (negative: the signal).
"""

import json
import os
import signal
import sys
import tempfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torchvision
import train
from lightning.fabric.plugins.io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.figure import Figure
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torch.utils.tensorboard.writer import SummaryWriter

import project.checkpoint
import project.decoding
import project.failures
import project.files
import project.loggers
import project.metrics
import project.runs
import project.safety
from project import loading, trainer
from project.checkpoint import DurableCheckpointIO
from project.classification import pictures
from project.classification.data import ImageData
from project.classification.datasets import ImageDataset
from project.classification.model import ResNetClassifier
from project.cli import run as run_script


class Task(NamedTuple):
    """What is trained: the main function of its script, and the class of its model."""

    main: Callable[[list[str]], Any]
    model: Any


def task_called(name: str) -> Task:
    """A task by the name of its folder; its modules are imported only if it is asked for."""
    if name == "classification":
        return Task(lambda argv: train.main(argv), ResNetClassifier)
    if name == "detection":
        from project.detection import networks
        from scripts.detection import train as script

        block = torchvision.models.resnet.BasicBlock
        networks.make_net = lambda *args: torchvision.models.ResNet(block, [1, 1, 1, 1])  # type: ignore[assignment]
        return Task(script.main, script.ResNetDetector)
    from scripts.text_classification import train as script

    return Task(script.main, script.TextClassifier)


def tiny_network(arch: str, weights: Any = None) -> nn.Module:
    """A network of a few kilobytes with the parts of a ResNet, by its names."""

    def part(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())

    parts = {
        "conv1": nn.Conv2d(3, 8, 3, 2, 1, bias=False),
        "bn1": nn.BatchNorm2d(8),
        **{f"layer{i}": part(8, 8) for i in range(1, 5)},
        "avgpool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
        "fc": nn.Linear(8, 1000),
    }
    return nn.Sequential(OrderedDict(parts))


def before(owner: Any, name: str, action: Callable[[], None]) -> None:
    """Call `action` before a method, or before a function of a module."""
    original = getattr(owner, name)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        action()
        return original(*args, **kwargs)

    setattr(owner, name, wrapped)


def kill_in_window(window: str, count: int, model: Any) -> None:
    passed = 0

    def pass_by() -> None:
        nonlocal passed
        passed += 1
        if passed == count:
            os.kill(os.getpid(), signal.SIGKILL)

    def half_written(checkpoint: Any, file: Any) -> None:
        nonlocal passed
        passed += 1
        save(checkpoint, file)
        if passed == count:
            file.truncate(file.tell() // 2)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    save = torch.save
    owners: dict[str, tuple[Any, str]] = {
        "step": (model, "training_step"),
        "validation": (model, "validation_step"),
        "epoch end": (project.safety.LastCheckpoint, "on_train_epoch_end"),
        "epoch start": (project.safety.LastCheckpoint, "on_train_epoch_start"),
        "after a step": (project.safety.LastCheckpoint, "on_train_batch_end"),
        "worker start": (DataLoader, "__iter__"),
        "sealing": (project.checkpoint, "append_checksum"),
        "renaming": (os, "replace"),
        "test": (model, "test_step"),
    }
    if window == "saving":
        project.checkpoint.torch.save = half_written  # type: ignore[attr-defined]
    elif window == "last batch":
        original = project.safety.LastCheckpoint.on_train_batch_end

        def at_last(self: Any, trainer: Any, *args: Any) -> None:
            if trainer.is_last_batch:
                pass_by()
            original(self, trainer, *args)

        project.safety.LastCheckpoint.on_train_batch_end = at_last  # type: ignore[method-assign,assignment]
    else:
        before(*owners[window], pass_by)


class StockCheckpoint(ModelCheckpoint):
    """What a user of Lightning would write, with our option names."""

    def __init__(self, every_minutes: Any, every_steps: Any, max_seconds: Any) -> None:
        super().__init__(filename="last", every_n_train_steps=every_steps, enable_version_counter=False)


def stock_loader(self: ImageData) -> DataLoader:
    dataset = ImageDataset(self.samples["train"], self.class_names, self.train_transform)
    return DataLoader(dataset, batch_size=self.batch_size, shuffle=True)


def without_seed(self: ImageDataset, item: Any) -> Any:
    i = item[0] if isinstance(item, tuple) else item
    return self._read(i)


def in_place(path: Any, mode: str) -> Any:
    return open(str(path).removesuffix(".part"), mode)


def take_out(mutant: str) -> None:
    """Remove one of the safeguards."""
    if mutant == "stock loader":
        ImageData.train_dataloader = stock_loader  # type: ignore[method-assign]
        ImageDataset.__getitem__ = without_seed  # type: ignore[method-assign]
    elif mutant == "stock checkpoint":
        trainer.LastCheckpoint = StockCheckpoint  # type: ignore[misc,assignment]
        trainer.DurableCheckpointIO = lambda resumed: TorchCheckpointIO()  # type: ignore[misc,assignment]
    elif mutant == "no position":
        ImageData.load_state_dict = lambda self, state: None  # type: ignore[method-assign]
    elif mutant == "no seed of an image":
        ImageDataset.__getitem__ = without_seed  # type: ignore[method-assign]
    elif mutant == "no seed of a step":
        loading.torch.manual_seed = lambda seed: None  # type: ignore[attr-defined,assignment]
    elif mutant == "saves after any step":
        project.safety.resumable_after = lambda trainer, batch_idx: True
    elif mutant == "written in place":
        os.replace = lambda draft, path: None  # type: ignore[assignment]
        project.files.open = in_place  # type: ignore[attr-defined]
    elif mutant == "trusts any file":
        project.checkpoint.is_whole = lambda path: True
    elif mutant == "unpickles anything":
        load = torch.load
        torch.load = lambda *args, **options: load(*args, **{**options, "weights_only": False})  # type: ignore
    elif mutant == "no look at the loss":
        project.safety.StopAtNonFinite.on_train_batch_end = lambda *args: None  # type: ignore[method-assign,assignment]
    elif mutant == "images of any size":
        project.decoding.MAX_PIXELS = 10**12
        Image.MAX_IMAGE_PIXELS = None
    elif mutant == "any path in a manifest":
        os.pardir = "nowhere"
    elif mutant == "no explanation":
        project.failures.explanation = lambda *args: None  # type: ignore[assignment]
    elif mutant == "keeps what was logged after the checkpoint":
        project.loggers.TensorBoardLogger = lambda purge_step, **options: TensorBoardLogger(**options)  # type: ignore
    elif mutant == "goes on with any batch size":
        project.runs.check_order = lambda *args: None
    elif mutant == "nothing saved on a signal":
        project.safety.LastCheckpoint.on_train_start = lambda self, trainer, module: None  # type: ignore[method-assign]
    else:
        raise ValueError(mutant)


def log_steps(path: Path, model: Any) -> None:
    """Log epoch, batch, and a hash of all that is in it."""
    original = model.training_step

    def logged(self: Any, batch: Any, batch_idx: int) -> Any:
        with open(path, "a") as file:
            file.write(f"{self.current_epoch} {batch_idx} {digest(batch)}\n")
        return original(self, batch, batch_idx)

    model.training_step = logged


def digest(part: Any, value: int = 0) -> int:
    """A hash of tensors in lists, tuples and dictionaries."""
    if isinstance(part, torch.Tensor):
        return zlib.crc32(part.numpy().tobytes(), value)
    for inner in part.values() if isinstance(part, dict) else part:
        value = digest(inner, value)
    return value


def save_again_and_again(path: Path, temporary: str | None) -> None:
    io = DurableCheckpointIO() if temporary is None else TorchCheckpointIO()
    tempfile.tempdir = temporary
    state = {"state_dict": {"w": torch.zeros(8_000_000)}, "hyper_parameters": {}, "config": {"data": {}}}
    io.save_checkpoint(state, path)
    path.with_name("ready").touch()
    while True:
        io.save_checkpoint(state, path)


def run(job: dict[str, Any], task: Task) -> None:
    if "saver" in job:
        save_again_and_again(Path(job["saver"]), job["stock"])
    folder = Path(job["folder"])
    folder.mkdir(parents=True, exist_ok=True)
    out = os.open(folder / "out.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1)
    os.dup2(out, 2)
    torch.set_num_threads(1)
    if not job.get("real"):
        torchvision.models.get_model = tiny_network  # type: ignore[assignment]
        SummaryWriter.add_image = lambda *args, **kwargs: None  # type: ignore[method-assign,assignment]
        # Pictures take half the time of a tiny run, and its report as much again.
        train.save_report = lambda *args: None
        project.metrics.confusion_figure = pictures.confusion_figure = lambda *args: Figure()
    log_steps(folder / "steps.txt", task.model)
    if job.get("mutant"):
        take_out(job["mutant"])
    if job.get("window"):
        kill_in_window(job["window"], job["count"], task.model)
    run_script(lambda: task.main(job["argv"]))


def main() -> None:
    task = task_called(sys.argv[1] if len(sys.argv) > 1 else "classification")
    for line in sys.stdin:
        job = json.loads(line)
        if "wait" in job:
            _, status = os.waitpid(job["wait"], 0)
            print(os.waitstatus_to_exitcode(status), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            status = 1
            try:
                os.setsid()
                run(job, task)
            except SystemExit as stop:
                status = stop.code if isinstance(stop.code, int) else 1
                if isinstance(stop.code, str):
                    print(stop.code, file=sys.stderr)
            except BaseException:
                import traceback

                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)


if __name__ == "__main__":
    main()
