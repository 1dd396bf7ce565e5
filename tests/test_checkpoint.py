import os
import signal
from pathlib import Path

import pytest
import torch
import train
from helpers import FAST, PREPROCESSING, make, needs_posix

from project import UserError
from project.checkpoint import (
    Checkpoint,
    DurableCheckpointIO,
    drop_previous,
    load_checkpoint,
    load_model,
    newest_run,
    open_checkpoint,
    reason_of,
)
from project.classification.model import ResNetClassifier
from project.cli import run
from project.text_classification.model import TextClassifier


def test_a_damaged_last_checkpoint_does_not_take_the_place_of_the_one_before(tmp_path):
    last, previous, io = tmp_path / "last.ckpt", tmp_path / "previous.ckpt", DurableCheckpointIO()
    for value in (1, 2):
        io.save_checkpoint({"state_dict": {"w": torch.tensor(float(value))}}, last)
    before = previous.read_bytes()
    last.write_bytes(last.read_bytes()[:-100])
    DurableCheckpointIO().save_checkpoint({"state_dict": {"w": torch.tensor(3.0)}}, last)
    assert previous.read_bytes() == before
    io.save_checkpoint({"state_dict": {"w": torch.tensor(4.0)}}, last)
    assert previous.read_bytes() != before


def test_previous_goes_only_where_last_is_whole(tmp_path):
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    drop_previous(tmp_path)
    for _ in range(2):
        DurableCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(3)}}, last)
    good = last.read_bytes()
    for damaged in (good[:-100], good.replace(b"\0\0\0\0", b"\0\0\1\0", 1)):
        last.write_bytes(damaged)
        drop_previous(tmp_path)
        assert previous.exists()
    last.write_bytes(good)
    drop_previous(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


@needs_posix
def test_a_checkpoint_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    """As far as a test can tell, by the order of the system calls."""
    asked = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: asked.append(os.readlink(f"/proc/self/fd/{number}")) or fsync(number)
    )
    monkeypatch.setattr(os, "replace", lambda old, new: asked.append(str(new)) or replace(old, new))
    DurableCheckpointIO().save_checkpoint({"state_dict": {"w": torch.zeros(3)}}, tmp_path / "best.ckpt")
    assert asked == [str(tmp_path / "best.ckpt.part"), str(tmp_path / "best.ckpt"), str(tmp_path)]


def test_a_signal_that_interrupts_a_save_ends_with_its_status(flat, tmp_path, monkeypatch):
    """torch's writer turns it into another error."""
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}"]
    write = torch.save

    def interrupted(checkpoint, file):
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        write(checkpoint, file)
        raise RuntimeError("unexpected pos 23104 vs 23000")

    train.main(options)
    before = Path(open_checkpoint("last", tmp_path).path).read_bytes()
    monkeypatch.setattr("project.checkpoint.torch.save", interrupted)
    with pytest.raises(SystemExit) as stop:
        run(lambda: train.main([*options, "--max_epochs=2", "--ckpt_path=last"]))
    assert stop.value.code == 130 and Path(open_checkpoint("last", tmp_path).path).read_bytes() == before


def test_best_and_last_are_those_of_the_task(tmp_path, caplog):
    state = {"state_dict": {}, "hyper_parameters": {}, "config": {"data": {}}}
    for number, task in enumerate((None, "object detection", "segmentation")):
        folder = tmp_path / f"lightning_logs/version_{number}/checkpoints"
        folder.mkdir(parents=True)
        content = state if task is None else {**state, "task": task}
        DurableCheckpointIO().save_checkpoint(content, folder / "best.ckpt")
    assert "version_2" in open_checkpoint("best", tmp_path).path
    with caplog.at_level("INFO"):
        assert "version_0" in open_checkpoint("best", tmp_path, ResNetClassifier).path
    assert "version_2: passed over, a run of segmentation" in caplog.text
    with pytest.raises(UserError, match="no run of text classification under"):
        open_checkpoint("best", tmp_path, TextClassifier)
    with pytest.raises(UserError, match=r"a folder; name .*best\.ckpt"):
        open_checkpoint(str(tmp_path / "lightning_logs/version_0"), tmp_path)


