"""The detector: its losses, its classes, its checkpoints, and what it does with odd batches."""

import pytest
import torch
from helpers import WEIGHTS
from squares import batch, make, squares, trainer

from project import UserError
from project.checkpoint import Checkpoint, load_model
from project.detection.data import BoxData
from project.detection.model import ResNetDetector
from project.optim import GROUP_NAMES
from project.safety import NotFinite, StopAtNonFinite

ARCHS = ("fasterrcnn", "retinanet", "fcos")


@pytest.mark.parametrize("arch", [pytest.param("fasterrcnn", marks=pytest.mark.slow), "retinanet", "fcos"])
def test_it_learns_two_boxes_and_names_their_classes_from_zero(arch):
    torch.manual_seed(0)
    model = make(arch, norm="batch")
    images, targets = batch(1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(12):
        loss = torch.stack(list(model.losses(images, targets).values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        totals.append(loss.item())
    assert totals[-1] < 0.8 * totals[0]
    model.eval()
    found = model(images)[0]
    assert found["boxes"].shape[1] == 4 and set(found["labels"].tolist()) <= {0, 1}


@pytest.mark.parametrize("arch", ARCHS)
def test_classes_are_counted_from_zero_outside_and_shifted_once(arch):
    model = make(arch).eval()
    seen = {}

    class Net(torch.nn.Module):
        def forward(self, images, targets=None):
            seen["targets"] = targets
            return [{"boxes": torch.zeros(1, 4), "scores": torch.ones(1), "labels": targets[0]["labels"][:1]}]

    model.net = Net()
    images, targets = batch(1)
    shifted = model.losses(images, targets)[0]["labels"]
    assert shifted.tolist() == [1 if arch == "fasterrcnn" else 0]
    model.net.forward = lambda images: [{"labels": shifted}]
    assert model(images)[0]["labels"].tolist() == [0]


def test_no_images_give_no_detections_and_count_for_nothing():
    model = make().eval()
    assert model([]) == []
    model.validation_step(([], []), 0)
    model.validation_step(batch(1), 1)
    assert model.eval_metrics.compute()["image_ids"] == [0, 1]


@pytest.mark.parametrize("arch", ARCHS)
def test_images_without_boxes_are_trained_on(arch):
    images, targets = batch(0)
    assert all(loss.isfinite() for loss in make(arch).losses(images, targets).values())


def test_frozen_statistics_stay_and_those_of_a_batch_do_not():
    images, targets = batch()
    for norm, changes in (("frozen", False), ("batch", True)):
        model = make(norm=norm)
        before = model.net.backbone.body.bn1.running_mean.clone()
        model.train()
        model.losses(images, targets)
        assert torch.equal(before, model.net.backbone.body.bn1.running_mean) != changes


def test_what_depends_on_pretrained_weights_is_kept_in_the_options():
    pretrained = make(weights=WEIGHTS.partition("=")[2]).hparams
    assert (pretrained["norm"], pretrained["trainable_layers"]) == ("frozen", 3)
    assert (make().hparams["norm"], make().hparams["trainable_layers"]) == ("batch", 5)


def test_bad_options_are_refused():
    with pytest.raises(UserError, match=r"--model.image_size 8: must be from 32"):
        make(image_size=8)
    with pytest.raises(UserError, match=r"--model.channels 65: must be a multiple of 32"):
        make(channels=65)
    with pytest.raises(UserError, match=r"--model.trainable_layers 6"):
        make(trainable_layers=6)
    with pytest.raises(UserError, match="score threshold is 2"):
        ResNetDetector(["a"], 2, backbone="resnet18", weights="none")


def test_training_sets_the_groups_the_metrics_and_the_threshold(tmp_path):
    data = BoxData(root=str(squares(tmp_path, train=4, val=2)), batch_size=2, num_workers=0, max_size=96)
    model = make(lr=1e-3, backbone_lr_factor=0.5)
    run = trainer(max_epochs=1)
    run.fit(model, datamodule=data)
    groups = {group["name"]: group["initial_lr"] for group in run.optimizers[0].param_groups}
    assert set(groups) == set(GROUP_NAMES) and groups["backbone"] == groups["head"] / 2
    assert sum(len(g["params"]) for g in run.optimizers[0].param_groups) == len(list(model.net.parameters()))
    assert {"val/map", "val/map50", "val/map75", "train/loss_epoch"} <= set(run.callback_metrics)
    assert model.hparams["score_threshold"] == model.eval_results["score_threshold"]


def test_a_loss_that_is_no_number_ends_the_run(tmp_path):
    data = BoxData(root=str(squares(tmp_path, train=4, val=2)), batch_size=2, num_workers=0, max_size=96)
    with pytest.raises(NotFinite, match=r"not finite any more at step .* its 2 images: .*train-\d.png"):
        trainer(max_epochs=3, callbacks=[StopAtNonFinite()]).fit(make(lr=1e6, warmup_ratio=0.0), datamodule=data)


def test_a_checkpoint_brings_back_the_same_detector_and_another_task_is_refused():
    model = make().eval()
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "config": {"data": {}}}
    model.on_save_checkpoint(content)
    again = load_model(Checkpoint("a.ckpt", content), ResNetDetector)
    images, _ = batch()
    with torch.no_grad():
        assert torch.equal(model(images)[0]["scores"], again(images)[0]["scores"])
    with pytest.raises(UserError, match=r"b.ckpt is of image classification, not of object detection: use the scripts"):
        load_model(Checkpoint("b.ckpt", {**content, "task": None}), ResNetDetector)
