import json
import logging

import pytest
import torch
from tiny_bert import tiny_texts

from project.checkpoint import load_checkpoint, load_model
from project.text_classification import head_start
from project.text_classification.head_start import HeadStart, compute_features
from project.text_classification.model import TextClassifier
from project.trainer import make_trainer
from scripts.text_classification import train


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_the_head_start_alone_is_a_checkpoint_of_step_0_that_beats_chance(tmp_path, cache, caplog):
    caplog.set_level(logging.INFO, "project")
    trained = train.main(tiny_texts(tmp_path, "--max_epochs=0"))
    best, last = (load_checkpoint(trained.folder / f"checkpoints/{name}.ckpt").content for name in ("best", "last"))
    assert best["global_step"] == last["global_step"] == 0
    assert "Head start: the new head alone, on the frozen encoder, gets val top1" in caplog.text
    metrics = json.loads((trained.folder / "metrics.json").read_text())
    assert metrics["top1"] > 0.6 and metrics["val"]["top1"] > 0.6  # chance is 0.33


def test_the_first_best_checkpoint_is_the_head_start_and_fine_tuning_goes_on_from_a_scaled_head(tmp_path, cache):
    start = load_checkpoint(train.main(tiny_texts(tmp_path, "--max_epochs=0")).best)
    with train.start("", train.TextData, TextClassifier, [], tiny_texts(tmp_path)) as this:
        callback = HeadStart()
        trainer = make_trainer("val/top1", [callback], **this.trainer)
        data, model = train.build(this, trainer)
        norm = model.head.linear.weight.norm().item()
        assert train.fit(trainer, model, data, this)
    fitted = start.content["state_dict"]["head.1.weight"]
    assert callback.scale == pytest.approx(norm / fitted.norm().item(), rel=1e-4) and callback.scale < 1


def test_features_are_those_of_the_encoder_in_the_order_of_the_samples(tmp_path, cache, monkeypatch):
    with train.start("", train.TextData, TextClassifier, [], tiny_texts(tmp_path)) as this:
        trainer = make_trainer("val/top1", **this.trainer)
        data, model = train.build(this, trainer)
    data.trainer = trainer
    found = compute_features(trainer, model, data, "train")
    model.eval()
    for i in (0, 7, len(found) - 1):
        tokens = model.tokenizer.encode([data.samples["train"][i][0]], 128)
        assert torch.allclose(found[i], model.features(model.tokenizer.pad(tokens))[0], atol=1e-5)
    first = head_start.cached_features(trainer, model, data, "train")
    monkeypatch.setattr(head_start, "compute_features", None)
    assert torch.equal(head_start.cached_features(trainer, model, data, "train"), first)


def test_a_frozen_encoder_trains_on_features_and_keeps_its_weights(tmp_path, cache, caplog):
    caplog.set_level(logging.INFO, "project")
    options = ("--model.fine_tune=head", "--max_epochs=2", "--model.head_start=false", "--model.lr=0.05")
    trained = train.main(tiny_texts(tmp_path, *options))
    assert "all epochs use its features" in caplog.text
    model = load_model(load_checkpoint(trained.best), TextClassifier)
    config, _ = train.read_encoder(str(tmp_path / "encoder"))
    fresh = train.encoder_with_weights(config, str(tmp_path / "encoder"), "DEFAULT")
    assert all(torch.equal(a, b) for a, b in zip(model.net.parameters(), fresh.parameters(), strict=True))
    assert trained.metrics["val"]["top1"] > 0.4


def test_a_limited_number_of_batches_has_no_head_start(tmp_path, cache, caplog):
    caplog.set_level(logging.INFO, "project")
    train.main(tiny_texts(tmp_path, "--limit_train_batches=1"))
    assert "Head start and feature cache are skipped" in caplog.text
