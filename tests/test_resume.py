"""What a resumed run goes on from, and what it refuses."""

import functools
import json
import shutil

import pytest
import torch
import train
from helpers import FAST, SAMPLE, bad_checkpoints, begin, last_of, make_data, save_image, scalars

from project import UserError, checkpoint
from project.checkpoint import load_checkpoint
from project.classification.model import ResNetClassifier
from project.resume import check_samples


def test_auto_starts_resumes_and_then_has_nothing_to_do(flat, tmp_path, caplog):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--ckpt_path=auto"]
    caplog.set_level("INFO", logger="project")
    train.main(options)
    train.main([*options, "--max_epochs=2"])
    train.main([*options, "--max_epochs=2"])
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]
    assert last_of(tmp_path)["global_step"] == 6
    assert "has finished its epochs" in caplog.text


@pytest.mark.slow
def test_a_run_that_stopped_early_stays_stopped(fails, flat, tmp_path, caplog):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--max_epochs=9"]
    stopping = ["--callbacks+=EarlyStopping", "--callbacks.monitor=val/top1", "--callbacks.patience=1"]
    stopping += ["--callbacks.mode=max", "--callbacks.min_delta=2"]  # no epoch improves by as much
    caplog.set_level("INFO", logger="project")
    train.main([*options, *stopping])
    figures = tmp_path / "lightning_logs/version_0/metrics.json"
    epochs = last_of(tmp_path)["epoch"] + 1
    assert epochs == 2 and "EarlyStopping has ended the training, by val/top1" in caplog.text
    assert "was stopped early, after 2 epochs" in fails(train.main, *options, *stopping, "--ckpt_path=last")

    figures.unlink()  # as if it had been killed before the end
    train.main([*options, *stopping, "--ckpt_path=auto"])
    assert figures.exists() and last_of(tmp_path)["global_step"] == 6
    train.main([*options, *stopping, "--ckpt_path=auto"])
    assert "has finished its epochs" in caplog.text
    train.main([f"--default_root_dir={tmp_path}", "--ckpt_path=last", "--max_epochs=3", "--callbacks=null"])
    assert last_of(tmp_path)["global_step"] == 9


@pytest.mark.slow
def test_a_run_of_limited_epochs_goes_on_with_the_next_one(flat, tmp_path):
    options = [*FAST, f"--data.root={flat}", "--data.num_workers=1", "--limit_train_batches=2", "--data.batch_size=4"]
    options += ["--model.schedule=constant", "--model.warmup_ratio=0", "--deterministic=true"]
    train.main([*options, f"--default_root_dir={tmp_path / 'whole'}", "--max_epochs=2"])
    train.main([*options, f"--default_root_dir={tmp_path / 'cut'}", "--max_epochs=1"])
    train.main([*options, f"--default_root_dir={tmp_path / 'cut'}", "--max_epochs=2", "--ckpt_path=last"])
    whole, cut = (last_of(tmp_path / run)["state_dict"] for run in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut[name]) for name in whole)


def test_a_run_by_steps_is_not_resumed(fails, flat, tmp_path):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}"]
    train.main([*options, "--max_steps=2"])
    assert "--max_steps: a run that is resumed counts epochs" in fails(
        train.main, *options, "--ckpt_path=last", "--max_steps=4"
    )


