"""The teacher: what it adds to the loss, and which files it may be."""

import shutil

import pytest
import torch
import train
from helpers import COLOURS, FAST, PREPROCESSING, WEIGHTS, fill, make

from project import UserError
from project.checkpoint import DurableCheckpointIO, load_checkpoint
from project.classification.distillation import Teacher, find_teacher
from project.classification.model import ResNetClassifier


def test_the_loss_is_the_labels_and_the_teachers_softened_probabilities(trained):
    teacher = Teacher(str(trained / "checkpoints/best.ckpt"))
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    p, q = (teacher.model(images).double() / 2).softmax(dim=1), (logits / 2).softmax(dim=1)
    divergence = sum((a * (a / b).log()).sum() for a, b in zip(p, q, strict=True)) / 4
    loss = teacher.blend(torch.tensor(1.5, dtype=torch.float64), images, logits)
    assert loss.item() == pytest.approx(0.3 * 1.5 + 0.7 * 4 * divergence.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(gradient, 0.7 * 4 / 2 * (q - p) / 4, rtol=1e-4, atol=1e-6)
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())


def test_a_model_learns_from_it_in_training_alone(trained):
    teacher = Teacher(str(trained / "checkpoints/best.ckpt"))
    model = make()
    with pytest.raises(UserError, match="its classes, or their order, are not those of the data"):
        teacher.teach(model)
    model.class_names = teacher.model.class_names
    before = model.state_dict().keys()
    teacher.teach(model)
    assert model.state_dict().keys() == before and not teacher.model.training
    assert len(list(model.parameters())) == len(list(model.net.parameters()))
    model.train()
    assert not teacher.model.training


@pytest.mark.slow
def test_a_student_of_another_kind_gets_a_head_start_and_learns_from_it(trained, tmp_path, caplog):
    caplog.set_level("INFO", logger="project")
    options = [*FAST, WEIGHTS, f"--data.root={trained.parents[1] / 'data'}", "--limit_test_batches=0"]
    heads = []
    for teaching in ([], [f"--model.teacher={trained / 'checkpoints/best.ckpt'}"]):
        run = train.main([*options, f"--default_root_dir={tmp_path / str(len(heads))}", *teaching])
        heads.append(load_checkpoint(run.folder / "checkpoints/last.ckpt").content["state_dict"]["net.fc.1.weight"])
    assert caplog.text.count("Head start: ") == 2 and not torch.equal(*heads)


def test_a_teacher_that_is_gone_or_unusable_is_one_line(fails, trained, tmp_path):
    good, teacher = trained / "checkpoints/best.ckpt", tmp_path / "teacher.ckpt"
    data = f"--data.root={trained.parents[1] / 'data'}"
    options = [*FAST, data, f"--default_root_dir={tmp_path}", f"--model.teacher={teacher}", f"--model.weights={good}"]
    assert f"--model.teacher: checkpoint {teacher}: no such file" in fails(train.main, *options)
    teacher.write_text("hello")
    assert "--model.teacher: checkpoint" in fails(train.main, *options)
    shutil.copy(good, teacher)
    assert "it teaches all layers; use --model.fine_tune full" in fails(train.main, *options, "--model.fine_tune=head")
    with pytest.raises(
        UserError, match=r"not the file that the run has learned from so far \(sha256 000000000000…, now"
    ):
        Teacher(str(teacher), 64 * "0")
    fill(tmp_path / "data/train", 2, ("blue", "red"))
    fill(tmp_path / "data/val", 1, ("blue", "red"))
    line = fails(train.main, *options, f"--data.root={tmp_path / 'data'}")
    assert "its classes, or their order, are not those of the data" in line


@pytest.mark.slow
def test_a_resumed_run_keeps_its_teacher_or_its_lack_of_one(fails, trained, tmp_path):
    good = trained / "checkpoints/best.ckpt"
    options = [*FAST, f"--data.root={trained.parents[1] / 'data'}", "--limit_test_batches=0", f"--model.weights={good}"]
    for name, teaching in {"taught": [f"--model.teacher={good}"], "alone": []}.items():
        train.main([*options, f"--default_root_dir={tmp_path / name}", *teaching])
    again = ["--ckpt_path=last", "--max_epochs=2", "--accelerator=cpu"]
    line = fails(train.main, *again, f"--default_root_dir={tmp_path / 'taught'}", "--model.teacher=null")
    assert "--model.teacher null: the run has learned with a teacher so far (sha256 " in line
    line = fails(train.main, *again, f"--default_root_dir={tmp_path / 'alone'}", f"--model.teacher={good}")
    assert f"--model.teacher {good}: the run has learned without a teacher so far, and goes on like that" in line
    assert "--model.weights" in line
    assert find_teacher(None, None) is None


def teacher_of(folder, size, **options):
    """A checkpoint of a network for images of this size."""
    preprocessing = {**PREPROCESSING, "resize_size": size, "crop_size": size}
    model = ResNetClassifier(list(COLOURS), preprocessing, weights="none", **options)
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "config": {"data": {}}}
    content |= {"pytorch-lightning_version": "2.6.6", "epoch": 0, "global_step": 0}
    DurableCheckpointIO().save_checkpoint(content, folder / "teacher.ckpt")
    return folder / "teacher.ckpt"


@pytest.mark.slow
def test_a_teacher_for_other_sizes_is_said_or_refused_before_training(fails, trained, tmp_path, caplog):
    options = [*FAST, f"--data.root={trained.parents[1] / 'data'}", f"--default_root_dir={tmp_path}"]
    options += ["--model.weights=none", "--limit_test_batches=0", f"--model.teacher={tmp_path / 'teacher.ckpt'}"]
    teacher_of(tmp_path, 48, arch="vit_b_16")
    line = fails(train.main, *options)
    assert "it has learned from images of 48 x 48 pixels, not 32 x 32, which it cannot take (" in line
    assert "use --data.image_size 48" in line and not list(tmp_path.glob("lightning_logs/*"))
    teacher_of(tmp_path, 48, arch="resnet18")
    train.main([*options, "--max_steps=1"])
    assert "teacher.ckpt: it has learned from images of 48 x 48 pixels, not 32 x 32, of which it may" in caplog.text
