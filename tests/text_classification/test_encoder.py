import json
import shutil
import socket
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_bert import write_tiny_bert
from transformers import AutoConfig

from project import UserError
from project.text_classification.encoder import (
    MODEL_TYPES,
    checked_config,
    layer_of,
    load_encoder,
    make_encoder,
    read_encoder,
)

TEXTS = ["where is my card", "my card has not arrived yet", "how do I change my PIN"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("encoder") / "tiny", TEXTS)


@pytest.fixture
def copy(tiny, tmp_path):
    """A copy of the tiny encoder, to be spoilt."""
    return shutil.copytree(tiny, tmp_path / "copy")


@pytest.fixture
def offline(monkeypatch):
    """No network: whoever asks for it is told at once."""

    class Offline(socket.socket):
        def connect(self, address):
            raise OSError("no network")

    monkeypatch.setattr(socket, "socket", Offline)


def change(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def test_an_encoder_in_a_folder_has_its_weights_and_its_tokens(tiny):
    config, tokenizer = read_encoder(str(tiny))
    net = make_encoder(config)
    load_encoder(net, str(tiny), "DEFAULT")
    saved = load_file(tiny / "model.safetensors")
    for name, tensor in net.state_dict().items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, saved[name].float())
    assert not any(name.startswith("pooler") for name in net.state_dict())
    [tokens] = tokenizer.encode(["Where is my card"], 16)
    assert tokenizer.tokenizer.decode(tokens[1:-1]) == "where is my card"
    assert (tokens[0], tokens[-1]) == (2, 3)


def test_the_configuration_is_plain_and_stays_what_it_is(tiny):
    config, _ = read_encoder(str(tiny))
    assert json.loads(json.dumps(config)) == config == checked_config(config)


@pytest.mark.parametrize("kind", MODEL_TYPES)
def test_each_type_of_the_family_can_be_built_and_has_its_layers(kind):
    names = AutoConfig.for_model(kind).attribute_map
    common = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 60000}
    own = {names.get(name, name): value for name, value in common.items()}
    config = checked_config({"model_type": kind, "intermediate_size": 64, "hidden_dim": 64, **own})
    net = make_encoder(config).eval()
    ids = torch.randint(5, 100, (2, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1] * 6, [1] * 3 + [0] * 3])
    hidden = net(input_ids=ids, attention_mask=mask).last_hidden_state
    assert hidden.shape == (2, 6, 32)
    alone = net(input_ids=ids[1:, :3], attention_mask=mask[1:, :3]).last_hidden_state
    assert torch.allclose(alone[0], hidden[1, :3], atol=1e-5)  # what is masked has no effect
    assert {layer_of(name, 2) for name, _ in net.named_parameters()} == {0, 1, 2}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"auto_map": {"AutoModel": "code.Model"}}, "asks for code of its own .auto_map., which is never run"),
        ({"model_type": "gpt2"}, "the model type is 'gpt2'; it must be one of bert, camembert"),
        ({"model_type": None}, "the model type is 'None'"),
        ({"model_type": ["bert"]}, "the model type is"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000, not a number from 1 to 96"),
        ({"hidden_size": 0}, "hidden_size is 0, not a number from 1"),
        ({"hidden_size": 33}, "cannot be built from its configuration"),
        ({"hidden_size": "32"}, "cannot be used"),
        ({"hidden_act": "os.system"}, "cannot be built from its configuration"),
        ({"vocab_size": 3}, "config.json only 3"),
        ({"pad_token_id": 10**6}, "pad_token_id is 1000000, which is no token of"),
    ],
)
def test_a_configuration_that_cannot_be_used_is_one_line(copy, values, line):
    change(copy, **values)
    with pytest.raises(UserError, match=line) as error:
        config, _ = read_encoder(str(copy))
        make_encoder(config)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_what_a_configuration_says_about_kernels_is_not_followed(copy):
    change(copy, _attn_implementation="kernels-community/flash-attn", attn_implementation="kernels-community/x")
    config, _ = read_encoder(str(copy))
    net = make_encoder(config)
    assert not [name for name in config if "attn_implementation" in name]
    assert net.config._attn_implementation in ("sdpa", "eager")


