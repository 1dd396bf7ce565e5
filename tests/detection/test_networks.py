"""Torchvision's detectors: their weights, their classes, and what is trained of them."""

import pytest
import torch
from helpers import SAMPLE, run_train
from squares import batch
from torchvision.models import resnet18
from torchvision.models.detection import fasterrcnn_resnet50_fpn, fcos_resnet50_fpn, retinanet_resnet50_fpn

from project import UserError
from project.detection.networks import CLASS_LAYERS, as_images, first_class, freeze, make_detector

WEIGHTS = str(SAMPLE / "resnet18-tiny-imagenet.safetensors")
ARCHS = ("fasterrcnn", "retinanet", "fcos")


def detector(arch="fcos", backbone="resnet18", weights="none", num_classes=2, image_size=64, channels=64):
    return make_detector(arch, backbone, weights, num_classes, image_size, channels)


@pytest.mark.parametrize(
    ("arch", "build"),
    list(zip(ARCHS, (fasterrcnn_resnet50_fpn, retinanet_resnet50_fpn, fcos_resnet50_fpn), strict=True)),
)
@pytest.mark.slow
def test_it_is_torchvisions_detector(arch, build, tmp_path):
    theirs = build(weights=None, weights_backbone=None, num_classes=91, min_size=64, max_size=107).eval()
    torch.save(theirs.state_dict(), tmp_path / "detector.pth")
    ours = detector(arch, "resnet50", num_classes=91 - first_class(arch), channels=256).eval()
    assert {n: t.shape for n, t in ours.state_dict().items()} == {n: t.shape for n, t in theirs.state_dict().items()}
    ours.load_state_dict(theirs.state_dict())
    images, _ = batch(1)
    with torch.no_grad():
        expected = theirs.backbone(theirs.transform([image / 255 for image in images])[0].tensors)
        found = ours.backbone(ours.transform(as_images(images))[0].tensors)
    for level in expected:
        torch.testing.assert_close(found[level], expected[level], atol=1e-4, rtol=1e-3)

    fewer = detector(arch, "resnet50", str(tmp_path / "detector.pth"), num_classes=2, channels=256).state_dict()
    for name, tensor in theirs.state_dict().items():
        if name.startswith(CLASS_LAYERS[arch]):
            assert fewer[name].shape != tensor.shape
        else:
            assert torch.equal(fewer[name], tensor), name


def test_the_trunk_has_the_weights_of_a_classifier():
    trunk = detector(weights=WEIGHTS).backbone.body
    classifier = resnet18(num_classes=200)
    assert not torch.equal(trunk.conv1.weight, classifier.conv1.weight)
    other = detector(weights=WEIGHTS).backbone.body
    assert all(torch.equal(a, b) for a, b in zip(trunk.parameters(), other.parameters(), strict=True))


def test_the_trunk_has_the_weights_of_a_checkpoint_of_this_project(split, tmp_path):
    path = run_train(tmp_path, split) / "checkpoints/best.ckpt"
    state = torch.load(path, weights_only=True)["state_dict"]
    trunk = detector(weights=str(path)).backbone.body
    assert torch.equal(trunk.layer4[1].conv2.weight, state["net.layer4.1.conv2.weight"])


def test_a_detectors_weights_serve_another_number_of_classes(tmp_path):
    torch.save({"state_dict": {f"net.{k}": v for k, v in detector().state_dict().items()}}, tmp_path / "fcos.ckpt")
    state = torch.load(tmp_path / "fcos.ckpt", weights_only=True)["state_dict"]
    loaded = detector(weights=str(tmp_path / "fcos.ckpt"), num_classes=5)
    assert torch.equal(loaded.head.regression_head.bbox_reg.weight, state["net.head.regression_head.bbox_reg.weight"])
    assert loaded.head.classification_head.cls_logits.out_channels == 5
    with pytest.raises(UserError, match=r"does not fit --model.arch retinanet on resnet18"):
        detector("retinanet", weights=str(tmp_path / "fcos.ckpt"))
    with pytest.raises(UserError, match=r"use --model.backbone resnet18"):
        detector(backbone="resnet34", weights=str(tmp_path / "fcos.ckpt"))


def test_wrong_names_are_refused_in_the_words_of_a_detector():
    with pytest.raises(UserError, match=r"--model.backbone vgg16: must be a ResNet of torchvision: resnet"):
        detector(backbone="vgg16")
    with pytest.raises(UserError, match=r"does not fit --model.backbone resnet34; .* use --model.backbone resnet18"):
        detector(backbone="resnet34", weights=WEIGHTS)
    with pytest.raises(UserError, match=r"for --model.backbone resnet50 alone"):
        detector(weights="COCO_V1")


@pytest.mark.parametrize("layers", [0, 2, 5])
def test_only_the_last_stages_of_the_trunk_are_trained(layers):
    net = detector()
    freeze(net, layers)
    trained = {name.split(".")[0] for name, p in net.backbone.body.named_parameters() if p.requires_grad}
    stages = ["layer4", "layer3", "layer2", "layer1", "conv1"][:layers]
    assert trained == {*stages, *(["bn1"] if layers == 5 else [])}
    assert all(p.requires_grad for p in [*net.backbone.fpn.parameters(), *net.head.parameters()])


@pytest.mark.parametrize("arch", ARCHS)
def test_boxes_are_exact_in_mixed_precision(arch):
    net = detector(arch, image_size=512).eval()
    images = as_images(batch(1)[0])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = net.backbone(net.transform(images)[0].tensors)
    assert {level.dtype for level in features.values()} == {torch.float32}
