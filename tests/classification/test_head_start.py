import os
import shutil
import time
from collections import Counter

import pytest
import safetensors.torch
import torch
import train
import yaml
from helpers import (
    FAST,
    ROOT,
    SAMPLE,
    WEIGHTS,
    fill,
    make,
    make_data,
    reload,
    run_train,
    save_image,
    scalars,
)

from project.checkpoint import load_checkpoint
from project.classification import datasets, features, head_start
from project.classification.model import ResNetClassifier


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/finetune-resnet"


@pytest.fixture
def computed(monkeypatch) -> list[int]:
    """The number of images in each run of the backbone."""
    counts: list[int] = []
    original = features.compute_features

    def counting(trainer, model, data, samples):
        counts.append(len(samples))
        return original(trainer, model, data, samples)

    monkeypatch.setattr(features, "compute_features", counting)
    # The data set's doctor would compute the features of the test images, too
    monkeypatch.setattr("project.classification.doctor.Doctor.is_wanted", lambda *arguments: False)
    return counts


def test_with_pretrained_weights_the_fitted_head_is_step_0_and_the_first_best_checkpoint(split, tmp_path):
    run = run_train(tmp_path, split, WEIGHTS, "--model.lr=0", "--max_epochs=1")  # lr 0: only the head start learns
    curve = scalars(run / "val", "curves/top1")
    assert curve[0][0] == 0 and len(curve) == 2
    best = load_checkpoint(run / "checkpoints/best.ckpt").content
    assert best["global_step"] == 0 and curve[0][1] >= 0.8  # three colours
    assert scalars(run / "val", "curves/loss")[0][0] == 0


@pytest.mark.slow
def test_with_random_weights_there_is_none_unless_asked_for(split, tmp_path, computed):
    run_train(tmp_path, split)
    assert computed == []
    run_train(tmp_path, split, "--model.head_start=true", "--max_epochs=0")
    assert computed == [27]
    run_train(tmp_path, split, WEIGHTS, "--model.head_start=false")
    assert computed == [27]


def test_no_epochs_leave_a_usable_model(split, tmp_path):
    run = run_train(tmp_path, split, WEIGHTS, "--max_epochs=0")
    metrics = yaml.safe_load((run / "metrics.json").read_text())
    assert metrics["top1"] >= 0.8
    model, _ = reload(run / "checkpoints/best.ckpt")
    assert model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).isfinite().all()


def test_no_epochs_and_no_head_start_is_nothing_to_do(fails, split, tmp_path):
    line = fails(train.main, *FAST, f"--data.root={split}", f"--default_root_dir={tmp_path}", "--max_epochs=0")
    assert "--max_epochs 0" in line and "--model.head_start true" in line


