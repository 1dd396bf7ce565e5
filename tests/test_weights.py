import email.message
import io
import pickle
import re
import socket
import sys
import time
import urllib.request

import huggingface_hub
import pytest
import safetensors.torch
import timm
import torch
import torchvision
from helpers import (
    SAMPLE,
    Exploding,
    make,
)

from project import UserError
from project.weights import OfTorchvision, find_architecture, preprocessing_for


@pytest.fixture
def no_network(monkeypatch, tmp_path):
    """No cached weights, and a name server that cannot be reached."""

    def refuse(*args, **kwargs):
        raise socket.gaierror("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return tmp_path / "cache/hub/checkpoints"


def test_every_classification_network_of_torchvision_has_preprocessing_and_segmentation_is_none():
    names = find_architecture("resnet50").names()
    assert len(names) >= 80 and {"resnet18", "convnext_tiny", "vit_b_16", "regnet_y_400mf"} <= set(names)
    for name in names:
        for weights in ("DEFAULT", "none"):
            preprocessing = preprocessing_for(name, weights)
            assert preprocessing["resize_size"] >= preprocessing["crop_size"] >= 224
    for wrong in ("fcn_resnet50", "quantized_resnet18", "raft_small", "timm", ""):
        with pytest.raises(UserError, match=f"--model.arch {wrong}: no classification network of torchvision"):
            find_architecture(wrong)


@pytest.mark.parametrize(
    ("arch", "meant"),
    [("resnet51", "resnet50"), ("effnet_b0", "efficientnet_b0"), ("timm/resnet10", "timm/resnet10t")],
)
def test_an_unknown_network_is_refused_with_what_was_probably_meant(arch, meant):
    with pytest.raises(UserError, match=rf"^--model.arch {arch}: no .*; did you mean [^\n]*\b{meant}\b"):
        find_architecture(arch)


@pytest.mark.parametrize(
    "arch", ["timm/hf-hub:someone/model", "timm/local-dir:.", "timm/someone/model", "timm/", "timm"]
)
def test_no_name_leads_to_a_model_of_somebody_elses(arch, no_network):
    with pytest.raises(UserError, match=r"no .*network of"):
        find_architecture(arch)


def test_a_missing_package_is_named_with_the_way_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(
        UserError, match=re.escape("--model.arch timm/resnet18: needs a package: pip install -e '.[timm]'")
    ):
        find_architecture("timm/resnet18")


def test_preprocessing_belongs_to_the_weights():
    newest, first, none = (preprocessing_for("resnet50", name) for name in ("DEFAULT", "IMAGENET1K_V1", "none"))
    assert newest["resize_size"] == 232 and first["resize_size"] == 256 and none == first
    assert newest["mean"] == [0.485, 0.456, 0.406] and newest["interpolation"] == "bilinear"
    assert preprocessing_for("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")["crop_size"] == 384


@pytest.mark.parametrize("arch", ["timm/resnet10t", "timm/vit_tiny_patch16_224", "timm/efficientnet_b3.ra2_in1k"])
def test_preprocessing_of_timm_is_that_of_timms_own_transform(arch):
    preprocessing = preprocessing_for(arch, "DEFAULT")
    config = timm.data.resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(arch.removeprefix("timm/")).to_dict())
    resize, crop, *_, normalize = timm.data.create_transform(**config).transforms
    assert preprocessing["resize_size"] == resize.size and preprocessing["crop_size"] == crop.size[0]
    assert preprocessing["interpolation"] == resize.interpolation.value
    for name in ("mean", "std"):
        assert preprocessing[name] == pytest.approx(getattr(normalize, name).tolist())


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


@pytest.mark.parametrize(
    ("arch", "change", "expected"),
    [
        ("resnet18", lambda state: {"a.weight": torch.zeros(3)}, "no tensor 'conv1.weight'"),
        ("mobilenet_v3_small", lambda state: {"a.weight": torch.zeros(3)}, "no tensor 'features.0.0.weight'"),
        ("mobilenet_v3_small", lambda state: {**state, "a": torch.zeros(3)}, "no place for 'a'"),
        (
            "mobilenet_v3_small",
            lambda state: {**state, "features.0.0.weight": torch.zeros(8, 3, 3, 3)},
            r"the shape of 'features.0.0.weight' is \(8, 3, 3, 3\), not \(16, 3, 3, 3\)",
        ),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, arch, change, expected):
    torch.save(change(make(arch=arch).net.state_dict()), tmp_path / "w.pth")
    with pytest.raises(UserError, match=f"w.pth does not fit --model.arch {arch}; {expected}$"):
        make(arch=arch, weights=str(tmp_path / "w.pth"))


@pytest.mark.parametrize("arch", ["mobilenet_v3_small", "mnasnet0_5", "timm/test_vit"])
def test_a_checkpoint_of_another_number_of_classes_fills_everything_but_the_head(tmp_path, arch):
    torch.manual_seed(1)
    source = make(7, arch=arch)
    torch.save({"state_dict": source.state_dict(), "epoch": 3}, tmp_path / "w.ckpt")
    torch.manual_seed(2)
    model = make(3, arch=arch, weights=str(tmp_path / "w.ckpt"))
    head = f"{model.head_name}."
    ours, theirs = model.net.state_dict(), source.net.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items() if not name.startswith(head))
    assert model.head.linear.weight.shape[0] == 3


