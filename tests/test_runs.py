"""A run: its folder, and what is left of it."""

import json
import logging
import shutil
import signal
import subprocess
import sys

import pytest
import torch
import train
from helpers import FAST, ROOT, SAMPLE, WEIGHTS, last_of, run_train
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from project.checkpoint import load_checkpoint
from project.cli import run
from project.runs import new_folder, remove_flat


def test_what_was_logged_after_the_checkpoint_is_not_shown_twice(flat, tmp_path, train_until):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--max_epochs=3"]
    train_until(options, epoch=1, batch_idx=2)
    train.main([*options, "--ckpt_path=last"])
    events = EventAccumulator(str(tmp_path / "lightning_logs/version_0/train")).Reload()
    assert [event.step for event in events.Scalars("steps/loss")] == list(range(9))


def test_no_test_is_no_error(flat, tmp_path, capsys):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--limit_test_batches=0"]
    train.main(options)
    train.main([*options, "--enable_checkpointing=false", "--logger=false"])
    assert "macro_f1" not in capsys.readouterr().out


def test_a_frozen_backbone_is_that_of_the_checkpoint_when_its_run_goes_on(split, tmp_path, train_until):
    """Its features are computed before Lightning loads the checkpoint."""
    weights = f"--model.weights={SAMPLE / 'resnet18-tiny-imagenet.safetensors'}"
    options = [*FAST, weights, f"--data.root={split}", "--model.fine_tune=head", "--precision=32-true"]
    train.main([*options, f"--default_root_dir={tmp_path / 'whole'}", "--max_epochs=3"])
    train_until([*options, f"--default_root_dir={tmp_path / 'cut'}", "--max_epochs=3"], epoch=1, batch_idx=1)
    train.main([*options, f"--default_root_dir={tmp_path / 'cut'}", "--max_epochs=3", "--ckpt_path=last"])
    whole, cut = (last_of(tmp_path / run)["state_dict"] for run in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_the_best_checkpoint_is_ours_whatever_others_a_user_adds(flat, tmp_path, capsys):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--callbacks+=ModelCheckpoint"]
    train.main([*options, "--callbacks.save_weights_only=true", "--callbacks.every_n_epochs=1"])
    assert "macro_f1" in capsys.readouterr().out


def test_config_yaml_reproduces_the_run(trained, tmp_path):
    train.main([f"--config={trained / 'config.yaml'}", f"--default_root_dir={tmp_path}"])
    again = tmp_path / "lightning_logs/version_0"
    first, second = (load_checkpoint(run / "checkpoints/last.ckpt").content for run in (trained, again))
    for name, tensor in first["state_dict"].items():
        assert torch.equal(tensor, second["state_dict"][name]), name


# The folder


@pytest.mark.slow
def test_every_run_has_a_folder_of_its_own(tmp_path):
    names = [new_folder(tmp_path, name).name for name in (None, None, "birds", "birds", None, "birds")]
    assert names == ["version_0", "version_1", "birds", "birds_1", "version_2", "birds_2"]
    code = "import sys, pathlib; from project.runs import new_folder; print(new_folder(pathlib.Path(sys.argv[1]), 'x'))"
    command = [sys.executable, "-c", code, str(tmp_path)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert len({process.communicate()[0] for process in running}) == 2


@pytest.mark.slow
def test_a_named_run_is_found_by_its_name(flat, tmp_path):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}"]
    train.main([*options, "--name=a", "--seed=1"])
    train.main([*options, "--name=b", "--seed=2"])
    train.main(["--ckpt_path=last", "--name=a", f"--default_root_dir={tmp_path}", "--max_epochs=2"])
    steps = {name: load_checkpoint(tmp_path / f"lightning_logs/{name}/checkpoints/last.ckpt").content for name in "ab"}
    assert steps["a"]["global_step"] == 6 and steps["b"]["global_step"] == 3
    assert steps["a"]["config"]["seed"] == 1 and steps["a"]["config"]["name"] == "a"
    assert last_of(tmp_path)["config"]["name"] == "a"  # the newest
    train.main([*options, "--name=c", "--ckpt_path=auto"])
    assert (tmp_path / "lightning_logs/c/metrics.json").exists()


@pytest.mark.slow
def test_a_run_that_is_in_use_is_not_resumed(fails, flat, tmp_path):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}"]
    train.main(options)
    code = "import sys, pathlib; from project.files import lock\nkept = lock(pathlib.Path(sys.argv[1]))\n"
    code += "print(1, flush=True); input()"
    command = [sys.executable, "-c", code, str(tmp_path / "lightning_logs/version_0")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    process.stdout.readline()
    assert "another process is writing to" in fails(train.main, *options, "--ckpt_path=last", "--max_epochs=2")
    process.communicate("")
    train.main([*options, "--ckpt_path=last", "--max_epochs=2"])
    assert last_of(tmp_path)["global_step"] == 6


def test_a_name_that_looks_like_a_number_of_another_is_refused(fails, flat, tmp_path):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}"]
    assert "numbers the runs of one name" in fails(train.main, *options, "--name=birds_1")
    assert "--name" in fails(train.main, *options, f"--name={'x' * 101}")


