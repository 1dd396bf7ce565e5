"""Any backbone behind one contract: features, head and logits; image sizes; networks that have no such head."""

import evaluate
import predict
import pytest
import torch
import train
from helpers import FAST, PREPROCESSING, make, reload

from project import UserError
from project.backbones import check_single_images, fit_image_size, make_net
from project.checkpoint import load_checkpoint
from project.classification.model import ResNetClassifier
from project.weights import preprocessing_for

HEADS = {
    "resnet18": ("fc", 512, 64),
    "mobilenet_v3_small": ("classifier.3", 1024, 64),
    "efficientnet_b0": ("classifier.1", 1280, 64),
    "densenet121": ("classifier", 1024, 64),
    "timm/test_resnet": ("fc", 96, 64),
    "timm/test_convnext": ("head.fc", 64, 64),
    "timm/test_vit": ("head", 64, 64),
    "timm/test_vit_relpos": ("head", 96, 160),
}
SLOW_HEADS = {
    "convnext_tiny": ("classifier.2", 768, 64),
    "swin_t": ("head", 768, 64),
    "maxvit_t": ("classifier.5", 512, 224),
}
SLOW_HEADS |= {"vit_b_32": ("heads.head", 768, 224), "timm/regnety_002": ("head.fc", 368, 64)}


def images(size: int, number: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (number, 3, size, size), dtype=torch.uint8)


@pytest.mark.parametrize("arch", [*HEADS, *(pytest.param(arch, marks=pytest.mark.slow) for arch in SLOW_HEADS)])
def test_features_and_head_make_the_logits_whatever_the_family(arch):
    name, num_features, size = (HEADS | SLOW_HEADS)[arch]
    model = make(5, arch=arch).eval()
    assert model.head_name == name and model.head is model.net.get_submodule(name)
    assert {f"net.{name}.1.weight", f"net.{name}.1.bias"} <= model.state_dict().keys()
    with torch.no_grad():
        features, logits = model.features(images(size)), model(batch := images(size))
        assert features.shape == (2, num_features)
        assert torch.equal(model(model.features(batch)), logits) and logits.shape == (2, 5)
        assert torch.equal(model.net(model.normalized(batch)), logits)  # the network alone is a classifier, too
    model.train()
    model(images(size)).sum().backward()
    assert all(parameter.grad is not None for parameter in model.net.parameters())
    groups = {name.startswith(f"{model.head_name}.") for name in model.decayed}
    assert groups == {True, False} and all(
        "norm" not in n and "bias" not in n and "pos_embed" not in n for n in model.decayed
    )


def test_a_resnet_computes_what_it_always_did():
    """Its parts in order, averaged over the image, then the head: bit for bit."""
    model = make(5, dropout=0.5).eval()
    x = model.normalized(batch := images(64))
    for name, module in model.net.named_children():
        x = x if name == "fc" else module(x)
    assert torch.equal(model.features(batch), x.flatten(1))
    assert torch.equal(model(batch), model.net.fc[1](x.flatten(1)))


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "timm/test_vit"])
def test_a_frozen_backbone_of_any_family_stays_in_eval_mode(arch):
    model = make(arch=arch, fine_tune="head", dropout=0.5).train()
    training = {name for name, module in model.net.named_modules() if module.training}
    assert training == {model.head_name, f"{model.head_name}.0", f"{model.head_name}.1"}
    trained = {name for name, parameter in model.net.named_parameters() if parameter.requires_grad}
    assert trained == {f"{model.head_name}.1.weight", f"{model.head_name}.1.bias"}


@pytest.mark.parametrize(
    ("arch", "expected"),
    [
        ("squeezenet1_0", "does not end in a linear layer"),
        ("googlenet", r"several linear layers \(aux1.fc2, aux2.fc2, fc\)"),
        ("timm/resnetv2_18", "does not end in a linear layer"),
        ("timm/levit_128s", r"several linear layers \(head.linear, head_dist.linear\)"),
    ],
)
def test_a_network_without_one_linear_layer_at_its_end_is_refused(arch, expected):
    with pytest.raises(UserError, match=f"--model.arch {arch}: it .*{expected}"):
        make_net(arch, "none", 224)