def test_last_goes_on_in_the_same_run_with_the_same_data(trained, tmp_path):
    shutil.copytree(trained.parent, tmp_path / "lightning_logs")
    train.main(["--ckpt_path=last", f"--default_root_dir={tmp_path}", "--max_epochs=3"])
    runs = [path.name for path in (tmp_path / "lightning_logs").iterdir()]
    assert runs == ["version_0"]
    checkpoint = load_checkpoint(tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt").content
    assert checkpoint["epoch"] == 2 and checkpoint["global_step"] == 3 * 3  # 24 images in batches of 8
    curve = scalars(tmp_path / "lightning_logs/version_0/val", "curves/top1")
    assert [step for step, _ in curve] == [2, 5, 8]


def test_a_path_starts_a_run_of_its_own(trained, tmp_path):
    options = [f"--config={trained / 'config.yaml'}", f"--default_root_dir={tmp_path}", "--max_epochs=3"]
    train.main([*options, f"--ckpt_path={trained / 'checkpoints/best.ckpt'}"])
    assert (tmp_path / "lightning_logs/version_0/checkpoints/best.ckpt").exists()


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
    assert "has finished 2 of 2 epochs" in fails(train.main, last)  # its data is known


def test_a_refused_batch_size_leaves_the_run_as_it_was(fails, flat, tmp_path, train_until):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--save_every_steps=1"]
    train_until(options, epoch=0, batch_idx=1)
    config = (tmp_path / "lightning_logs/version_0/config.yaml").read_bytes()
    assert "middle of an epoch" in fails(train.main, *options, "--ckpt_path=last", "--data.batch_size=5")
    assert (tmp_path / "lightning_logs/version_0/config.yaml").read_bytes() == config
    train.main([f"--default_root_dir={tmp_path}", "--ckpt_path=last"])
    assert last_of(tmp_path)["global_step"] == 3


@pytest.mark.slow
def test_checkpoints_that_a_user_keeps_elsewhere_are_not_relocated(flat, tmp_path):
    own = ["--callbacks+=ModelCheckpoint", f"--callbacks.dirpath={tmp_path / 'own'}", "--callbacks.monitor=val/loss"]
    own += ["--callbacks.mode=min", "--callbacks.save_top_k=2", "--callbacks.filename={epoch}"]
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", *own]
    train.main([*options, "--max_epochs=2"])
    train.main([*options, "--max_epochs=4", "--ckpt_path=last"])
    state = next(s for name, s in last_of(tmp_path)["callbacks"].items() if "val/loss" in name)
    assert len(list((tmp_path / "own").iterdir())) == len(state["best_k_models"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("change", ["moved", "linked"])
def test_a_run_that_was_moved_keeps_its_best_checkpoint(flat, tmp_path, change):
    weights = f"--model.weights={SAMPLE / 'resnet18-tiny-imagenet.safetensors'}"
    options = [
        *FAST,
        f"--data.root={flat}",
        weights,
        "--model.lr=3",
        "--max_epochs=1",
    ]  # too high a rate to learn anything
    train.main([*options, f"--default_root_dir={tmp_path / 'a'}"])
    best = (tmp_path / "a/lightning_logs/version_0/checkpoints/best.ckpt").read_bytes()
    (tmp_path / "a").rename(tmp_path / "b") if change == "moved" else (tmp_path / "b").symlink_to(tmp_path / "a")
    train.main([f"--default_root_dir={tmp_path / 'b'}", "--ckpt_path=last", "--max_epochs=2"])
    run = tmp_path / "b/lightning_logs/version_0"
    assert (run / "checkpoints/best.ckpt").read_bytes() == best
    assert json.loads((run / "metrics.json").read_text())["top1"] >= 0.5
    state = next(s for name, s in last_of(tmp_path / "b")["callbacks"].items() if "val/top1" in name)
    assert state["best_model_path"] == str(run / "checkpoints/best.ckpt")


@pytest.mark.parametrize(
    "ckpt_path", ["last", *(pytest.param(name, marks=pytest.mark.slow) for name in ("auto", "path"))]
)
def test_a_resumed_checkpoint_is_read_once_and_its_checksum_compared_once(flat, tmp_path, monkeypatch, ckpt_path):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--save_every_steps=1"]
    train.main(options)
    last = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    read, compared, built = [], [], []
    load, compare = checkpoint.read_tensors, checkpoint.checksum
    step, init = ResNetClassifier.training_step, ResNetClassifier.__init__

    class FirstStep(Exception):
        pass

    def after_first(self, batch, batch_idx):
        if self.global_step == 4:  # the first step of this run is done and saved
            raise FirstStep
        return step(self, batch, batch_idx)

    monkeypatch.setattr(checkpoint, "read_tensors", lambda path, role: read.append(path) or load(path, role))
    monkeypatch.setattr(
        checkpoint, "checksum", lambda file, end: (file.mode == "rb" and compared.append(end)) or compare(file, end)
    )
    counted = functools.wraps(init)(lambda *args, **kw: built.append(1) or init(*args, **kw))
    monkeypatch.setattr(ResNetClassifier, "__init__", counted)
    monkeypatch.setattr(ResNetClassifier, "training_step", after_first)
    with pytest.raises(FirstStep):
        train.main([*options, "--max_epochs=2", f"--ckpt_path={last if ckpt_path == 'path' else ckpt_path}"])
    assert read == [str(last)] and len(compared) == 1 and len(built) == 1


@pytest.mark.slow
def test_a_run_that_unfroze_gradually_is_not_gone_on_with_but_its_weights_are_of_use(fails, flat, tmp_path):
    options = [*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}"]
    train.main(options)
    path = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["fine_tune"] = content["config"]["model"]["fine_tune"] = "gradual"
    content["optimizer_states"][0]["param_groups"][0]["name"] = "layer4"
    torch.save(content, path)
    line = fails(train.main, *options, "--ckpt_path=last", "--model.fine_tune=gradual", "--max_epochs=2")
    assert "gradual" in line and "'layer4'" in line and f"--model.weights {path}" in line
    train.main([*options, f"--model.weights={path}"])


def test_another_monitor_is_refused(fails, trained, tmp_path):
    shutil.copytree(trained.parent, tmp_path / "lightning_logs")
    given = [f"--default_root_dir={tmp_path}", "--ckpt_path=last", "--max_epochs=3", "--monitor=val/loss"]
    assert "was trained with --monitor val/top1, not val/loss" in fails(train.main, *given)


# What changed around it


def call_begin(argv):
    return begin(*argv)


def changed_config(path, **options):
    content = torch.load(path, weights_only=True)
    content["config"] |= options
    torch.save(content, path)


def test_the_options_are_those_in_the_checkpoint_unless_others_are_given(trained, tmp_path):
    shutil.copytree(trained.parent, tmp_path / "lightning_logs")
    path = tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt"
    changed_config(path, seed=3, default_root_dir="/elsewhere")
    (tmp_path / "lightning_logs/version_0/config.yaml").write_text("seed: 5")  # is of no account
    for where in ("last", path):
        this = begin(f"--default_root_dir={tmp_path}", f"--ckpt_path={where}", "--data.root=moved", "--data.mixup=0.2")
        assert this.root == tmp_path and this.config["seed"] == 3 and this.config["data"]["image_size"] == 32
        assert set(this.changed) == {"data.root", "data.mixup"} and this.changed["data.mixup"] == "0.0"


def test_options_without_effect_on_a_resumed_run_are_refused(fails, trained, tmp_path):
    shutil.copytree(trained.parent, tmp_path / "lightning_logs")
    options = [f"--default_root_dir={tmp_path}", "--ckpt_path=last"]
    for option in ("lr", "weight_decay", "backbone_lr_factor"):
        line = fails(call_begin, *options, f"--model.{option}=0.017")
        assert f"was trained with --model.{option}" in line and "--model.weights" in line


@pytest.mark.parametrize(
    "found",
    [
        {"callbacks": [{"class_path": "this.Zen"}]},
        {"callbacks": ["this.Zen"]},
        {"strategy": "this.Zen"},
        {
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"x": [{"class_path": "this.Zen"}]},
            }
        },
        {
            "callbacks": [
                {"class_path": "lightning.pytorch.callbacks.LambdaCallback", "init_args": {"setup": "os.system"}}
            ]
        },
    ],
)
def test_code_that_a_checkpoint_names_is_run_only_if_the_user_names_it(fails, trained, tmp_path, found):
    shutil.copytree(trained.parent, tmp_path / "lightning_logs")
    changed_config(tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt", **found)
    options = [f"--default_root_dir={tmp_path}", "--ckpt_path=last"]
    name = next(iter(found))
    line = fails(call_begin, *options)
    assert "name code from elsewhere" in line and f"give --{name} again" in line
    begin(*options, f"--{name}={'auto' if name == 'strategy' else 'null'}")


def test_a_callback_given_again_is_not_created_twice(trained, tmp_path):
    shutil.copytree(trained.parent, tmp_path / "lightning_logs")
    own = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}}
    changed_config(tmp_path / "lightning_logs/version_0/checkpoints/last.ckpt", callbacks=[own])
    options = [f"--default_root_dir={tmp_path}", "--ckpt_path=auto"]
    stopping = ("--callbacks+=EarlyStopping", "--callbacks.monitor=val/top1", "--callbacks.mode=max")
    again = begin(*options, *stopping).trainer["callbacks"]
    assert [callback.monitor for callback in again] == ["val/top1"]
    assert [callback.monitor for callback in begin(*options).trainer["callbacks"]] == ["val/loss"]


def test_other_images_than_before_are_named(trained, tmp_path, caplog):
    shutil.copytree(trained.parents[1] / "data", tmp_path / "data")
    last = load_checkpoint(trained / "checkpoints/last.ckpt")
    options = begin(f"--data.root={tmp_path / 'data'}")
    check_samples(last, make_data(tmp_path / "data"), options.options)  # only moved
    assert "images are not those" not in caplog.text
    red = tmp_path / "data/train/red"
    (red / "red-0.png").unlink()
    (red / "red-1.png").rename(red / "renamed.png")
    save_image(red / "red-2.png", size=(50, 50))
    check_samples(last, make_data(tmp_path / "data"), options.options)
    assert "train images are not those" in caplog.text and "val images" not in caplog.text
    assert "2 new or changed" in caplog.text and "renamed.png" in caplog.text and "3 gone or changed" in caplog.text
    options.options.ckpt_path = "auto"
    for path in (tmp_path / "data").rglob("*.png"):
        path.rename(path.with_stem(f"other-{path.stem}"))
    with pytest.raises(UserError, match="was trained on other images"):
        check_samples(last, make_data(tmp_path / "data"), options.options)