def test_training_goes_on_from_a_probe(split, tmp_path):
    run_train(tmp_path, split, WEIGHTS, "--max_epochs=0")
    train.main(["--ckpt_path=last", f"--default_root_dir={tmp_path}", "--max_epochs=2"])
    checkpoint = load_checkpoint(tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt").content
    assert checkpoint["global_step"] == 2 * 3


@pytest.mark.slow
def test_a_resumed_run_has_no_second_head_start(split, tmp_path):
    run = run_train(tmp_path, split, WEIGHTS)
    train.main(["--ckpt_path=last", f"--default_root_dir={tmp_path}", "--max_epochs=2"])
    assert [step for step, _ in scalars(run / "val", "curves/top1")] == [0, 2, 5]


def test_averaged_weights_start_from_the_fitted_head(split, tmp_path):
    options = [WEIGHTS, "--callbacks+=EMAWeightAveraging", "--callbacks.decay=0.999", "--max_epochs=0"]
    run = run_train(tmp_path, split, *options)
    assert yaml.safe_load((run / "metrics.json").read_text())["top1"] >= 0.8


@pytest.mark.slow
def test_limited_batches_are_not_followed_by_all_the_images(split, tmp_path, computed):
    run_train(tmp_path, split, WEIGHTS, "--limit_train_batches=1")  # one batch; 1.0 would be all of them
    run_train(tmp_path, split, WEIGHTS, "--limit_val_batches=0.5")
    train.main([*FAST, f"--data.root={split}", WEIGHTS, "--fast_dev_run=true"])
    run_train(tmp_path, split, "--model.fine_tune=head", "--limit_train_batches=1")
    assert computed == []


def test_batchnorm_has_the_statistics_of_the_new_images_before_full_fine_tuning(split, tmp_path):
    """With those of the pretraining, the first training step would see other features than the head was fitted on."""
    run = run_train(tmp_path, split, WEIGHTS, "--model.lr=0", "--precision=32-true", "--data.batch_size=18")
    model, _ = reload(run / "checkpoints/best.ckpt")
    data = make_data(split, batch_size=18)
    ((images, _),) = data.image_loader(data.samples["train"])
    with torch.no_grad():
        first = model.net.conv1((images.float() - model.mean) / model.std)
    torch.testing.assert_close(model.net.bn1.running_mean, first.mean(dim=(0, 2, 3)), rtol=0.01, atol=0.01)
    original = safetensors.torch.load_file(SAMPLE / "resnet18-tiny-imagenet.safetensors")["bn1.running_mean"]
    assert not torch.allclose(model.net.bn1.running_mean, original.float(), rtol=0.2, atol=0.05)


def test_a_network_without_batchnorm_is_run_over_no_image_for_statistics():
    model = make(arch="timm/test_vit")
    head_start.adapt_norms(trainer=None, model=model, data=None, samples=[])


def test_a_frozen_backbone_is_run_over_each_image_once(split, tmp_path, computed):
    run = run_train(tmp_path, split, WEIGHTS, "--model.fine_tune=head", "--max_epochs=3")
    assert computed == [18 + 9]
    assert len(scalars(run / "val", "curves/top1")) == 4
    run_train(tmp_path, split, WEIGHTS, "--model.fine_tune=head", "--max_epochs=3", "--seed=1")
    assert computed == [27]  # the second run reads them


def test_cached_and_computed_features_train_the_same_head(split, tmp_path, computed):
    options = [WEIGHTS, "--model.fine_tune=head", "--max_epochs=2"]
    heads = []
    for name in ("a", "b"):
        run = run_train(tmp_path / name, split, *options)
        heads.append(load_checkpoint(run / "checkpoints/last.ckpt").content["state_dict"]["net.fc.1.weight"])
    assert computed == [27] and torch.equal(*heads)


def test_features_are_those_that_evaluation_sees(split, tmp_path, capsys):
    """The validation metrics from features are those from images."""
    import evaluate

    run = run_train(tmp_path, split, WEIGHTS, "--model.fine_tune=head", "--max_epochs=2")
    best = max(value for _, value in scalars(run / "val", "curves/top1"))
    evaluate.main([f"--ckpt={run / 'checkpoints/best.ckpt'}", "--split=val", f"--output={tmp_path}"])
    assert yaml.safe_load((tmp_path / "metrics.json").read_text())["top1"] == pytest.approx(best, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("change", ["content", "file", "weights", "image_size", "precision"])
def test_any_change_computes_the_features_anew(split, tmp_path, computed, change):
    options = [WEIGHTS, "--model.fine_tune=head"]
    run_train(tmp_path, split, *options, "--precision=32-true")
    if change == "content":
        path = split / "train/red/red-0.png"
        before = path.stat()
        time.sleep(0.02)  # the clocks of file systems are coarse
        save_image(path, seed=99)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # as if it had never been touched
    elif change == "file":
        save_image(split / "train/red/new.png")
    elif change == "weights":
        state = safetensors.torch.load_file(SAMPLE / "resnet18-tiny-imagenet.safetensors")
        state["layer4.1.bn2.running_mean"][0] += 1
        safetensors.torch.save_file(state, tmp_path / "other.safetensors")
        options[0] = f"--model.weights={tmp_path / 'other.safetensors'}"
    elif change == "image_size":
        options.append("--data.image_size=64")
    options.append(f"--precision={'bf16-mixed' if change == 'precision' else '32-true'}")
    run_train(tmp_path, split, *options)
    assert len(computed) == 2


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["gone", "truncated", "garbage", "unwritable"])
def test_a_damaged_cache_costs_time_only(split, tmp_path, computed, empty_cache, damage):
    options = [WEIGHTS, "--model.fine_tune=head"]
    if damage == "unwritable":
        empty_cache.parent.mkdir()
        empty_cache.write_text("a file in the place of the folder")
    run_train(tmp_path, split, *options)
    if damage == "gone":
        shutil.rmtree(empty_cache)
    elif damage != "unwritable":
        for path in empty_cache.iterdir():
            content = path.read_bytes()
            path.write_bytes(content[: len(content) // 2] if damage == "truncated" else b"garbage")
    run_train(tmp_path, split, *options)
    assert computed == [27, 27]


@pytest.mark.slow
def test_augmentation_that_is_asked_for_is_not_cached_away(split, tmp_path, computed, caplog):
    caplog.set_level("INFO")
    run_train(tmp_path, split, "--model.fine_tune=head", "--data.mixup=0.2")
    assert "Frozen backbone: each epoch runs it over augmented images (--data.cache_features true" in caplog.text
    run_train(tmp_path, split, "--model.fine_tune=head", "--data.cache_features=false")
    assert computed == []


@pytest.mark.slow
def test_processes_share_the_features_out(tmp_path):
    """Two processes start from the same head as one."""
    import subprocess
    import sys

    data = tmp_path / "data"
    for name, count in {"train": 7, "val": 3, "test": 3}.items():  # 21 and 9: one process gets padding
        fill(data / name, count)
    curves = []
    for devices in (1, 2):
        folder = tmp_path / str(devices)
        command = [sys.executable, ROOT / "scripts/train.py", *FAST, WEIGHTS, f"--data.root={data}"]
        command += ["--precision=32-true", f"--devices={devices}", f"--default_root_dir={folder}", "--max_epochs=1"]
        command += ["--strategy=ddp"] if devices == 2 else []
        environment = {**os.environ, "XDG_CACHE_HOME": str(folder)}
        subprocess.run(command, check=True, capture_output=True, timeout=180, env=environment)
        (run,) = (folder / "lightning_logs").iterdir()
        curves.append(scalars(run / "val", "curves/loss"))
    assert curves[0][0][1] == pytest.approx(curves[1][0][1], rel=0.2)


@pytest.mark.parametrize("has_test", [True, False])
def test_the_head_start_alone_decodes_each_image_once_and_computes_no_feature_twice(
    split, tmp_path, monkeypatch, has_test
):
    decoded: Counter[str] = Counter()
    seen: list[int] = []
    load, normalized = datasets.load_for_evaluation, ResNetClassifier.normalized

    def counted_load(path, preprocessing):
        decoded[path] += 1
        return load(path, preprocessing)

    def counted(self, batch):
        seen.append(len(batch))
        return normalized(self, batch)

    if not has_test:
        shutil.rmtree(split / "test")
    monkeypatch.setattr(datasets, "load_for_evaluation", counted_load)
    monkeypatch.setattr(ResNetClassifier, "normalized", counted)
    run = run_train(tmp_path, split, WEIGHTS, "--max_epochs=0")
    assert set(decoded.values()) == {1} and len(decoded) == (36 if has_test else 27)
    assert sum(seen) == len(decoded)
    assert yaml.safe_load((run / "metrics.json").read_text())["num_samples"] == 9


def test_no_epochs_twice_with_auto_is_no_error_and_training_starts_from_the_rescaled_head(split, tmp_path):
    run = run_train(tmp_path, split, WEIGHTS, "--max_epochs=0", "--ckpt_path=auto")
    run_train(tmp_path, split, WEIGHTS, "--max_epochs=0", "--ckpt_path=auto")
    best, last = (load_checkpoint(run / f"checkpoints/{name}.ckpt").content for name in ("best", "last"))
    norms = [content["state_dict"]["net.fc.1.weight"].norm().item() for content in (best, last)]
    assert norms[1] < norms[0] and norms[1] == pytest.approx(3**0.5 * (1 / 3) ** 0.5, rel=0.2)  # that of a new layer


@pytest.mark.slow
def test_the_first_checkpoint_takes_no_other_ones_place(split, tmp_path):
    (tmp_path / "own").mkdir()
    (tmp_path / "own/top.ckpt").write_text("of another run")
    own = ["--callbacks+=ModelCheckpoint", f"--callbacks.dirpath={tmp_path / 'own'}", "--callbacks.filename=top"]
    run_train(
        tmp_path, split, WEIGHTS, *own, "--callbacks.monitor=val/macro_f1", "--callbacks.mode=max", "--model.lr=0"
    )
    assert (tmp_path / "own/top.ckpt").read_text() == "of another run"
    assert load_checkpoint(tmp_path / "own/top-v1.ckpt").content["global_step"] == 0