def test_a_tensor_of_another_shape_or_a_missing_one_is_named(copy):
    config, _ = read_encoder(str(copy))
    state = load_file(copy / "model.safetensors")
    name = "encoder.layer.1.output.dense.weight"
    save_file({**state, name: torch.zeros(3, 3)}, copy / "model.safetensors")
    with pytest.raises(UserError, match=rf"the shape of '{name}' is \(3, 3\), not \(32, 64\)"):
        load_encoder(make_encoder(config), str(copy), "DEFAULT")
    save_file({key: value for key, value in state.items() if key != name}, copy / "model.safetensors")
    with pytest.raises(UserError, match=f"there is no tensor '{name}'"):
        load_encoder(make_encoder(config), str(copy), "DEFAULT")
    save_file({**state, name: torch.full((32, 64), float("nan"))}, copy / "model.safetensors")
    with pytest.raises(UserError, match="not finite"):
        load_encoder(make_encoder(config), str(copy), "DEFAULT")


def test_weights_of_a_whole_model_and_with_the_first_names_of_bert_are_found(copy):
    config, _ = read_encoder(str(copy))
    state = load_file(copy / "model.safetensors")
    old = {f"bert.{k}".replace("LayerNorm.weight", "LayerNorm.gamma"): v for k, v in state.items()}
    old = {name.replace("LayerNorm.bias", "LayerNorm.beta"): tensor for name, tensor in old.items()}
    save_file({**old, "cls.predictions.bias": torch.zeros(5)}, copy / "other.safetensors")
    net = make_encoder(config)
    load_encoder(net, str(copy), str(copy / "other.safetensors"))
    assert all(torch.equal(tensor, state[name].float()) for name, tensor in net.state_dict().items())


def test_pickled_weights_are_refused_with_the_way_out(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    config, _ = read_encoder(str(copy))
    with pytest.raises(UserError, match=r"no model.safetensors, only pytorch_model.bin, .* save_pretrained"):
        load_encoder(make_encoder(config), str(copy), "DEFAULT")
    with pytest.raises(UserError, match=r"must be DEFAULT, none, a .safetensors file or"):
        load_encoder(make_encoder(config), str(copy), str(copy / "pytorch_model.bin"))
    with pytest.raises(UserError, match="no such file"):
        load_encoder(make_encoder(config), str(copy), "other.safetensors")


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_folder_without_a_file_is_told_what_is_missing(copy, name):
    (copy / name).unlink()
    with pytest.raises(UserError, match=f"it has no {name}"):
        read_encoder(str(copy))


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"a": 1}', "\x00", "[" * 100_000])
@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_damaged_json_file_is_one_line(copy, name, text):
    (copy / name).write_text(text)
    with pytest.raises(UserError, match=rf"{name}|model type") as error:
        read_encoder(str(copy))
    assert "\n" not in str(error.value)


def test_a_name_that_neither_network_nor_cache_knows_has_three_ways_out(offline, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(UserError, match=r"cannot get the encoder some/bert .* Three ways out: connect to the network"):
        read_encoder("some/bert")
    with pytest.raises(UserError, match="no such folder, nor the name of a repository"):
        read_encoder("../nowhere/at/all")


def test_an_encoder_in_the_hubs_cache_needs_no_network(tiny, offline, monkeypatch, tmp_path):
    snapshot = tmp_path / "models--some--bert/snapshots/abc"
    shutil.copytree(tiny, snapshot)
    (tmp_path / "models--some--bert/refs").mkdir()
    (tmp_path / "models--some--bert/refs/main").write_text("abc")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    config, _ = read_encoder("some/bert")
    load_encoder(make_encoder(config), "some/bert", "DEFAULT")
    (snapshot / "model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot get the encoder some/bert"):
        load_encoder(make_encoder(config), "some/bert", "DEFAULT")


def test_without_the_package_there_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"pip install -e '.\[text\]'"):
        checked_config({"model_type": "bert"})
