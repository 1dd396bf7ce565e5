"""A pruned model is an ordinary one: made, trained with its teacher, interrupted, evaluated, used, refused like it."""

import hashlib
import logging
import shutil
from pathlib import Path

import evaluate
import find
import predict
import pytest
import safetensors.torch
import torch
import train
from helpers import FAST, PREPROCESSING, fill, forged, make
from torchvision.models import get_model

from project.checkpoint import DurableCheckpointIO, load_checkpoint, load_model
from project.classification import features as feature_room
from project.classification import pruning
from project.classification.model import ResNetClassifier, load
from project.classification.pruning import cut_least_worth, prune, training_data
from project.pruning import channel_groups, multiply_adds

STEPS = ["--save_every_steps=1", "--save_every_minutes=null"]


def images(number: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pruned(trained, tmp_path_factory) -> Path:
    """The folder of a run that has pruned the model of `trained` and trained it for two epochs."""
    root = tmp_path_factory.mktemp("pruned")
    best = prune(trained / "checkpoints/best.ckpt", 0.5, train.main, 2, default_root_dir=root, options=STEPS)
    assert best == root / "lightning_logs/version_0-pruned-0.5/checkpoints/best.ckpt"
    return best.parents[1]


@pytest.fixture
def cut(pruned) -> Path:
    """The checkpoint that this run has started from."""
    return pruned.with_name("version_0-pruned-0.5.ckpt")


def test_the_model_that_was_trained_has_half_the_multiply_adds_and_its_head(trained, pruned, cut):
    full, start, end = (
        load(path) for path in (trained / "checkpoints/best.ckpt", cut, pruned / "checkpoints/last.ckpt")
    )
    for model in (start, end):
        assert 0.485 <= multiply_adds(model.net, 32) / multiply_adds(full.net, 32) <= 0.5
        assert all(group.size % 16 == 0 for group in channel_groups(model.net))
        assert model.hparams["preprocessing"] == full.hparams["preprocessing"] and model.class_names == full.class_names
    assert not torch.equal(start(images()), end(images()))
    assert sum(p.numel() for p in end.parameters()) < 0.7 * sum(p.numel() for p in full.parameters())


def test_the_teacher_is_in_no_checkpoint_but_by_its_name_and_hash(trained, pruned):
    best, last = (load_checkpoint(pruned / f"checkpoints/{name}.ckpt").content for name in ("best", "last"))
    teacher = trained / "checkpoints/best.ckpt"
    for content in (best, last):
        assert all(name.startswith("net.") for name in content["state_dict"])
        assert content["config"]["model"]["teacher"] == content["hyper_parameters"]["teacher"] == str(teacher)
        assert content["hyper_parameters"]["teacher_sha256"] == hashlib.sha256(teacher.read_bytes()).hexdigest()
    size = sum(tensor.numel() for tensor in last["state_dict"].values())
    assert (pruned / "checkpoints/last.ckpt").stat().st_size < 4 * 3.2 * size + 2**20  # weights and AdamW's two moments


def test_the_state_before_training_is_a_candidate_with_the_head_that_is_kept(trained, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="project")
    full = trained / "checkpoints/best.ckpt"
    best = prune(full, 0.3, train.main, 0, default_root_dir=tmp_path)
    content, start = (load_checkpoint(p).content for p in (best, tmp_path / "lightning_logs/version_0-pruned-0.3.ckpt"))
    assert content["global_step"] == 0
    for name, tensor in start["state_dict"].items():
        if "running" not in name:  # the statistics of BatchNorm are estimated from the same images
            assert torch.equal(content["state_dict"][name], tensor)
    assert "The head that these weights come with is kept: before training it gets val top1" in caplog.text
    assert "Head start" not in caplog.text and "Best: the start, val top1" in caplog.text
    assert multiply_adds(load(best).net, 32) <= 0.3 * multiply_adds(load(full).net, 32)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(trained, pruned, tmp_path, monkeypatch):
    step = ResNetClassifier.training_step

    def killed(self, batch, i):
        if (self.current_epoch, i) == (1, 1):
            raise SystemExit(9)
        return step(self, batch, i)

    def again() -> Path:
        return prune(trained / "checkpoints/best.ckpt", 0.5, train.main, 2, default_root_dir=tmp_path, options=STEPS)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(ResNetClassifier, "training_step", killed)
        again()
    folder = again().parents[1]
    assert [path.name for path in folder.parent.iterdir() if path.is_dir()] == [folder.name]
    for name in ("last", "best"):
        whole, cut = (load_checkpoint(run / f"checkpoints/{name}.ckpt").content for run in (pruned, folder))
        assert whole["global_step"] == cut["global_step"]
        assert all(torch.equal(cut["state_dict"][k], tensor) for k, tensor in whole["state_dict"].items())


def test_a_call_that_has_finished_does_nothing_more(trained, pruned, monkeypatch, caplog):
    caplog.set_level(logging.INFO, logger="project")
    monkeypatch.setattr(ResNetClassifier, "training_step", None)
    files = {path: path.stat().st_mtime_ns for path in pruned.parent.rglob("*.ckpt")}
    root = pruned.parents[1]
    best = prune(trained / "checkpoints/best.ckpt", 0.5, train.main, 2, default_root_dir=root, options=STEPS)
    assert best == pruned / "checkpoints/best.ckpt" and "is there already" in caplog.text
    assert files == {path: path.stat().st_mtime_ns for path in pruned.parent.rglob("*.ckpt")}


def test_a_cut_of_another_model_is_not_taken_for_this_ones(trained, cut, tmp_path):
    path = tmp_path / "cut.ckpt"
    shutil.copy(cut, path)
    other = forged(trained, tmp_path / "other.ckpt", lambda state: state["net.fc.1.bias"].add_(1))
    pruning.save_pruned(load_checkpoint(other), 0.5, path)
    assert not torch.equal(load(path).head.linear.bias, load(cut).head.linear.bias)


def test_a_reload_answers_bit_for_bit_what_the_pruned_model_in_memory_did(trained, tmp_path):
    source = load_checkpoint(trained / "checkpoints/best.ckpt")
    model = load_model(source, ResNetClassifier)
    cut_least_worth(model, training_data(source, model, None), 0.3)
    model.cpu().eval()
    DurableCheckpointIO().save_checkpoint({**source.content, "state_dict": model.state_dict()}, tmp_path / "a.ckpt")
    assert torch.load(tmp_path / "a.ckpt", weights_only=True)["hyper_parameters"] == source.content["hyper_parameters"]
    assert torch.equal(load(tmp_path / "a.ckpt")(images()), model(images()))


def test_evaluate_and_predict_take_it_as_it_is(trained, pruned, cut, tmp_path, capsys):
    for path in (pruned / "checkpoints/best.ckpt", cut):
        metrics = evaluate.main([f"--ckpt={path}", f"--output={tmp_path / path.stem}"])
        assert metrics["num_samples"] == 12 and metrics["checkpoint"] == str(path)
    image = trained.parents[1] / "data/test/red/red-0.png"
    predict.main([f"--ckpt={pruned / 'checkpoints/best.ckpt'}", str(image), "--num_workers=0", "--precision=32-true"])
    (expected,) = load(pruned / "checkpoints/best.ckpt").predict([image])
    assert f"{next(iter(expected))} {next(iter(expected.values())):.1%}" in capsys.readouterr().out


def test_a_finished_run_is_trained_for_more_epochs_by_the_same_teacher_alone(fails, trained, pruned, tmp_path):
    shutil.copytree(pruned.parent, tmp_path / "lightning_logs")
    moved = shutil.copy(trained / "checkpoints/best.ckpt", tmp_path / "moved.ckpt")
    other = forged(trained, tmp_path / "other.ckpt", lambda state: state["net.fc.1.bias"].add_(1))
    again = ["--ckpt_path=last", f"--default_root_dir={tmp_path}", "--max_epochs=3"]
    line = fails(train.main, *again, f"--model.teacher={tmp_path / 'gone.ckpt'}")
    assert f"--model.teacher: checkpoint {tmp_path / 'gone.ckpt'}: no such file" in line
    line = fails(train.main, *again, f"--model.teacher={other}")
    assert "not the file that the run has learned from so far (sha256 " in line
    train.main([*again, f"--model.teacher={moved}"])
    last = load_checkpoint(tmp_path / "lightning_logs" / pruned.name / "checkpoints/last.ckpt").content
    assert last["epoch"] == 2 and last["global_step"] == 9


@pytest.mark.slow
def test_its_weights_start_a_run_with_other_classes_and_a_head_of_their_own(cut, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="project")
    for name, count in {"train": 4, "val": 2, "test": 2}.items():
        fill(tmp_path / "data" / name, count, ("blue", "red"))
    options = [*FAST, f"--data.root={tmp_path / 'data'}", f"--default_root_dir={tmp_path}", "--name=two"]
    train.main([*options, f"--model.weights={cut}", "--limit_test_batches=0"])
    assert "Head start: the new head alone" in caplog.text and "is kept" not in caplog.text
    model = load(tmp_path / "lightning_logs/two/checkpoints/last.ckpt")
    assert model.class_names == ["blue", "red"] and multiply_adds(model.net, 32) < 0.6 * multiply_adds(make().net, 32)
    train.main(["--ckpt_path=last", f"--default_root_dir={tmp_path}", "--max_epochs=2"])


@pytest.mark.slow
def test_find_takes_its_weights(trained, cut, capsys, tmp_path):
    data = trained.parents[1] / "data"
    find.main(
        [*FAST, f"--data.root={data}", f"--model.weights={cut}", "--only=batch_size", f"--default_root_dir={tmp_path}"]
    )
    assert "--data.batch_size 8" in capsys.readouterr().out


def test_cached_features_of_the_full_network_are_not_taken_for_its_own(trained, cut, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shapes, compute = [], feature_room.compute_features

    def computed(*arguments):
        features = compute(*arguments)
        shapes.append(features.shape[1])
        return features

    monkeypatch.setattr(feature_room, "compute_features", computed)
    for weights in (trained / "checkpoints/best.ckpt", cut):
        options = [*FAST, f"--data.root={trained.parents[1] / 'data'}", f"--default_root_dir={tmp_path}"]
        train.main(
            [
                *options,
                f"--model.weights={weights}",
                "--model.fine_tune=head",
                "--data.doctor=false",
                "--limit_test_batches=0",
                "--max_epochs=0",
            ]
        )
    assert shapes == [512, load(cut).head.linear.in_features]


def test_what_cannot_be_pruned_is_one_line_and_leaves_nothing(fails, trained, tmp_path):
    good = trained / "checkpoints/best.ckpt"
    content = torch.load(good, weights_only=True)
    for arch, reason in {
        "resnext50_32x4d": "grouped convolutions",
        "mobilenet_v3_small": "none of torchvision's",
    }.items():
        model = ResNetClassifier(content["hyper_parameters"]["class_names"], PREPROCESSING, arch=arch, weights="none")
        torch.save(
            {**content, "hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}, tmp_path / "a.ckpt"
        )
        line = fails(lambda argv: prune(argv[0], 0.5, train.main, default_root_dir=tmp_path), tmp_path / "a.ckpt")
        assert f"--prune: {arch} cannot be pruned: it" in line and reason in line
    for keep, reason in {
        0.0: "above 0",
        -1.0: "above 0",
        1.5: "at most 1",
        float("nan"): "above 0",
        1e-3: "only to 0.0",
    }.items():
        line = fails(lambda argv, keep=keep: prune(argv[0], keep, train.main, default_root_dir=tmp_path), good)
        assert f"--prune {keep:g}: " in line and reason in line
    assert list((tmp_path / "lightning_logs").iterdir()) == []
    assert prune(good, 1.0, train.main, default_root_dir=tmp_path / "none") == good  # nothing to cut
    assert not (tmp_path / "none").exists()


@pytest.mark.slow
def test_a_failure_in_training_says_where_its_options_belong(fails, trained, tmp_path):
    options = [*STEPS, "--model.lr=1e30", "--model.warmup_ratio=0"]
    best = trained / "checkpoints/best.ckpt"
    line = fails(lambda argv: prune(best, 0.5, train.main, 1, default_root_dir=tmp_path, options=options))
    config = tmp_path / "lightning_logs/version_0-pruned-0.5/config.yaml"
    assert "--prune 0.5: the loss is not finite" in line and "try a lower --model.lr" in line
    command = f"python scripts/train.py --config {config}"
    assert f"(these are options of scripts/train.py: add them to `{command}`, and export its best.ckpt)" in line
    run = train.main([*command.split()[2:], "--model.lr=0.001", "--limit_test_batches=0"])
    assert run.best is not None and load_checkpoint(run.best).content["hyper_parameters"]["teacher"] == str(best)


FORGED = {
    "larger than the file": lambda state: {"net.conv1.weight": state["net.conv1.weight"][:1].expand(10**9, 3, 7, 7)},
    "larger than the network": lambda state: {
        "net.bn1.weight": torch.ones(65),
        "net.conv1.weight": torch.ones(65, 3, 7, 7),
    },
    "not of one width": lambda state: {"net.layer1.0.conv1.weight": state["net.layer1.0.conv1.weight"][:-1]},
    "a flat kernel": lambda state: {"net.conv1.weight": state["net.conv1.weight"].flatten()},
    "without channels": lambda state: {"net.conv1.weight": state["net.conv1.weight"][:0]},
    "no tensor": lambda state: {"net.conv1.weight": 5},
    "classes": lambda state: {
        "net.fc.1.weight": state["net.fc.1.weight"][:2],
        "net.fc.1.bias": state["net.fc.1.bias"][:2],
    },
}


@pytest.mark.parametrize("kind", FORGED)
def test_shapes_that_do_not_agree_are_one_line(fails, trained, cut, tmp_path, kind):
    content = torch.load(cut, weights_only=True)
    content["state_dict"] |= FORGED[kind](content["state_dict"])
    torch.save(content, tmp_path / "forged.ckpt")
    image = trained.parents[1] / "data/test/red/red-0.png"
    line = fails(predict.main, "--ckpt", tmp_path / "forged.ckpt", image)
    assert f"checkpoint {tmp_path / 'forged.ckpt'}: its parts do not fit together (" in line
    if kind == "not of one width":
        line = fails(train.main, *FAST, f"--data.root={tmp_path}", f"--model.weights={tmp_path / 'forged.ckpt'}")
        assert "forged.ckpt does not fit --model.arch resnet18; the shape of 'layer1.0." in line


def test_a_published_network_is_still_told_from_a_pruned_one(fails, tmp_path):
    """A resnet50 is a wide_resnet50_2 with half of its inner channels."""
    safetensors.torch.save_file(get_model("resnet50", weights=None).state_dict(), tmp_path / "a.safetensors")
    line = fails(
        train.main,
        *FAST,
        f"--data.root={tmp_path}",
        "--model.arch=wide_resnet50_2",
        f"--model.weights={tmp_path / 'a.safetensors'}",
    )
    assert "they are those of resnet50: use --model.arch resnet50" in line


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_half_of_the_sample_s_network_is_nearly_as_good(tmp_path, figure):
    run = train.main([f"--default_root_dir={tmp_path}", "--enable_progress_bar=false"])
    best = prune(run.best, 0.5, train.main, 4, default_root_dir=tmp_path)
    metrics = evaluate.main([f"--ckpt={best}", f"--output={tmp_path / 'out'}"])
    figure("sample, top1 of the full network and of half of it", f"{run.metrics['top1']:.3f} {metrics['top1']:.3f}")
    assert metrics["top1"] >= run.metrics["top1"] - 0.03
