import email.message
import io
import pickle
import urllib.request
from typing import get_args

import pytest
import safetensors.torch
import torch
import torchvision
from conftest import SAMPLE
from lightning.pytorch import Trainer
from project.model import Arch, ResNetClassifier, named_weights, part_of, preprocessing_for

from project import UserError

PREPROCESSING = preprocessing_for("resnet18", "none")


def make(num_classes=3, **options):
    names = [f"class-{i}" for i in range(num_classes)]
    return ResNetClassifier(names, PREPROCESSING, **{"arch": "resnet18", "weights": "none", **options})


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No cached weights, and a transport that fails as it does without a network."""

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path / "cache/hub/checkpoints"


def test_every_resnet_of_torchvision_is_offered():
    models = torchvision.models
    resnets = {n for n in models.list_models() if models.get_model_builder(n).__module__ == "torchvision.models.resnet"}
    assert set(get_args(Arch)) == resnets


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_logits_for_any_number_of_classes(arch):
    logits = make(5, arch=arch).eval()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert logits.shape == (2, 5) and logits.dtype == torch.float32


def test_forward_normalizes_as_the_weights_want():
    model = make().eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(PREPROCESSING[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(model(images), model.net((images / 255 - mean) / std), rtol=1e-3, atol=1e-4)


def test_preprocessing_belongs_to_the_weights():
    newest, first = (preprocessing_for("resnet50", name) for name in ("DEFAULT", "IMAGENET1K_V1"))
    assert newest["resize_size"] == 232 and first["resize_size"] == 256
    assert newest["mean"] == [0.485, 0.456, 0.406] and newest["interpolation"] == "bilinear"


# Weights


@pytest.mark.parametrize("form", ["safetensors", "pth", "nested", "data_parallel"])
def test_weights_from_a_file_fill_everything_but_the_head(tmp_path, form):
    torch.manual_seed(1)
    source = torchvision.models.resnet18(weights=None)  # 1000 classes
    state = source.state_dict()
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        safetensors.torch.save_file(state, path)
    elif form == "data_parallel":
        torch.save({f"module.{name}": tensor for name, tensor in state.items()}, path)
    else:
        torch.save({"state_dict": state} if form == "nested" else state, path)
    model = make(weights=str(path))
    assert torch.equal(model.net.layer4[1].conv2.weight, source.layer4[1].conv2.weight)
    assert torch.equal(model.net.bn1.running_var, source.bn1.running_var)
    assert model.net.fc[1].weight.shape == (3, 512)


def test_the_sample_weights_are_loaded_from_half_precision():
    state = safetensors.torch.load_file(SAMPLE / "resnet18-tiny-imagenet.safetensors")
    model = make(weights=str(SAMPLE / "resnet18-tiny-imagenet.safetensors"))
    assert state["conv1.weight"].dtype == torch.float16 and model.net.conv1.weight.dtype == torch.float32
    assert torch.equal(model.net.conv1.weight, state["conv1.weight"].float())


def test_weights_of_another_architecture_are_recognized():
    with pytest.raises(UserError, match=r"does not fit --model\.arch resnet50; they are those of resnet18"):
        make(arch="resnet50", weights=str(SAMPLE / "resnet18-tiny-imagenet.safetensors"))


def test_weights_of_no_resnet(tmp_path):
    torch.save({"a.weight": torch.zeros(3)}, tmp_path / "w.pth")
    with pytest.raises(UserError, match="they are of no ResNet"):
        make(weights=str(tmp_path / "w.pth"))


class Exploding:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")  # whoever unpickles this leaves a file behind


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.ckpt"])
def test_a_malicious_pickle_is_refused_and_not_executed(tmp_path, name):
    for legacy in (False, True):
        torch.save({"a": Exploding(tmp_path / "ran")}, tmp_path / name, _use_new_zipfile_serialization=not legacy)
        with pytest.raises(UserError, match="refused"):
            make(weights=str(tmp_path / name))
    (tmp_path / name).write_bytes(pickle.dumps(Exploding(tmp_path / "ran")))
    with pytest.raises(UserError):
        make(weights=str(tmp_path / name))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04" + bytes(50), bytes(100)])
def test_unreadable_weights(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=rf"--model\.weights .*{name}: "):
        make(weights=str(tmp_path / name))


def test_a_list_is_no_state_dict(tmp_path):
    torch.save([1, 2], tmp_path / "w.pth")
    with pytest.raises(UserError, match="not a state dict"):
        make(weights=str(tmp_path / "w.pth"))


def test_unknown_weights_name_lists_the_known():
    with pytest.raises(UserError, match=r"ResNet50_Weights\.IMAGENET1K_V1: no such file"):
        make(arch="resnet18", weights="ResNet50_Weights.IMAGENET1K_V1")
    with pytest.raises(UserError, match=r"IMAGENET1K_V7: no such file.*IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        make(arch="resnet50", weights="IMAGENET1K_V7")


def test_without_network_and_cache_one_error_names_three_ways_out(no_network):
    with pytest.raises(UserError) as error:
        make(weights="DEFAULT")
    for way in ("connect to the network", str(no_network / "resnet18-f37072fd.pth"), "--model.weights none"):
        assert way in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["DEFAULT", "IMAGENET1K_V1", "ResNet18_Weights.IMAGENET1K_V1"])
def test_cached_weights_need_no_network(no_network, name):
    no_network.mkdir(parents=True)
    state = torchvision.models.resnet18(weights=None).state_dict()
    torch.save(state, no_network / "resnet18-f37072fd.pth")
    assert torch.equal(make(weights=name).net.conv1.weight, state["conv1.weight"])


def test_a_download_is_checked_and_a_wrong_one_refused(no_network, monkeypatch):
    content = io.BytesIO()
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), content)

    class Response(io.BytesIO):
        def info(self):
            message = email.message.Message()
            message["Content-Length"] = str(len(self.getvalue()))
            return message

    asked = []

    def answer(request, *args, **kwargs):
        asked.append(request.full_url)
        return Response(content.getvalue())

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    monkeypatch.setattr(torch.hub, "urlopen", answer)
    with pytest.raises(UserError, match="invalid hash value"):
        make(weights="DEFAULT")
    assert asked == [named_weights("resnet18", "DEFAULT").url]
    assert not list(no_network.glob("*.pth"))


# What learns, and how fast


def optimizer_of(model, **trainer_options):
    options = {"logger": False, "enable_checkpointing": False, "accelerator": "cpu", "max_epochs": 10}
    model.trainer = Trainer(**{**options, **trainer_options})
    type(model.trainer).estimated_stepping_batches = property(lambda self: 100)
    configured = model.configure_optimizers()
    return configured["optimizer"], configured["lr_scheduler"]["scheduler"]


@pytest.fixture(autouse=True)
def restore_trainer(monkeypatch):
    monkeypatch.setattr(Trainer, "estimated_stepping_batches", Trainer.estimated_stepping_batches)


def test_norms_and_biases_do_not_decay():
    model = make()
    optimizer, _ = optimizer_of(model)
    decaying = {id(p) for group in optimizer.param_groups if group["weight_decay"] for p in group["params"]}
    for name, parameter in model.net.named_parameters():
        is_kernel = name.endswith("weight") and ("conv" in name or "downsample.0" in name or name.startswith("fc"))
        assert (id(parameter) in decaying) == is_kernel, name
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.net.parameters()))


@pytest.mark.parametrize(
    ("name", "kind"), [("sgd", torch.optim.SGD), ("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)]
)
def test_optimizers_and_the_backbones_own_rate(name, kind):
    optimizer, _ = optimizer_of(make(optimizer=name, lr=0.01, backbone_lr_factor=0.1, warmup_ratio=0.0))
    assert type(optimizer) is kind
    rates = {group["part"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"backbone": pytest.approx(0.001), "head": pytest.approx(0.01)}


def test_schedule_warms_up_and_ends_at_zero():
    model = make(warmup_ratio=0.1)
    factors = [model.lr_factor(step, 100, "head") for step in range(101)]
    assert factors[:10] == sorted(factors[:10]) and 0 < factors[0] < 0.2 and factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True) and factors[100] == pytest.approx(0)
    assert make(schedule="constant").lr_factor(99, 100, "head") == 1.0
    assert model.lr_factor(5, float("inf"), "head") == 1.0


@pytest.mark.parametrize(
    "options", [{"dropout": 3}, {"lr": -1}, {"label_smoothing": 2}, {"warmup_ratio": -1}, {"weight_decay": -1}]
)
def test_options_out_of_range(options):
    ((name, value),) = options.items()
    with pytest.raises(UserError, match=rf"--model\.{name} {value}: must be"):
        make(**options)


def test_head_only_trains_the_head_and_leaves_batchnorm_alone():
    model = make(fine_tune="head", dropout=0.5)
    assert {name for name, p in model.net.named_parameters() if p.requires_grad} == {"fc.1.weight", "fc.1.bias"}
    optimizer, _ = optimizer_of(model)
    assert {group["part"] for group in optimizer.param_groups} == {"head"}
    model.train()
    before = model.net.bn1.running_mean.clone()
    model(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    assert torch.equal(model.net.bn1.running_mean, before)
    assert model.net.fc.training and not model.net.layer4.training


def test_gradual_unfreezing_goes_from_the_head_down():
    model = make(fine_tune="gradual", warmup_ratio=0.0)
    optimizer_of(model)
    order = {}
    for epoch in range(10):
        model.trainer.fit_loop.epoch_progress.current.completed = epoch
        model.on_train_epoch_start()
        for name, p in model.net.named_parameters():
            assert p.requires_grad == (part_of(name) not in model.frozen)
            assert (model.lr_factor(1, 100, part_of(name)) > 0) == p.requires_grad
            if p.requires_grad:
                order.setdefault(part_of(name), epoch)
    assert order == {"head": 0, "layer4": 1, "layer3": 2, "layer2": 3, "layer1": 4, "stem": 5}
    assert model.net.bn1.training


def test_gradual_unfreezing_needs_an_end():
    with pytest.raises(UserError, match="needs an end"):
        optimizer_of(make(fine_tune="gradual"), max_epochs=-1)


def test_class_weights_and_mixed_labels_reach_the_loss():
    torch.manual_seed(0)
    model = make(label_smoothing=0.0).eval()
    model.log = lambda *args, **kwargs: None
    model.requires_grad_(False)
    images, labels = torch.randint(0, 256, (6, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 0, 0, 0, 1, 2])
    plain = model.training_step((images, labels), 0)
    assert plain == pytest.approx(model.training_step((images, torch.eye(3)[labels]), 0).item(), rel=1e-5)
    model.class_weights = torch.tensor([0.0, 0.0, 1.0])
    only_last = torch.nn.functional.cross_entropy(model(images[5:]), labels[5:])
    assert model.training_step((images, labels), 0) == pytest.approx(only_last.item(), rel=1e-5)
