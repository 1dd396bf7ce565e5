"""Runs of the other tasks are killed again and again, and end bit for bit as if they had not been."""

import random
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_faults import Farm, kill_campaign
from tiny_bert import TEXTS, write_texts, write_tiny_bert

COMMON = ["--max_epochs=3", "--precision=32-true", "--accelerator=cpu", "--enable_progress_bar=false"]
COMMON += ["--deterministic=true", "--ckpt_path=auto", "--log_every_n_steps=1", "--save_every_steps=1"]


def cells(folder: Path) -> Path:
    """YOLO text files: bright squares on dark ground, of two classes, in images of several sizes; one has none."""
    rng = random.Random(0)
    for split, count in {"train": 13, "val": 3, "test": 3}.items():
        for i in range(count):
            width, height = rng.randint(60, 90), rng.randint(50, 80)
            pixels = np.random.default_rng(i).integers(0, 60, (height, width, 3), np.uint8)
            lines = []
            for _ in range(0 if i == 2 else rng.randint(1, 3)):
                label, x, y = rng.randint(0, 1), rng.randint(0, width - 24), rng.randint(0, height - 24)
                pixels[y : y + 20, x : x + 20] = (220, 80, 80) if label else (80, 220, 80)
                lines.append(f"{label} {(x + 10) / width} {(y + 10) / height} {20 / width} {20 / height}")
            for kind in ("images", "labels"):
                (folder / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / f"images/{split}/{i}.png")
            (folder / f"labels/{split}/{i}.txt").write_text("\n".join(lines))
    (folder / "classes.txt").write_text("green\nred\n")
    return folder


@pytest.fixture(scope="module")
def options(tmp_path_factory) -> dict[str, list[str]]:
    folder = tmp_path_factory.mktemp("tasks")
    boxes = cells(folder / "cells")
    bert = write_tiny_bert(folder / "bert", TEXTS)
    texts = write_texts(folder / "texts.csv")
    small = ["--model.arch=fcos", "--model.backbone=resnet18", "--model.weights=none", "--model.channels=64"]
    return {
        "detection": [f"--data.root={boxes}", *small, "--model.image_size=64", "--data.batch_size=4"],
        "text_classification": [f"--data.root={texts}", f"--model.encoder={bert}", "--data.batch_size=8"],
    }


@pytest.mark.faults
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("task", ["detection", "text_classification"])
def test_killed_runs_end_as_the_one_that_was_not(task, num_workers, options, tmp_path, tmp_path_factory, figure):
    farms = [Farm(tmp_path_factory.mktemp("cache"), task) for _ in range(2)]
    given = [*COMMON, *options[task], f"--data.num_workers={num_workers}"]
    try:
        met, trouble = kill_campaign(farms, tmp_path, given, num_kills=30, seed=num_workers)
    finally:
        for farm in farms:
            farm.server.kill()
            farm.server.wait()
    figure(f"kills, {task}, {num_workers} workers", f"{met['kills']} in {met['runs']} runs, {len(trouble)} differ")
    assert not trouble, "\n".join(trouble)
