import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import train
import yaml
from helpers import (
    FAST,
    ROOT,
    SAMPLE,
    fill,
    last_of,
    on_windows,
    reload,
    scalars,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project import UserError
from project.callbacks import RunFolder
from project.checkpoint import load_checkpoint
from project.results import origin


def test_the_run_folder_holds_everything_and_the_checkpoint_before_the_last_no_more(trained):
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= names
    assert {"predictions.csv", "mistakes.png", "confusion_matrix.png"} <= names and "pictures/mistakes.png" not in names
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert {name for name in names if name.startswith("checkpoints")} == {
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    }
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["split"] == "test" and metrics["num_samples"] == 12 and metrics["top5"] is None
    assert {"top1", "macro_f1", "ece"} <= metrics.keys()
    assert list(metrics["per_class"]) == ["blue", "green", "red"]
    assert metrics["val"]["split"] == "val" and metrics["val"].keys() == metrics.keys() - {"val", *origin(None, "")}
    best = load_checkpoint(trained / "checkpoints/best.ckpt").content
    assert (metrics["checkpoint"], metrics["step"]) == (str(trained / "checkpoints/best.ckpt"), best["global_step"])
    assert metrics["data"] == str(trained.parents[1] / "data")


def test_the_predictions_agree_with_the_metrics_and_with_the_curve(trained):
    metrics = json.loads((trained / "metrics.json").read_text())
    with open(trained / "predictions.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    right = {name: [r["predicted"] == r["label"] for r in rows if r["split"] == name] for name in ("val", "test")}
    assert sum(right["test"]) / 12 == pytest.approx(metrics["top1"], abs=1e-6)
    of_val = max(value for _, value in scalars(trained / "val", "curves/top1"))
    assert sum(right["val"]) / 12 == pytest.approx(of_val, abs=1e-6)
    assert scalars(trained, "test/top1")[0][1] == pytest.approx(metrics["top1"], abs=1e-6)  # not that of val


def test_tensorboard_has_few_charts_with_the_curves_first(trained):
    tags = {name: EventAccumulator(str(trained / name)).Reload().Tags() for name in ("", "train", "val")}
    curves = {"curves/loss", "curves/top1", "details/ece", "details/macro_f1"}
    assert set(tags["val"]["scalars"]) == curves
    assert set(tags["train"]["scalars"]) == {"curves/loss", "curves/top1", "steps/loss"}
    of_the_run = {"lr/backbone", "lr/head", "speed/images_per_second"}
    assert set(tags[""]["scalars"]) == of_the_run | {f"test/{name}" for name in ("loss", "top1", "macro_f1", "ece")}
    assert {"train/images", "val/confusion_matrix", "mistakes"} <= set(tags[""]["images"])
    assert sorted(of_the_run | curves)[:4] == sorted(curves)  # TensorBoard opens the first groups of the alphabet


def test_checkpoints_are_self_contained_and_plain(trained):
    checkpoint = torch.load(trained / "checkpoints/best.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["class_names"] == ["blue", "green", "red"]
    assert checkpoint["hyper_parameters"]["arch"] == "resnet18"
    assert checkpoint["hyper_parameters"]["preprocessing"]["crop_size"] == 32
    assert checkpoint["config"] == yaml.safe_load((trained / "config.yaml").read_text())
    json.dumps([checkpoint["hyper_parameters"], checkpoint["config"]])  # JSON types only


def test_a_reload_does_not_ask_for_the_pretrained_weights(split, tmp_path, monkeypatch):
    weights = tmp_path / "w.safetensors"
    shutil.copy(SAMPLE / "resnet18-tiny-imagenet.safetensors", weights)
    train.main([*FAST, f"--data.root={split}", f"--default_root_dir={tmp_path}", f"--model.weights={weights}"])
    weights.unlink()
    model, config = reload(tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt")
    assert config["model"]["weights"] == str(weights) and model.hparams["weights"] == "none"


def test_best_is_the_best_by_validation_top1(trained):
    curve = [value for _, value in scalars(trained / "val", "curves/top1")]
    best = load_checkpoint(trained / "checkpoints/best.ckpt").content
    state = next(s for name, s in best["callbacks"].items() if "val/top1" in name and "ModelCheckpoint" in name)
    assert state["best_model_score"].item() == pytest.approx(max(curve))


def test_training_without_logger_checkpoints_and_progress(split, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.main([*FAST, f"--data.root={split}", "--logger=false", "--enable_checkpointing=false"])
    train.main([*FAST, f"--data.root={split}", "--fast_dev_run"])
    with pytest.raises(UserError, match=r"as bare: --logger") as refused:
        train.main([*FAST, f"--data.root={split}", "--barebones"])
    train.main([*FAST, f"--data.root={split}", *str(refused.value).split("as bare: ")[1].split()])
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize(
    "options",
    [
        ["--model.fine_tune=head", "--model.dropout=0.2"],
        ["--model.fine_tune=gradual", "--model.backbone_lr_factor=0.1", "--max_epochs=2"],
        ["--callbacks+=EMAWeightAveraging", "--callbacks.decay=0.9", "--gradient_clip_val=1"],
        ["--data.mixup=0.2", "--data.cutmix=1", "--data.balance=loss", "--accumulate_grad_batches=2"],
        ["--data.balance=sampler", "--model.optimizer=sgd", "--model.schedule=constant", "--precision=32-true"],
    ],
    ids=lambda options: options[0],
)
def test_recipes_run_and_leave_a_loadable_model(split, tmp_path, options):
    train.main([*FAST, f"--data.root={split}", f"--default_root_dir={tmp_path}", *options])
    for name in ("best", "last"):
        model, _ = reload(tmp_path / f"lightning_logs/version_0/checkpoints/{name}.ckpt")
        assert model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_keeps_the_last_checkpoint_and_exits_130(split, tmp_path, signum, status):
    """A terminal also sends it to the data workers; torchrun and timeout do the same with SIGTERM."""
    command = [sys.executable, ROOT / "scripts/train.py", *FAST, "--max_epochs=10000", "--data.num_workers=1"]
    command += [f"--data.root={split}", f"--default_root_dir={tmp_path}", "--data.batch_size=2"]
    streams = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    process = subprocess.Popen(command, text=True, start_new_session=True, **streams)
    last = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    while not last.exists():
        assert process.poll() is None
        time.sleep(0.2)
    os.killpg(process.pid, signum)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == status, messages
    assert "--ckpt_path last" in messages and "Traceback" not in messages
    assert load_checkpoint(last).content["global_step"] >= 3  # an epoch


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--data.root=nowhere"], "--data.root nowhere: no such folder or file"),
        (["--model.weights=nowhere.pth"], "--model.weights nowhere.pth: no such file"),
        (["--accelerator=gpu"], "No supported gpu backend found! (--accelerator auto"),
        (["--strategy=dpp"], "invalid strategy name"),
        (["--ckpt_path=nowhere.ckpt"], "checkpoint nowhere.ckpt: no such file"),
        (["--ckpt_path=last"], "has a last.ckpt"),
        (["--seed=-1"], "--seed -1: must be from 0"),
    ],
)
def test_bad_input_ends_in_one_line(fails, flat, tmp_path, options, expected):
    given = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", *options]
    assert expected in fails(train.main, *given)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_an_unwritable_run_folder_is_found_out_before_the_work(fails, flat, tmp_path):
    (tmp_path / "file").write_text("")
    line = fails(train.main, *FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path / 'file'}")
    assert "cannot write to" in line and "--default_root_dir" in line


def test_a_broken_image_stops_the_run_before_it_starts(fails, flat, tmp_path):
    (flat / "red/red-0.png").write_bytes(b"")
    line = fails(train.main, *FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}")
    assert "1 of 30 images cannot be used" in line and "red-0.png: the file is empty" in line


def test_an_image_that_breaks_while_training_is_named(fails, flat, tmp_path, monkeypatch):
    def empty_all(self, trainer, pl_module):
        for path, _ in trainer.datamodule.samples["train"]:
            with open(path, "w"):
                pass

    monkeypatch.setattr(RunFolder, "on_train_start", empty_all)
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--data.num_workers=1"]
    assert ".png: the file is empty (0 bytes)" in fails(train.main, *options, "--num_sanity_val_steps=0")


def test_what_training_brought_is_said():
    at_start = {"val/top1": torch.tensor(0.81), "val/loss": torch.tensor(0.6)}
    start, tuned = {"global_step": 0, "epoch": 0}, {"global_step": 40, "epoch": 6}
    told = train.outcome(8, tuned, "val/top1", 0.86, at_start)
    assert told == "Best: epoch 7, val top1 0.8600 (the head start: 0.8100)"
    assert train.outcome(8, tuned, "val/loss", 0.5, at_start).endswith("val loss 0.5000 (the head start: 0.6000)")
    assert train.outcome(8, tuned, "val/top1", 0.86, {}) == "Best: epoch 7, val top1 0.8600"
    no_gain = train.outcome(8, start, "val/top1", 0.81, at_start)
    assert "8 more epochs brought no gain" in no_gain and "--config" in no_gain
    frozen = {**start, "hyper_parameters": {"fine_tune": "head"}}
    assert "--config" not in train.outcome(8, frozen, "val/top1", 0.81, at_start)
    assert train.outcome(0, start, "val/top1", 0.81, at_start) == "Best: the head start, val top1 0.8100"
    average = train.outcome(8, {**tuned, "fine_tuned_share": 0.25}, "val/top1", 0.87, at_start)
    assert average.startswith("Best: the average of the head start (75%) and epoch 7 (25%), val top1 0.8700")


@pytest.mark.slow
def test_a_log_file_has_a_line_for_each_epoch_and_the_outcome(split, tmp_path):
    command = [sys.executable, ROOT / "scripts/train.py", *FAST, f"--data.root={split}", "--max_epochs=3"]
    command += [f"--default_root_dir={tmp_path}", "--enable_progress_bar=true"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if re.match(r"Epoch \d of 3: train loss", line)]
    assert len(lines) == 3 and "(new best)" in lines[0] and "left" in lines[1]
    assert re.search(r"^Run folder: .*version_0 \(\d+ MB\)$", done.stderr, re.MULTILINE)
    assert re.search(r"^Best: epoch \d, val top1 [\d.]+$", done.stderr, re.MULTILINE)
    assert re.search(r"^Mistakes:    .*mistakes.png \(\d of 9 val, \d of 9 test images\)$", done.stderr, re.MULTILINE)
    assert "95 % interval of 9 images" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_the_sample_is_learned(tmp_path):
    command = [sys.executable, ROOT / "scripts/train.py", f"--default_root_dir={tmp_path}"]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "COLUMNS": "100"})
    metrics = json.loads((tmp_path / "lightning_logs/version_0/metrics.json").read_text())
    assert metrics["split"] == "test" and metrics["num_samples"] == 300
    assert metrics["top1"] >= 0.82


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("epochs", "points"), [(1, 0.08), (3, 0.02)])
def test_pretrained_weights_beat_random_ones_on_the_sample(tmp_path, epochs, points):
    """By 8 points of top-1 after one epoch, and still after three, averaged over three seeds."""

    def mean_top1(*options: str) -> float:
        given = [f"--default_root_dir={tmp_path}", f"--max_epochs={epochs}", "--data.doctor=false", *options]
        runs = [train.main([*given, f"--seed={seed}", "--enable_progress_bar=false"]) for seed in range(3)]
        return sum(run.metrics["top1"] for run in runs) / len(runs)

    assert mean_top1() >= mean_top1("--model.weights=none") + points


