"""scripts/train.py: its options, what a run leaves behind, resuming, and bad input."""

import json
import logging
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import train
import yaml
from conftest import FAST, SAMPLE, save_image
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project.checkpoint import load_checkpoint, load_model

ROOT = Path(__file__).parents[1]


def parse(*argv):
    return train.parse([str(word) for word in argv])[1]


# Options


def test_without_data_the_sample_is_used_with_its_recipe_and_options_still_win():
    config = parse("--model.weights=none", "--max_epochs=3")
    assert config.data.root == str(SAMPLE / "fashion-mnist") and config.model.arch == "resnet18"
    assert config.model.weights == "none" and config.max_epochs == 3


def test_own_data_gets_a_pretrained_resnet50():
    config = parse("--data.root=photos")
    assert (config.model.arch, config.model.weights, config.precision) == ("resnet50", "DEFAULT", "auto")


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_config_parses_builds_and_begins_with_a_comment(path, tmp_path):
    parser, config, _ = train.parse([f"--config={path}", "--data.root=x"])
    parser.instantiate(config)
    assert path.read_text().startswith("# ")


def test_options_from_yaml_and_the_command_line_the_later_wins(tmp_path):
    (tmp_path / "c.yaml").write_text("model: {lr: 1e-4}\nmax_epochs: 7\naccelerator: cpu\n")
    config = parse("--data.root=x", f"--config={tmp_path / 'c.yaml'}", "--max_epochs=9")
    assert (config.model.lr, config.max_epochs, config.accelerator) == (1e-4, 9, "cpu")


def test_callbacks_and_logger_by_class_on_the_command_line_and_in_yaml(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "callbacks:\n- class_path: EarlyStopping\n  init_args: {monitor: val/loss}\nlogger: {class_path: CSVLogger, "
        "init_args: {save_dir: logs}}\n"
    )
    by_yaml = train.parse(["--data.root=x", f"--config={tmp_path / 'c.yaml'}"])
    by_flag = train.parse(
        [
            "--data.root=x",
            "--callbacks+=EarlyStopping",
            "--callbacks.monitor=val/loss",
            "--logger=CSVLogger",
            "--logger.save_dir=logs",
        ]
    )
    for parser, config, _ in (by_yaml, by_flag):
        objects = parser.instantiate(config)
        assert objects.callbacks[0].monitor == "val/loss"
        assert type(objects.logger).__name__ == "CSVLogger"


def test_print_config_and_help(capsys):
    for option, expected in [("--print_config", "accelerator: auto"), ("--help", "--data.root")]:
        with pytest.raises(SystemExit) as stop:
            train.main([option])
        assert stop.value.code == 0 and expected in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--acelerator", "cpu"], "--acelerator cpu (did you mean --accelerator?)"),
        (["--max_epoch", "3"], "(did you mean --max_epochs?)"),
        (["--data.batchsize=3"], "(did you mean --data.batch_size?)"),
        (["--model.arch", "resnet51"], "--model.arch resnet51: must be one of resnet18"),
        (["--model.lr", "fast"], "--model.lr fast: must be of type float"),
        (["--max_epochs", "ten"], "--max_epochs ten: must be of type int, null"),
        (["--model.class_names", "[a]"], "unrecognized arguments: --model.class_names"),
        (["--config", "nowhere.yaml"], "File does not exist"),
    ],
)
def test_wrong_options_are_refused_in_one_line(fails, argv, expected):
    assert expected in fails(train.main, *argv, status=2)


def test_wrong_keys_in_yaml_are_refused_in_one_line(fails, tmp_path):
    for text, expected in [
        ("model: {lrr: 1}", "(did you mean model.lr?)"),
        ("modle: {lr: 1}", "(did you mean model.lr?)"),
        ("max_epoch: 3", "(did you mean max_epochs?)"),
        ("model: [", "Problems parsing config"),
    ]:
        (tmp_path / "c.yaml").write_text(text)
        assert expected in fails(train.main, f"--config={tmp_path / 'c.yaml'}", status=2)


# A finished run


