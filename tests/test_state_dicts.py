import pytest
import torch
import torchvision
from helpers import make

from project import UserError
from project.state_dicts import is_state_dict, match_names, of_torchvision, resnet_of, unwrap


@pytest.fixture(scope="module")
def source():
    torch.manual_seed(1)
    return torchvision.models.resnet18(weights=None).state_dict()


def named(state, prefix):
    return {prefix + name: tensor for name, tensor in state.items()}


def without_counters(state):
    """As by `del` from what torch returned, which tells the versions of the modules as well."""
    left = type(state)((name, tensor) for name, tensor in state.items() if not name.endswith("num_batches_tracked"))
    left._metadata = state._metadata
    assert left._metadata["bn1"]["version"] == 2
    return left


@pytest.mark.parametrize(
    "prefix",
    [
        *("module.", "net.", "model.", "backbone.", "encoder.", "encoder_q.", "_orig_mod.", "student.", "resnet."),
        *("module._orig_mod.", "module.encoder_q.", "model.backbone.net.", "_orig_mod.module.model."),
    ],
)
def test_any_common_prefix_is_taken_off_and_said(source, prefix, caplog):
    caplog.set_level("INFO")
    state = {**named(source, prefix), "projector.weight": torch.ones(3), "queue": torch.ones(3)}
    renamed = match_names(state, source, "w.pth")
    assert renamed.keys() == source.keys() and renamed["conv1.weight"] is source["conv1.weight"]
    assert f"w.pth: the weights named {prefix}… are used; 2 tensors beside them are left out" in caplog.text


def test_of_two_networks_in_a_file_the_first_is_taken(source):
    other = {name: tensor + 1 for name, tensor in source.items()}
    renamed = match_names({**named(source, "module.encoder_q."), **named(other, "module.encoder_k.")}, source, "w.pth")
    assert renamed["conv1.weight"] is source["conv1.weight"]


def test_names_without_a_prefix_and_those_of_another_network_stay_as_they_are(source, caplog):
    caplog.set_level("INFO")
    for state in (source, {"model.a": torch.ones(3)}, torchvision.models.mobilenet_v3_small().state_dict()):
        assert match_names(state, source, "w.pth") is state
    assert not caplog.text


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"model": state, "optimizer": {"state": {}}, "epoch": 3},
        lambda state: {"model_state_dict": state, "loss": 0.5},
        lambda state: {"state_dict": named(state, "model."), "hyper_parameters": {"lr": 0.1}},
        lambda state: {"epoch": 7, "model_ema": {"module": state}},
        lambda state: {"epoch": 7, "weights_of_mine": state},
        lambda state: {"state_dict": {"model": state, "args": None}},
        lambda state: {"student": named(state, "module.backbone."), "args": {"lr": 1}},
        lambda state: {name: tensor for name, tensor in state.items() if "num_batches_tracked" not in name},
        lambda state: {name: tensor for name, tensor in state.items() if not name.startswith("fc.")},
        without_counters,
    ],
)
def test_checkpoints_of_other_programs_are_weights(tmp_path, source, wrap):
    torch.save(wrap(source), tmp_path / "w.pth")
    net = make(weights=str(tmp_path / "w.pth")).net.state_dict()
    assert all(torch.equal(net[name], tensor) for name, tensor in source.items() if not name.startswith("fc."))


def test_names_of_hugging_face_are_those_of_torchvision(tmp_path, source):
    """The names as transformers writes them, made by hand here."""

    def theirs(name):
        parts = name.split(".")
        if parts[0] in ("conv1", "bn1"):
            kind = "convolution" if parts[0] == "conv1" else "normalization"
            return f"resnet.embedder.embedder.{kind}.{parts[-1]}"
        if parts[0] == "fc":
            return f"classifier.1.{parts[-1]}"
        stage, block, inner, *rest = parts
        if inner == "downsample":
            place = f"shortcut.{'normalization' if rest[0] == '1' else 'convolution'}"
        else:
            place = f"layer.{int(inner[-1]) - 1}.{'normalization' if inner.startswith('bn') else 'convolution'}"
        return f"resnet.encoder.stages.{int(stage[-1]) - 1}.layers.{block}.{place}.{rest[-1]}"

    for arch in ("resnet18", "resnet50"):
        names = list(torchvision.models.get_model(arch, weights=None).state_dict())
        assert [of_torchvision(theirs(name)) for name in names] == names
    torch.save({theirs(name): tensor for name, tensor in source.items()}, tmp_path / "pytorch_model.bin")
    net = make(weights=str(tmp_path / "pytorch_model.bin")).net
    assert torch.equal(net.layer4[0].downsample[1].running_var, source["layer4.0.downsample.1.running_var"])
    assert torch.equal(net.bn1.weight, source["bn1.weight"])


def test_what_holds_no_weights_is_refused(source):
    for content in (
        None,
        [1],
        {},
        {"epoch": 3},
        {"a": source, "b": source},
        {"model": {"epoch": 3}},
        {1: torch.ones(3)},
    ):
        assert not is_state_dict(content)
        with pytest.raises(UserError, match=r"^w: not a state dict"):
            unwrap(content, "w")


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (torch.tensor([1.0, float("nan")]), "values that are not finite"),
        (torch.tensor(float("inf")).half(), "values that are not finite"),
        (torch.ones(3, device="meta"), "no ordinary values"),
        (torch.eye(3).to_sparse(), "no ordinary values"),
    ],
)
def test_tensors_without_usable_values_are_named(source, tensor, reason):
    with pytest.raises(UserError, match=f"^w: the tensor 'layer1.0.bn1.bias' has {reason}"):
        unwrap({"model": {**source, "layer1.0.bn1.bias": tensor}}, "w")


def test_a_resnet_is_recognized_whatever_its_prefix_and_head(source):
    assert resnet_of(named(source, "module.")) == "resnet18"
    assert resnet_of({**source, "fc.weight": torch.ones(7, 512)}) == "resnet18"
    assert resnet_of({"a": torch.ones(3)}) is None


def test_a_tensor_that_claims_more_values_than_its_file_holds_is_refused():
    with pytest.raises(UserError, match="the tensor 'w' has no ordinary values"):
        unwrap({"w": torch.zeros(1).expand(10**12)}, "weights")