def test_the_newest_run_is_that_of_the_highest_number_and_newer_ones_without_a_checkpoint_are_named(tmp_path, caplog):
    runs = tmp_path / "lightning_logs"
    for seconds, name in enumerate(("version_10", "version_9", "birds_2", "birds", "my_birds"), start=1):
        path = runs / name / "checkpoints/last.ckpt"
        path.parent.mkdir(parents=True)
        path.touch()
        os.utime(path, (seconds, seconds))
    found = sorted(runs.glob("*/checkpoints/last.ckpt"))
    assert newest_run([path for path in found if "version" in str(path)]).parents[1].name == "version_10"
    assert newest_run([path for path in found if "/birds" in str(path)]).parents[1].name == "birds_2"
    assert newest_run(found).parents[1].name == "my_birds" and not caplog.text
    (runs / "version_11").mkdir()
    assert newest_run([path for path in found if "version" in str(path)]).parents[1].name == "version_10"
    assert "version_11: passed over" in caplog.text


def test_the_reason_for_a_failed_save_is_the_systems_not_that_of_torchs_writer():
    try:
        try:
            raise OSError(28, "No space left on device")
        finally:
            raise RuntimeError("unexpected pos 64 vs 0")
    except RuntimeError as error:
        assert reason_of(error) == "No space left on device"
    assert reason_of(RuntimeError("other\nmore")) == "other"


@pytest.fixture(scope="module")
def content():
    """What a checkpoint holds."""
    model = make()
    return {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "config": {"data": {}}}


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        *(({"class_names": x}, "class names are not") for x in ([1, 2], "abc", None, {"a": 1}, ["a", "b", "a"])),
        *(({"crop_size": size}, "crop_size is") for size in (0, -1, "224", None, 10**9, 1.5, True)),
        *(({"resize_size": size}, "resize_size is") for size in (0, float("nan"))),
        *(({"mean": mean}, "mean is") for mean in ([float("nan")] * 3, "abc", [0.5], None, [0.5, 0.5, "x"])),
        *(({"std": std}, "std is") for std in ([0.0] * 3, [-1.0] * 3, [float("inf")] * 3, 5)),
        ({"interpolation": "magic"}, "interpolation is 'magic'"),
        ({"fit": [1]}, "fit is"),
        ({"white": "x"}, "white is"),
        *(({"preprocessing": value}, "do not fit together") for value in ([1], None, "x")),
        *(({"arch": arch}, "do not fit together") for arch in (3, None, ["resnet18"])),
        ({"arch": "timm/hf-hub:someone/model"}, "no network of timm"),
        *(({option: "x"}, "do not fit together") for option in ("dropout", "lr", "label_smoothing", "class_weights")),
        ({"unheard_of": 1}, "do not fit together"),
    ],
)
def test_a_forged_value_is_one_line_that_names_the_file(tmp_path, content, values, reason):
    values = {"preprocessing": {**PREPROCESSING, **values}} if {*values} & {*PREPROCESSING, "fit", "white"} else values
    path = tmp_path / "forged.ckpt"
    torch.save({**content, "hyper_parameters": {**content["hyper_parameters"], **values}}, path)
    with pytest.raises(UserError, match=rf"^checkpoint {path}: [^\n]*{reason}[^\n]*$"):
        load_model(load_checkpoint(path), ResNetClassifier)


def test_a_checkpoint_cannot_ask_for_a_network_that_downloads_its_own_backbone(tmp_path, content, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    for arch in ("fcn_resnet50", "deeplabv3_resnet50", "raft_small", "quantized_resnet18", "../resnet18"):
        torch.save({**content, "hyper_parameters": {**content["hyper_parameters"], "arch": arch}}, tmp_path / "a.ckpt")
        with pytest.raises(UserError, match=f"{arch}: no classification network of torchvision"):
            load_model(load_checkpoint(tmp_path / "a.ckpt"), ResNetClassifier)
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, content, value):
    state = {**content["state_dict"], "net.bn1.bias": torch.full((64,), value)}
    torch.save({**content, "state_dict": state}, tmp_path / "a.ckpt")
    with pytest.raises(UserError, match=r"a\.ckpt: the weights 'net.bn1.bias' are not finite"):
        load_model(load_checkpoint(tmp_path / "a.ckpt"), ResNetClassifier)


def test_a_checkpoint_of_another_task_is_refused():
    checkpoint = Checkpoint("a.ckpt", {"task": "object detection", "hyper_parameters": {}, "state_dict": {}})
    with pytest.raises(UserError, match=r"a.ckpt is of object detection, not of image classification: use the scripts"):
        load_model(checkpoint, ResNetClassifier)
