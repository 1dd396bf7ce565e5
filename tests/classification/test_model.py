import pytest
import torch
from helpers import PREPROCESSING, make
from lightning.pytorch import Trainer

from project import UserError
from project.classification.datasets import eval_reader
from project.classification.model import load


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "resnext50_32x4d"])
def test_logits_for_any_number_of_classes(arch):
    logits = make(5, arch=arch).eval()(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert logits.shape == (2, 5) and logits.dtype == torch.float32


def test_forward_normalizes_as_the_weights_want():
    model = make().eval()
    images = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    mean, std = (torch.tensor(PREPROCESSING[name]).view(3, 1, 1) for name in ("mean", "std"))
    torch.testing.assert_close(model(images), model.net((images / 255 - mean) / std), rtol=1e-3, atol=1e-4)


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
    rates = {group["name"].split(" ")[0]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"backbone": pytest.approx(0.001), "head": pytest.approx(0.01)}


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
    assert {group["name"] for group in optimizer.param_groups} == {"head", "head (no decay)"}
    model.train()
    before = model.net.bn1.running_mean.clone()
    model(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    assert torch.equal(model.net.bn1.running_mean, before)
    assert model.net.fc.training and not model.net.layer4.training


def test_gradual_unfreezing_of_older_configs_is_full_and_says_so():
    model = make(fine_tune="gradual")
    assert all(p.requires_grad for p in model.net.parameters()) and "gradual unfreezing is gone" in model.describe()
    assert "gradual" not in make().describe()


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


def test_a_loaded_model_predicts_files(away, split):
    paths = sorted((split / "test").rglob("*.png"))
    model = load("model.ckpt")
    found = model.predict(paths, top_k=2, batch_size=4)
    read = eval_reader(model.hparams["preprocessing"])
    with torch.inference_mode():
        expected = model(torch.stack([read(path) for path in paths])).softmax(dim=1)
    assert [next(iter(classes)) for classes in found] == [model.class_names[i] for i in expected.argmax(dim=1)]
    assert [next(iter(classes.values())) for classes in found] == pytest.approx(expected.amax(dim=1).tolist(), abs=1e-5)
    assert all(len(classes) == 2 for classes in found) and model.predict([]) == []
    (away / "broken.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"broken.png: "):
        model.predict([away / "broken.png"])
    with pytest.raises(UserError, match="no run"):
        load("best")