def test_a_folder_that_cannot_be_written_is_found_out_before_the_data_is_read(fails, flat, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setattr("project.classification.data.find_samples", None)
    line = fails(train.main, *FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path / 'file'}")
    assert "cannot write to" in line


# A run that is stopped before it has saved anything

PLACES = {  # where the signal arrives
    "check": "project.classification.data.drop_bad_images",
    "head start": "project.classification.features.compute_features",
    "sanity check": "project.classification.model.ResNetClassifier.validation_step",
    "first step": "project.classification.model.ResNetClassifier.training_step",
}


@pytest.fixture
def stopped(monkeypatch, caplog, tmp_path):
    """Train until a place is reached where a signal arrives, twice; returns what is said after that."""
    caplog.set_level(logging.INFO)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(place, signum, *options):
        def interrupted(*args, **kwargs):
            caplog.clear()
            signal.raise_signal(signum)
            signal.raise_signal(signum)
            raise AssertionError

        with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop:
            patch.setattr(PLACES[place], interrupted)
            run(lambda: train.main([*FAST, *options]))
        assert stop.value.code == 128 + signum
        return caplog.text

    yield call
    logging.getLogger("project").handlers.clear()  # run() attached this test's stderr


@pytest.mark.parametrize(
    ("place", "signum"),
    [("check", signal.SIGTERM), ("head start", signal.SIGINT), ("sanity check", signal.SIGTERM)],
)
def test_a_run_that_is_stopped_early_says_so_and_leaves_no_folder(flat, tmp_path, stopped, place, signum):
    options = [f"--data.root={flat}", f"--default_root_dir={tmp_path}", *([WEIGHTS] if place == "head start" else [])]
    text = stopped(place, signum, *options)
    assert text.count("Stopped before the first checkpoint; nothing was kept") == 1 and "Traceback" not in text
    assert not list((tmp_path / "lightning_logs").iterdir())


def test_ctrl_c_twice_in_the_first_step_leaves_no_folder_either(flat, tmp_path, stopped):
    text = stopped("first step", signal.SIGINT, f"--data.root={flat}", f"--default_root_dir={tmp_path}")
    assert "nothing was kept" in text and not list((tmp_path / "lightning_logs").iterdir())


def test_a_folder_with_anything_of_use_stays(flat, trained, tmp_path, stopped):
    """A checkpoint, be it of the head start or from before, or what a logger keeps in a folder of its own."""
    options = [f"--data.root={flat}", f"--default_root_dir={tmp_path}"]
    text = stopped("sanity check", signal.SIGINT, *options, WEIGHTS)
    assert "nothing was kept" not in text and (tmp_path / "lightning_logs/version_0/checkpoints/best.ckpt").exists()
    shutil.copytree(trained.parent, tmp_path / "again/lightning_logs")
    for place in ("check", "sanity check"):
        options = [f"--default_root_dir={tmp_path / 'again'}", "--ckpt_path=last", "--max_epochs=9"]
        assert "Stopped before" not in stopped(place, signal.SIGINT, *options)
    assert last_of(tmp_path / "again")["global_step"] == 6
    (tmp_path / "own/wandb").mkdir(parents=True)
    assert not remove_flat(tmp_path / "own") and (tmp_path / "own/wandb").exists()


# What earlier versions wrote: commit 7baa818, before the code was reorganized


@pytest.mark.slow
def test_a_new_run_with_the_old_option_is_one_of_today_and_goes_on(flat, tmp_path):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--model.fine_tune=gradual"]
    train.main([*options, "--ckpt_path=auto"])
    train.main([*options, "--ckpt_path=auto", "--max_epochs=2"])
    assert last_of(tmp_path)["global_step"] == 6 and last_of(tmp_path)["hyper_parameters"]["fine_tune"] == "full"


def layout(content: dict) -> dict:
    """Names and shapes in a checkpoint, without its values."""
    groups = content["optimizer_states"][0]["param_groups"]
    return {
        "state_dict": {name: list(tensor.shape) for name, tensor in content["state_dict"].items()},
        "groups": [[group["name"], len(group["params"])] for group in groups],
        "callbacks": sorted(content["callbacks"]),
        "data": sorted(content["ImageData"].keys() - {"samples"}),  # which those of earlier versions lack
        "hyper_parameters": sorted(
            content["hyper_parameters"].keys() - {"teacher", "teacher_sha256", "temperature"}
        ),  # likewise
        "schedule": len(content["lr_schedulers"][0]["lr_lambdas"]),
    }


def test_checkpoints_have_the_layout_of_those_of_earlier_versions(trained):
    """So that those can be evaluated, used for prediction, and resumed; a file contains the `layout` of one of them."""
    now = layout(load_checkpoint(trained / "checkpoints/last.ckpt").content)
    assert now == json.loads((ROOT / "tests/data/layout-7baa818.json").read_text())


@pytest.mark.slow
def test_a_frozen_backbone_keeps_its_statistics_also_without_a_head_start(split, tmp_path):
    options = ["--model.fine_tune=head", "--model.head_start=false", "--data.cache_features=false"]
    run = run_train(tmp_path, split, *options)
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(bool((state[name] == 0).all()) for name in state if name.endswith("running_mean"))
