import json

import pytest
import torch
from tiny_bert import SAID, TEXTS, write_tiny_bert

from project import UserError
from project.checkpoint import Checkpoint, load_model
from project.optim import NO_DECAY
from project.text_classification.encoder import read_encoder
from project.text_classification.model import TextClassifier, encoder_of

NAMES = list(SAID)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_bert(tmp_path_factory.mktemp("encoder") / "tiny", TEXTS)


def make(folder, **options):
    config, tokenizer = read_encoder(str(folder))
    options = {"encoder": str(folder), "dropout": 0.0, **options}
    return TextClassifier(NAMES, tokenizer.content, config, 16, options.pop("class_weights", None), **options)


def batch_of(model, texts):
    return model.tokenizer.pad(model.tokenizer.encode(texts, 16))


def test_the_mean_is_that_of_the_tokens_without_the_padding(tiny):
    model = make(tiny).eval()
    batch = batch_of(model, ["my pin", "where is the card that I wait for"])
    hidden = model.net(**batch).last_hidden_state
    length = int(batch["attention_mask"][0].sum())
    assert torch.allclose(model.features(batch)[0], hidden[0, :length].mean(dim=0), atol=1e-6)
    first = make(tiny, pooling="first").eval()
    assert torch.equal(first.features(batch), hidden[:, 0])


def test_the_logits_of_a_text_do_not_depend_on_the_others_of_its_batch(tiny):
    model = make(tiny).eval()
    together = model(batch_of(model, TEXTS[:6]))
    alone = torch.cat([model(batch_of(model, [text])) for text in TEXTS[:6]])
    assert torch.allclose(together, alone, atol=1e-5)
    assert torch.equal(model(model.features(batch_of(model, TEXTS[:6]))), together)


def test_each_layer_learns_more_slowly_than_the_one_above_it(tiny):
    groups = {group["name"]: group for group in make(tiny, lr=1.0, layer_decay=0.5).param_groups(1.0, 0.5, 0.01)}
    rates = {name: group["lr"] for name, group in groups.items() if NO_DECAY not in name}
    assert rates == {"embeddings": 0.125, "layer 1": 0.25, "layer 2": 0.5, "head": 1.0}
    assert groups.keys() <= set(TextClassifier.GROUPS)
    assert all(p.ndim == 1 for name, group in groups.items() if NO_DECAY in name for p in group["params"])
    assert {group["weight_decay"] for name, group in groups.items() if NO_DECAY in name} == {0.0}


def test_a_frozen_encoder_trains_the_head_alone_and_has_no_dropout(tiny):
    model = make(tiny, fine_tune="head")
    model.train()
    assert [group["name"] for group in model.param_groups(1.0, 0.5, 0.0)] == ["head", f"head{NO_DECAY}"]
    assert not model.net.training and model.head.training
    assert "0.0 M of 0." in model.describe()


def test_everything_that_a_reload_needs_is_in_the_checkpoint(tiny, tmp_path):
    model = make(tiny)
    content = {"state_dict": model.state_dict(), "hyper_parameters": dict(model.hparams), "config": {"data": {}}}
    model.on_save_checkpoint(content)
    assert content["hyper_parameters"]["weights"] == "none"
    torch.save(content, tmp_path / "model.ckpt")
    read = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert json.loads(json.dumps(read["hyper_parameters"])) == read["hyper_parameters"]  # plain types
    read["hyper_parameters"]["encoder"] = "/gone"
    again = load_model(Checkpoint("model.ckpt", read), TextClassifier)
    assert again.predict(TEXTS[:3]) == model.predict(TEXTS[:3])
    config, tokenizer = encoder_of(Checkpoint("model.ckpt", read))
    assert (config, tokenizer.content) == (model.config, model.tokenizer.content)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("encoder_config", {"model_type": "bert", "auto_map": {"AutoModel": "a.b"}}),
        ("encoder_config", {"model_type": "os.system"}),
        ("encoder_config", None),
        ("tokenizer_json", "{}"),
        ("tokenizer_json", 3),
        ("layer_decay", 7.0),
        ("class_names", ["only one"]),
    ],
)
def test_a_forged_checkpoint_is_one_line(tiny, name, value):
    model = make(tiny)
    hparams = {**model.hparams, name: value}
    content = {"state_dict": model.state_dict(), "hyper_parameters": hparams, "config": {"data": {}}}
    content["task"] = TextClassifier.TASK
    with pytest.raises(UserError, match=r"checkpoint forged.ckpt: its parts do not fit together") as error:
        load_model(Checkpoint("forged.ckpt", content), TextClassifier)
    assert "\n" not in str(error.value)


def test_a_checkpoint_of_another_task_is_told_apart():
    with pytest.raises(UserError, match=r"image.ckpt: not that of a text classifier"):
        encoder_of(Checkpoint("image.ckpt", {"hyper_parameters": {"arch": "resnet18"}}))


def test_predictions_name_the_most_probable_classes_in_the_order_of_the_texts(tiny):
    model = make(tiny)
    texts = [*TEXTS[:5], "a" * 400, ""]
    found = model.predict(texts, top_k=2, batch_size=2)
    assert [len(classes) for classes in found] == [2] * 7
    shares = model(batch_of(model, texts)).softmax(dim=1)
    for classes, row in zip(found, shares, strict=True):
        assert list(classes.values()) == pytest.approx(row.sort(descending=True).values[:2].tolist(), abs=1e-5)
        assert next(iter(classes)) == NAMES[int(row.argmax())]
    assert model.predict([]) == []


def test_smoothing_and_the_weights_of_classes_are_in_the_loss(tiny):
    weights = [0.5, 1.0, 2.0]
    model = make(tiny, label_smoothing=0.2, class_weights=weights)
    model.log = lambda *args, **kwargs: None
    model.net.eval()
    batch, labels = batch_of(model, TEXTS[:4]), torch.tensor([0, 1, 2, 2])
    logs = model(batch).log_softmax(dim=1)
    weight = torch.tensor(weights)
    exact = -(weight[labels] * logs[torch.arange(4), labels]).sum() / weight[labels].sum()
    spread = -(logs * weight).sum() / weight[labels].sum() / 3
    assert torch.allclose(model.training_step((batch, labels), 0), 0.8 * exact + 0.2 * spread)


@pytest.mark.parametrize("option", ["dropout", "layer_decay", "label_smoothing", "warmup_ratio"])
def test_options_out_of_range_are_named(tiny, option):
    with pytest.raises(UserError, match=f"--model.{option} 1.5: must be from 0 to 1"):
        make(tiny, **{option: 1.5})
