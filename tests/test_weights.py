import email.message
import io
import pickle
import urllib.request
from typing import get_args

import pytest
import safetensors.torch
import torch
import torchvision
from helpers import (
    SAMPLE,
    Exploding,
    make,
)

from project import UserError
from project.weights import Arch, named_weights, preprocessing_for


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No cached weights, and downloads that fail as they do without a network."""

    def refuse(*args, **kwargs):
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    return tmp_path / "cache/hub/checkpoints"


def test_every_resnet_of_torchvision_is_offered():
    models = torchvision.models
    resnets = {n for n in models.list_models() if models.get_model_builder(n).__module__ == "torchvision.models.resnet"}
    assert set(get_args(Arch)) == resnets


def test_preprocessing_belongs_to_the_weights():
    newest, first = (preprocessing_for("resnet50", name) for name in ("DEFAULT", "IMAGENET1K_V1"))
    assert newest["resize_size"] == 232 and first["resize_size"] == 256
    assert newest["mean"] == [0.485, 0.456, 0.406] and newest["interpolation"] == "bilinear"


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