def test_networks_of_a_fixed_size_keep_it_and_others_leave_the_choice_to_the_data():
    arch = "timm/test_vit_relpos"
    preprocessing, net = preprocessing_for(arch, "none"), make_net(arch, "none", 160)
    assert preprocessing["crop_size"] == 160
    assert fit_image_size(net, arch, preprocessing, None) == 160
    assert fit_image_size(net, arch, preprocessing, 160) == 160
    with pytest.raises(UserError, match=r"--data.image_size 64: .* its own is 160 x 160 pixels"):
        fit_image_size(net, arch, preprocessing, 64)
    other = make_net("mobilenet_v3_small", "none", 224)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    assert fit_image_size(other, "mobilenet_v3_small", PREPROCESSING, None) is None
    assert fit_image_size(other, "mobilenet_v3_small", PREPROCESSING, 96) == 96
    assert other.training and all(torch.equal(before[name], tensor) for name, tensor in other.state_dict().items())


def test_batches_of_one_image_are_refused_where_batchnorm_would_see_one_value():
    net = make_net("resnet18", "none", 224)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(UserError, match=r"--data.batch_size 1: resnet18 has BatchNorm, .* of 32 x 32 pixels: use at"):
        check_single_images(net, "resnet18", 32)
    check_single_images(net, "resnet18", 64)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()) and net.training


def test_another_size_than_the_fixed_one_is_refused_before_an_image_is_listed(fails, tmp_path):
    options = [
        *FAST,
        f"--data.root={tmp_path}",
        "--model.arch=timm/test_vit_relpos",
        "--data.image_size=96",
    ]
    assert "--data.image_size 96: timm/test_vit_relpos takes no images of this size" in fails(train.main, *options)


def try_all_scripts(arch: str, data, folder, *options: str) -> ResNetClassifier:
    """Train an epoch, go on for another, evaluate, predict; returns the model."""
    options = (*FAST, f"--data.root={data}", f"--default_root_dir={folder}", f"--model.arch={arch}", *options)
    train.main([*options, "--model.head_start=true"])
    train.main(["--ckpt_path=last", f"--default_root_dir={folder}", "--max_epochs=2"])
    checkpoint = folder / "lightning_logs/version_0/checkpoints/last.ckpt"
    assert load_checkpoint(checkpoint).content["epoch"] == 1
    evaluate.main([f"--ckpt={checkpoint}", f"--output={folder}"])
    predict.main([f"--ckpt={checkpoint}", str(data / "test"), f"--output={folder / 'p.csv'}", "--num_workers=0"])
    assert len((folder / "p.csv").read_text().splitlines()) == 1 + 9
    return reload(checkpoint)[0]


@pytest.mark.slow
def test_a_network_that_is_no_resnet_is_trained_resumed_evaluated_and_predicts(split, tmp_path):
    model = try_all_scripts("mobilenet_v3_small", split, tmp_path)
    assert model.hparams["arch"] == "mobilenet_v3_small" and model.hparams["preprocessing"]["crop_size"] == 32


def test_a_network_of_timm_with_a_fixed_size_is_trained_resumed_evaluated_and_predicts(split, tmp_path):
    model = try_all_scripts("timm/test_vit_relpos", split, tmp_path, "--data.image_size=null", "--model.fine_tune=head")
    assert model.hparams["preprocessing"]["crop_size"] == 160


@pytest.mark.slow
@pytest.mark.parametrize("fine_tune", ["full", "head"])
@pytest.mark.parametrize(
    "arch",
    [
        *("resnet18", "mobilenet_v3_small", "convnext_tiny"),
        *("timm/resnet10t", "timm/mobilenetv3_small_050", "timm/vit_tiny_patch16_224"),
    ],
)
def test_every_family_runs_from_end_to_end(split, tmp_path, arch, fine_tune):
    size = "null" if "vit" in arch else "32"
    try_all_scripts(arch, split, tmp_path, f"--data.image_size={size}", f"--model.fine_tune={fine_tune}")
