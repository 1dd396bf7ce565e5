"""What changes around a run: its data, options, folders, caches, configs and environment. Nothing of it is silent.

Runs are those of `test_faults.py`: forked, on a network of a few kilobytes.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from helpers import save_image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from test_faults import ROOT, TINY, Farm, compare, newest, unstopped

from project import cache
from project.checkpoint import load_checkpoint, open_checkpoint

pytestmark = pytest.mark.faults

KILL = {"window": "step", "count": 13}  # within the second epoch of 7 steps


@pytest.fixture(scope="module")
def farm(tmp_path_factory: pytest.TempPathFactory):
    farm = Farm(tmp_path_factory.mktemp("cache"))
    yield farm
    farm.server.kill()
    farm.server.wait()


@pytest.fixture(scope="module")
def options(images: Path) -> list[str]:
    return [*TINY, f"--data.root={images}", "--data.num_workers=0", "--save_every_steps=1"]


@pytest.fixture(scope="module")
def reference(farm, options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not stopped."""
    folder = tmp_path_factory.mktemp("reference")
    unstopped(farm, folder, options)
    return folder


@pytest.fixture(scope="module")
def killed(farm, options, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was killed in the middle of its second epoch; to be copied."""
    folder = tmp_path_factory.mktemp("killed")
    assert farm.run(folder, options, **KILL) == -signal.SIGKILL
    return folder


def resume(farm: Farm, folder: Path, *given: str, status: int = 0) -> str:
    """Resume the newest run in a folder. Returns what is said, which contains no traceback."""
    messages = folder.parent / f"{folder.name}-messages"
    shutil.rmtree(messages, ignore_errors=True)
    argv = ["--ckpt_path=last", *given]
    assert farm.run(folder, argv, messages=messages) == status, (messages / "out.txt").read_text()[-3000:]
    said = (messages / "out.txt").read_text()
    assert "Traceback" not in said
    if status == 0:
        steps = messages / "steps.txt"
        (folder / "again.txt").write_text(steps.read_text() if steps.exists() else "")
    return said


def epochs(folder: Path) -> list[int]:
    """The epoch of each step after the resume."""
    return [int(line.split()[0]) for line in (folder / "again.txt").read_text().splitlines()]


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """All that TensorBoard shows of a run, without what depends on the clock."""
    found = {}
    for part in ("", "train", "val"):
        events = EventAccumulator(str(run / part)).Reload()
        tags = [tag for tag in events.Tags()["scalars"] if not tag.startswith("speed/")]
        found |= {f"{part}/{tag}": [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}
    return found


# The curves


@pytest.mark.parametrize(
    ("window", "count"),
    [("step", 4), ("after a step", 11), ("epoch start", 2), ("epoch end", 2), ("validation", 4), ("renaming", 12)],
)
def test_the_curves_of_a_killed_run_are_those_of_one_never_stopped(farm, options, reference, tmp_path, window, count):
    assert farm.run(tmp_path, options, window=window, count=count) == -signal.SIGKILL
    assert farm.run(tmp_path, options) == 0
    whole, cut = (curves(newest(folder).parents[1]) for folder in (reference, tmp_path))
    assert whole == cut and len(whole["train/curves/loss"]) == 3
    assert compare(reference, tmp_path) == []


def test_early_stopping_by_a_training_figure_stops_in_the_same_epoch(farm, options, tmp_path):
    stopping = ["--callbacks+=EarlyStopping", "--callbacks.monitor=train/loss_epoch", "--callbacks.patience=1"]
    argv = [*options, *stopping, "--max_epochs=12", "--model.lr=0.1"]
    unstopped(farm, tmp_path / "whole", argv)
    steps = load_checkpoint(newest(tmp_path / "whole")).content["global_step"]
    assert 14 <= steps < 84
    for step in range(3, steps, max(1, steps // 5)):
        folder = tmp_path / str(step)
        assert farm.run(folder, argv, window="step", count=step) == -signal.SIGKILL
        assert farm.run(folder, argv) == 0
        assert compare(tmp_path / "whole", folder) == []


# The data


def test_images_that_changed_within_an_epoch_are_named_and_it_starts_again(farm, killed, images, tmp_path):
    def remove(red: Path) -> None:
        (red / "red-0.png").unlink()

    def add(red: Path) -> None:
        save_image(red / "new.png")

    def rename(red: Path) -> None:
        (red / "red-0.png").rename(red / "zzz.png")

    def replace(red: Path) -> None:
        save_image(red / "red-0.png", size=(64, 64))

    for change in (remove, add, rename, replace):
        root, folder = tmp_path / change.__name__ / "data", tmp_path / change.__name__ / "run"
        shutil.copytree(images, root)
        shutil.copytree(killed, folder)
        change(root / "train/red")
        said = resume(farm, folder, f"--data.root={root}")
        assert "The train images are not those" in said and "epoch 2 starts again" in said
        assert f"--data.root {root} (before: {images})" in said
        count = len(list((root / "train").rglob("*.png")))
        assert epochs(folder).count(1) == epochs(folder).count(2) == -(-count // 4)
        progress = load_checkpoint(newest(folder)).content
        assert progress["ImageData"]["epoch"] == 3 and len(progress["ImageData"]["samples"]["train"]) == count
        val = curves(newest(folder).parents[1])["val/curves/loss"]
        assert len(val) == 3, val  # one validation an epoch


def test_an_epoch_that_starts_again_counts_its_steps_when_gradients_are_accumulated(farm, options, images, tmp_path):
    root, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(images, root)
    argv = [*options, "--accumulate_grad_batches=2", f"--data.root={root}"]
    assert farm.run(folder, argv, **KILL) == -signal.SIGKILL
    before = load_checkpoint(newest(folder)).content
    assert (before["global_step"], before["ImageData"]["batches_done"]) == (4 + 2, 4)  # of 7 batches, 4 steps an epoch
    (root / "train/red/red-0.png").unlink()
    assert "epoch 2 starts again" in resume(farm, folder)
    assert epochs(folder) == [1] * 7 + [2] * 7
    after = load_checkpoint(newest(folder)).content
    assert after["global_step"] == 6 + 4 + 4 and after["ImageData"]["epoch"] == 3
    found = curves(newest(folder).parents[1])
    assert len(found["train/curves/loss"]) == len(found["val/curves/loss"]) == 3


def test_other_validation_images_are_named_and_moved_ones_are_the_same(farm, killed, images, reference, tmp_path):
    for change in ("moved", "val"):
        root, folder = tmp_path / change / "data", tmp_path / change / "run"
        shutil.copytree(images, root)
        shutil.copytree(killed, folder)
        if change == "val":
            (root / "val/red/red-0.png").unlink()
        said = resume(farm, folder, f"--data.root={root}")
        assert ("The val images are not those" in said) == (change == "val") and "train images are not" not in said
        assert len(epochs(folder)) == 9  # it went on after step 12 of 21
    shutil.copy(killed / "steps.txt", tmp_path / "moved/run/steps.txt")
    with open(tmp_path / "moved/run/steps.txt", "a") as file:
        file.write((tmp_path / "moved/run/again.txt").read_text())
    assert compare(reference, tmp_path / "moved/run") == []


# The options


@pytest.mark.parametrize(
    ("given", "status", "said"),
    [
        (["--seed=7"], 1, "middle of an epoch with --seed 0"),
        (["--data.balance=sampler"], 1, "middle of an epoch with --data.balance none"),
        (["--model.lr=1e-6"], 1, "was trained with --model.lr 0.001, not 1e-06"),
        (["--model.weight_decay=0.5"], 1, "was trained with --model.weight_decay 0.05"),
        (["--data.image_size=64"], 0, "--data.image_size 64 (before: 32)"),
        (["--precision=bf16-mixed"], 0, "--precision bf16-mixed (before: 32-true)"),
        (["--model.label_smoothing=0.1", "--max_epochs=2"], 0, "--model.label_smoothing 0.1 (before: 0.0)"),
    ],
    ids=str,
)
def test_options_that_changed_are_named_or_refused(farm, killed, tmp_path, given, status, said):
    shutil.copytree(killed, tmp_path / "run")
    config = newest(tmp_path / "run").parents[1] / "config.yaml"
    before = yaml.safe_load(config.read_text())
    assert said in resume(farm, tmp_path / "run", *given, status=status)
    after = yaml.safe_load(config.read_text())
    changed = {word.split("=")[0].removeprefix("--").split(".")[0] for word in given} if status == 0 else set()
    assert {name for name in after if after[name] != before[name]} - {"default_root_dir"} == changed


def test_auto_neither_takes_another_data_set_nor_other_options_for_a_finished_run(farm, reference, images, tmp_path):
    shutil.copytree(reference, tmp_path / "run")
    shutil.copytree(images, tmp_path / "other")
    for path in list((tmp_path / "other").rglob("*.png")):
        path.rename(path.with_stem(f"x{path.stem}"))
    auto = "--ckpt_path=auto"
    other = resume(farm, tmp_path / "run", auto, f"--data.root={tmp_path / 'other'}", status=1)
    assert "was trained on other images" in other
    assert "but with another --seed" in resume(farm, tmp_path / "run", auto, "--seed=9", status=1)
    assert "has finished its epochs" in resume(farm, tmp_path / "run", auto, f"--data.root={images}")


# Folders


@pytest.mark.parametrize("change", ["moved", "linked", "copied"])
@pytest.mark.parametrize("window", ["step", "test"])
def test_a_run_that_lies_elsewhere_now_ends_as_if_it_did_not(farm, options, reference, tmp_path, change, window):
    old, new = tmp_path / "old", tmp_path / "new"
    assert farm.run(old, options, window=window, count=13 if window == "step" else 1) == -signal.SIGKILL
    if change == "moved":
        old.rename(new)
    elif change == "linked":
        new.symlink_to(old)
    else:
        shutil.copytree(old, new)
        shutil.rmtree(old)
    resume(farm, new)
    figures = [json.loads((newest(folder).parents[1] / "metrics.json").read_text()) for folder in (reference, new)]
    assert figures[0]["top1"] == figures[1]["top1"] and figures[0]["loss"] == figures[1]["loss"]
    assert change == "linked" or not old.exists()


def test_the_newest_run_is_that_of_the_highest_number_and_one_without_a_checkpoint_is_named(killed, tmp_path, caplog):
    for number in (2, 10):
        shutil.copytree(killed / "lightning_logs/version_0", tmp_path / f"lightning_logs/version_{number}")
    os.utime(tmp_path / "lightning_logs/version_10/checkpoints/last.ckpt", (1, 1))  # the clock was set back
    assert "version_10" in open_checkpoint("last", tmp_path).path and "passed over" not in caplog.text
    (tmp_path / "lightning_logs/version_11").mkdir()
    assert "version_10" in open_checkpoint("last", tmp_path).path
    assert "version_11" in caplog.text and "passed over" in caplog.text


def test_a_run_in_use_is_not_resumed_by_another(farm, killed, tmp_path):
    shutil.copytree(killed, tmp_path / "run")
    pids = []
    for number in range(2):
        argv = ["--ckpt_path=last", f"--default_root_dir={tmp_path / 'run'}", "--max_epochs=20"]
        pids.append(farm.ask({"folder": str(tmp_path / f"messages-{number}"), "argv": argv}))
    statuses = sorted(farm.ask({"wait": pid}) for pid in pids)
    said = "".join((tmp_path / f"messages-{number}/out.txt").read_text() for number in range(2))
    assert statuses == [0, 1] and "another process is writing to" in said and "Traceback" not in said


# Caches


def test_no_damaged_cache_is_believed(tmp_path, monkeypatch, caplog, figure):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    features = torch.randn(40, 8, generator=torch.Generator().manual_seed(0))
    cache.save_features("a", features)
    path = tmp_path / "finetune-resnet/features-a.safetensors"
    content, rng = path.read_bytes(), random.Random(0)
    damaged = [content[: rng.randrange(len(content))] for _ in range(60)] + [content + b"x", b""]
    for _ in range(120):
        place = rng.randrange(len(content))
        damaged.append(content[:place] + bytes([content[place] ^ (1 << rng.randrange(8))]) + content[place + 1 :])
    damaged += [content[:place] + bytes(len(content) - place) for place in range(10, len(content) - 8, 60)]
    believed, unsaid = 0, 0
    for bad in damaged:
        caplog.clear()
        path.write_bytes(bad)
        believed += cache.load_features("a", (40, 8)) is not None
        unsaid += "not used" not in caplog.text
    figure("damaged caches", f"{len(damaged)}, {believed} believed, {unsaid} unsaid")
    assert len(damaged) > 180 and believed == unsaid == 0


def test_a_damaged_cache_changes_no_run(farm, images, tmp_path):
    argv = [*TINY, f"--data.root={images}", "--data.num_workers=0", "--model.fine_tune=head"]
    argv += ["--data.mixup=0", "--data.cache_features=true", "--max_epochs=2", "--data.doctor=false"]
    unstopped(farm, tmp_path / "first", argv)
    (kept,) = farm.cache.glob("finetune-resnet/features-*.safetensors")
    content = kept.read_bytes()
    for number, bad in enumerate((content[:-200] + bytes(200), content[:-50], b"")):
        kept.write_bytes(bad)
        folder = tmp_path / str(number)
        unstopped(farm, folder, argv)
        assert "it is computed again" in (folder / "out.txt").read_text()
        assert compare(tmp_path / "first", folder) == [] and kept.read_bytes() == content


# Configs


def test_a_truncated_config_is_of_no_account(farm, killed, reference, tmp_path):
    text = (newest(killed).parents[1] / "config.yaml").read_text()
    for number, cut in enumerate((0, len(text) // 3, len(text) // 2)):
        folder = tmp_path / str(number)
        shutil.copytree(killed, folder)
        config = newest(folder).parents[1] / "config.yaml"
        config.write_text(text[:cut])
        said = resume(farm, folder)
        assert "Options changed" not in said and len(epochs(folder)) == 9
        where = {"default_root_dir": str(folder)}
        assert yaml.safe_load(config.read_text()) == {**yaml.safe_load(text), **where}
        assert not list(folder.rglob("*.part"))


# Progress that is none


def at(*path):
    """A change of the value at a place in a checkpoint; `del` removes it."""

    def change(content, value):
        for name in path[:-1]:
            content = (
                content[next(k for k in content if k.startswith(name))] if isinstance(name, str) else content[name]
            )
        if value == "del":
            del content[path[-1]]
        else:
            content[path[-1]] = value

    return change


LOOP, GROUP = ("loops", "fit_loop"), ("optimizer_states", 0, "param_groups", 0)
BEST = ("callbacks", "ModelCheckpoint")
FORGED = {
    **{("global_step",): ["x", -1, 1.5, None, [1], True], ("epoch",): ["x", None], ("loops",): ["del", [], {}, 3]},
    **{("optimizer_states",): [{}, [], "x", [1], [{}]], ("lr_schedulers",): [[], {}, "x", [{}]]},
    **{(*LOOP, "epoch_loop.batch_progress"): ["del", "x", {}], (*LOOP, "epoch_progress", "current"): [3, {"ready": 1}]},
    **{(*LOOP, "epoch_progress", "current", "completed"): ["x", -3, 1.5, None, [1]]},
    **{(*LOOP, "epoch_loop.state_dict", "_batches_that_stepped"): ["x", -1, {}]},
    **{(*GROUP, "lr"): ["del", "x", None], (*GROUP, "betas"): ["x", [0.9], None], (*GROUP, "params"): [[], "x", "del"]},
    **{(*GROUP, "name"): [3, "del"], ("optimizer_states", 0, "state", 0, "exp_avg"): ["x", torch.zeros(2), "del"]},
    **{
        ("lr_schedulers", 0, "last_epoch"): ["x", None, "del"],
        ("callbacks",): [[], "x", "del", {"ModelCheckpoint": 1}],
    },
    **{
        (*BEST, "best_model_score"): ["x", torch.zeros(2)],
        (*BEST, "best_k_models"): [[], {"/etc/hostname": 1}, {3: 1}],
    },
    **{(*BEST, "kth_best_model_path"): [3, "/etc/hostname"], (*BEST, "best_model_path"): [3], (*BEST, "dirpath"): [3]},
    **{
        ("ImageData",): [[], "x", {}],
        ("ImageData", "epoch"): ["x", -1, "del"],
        ("ImageData", "batches_done"): [None, "x"],
    },
    **{
        ("ImageData", "images_a_step"): ["del", "x"],
        ("ImageData", "samples"): [[], {"train": "x"}, {"train": torch.ones(2)}],
    },
    **{("epoch_sums",): ["x", [1], {"x": {}}, {"loss": 3}], ("epoch_sums", "loss"): [{}, {"total": "x"}]},
    **{
        ("pytorch-lightning_version",): [[1], 3, "x"],
        ("config", "monitor"): [3, []],
        ("config", "max_epochs"): ["x", [1]],
    },
}


@pytest.mark.parametrize("place", FORGED, ids=lambda place: ".".join(map(str, place)))
def test_progress_that_is_forged_is_refused_in_a_line(farm, killed, tmp_path, place):
    for number, value in enumerate(FORGED[place]):
        folder = tmp_path / str(number)
        shutil.copytree(killed, folder)
        newest(folder).with_name("previous.ckpt").unlink(missing_ok=True)
        content = torch.load(newest(folder), weights_only=True)
        at(*place)(content, value)
        torch.save(content, newest(folder))
        forged = newest(folder).read_bytes()
        messages = tmp_path / f"{number}-messages"
        status = farm.run(folder, ["--ckpt_path=last"], messages=messages)
        said = (messages / "out.txt").read_text()
        assert status in (1, 2) and "Traceback" not in said, (value, status, said[-3000:])
        assert "error: " in said.splitlines()[-1] and newest(folder).read_bytes() == forged, (value, said)
        assert not (messages / "steps.txt").exists(), value


# The environment


def test_a_closed_terminal_is_survived(farm, options, tmp_path):
    argv = [word for word in options if "save_every" not in word]
    argv += ["--max_epochs=1000", f"--default_root_dir={tmp_path}"]
    pid = farm.ask({"folder": str(tmp_path), "argv": argv})
    while not (tmp_path / "steps.txt").exists():
        time.sleep(0.05)
    os.kill(pid, signal.SIGHUP)
    assert farm.ask({"wait": pid}) == 129
    assert "Stopped by SIGHUP" in (tmp_path / "out.txt").read_text()
    steps = len((tmp_path / "steps.txt").read_text().splitlines())
    assert load_checkpoint(newest(tmp_path)).content["global_step"] == steps > 0


def test_a_user_without_a_name_and_a_home_needs_neither(images, tmp_path):
    code = """
import pwd
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
import train
from project.cli import run
"""
    argv = [*TINY, f"--data.root={images}", "--data.num_workers=0", "--max_epochs=1", f"--default_root_dir={tmp_path}"]
    argv += ["--limit_train_batches=1"]
    code += f"run(lambda: train.main({argv!r}))"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{ROOT / 'scripts'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    assert (tmp_path / "lightning_logs/version_0/metrics.json").exists()


@pytest.fixture
def small(tmp_path: Path):
    """Mount a file system of this size, with this many files at most."""
    folder = tmp_path / "small"
    folder.mkdir()

    def mount(size: str, files: int = 0) -> Path:
        limits = f"size={size}" + (f",nr_inodes={files}" if files else "")
        if subprocess.run(["mount", "-t", "tmpfs", "-o", limits, "tmpfs", folder], capture_output=True).returncode:
            pytest.skip("needs permission to mount a file system")
        return folder

    yield mount
    subprocess.run(["umount", folder], capture_output=True)


@pytest.mark.parametrize(
    ("size", "files"), [("60k", 0), ("90k", 0), ("130k", 0), *(("3m", files) for files in range(5, 15))]
)
def test_a_full_disk_ends_in_one_clear_line(farm, options, tmp_path, small, size, files):
    status = farm.run(small(size, files), options, messages=tmp_path / "messages")
    said = (tmp_path / "messages/out.txt").read_text()
    assert status == 1 and "Traceback" not in said, said[-3000:]
    assert "No space left on device" in said and "enforce fail" not in said and "unexpected pos" not in said