def test_names_of_older_versions_of_torchvision_are_understood(tmp_path):
    """DenseNets had other names, and weights of any network no counters of batches."""
    source = torchvision.models.densenet121(weights=None)
    state = {n: t for n, t in source.state_dict().items() if "num_batches" not in n}
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))(\d)", r"\1.\2", name): tensor for name, tensor in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "w.pth")
    model = make(arch="densenet121", weights=str(tmp_path / "w.pth"))
    last = model.net.features.denseblock4.denselayer16.conv2.weight
    assert torch.equal(last, state["features.denseblock4.denselayer16.conv2.weight"])


@pytest.mark.slow
def test_names_of_older_versions_of_a_vit_are_understood(tmp_path):
    state = torchvision.models.vit_b_32(weights=None).state_dict()
    old = {name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): t for name, t in state.items()}
    assert old.keys() != state.keys()
    torch.save(old, tmp_path / "w.pth")
    make(arch="vit_b_32", weights=str(tmp_path / "w.pth"))


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
    with pytest.raises(UserError, match=r"a1_in1k: no such file; use .* with --model.arch: timm/resnet18.a1_in1k, "):
        preprocessing_for("timm/resnet18", "a1_in1k")
    with pytest.raises(UserError, match=r"ResNet50_Weights.*: no such file; use a file, DEFAULT or none$"):
        preprocessing_for("timm/resnet18.a1_in1k", "ResNet50_Weights.DEFAULT")
    with pytest.raises(UserError, match=r"timm has no weights of timm/vovnet39a; use a file, or none"):
        make(arch="timm/vovnet39a", weights="DEFAULT")
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


def test_without_network_weights_of_timm_fail_at_once_with_the_same_ways_out(no_network):
    began = time.monotonic()
    with pytest.raises(UserError, match=r"DEFAULT weights of timm/test_resnet .*connect to the network; .*; .* none$"):
        make(arch="timm/test_resnet", weights="DEFAULT")
    assert time.monotonic() - began < 5


def cached_on_the_hub(folder, name):
    """The place of a file in the cache of the Hugging Face Hub, as if it had been downloaded."""
    repository = folder / "hub/models--timm--test_resnet.r160_in1k"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text("0" * 40)
    (repository / "snapshots" / ("0" * 40)).mkdir(parents=True)
    return repository / "snapshots" / ("0" * 40) / name


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_cached_weights_of_timm_need_no_network(no_network, tmp_path, name):
    torch.manual_seed(1)
    state = timm.create_model("test_resnet").state_dict()
    save = safetensors.torch.save_file if name.endswith("safetensors") else torch.save
    save(state, cached_on_the_hub(tmp_path, name))
    model = make(arch="timm/test_resnet", weights="DEFAULT")
    assert torch.equal(model.net.conv1[0].weight, state["conv1.0.weight"])


def test_a_malicious_pickle_from_the_hub_is_refused_and_not_executed(no_network, tmp_path):
    torch.save({"a": Exploding(tmp_path / "ran")}, cached_on_the_hub(tmp_path, "pytorch_model.bin"))
    with pytest.raises(UserError, match=r"pytorch_model\.bin: refused"):
        make(arch="timm/test_resnet", weights="DEFAULT")
    assert not (tmp_path / "ran").exists()


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
    assert asked == [OfTorchvision("resnet18").named("DEFAULT").url]
    assert not list(no_network.glob("*.pth"))


@pytest.mark.parametrize("arch", ["resnet18", "timm/test_resnet"])
@pytest.mark.parametrize("share", [0, 0.5])
def test_a_damaged_download_is_named_with_the_way_out(no_network, tmp_path, arch, share):
    if arch == "resnet18":
        path = no_network / "resnet18-f37072fd.pth"
        path.parent.mkdir(parents=True)
    else:
        path = cached_on_the_hub(tmp_path, "model.safetensors")
    state = find_architecture(arch).build(224).state_dict()
    (safetensors.torch.save_file if path.suffix == ".safetensors" else torch.save)(state, path)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(UserError, match=rf"{path}: .*; delete this file, and it is downloaded again$"):
        make(arch=arch, weights="DEFAULT")
