"""Small real images, options for a run that takes seconds, and shortcuts to the output of a run."""

import os
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import train
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project.checkpoint import load_checkpoint, load_model, open_checkpoint
from project.classification.data import ImageData
from project.classification.model import ResNetClassifier
from project.options import make_parser
from project.runs import Run, start

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "project/sample"


def has_links() -> bool:
    """Whether this process may make symbolic links, for which Windows wants a privilege."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.symlink("nowhere", os.path.join(folder, "link"))
        except OSError:
            return False
    return True


needs_links = pytest.mark.skipif(not has_links(), reason="needs symbolic links")
needs_posix = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs pipes, forks or a flush of folders")


COLOURS = {"blue": (30, 40, 200), "green": (30, 180, 60), "red": (210, 40, 30)}


FAST = [
    "--model.arch=resnet18",
    "--model.weights=none",
    "--data.image_size=32",
    "--data.batch_size=8",
    "--data.num_workers=0",
    "--max_epochs=1",
    "--log_every_n_steps=1",
    "--accelerator=cpu",
    "--enable_progress_bar=false",
]


def save_image(path: Path, colour: tuple[int, int, int] = (0, 0, 0), size: tuple[int, int] = (40, 30), seed: int = 0):
    """Save a noisy image of one colour, in the format of the extension."""
    noise = np.random.default_rng(seed).integers(0, 30, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.array(colour) + noise).astype(np.uint8)).save(path)
    return path


def fill(folder: Path, per_class: int, classes: tuple[str, ...] = tuple(COLOURS)) -> Path:
    """Create `folder/<class>/<n>.png`, and return the folder."""
    for name in classes:
        for i in range(per_class):
            save_image(folder / name / f"{name}-{i}.png", COLOURS.get(name, (120, 120, 120)), seed=i)
    return folder


PREPROCESSING = {
    "resize_size": 256,
    "crop_size": 224,
    "interpolation": "bilinear",
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
}


def make_data(root: Path, preprocessing=PREPROCESSING, **options) -> ImageData:
    """A small data module without worker processes."""
    return ImageData(preprocessing, root=str(root), **{"image_size": 32, "num_workers": 0, "batch_size": 4, **options})


class Exploding:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def bad_checkpoints(good: Path, folder: Path) -> dict[str, Path]:
    content = good.read_bytes()
    (folder / "truncated.ckpt").write_bytes(content[: len(content) // 2])
    (folder / "empty.ckpt").write_bytes(b"")
    (folder / "text.ckpt").write_text("hello")
    (folder / "pickle.ckpt").write_bytes(pickle.dumps(Exploding(folder / "ran")))
    torch.save({"state_dict": {}, "x": Exploding(folder / "ran")}, folder / "malicious.ckpt")
    checkpoint = torch.load(good, weights_only=True)
    torch.save(checkpoint["state_dict"], folder / "weights.ckpt")
    torch.save({**checkpoint, "hyper_parameters": [1]}, folder / "list.ckpt")
    torch.save({**checkpoint, "state_dict": {"a": 1}}, folder / "hollow.ckpt")
    torch.save({**checkpoint, "config": {"data": [1]}}, folder / "no-config.ckpt")
    hyper_parameters = {**checkpoint["hyper_parameters"], "preprocessing": {"mean": [0.5] * 3, "std": [0.5] * 3}}
    torch.save({**checkpoint, "hyper_parameters": hyper_parameters}, folder / "no-sizes.ckpt")
    return {path.stem: path for path in folder.glob("*.ckpt")}


def forged(run: Path, path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of a run's best checkpoint whose state dict has been changed."""
    content = torch.load(run / "checkpoints/best.ckpt", weights_only=True)
    change(content["state_dict"])
    torch.save(content, path)
    return path


def make(num_classes=3, **options):
    names = [f"class-{i}" for i in range(num_classes)]
    return ResNetClassifier(names, PREPROCESSING, **{"arch": "resnet18", "weights": "none", **options})


WEIGHTS = f"--model.weights={SAMPLE / 'resnet18-tiny-imagenet.safetensors'}"


def run_train(folder, data, *options):
    train.main([*FAST, f"--data.root={data}", f"--default_root_dir={folder}", *options])
    return sorted((folder / "lightning_logs").iterdir(), key=lambda path: path.stat().st_ctime)[-1]


def scalars(run, name):
    return [(event.step, event.value) for event in EventAccumulator(str(run)).Reload().Scalars(name)]


def parse(*argv: object) -> Any:
    """The options of scripts/train.py as parsed, before anything is resolved or checked."""
    return make_parser("", ImageData, ResNetClassifier)[0].parse_args([str(word) for word in argv])


def last_of(root: Path) -> dict[str, Any]:
    """The content of the newest run's `last.ckpt`."""
    return open_checkpoint("last", root).content


def reload(path: Path) -> tuple[ResNetClassifier, dict[str, Any]]:
    """The model and the configuration of a checkpoint."""
    checkpoint = load_checkpoint(path)
    return load_model(checkpoint, ResNetClassifier), checkpoint.content["config"]


def on_windows(folder: Path, *command: object) -> str:
    """Run Python in a folder with what Windows lacks taken away, see `windows/sitecustomize.py`. Returns the output."""
    places = [str(path) for path in (ROOT / "tests/windows", ROOT, ROOT / "scripts")]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PYTHONIOENCODING": "cp1252", "PYTHONUTF8": "0"}
    words = [sys.executable, *map(str, command)]
    done = subprocess.run(words, cwd=folder, env=env, capture_output=True, encoding="cp1252", errors="replace")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stdout + done.stderr
    return done.stdout + done.stderr


def begin(*argv: object) -> Run:
    """What scripts/train.py knows before it reads the data."""
    return start("", ImageData, ResNetClassifier, train.SAMPLE, [str(word) for word in argv])