@pytest.mark.slow
@pytest.mark.parametrize("fine_tune", ["full", "head"])
def test_two_processes_train_one_model(split, tmp_path, fine_tune):
    command = [
        sys.executable,
        ROOT / "scripts/train.py",
        *FAST,
        f"--data.root={split}",
        "--devices=2",
        "--data.batch_size=5",
    ]
    command += ["--strategy=ddp", f"--model.fine_tune={fine_tune}", f"--default_root_dir={tmp_path}", "--max_epochs=3"]
    subprocess.run(command, check=True, capture_output=True, timeout=180)
    (run,) = (tmp_path / "lightning_logs").iterdir()
    assert json.loads((run / "metrics.json").read_text())["num_samples"] == 9
    with open(run / "predictions.csv", newline="", encoding="utf-8-sig") as file:
        rows = list(csv.DictReader(file))
    paths = [str(path) for name in ("val", "test") for path in sorted((split / name).rglob("*.png"))]
    assert [row["path"] for row in rows] == paths and all(row["predicted"] for row in rows)
    assert (
        load_checkpoint(run / "checkpoints/last.ckpt").content["global_step"] == 3 * 2
    )  # 9 images each, in batches of 5


@pytest.mark.slow
def test_windows_trains_resumes_evaluates_and_predicts(tmp_path):
    """As simulated by `windows/sitecustomize.py`: spawned workers, no folders flushed, no letters beyond Latin 1."""
    for name, count in {"train": 8, "val": 4, "test": 4}.items():
        fill(tmp_path / "bilder" / name, count, ("grün", "日本", "red"))
    options = [*FAST, "--data.root=bilder", "--data.num_workers=1"]
    assert "Best: epoch 1" in on_windows(tmp_path, ROOT / "scripts/train.py", *options, "--save_every_steps=1")
    resumed = on_windows(tmp_path, ROOT / "scripts/train.py", "--ckpt_path=last", "--max_epochs=2")
    assert "Resuming" in resumed and "Epoch 2 of 2" in resumed
    (run,) = (tmp_path / "lightning_logs").iterdir()
    assert json.loads((run / "metrics.json").read_text(encoding="utf-8"))["num_samples"] == 12
    on_windows(tmp_path, ROOT / "scripts/evaluate.py", "--ckpt=best", "--split=all")
    assert (run / "evaluations/all/metrics.json").is_file()
    told = on_windows(tmp_path, ROOT / "scripts/predict.py", "--ckpt=best", "bilder/test", "--num_workers=1")
    assert len([line for line in told.splitlines() if line.startswith("bilder")]) == 12


@pytest.mark.slow
def test_however_workers_are_started_the_weights_are_the_same(split, tmp_path):
    """Bit for bit, through the script: forked, forked by a server, and spawned."""
    weights = []
    for method in ("fork", "forkserver", "spawn"):
        (tmp_path / method).mkdir()
        (tmp_path / method / "sitecustomize.py").write_text(
            f"import multiprocessing\nmultiprocessing.set_start_method('{method}', force=True)\n"
        )
        command = [sys.executable, ROOT / "scripts/train.py", *FAST, f"--data.root={split}", "--max_epochs=2"]
        command += [f"--default_root_dir={tmp_path / method}", "--data.num_workers=2", "--data.auto_augment=trivial"]
        command += ["--data.doctor=false"]
        env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / method), str(ROOT)])}
        subprocess.run(command, check=True, capture_output=True, env=env)
        weights.append(last_of(tmp_path / method)["state_dict"])
    for other in weights[1:]:
        assert all(torch.equal(weights[0][name], other[name]) for name in weights[0])