def test_the_run_folder_holds_everything(trained):
    names = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    assert {"config.yaml", "metrics.json", "checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    metrics = json.loads((trained / "metrics.json").read_text())
    assert metrics["split"] == "test" and metrics["num_samples"] == 12 and metrics["top5"] is None
    assert {"top1", "macro_f1", "ece"} <= metrics.keys()
    assert list(metrics["per_class"]) == ["blue", "green", "red"]


def test_tensorboard_has_curves_and_pictures(trained):
    events = EventAccumulator(str(trained)).Reload()
    scalars = set(events.Tags()["scalars"])
    for name in ("loss", "top1"):
        assert {f"train/{name}_step", f"train/{name}_epoch", f"val/{name}_step", f"val/{name}"} <= scalars
    assert {"val/macro_f1", "test/top1", "train/images_per_second"} <= scalars
    assert any(name.startswith("lr-") for name in scalars)
    assert {"train/images", "val/confusion_matrix"} <= set(events.Tags()["images"])
    assert any("final/top1" in tag for tag in events.Tags()["scalars"])


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
    model, config = load_model(str(tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"))
    assert config["model"]["weights"] == str(weights) and model.hparams["weights"] == "none"


def test_config_yaml_reproduces_the_run(trained, tmp_path):
    train.main([f"--config={trained / 'config.yaml'}", f"--default_root_dir={tmp_path}"])
    again = tmp_path / "lightning_logs/version_0"
    first, second = (load_checkpoint(str(run / "checkpoints/last.ckpt")) for run in (trained, again))
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name


def test_best_is_the_best_by_validation_top1(trained):
    events = EventAccumulator(str(trained)).Reload()
    curve = [event.value for event in events.Scalars("val/top1")]
    best = load_checkpoint(str(trained / "checkpoints/best.ckpt"))
    state = next(s for name, s in best["callbacks"].items() if "val/top1" in name and "ModelCheckpoint" in name)
    assert state["best_model_score"].item() == pytest.approx(max(curve))


def test_training_without_logger_checkpoints_and_progress(split, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train.main([*FAST, f"--data.root={split}", "--logger=false", "--enable_checkpointing=false"])
    train.main([*FAST, f"--data.root={split}", "--fast_dev_run=true"])
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
        model, _ = load_model(str(tmp_path / f"lightning_logs/version_0/checkpoints/{name}.ckpt"))
        assert model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).isfinite().all()


# Resuming


def test_last_goes_on_in_the_same_run_with_the_same_data(trained, tmp_path):
    shutil.copytree(trained.parent, tmp_path / "lightning_logs")
    train.main(["--ckpt_path=last", f"--default_root_dir={tmp_path}", "--max_epochs=3"])
    runs = [path.name for path in (tmp_path / "lightning_logs").iterdir()]
    assert runs == ["version_0"]
    checkpoint = load_checkpoint(str(tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"))
    assert checkpoint["epoch"] == 2 and checkpoint["global_step"] == 3 * 3  # 24 images in batches of 8
    steps = [e.step for e in EventAccumulator(str(tmp_path / "lightning_logs/version_0")).Reload().Scalars("val/top1")]
    assert steps == [2, 5, 8]


def test_a_path_starts_a_run_of_its_own(trained, tmp_path):
    options = [f"--config={trained / 'config.yaml'}", f"--default_root_dir={tmp_path}", "--max_epochs=3"]
    train.main([*options, f"--ckpt_path={trained / 'checkpoints/best.ckpt'}"])
    assert (tmp_path / "lightning_logs/version_0/checkpoints/best.ckpt").exists()


@pytest.mark.parametrize(
    ("num_workers", "stop_at"),  # 6 batches an epoch: it stops within the second, at its start, within the first
    [pytest.param(2, 8, marks=pytest.mark.slow), pytest.param(2, 6, marks=pytest.mark.slow), (0, 2)],
)
def test_an_interrupted_epoch_sees_each_image_once(tmp_path, monkeypatch, num_workers, stop_at):
    for split, count in {"train": 18, "val": 2}.items():
        for i in range(count):  # each of its own brightness, 12 steps from the next
            Image.new("RGB", (32, 32), (12 * i,) * 3).save(ensure(tmp_path / f"data/{split}/{i % 2}") / f"{i}.png")
    seen: list[int] = []
    step = train.ResNetClassifier.training_step

    def watched(self, batch, batch_idx):
        if len(seen) == limit:
            raise RuntimeError("power cut")
        seen.append([round(image.float().mean().item() / 12) for image in batch[0]])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(train.ResNetClassifier, "training_step", watched)
    options = [*FAST, f"--data.root={tmp_path / 'data'}", "--data.batch_size=3", "--max_epochs=2"]
    options += [f"--data.num_workers={num_workers}", "--num_sanity_val_steps=0"]

    limit = None
    train.main([*options, f"--default_root_dir={tmp_path / 'whole'}"])
    whole, seen = seen, []
    limit = stop_at
    with pytest.raises(RuntimeError, match="power cut"):
        train.main([*options, f"--default_root_dir={tmp_path / 'cut'}"])
    limit = None
    train.main([*options, f"--default_root_dir={tmp_path / 'cut'}", "--ckpt_path=last"])
    assert seen == whole
    for epoch in (whole[:6], whole[6:]):
        assert sorted(image for batch in epoch for image in batch) == list(range(18))


def ensure(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow)]
)
def test_ctrl_c_keeps_the_last_checkpoint_and_exits_130(split, tmp_path, signum, status):
    """A terminal sends it to the data workers, too; torchrun and timeout do so with SIGTERM."""
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
    assert load_checkpoint(str(last))["global_step"] >= 3  # an epoch


# Bad input: the rest of it is in test_data.py and test_model.py, where it is refused


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


def test_an_image_that_breaks_while_training_is_named(fails, flat, tmp_path):
    class Break(train.SaveConfig):
        def on_train_start(self, trainer, pl_module):
            for path, _ in trainer.datamodule.samples["train"]:
                with open(path, "w"):
                    pass

    original, train.SaveConfig = train.SaveConfig, Break
    try:
        options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--data.num_workers=1"]
        assert ".png: the file is empty (0 bytes)" in fails(train.main, *options, "--num_sanity_val_steps=0")
    finally:
        train.SaveConfig = original


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


def test_bad_checkpoints_are_refused_and_never_executed(fails, trained, tmp_path):
    for name, path in bad_checkpoints(trained / "checkpoints/last.ckpt", tmp_path).items():
        options = [f"--config={trained / 'config.yaml'}", f"--default_root_dir={tmp_path}", f"--ckpt_path={path}"]
        assert f"checkpoint {path}: " in fails(train.main, *options), name
    assert not (tmp_path / "ran").exists()


def test_resuming_needs_the_same_classes_and_something_left_to_do(fails, trained, tmp_path):
    config, last = f"--config={trained / 'config.yaml'}", f"--ckpt_path={trained / 'checkpoints/last.ckpt'}"
    assert "has finished 2 of 2 epochs" in fails(train.main, config, last)
    shutil.copytree(trained.parents[1] / "data", tmp_path / "data")
    save_image(tmp_path / "data/train/zebra/0.png")
    line = fails(train.main, config, last, f"--data.root={tmp_path / 'data'}", "--max_epochs=5")
    assert "has 3 classes, the data 4; only in the data: zebra" in line
    more = ["--max_epochs=5", last, config]
    assert "with --model.arch resnet18, not resnet34" in fails(train.main, *more, "--model.arch=resnet34")
    assert "with --model.optimizer adamw, not sgd" in fails(train.main, *more, "--model.optimizer=sgd")
    assert "name its data with --data.root" in fails(train.main, last)


def test_precision_is_chosen_for_the_device_and_said(caplog, monkeypatch):
    from project import cli

    caplog.set_level(logging.INFO)
    monkeypatch.setattr(cli, "cpu_has_fast_bf16", lambda: True)
    assert cli.choose_precision("auto", "cpu") == "bf16-mixed" and "bf16-mixed" in caplog.text
    monkeypatch.setattr(cli, "cpu_has_fast_bf16", lambda: False)
    assert cli.choose_precision("auto", "cpu") == "32-true"
    assert cli.choose_precision("16-mixed", "cpu") == "16-mixed"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for supported, chosen in [(True, "bf16-mixed"), (False, "16-mixed")]:
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, s=supported: s)
        assert cli.choose_precision("auto", "gpu") == chosen


# On the sample, as a newcomer runs it


def run_sample(folder: Path, *options: str) -> dict:
    command = [sys.executable, ROOT / "scripts/train.py", f"--default_root_dir={folder}", *options]
    subprocess.run(command, check=True, capture_output=True, env={**os.environ, "COLUMNS": "100"})
    return json.loads((folder / "lightning_logs/version_0/metrics.json").read_text())


def test_the_sample_is_learned(tmp_path):
    metrics = run_sample(tmp_path)
    assert metrics["split"] == "test" and metrics["num_samples"] == 300
    assert metrics["top1"] >= 0.82


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_pretrained_weights_beat_random_ones_on_the_sample(tmp_path):
    """By 8 points of top-1 on the average of three seeds (one seed's difference varies by some points)."""

    def mean_top1(*options: str) -> float:
        runs = [run_sample(tmp_path / f"{len(options)}-{seed}", f"--seed={seed}", *options) for seed in range(3)]
        return sum(metrics["top1"] for metrics in runs) / 3

    assert mean_top1() >= mean_top1("--model.weights=none") + 0.08


@pytest.mark.slow
@pytest.mark.parametrize("fine_tune", ["full", "gradual"])
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
    assert load_checkpoint(str(run / "checkpoints/last.ckpt"))["global_step"] == 3 * 2  # 9 images for each, by 5
