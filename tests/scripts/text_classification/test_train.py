import json
import logging
import shutil

import pytest
import torch
from tiny_bert import FAST, tiny_texts

from project.checkpoint import load_checkpoint
from project.text_classification.model import TextClassifier, load
from scripts.text_classification import train


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_a_run_leaves_its_checkpoints_metrics_predictions_and_a_page(tmp_path):
    trained = train.main(tiny_texts(tmp_path))
    names = {path.relative_to(trained.folder).as_posix() for path in trained.folder.rglob("*") if path.is_file()}
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "config.yaml", "metrics.json"} <= names
    assert {"confusion_matrix.png", "predictions.csv", "report.html"} <= names
    assert {"data_issues.csv", "data_report.html"} <= names  # of the doctor
    metrics = json.loads((trained.folder / "metrics.json").read_text())
    assert (metrics["split"], metrics["num_samples"]) == ("test", 24)
    assert list(metrics["per_class"]) == ["arrival", "pin", "refund"]
    assert metrics["val"]["num_samples"] == 12
    assert load("best", tmp_path).predict(["my refund is missing"])[0].keys() == {"arrival", "pin", "refund"}


def test_a_resumed_run_is_bit_for_bit_that_of_an_uninterrupted_one(tmp_path, monkeypatch):
    options = ("--model.dropout=0.3", "--model.lr=0.01")
    whole = train.main(tiny_texts(tmp_path / "whole", *options, "--max_epochs=3"))
    parts = tmp_path / "parts"
    shutil.copytree(tmp_path / "whole/encoder", parts / "encoder")
    step = TextClassifier.training_step

    def killed(self, batch, i):
        if (self.current_epoch, i) == (1, 5):
            raise SystemExit(9)
        return step(self, batch, i)

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(TextClassifier, "training_step", killed)
        train.main(tiny_texts(parts, *options, "--max_epochs=3", "--save_every_steps=1"))
    stopped = load_checkpoint(parts / "lightning_logs/version_0/checkpoints/last.ckpt").content["global_step"]
    assert stopped == 13  # within the second epoch of 8 steps
    shutil.rmtree(parts / "encoder")  # the checkpoint brings it
    resumed = train.main([f"--default_root_dir={parts}", "--ckpt_path=last"])
    one, other = (load_checkpoint(run.folder / "checkpoints/last.ckpt").content for run in (whole, resumed))
    assert one["global_step"] == other["global_step"] == 24
    assert all(torch.equal(other["state_dict"][name], tensor) for name, tensor in one["state_dict"].items())
    assert whole.metrics["top1"] == resumed.metrics["top1"] and whole.metrics["loss"] == resumed.metrics["loss"]


@pytest.mark.parametrize(
    ("epochs", "step", "line"),
    [
        (0, 0, "Best: the head start, val top1 0.9000"),
        (
            2,
            0,
            "Best: the head start, val top1 0.9000; 2 more epochs brought no gain: more texts may help",
        ),
        (2, 8, "Best: epoch 1, val top1 0.9000 (the head start: 0.8000)"),
    ],
)
def test_what_training_has_gained_is_said(epochs, step, line):
    head_start = train.HeadStart()
    head_start.val_metrics = {"val/top1": torch.tensor(0.8)}
    said = train.outcome(epochs, {"global_step": step, "epoch": 0}, "val/top1", 0.9, head_start)
    assert said.removesuffix(", or a lower --model.lr") == line


def test_without_pretrained_weights_there_is_no_head_start_to_be_had(fails, tmp_path):
    options = tiny_texts(tmp_path, "--max_epochs=0", "--model.weights=none")
    assert "--max_epochs 0 fits the head alone" in fails(train.main, *options)
    assert not (tmp_path / "lightning_logs").exists()


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda folder: (folder / "tokenizer.json").unlink(), "it has no tokenizer.json"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "model.bin"),
            "no model.safetensors, only ",
        ),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"\x80\x04."), "damaged"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "llama"}'), "the model type is 'llama'"),
    ],
)
def test_an_encoder_that_cannot_be_used_is_one_line_before_anything_is_written(fails, tmp_path, spoil, line):
    options = tiny_texts(tmp_path)
    spoil(tmp_path / "encoder")
    assert line in fails(train.main, *options)
    assert not (tmp_path / "lightning_logs").exists()


def test_longer_texts_than_the_encoder_takes_cannot_be_asked_for(fails, tmp_path):
    options = tiny_texts(tmp_path, "--data.max_length=500")
    assert "--data.max_length 500: the encoder takes at most 128 tokens" in fails(train.main, *options)


def test_another_encoder_cannot_go_on_with_a_run(fails, tmp_path):
    options = tiny_texts(tmp_path)
    train.main(options)
    line = fails(train.main, f"--default_root_dir={tmp_path}", "--ckpt_path=last", "--model.encoder=roberta-base")
    assert "--model.encoder" in line


def test_the_weights_of_classes_and_bf16_can_be_used(tmp_path, caplog):
    caplog.set_level(logging.INFO, "project")
    options = [option for option in tiny_texts(tmp_path) if not option.startswith("--precision")]
    trained = train.main([*options, "--precision=bf16-mixed", "--data.balance=loss"])
    hparams = load_checkpoint(trained.best).content["hyper_parameters"]
    assert hparams["class_weights"] == [1.0, 1.0, 1.0] and trained.metrics["top1"] > 0.5


@pytest.mark.slow
def test_the_sample_is_used_without_data(tmp_path):
    encoder = tiny_texts(tmp_path)[-2]
    trained = train.main([*FAST, encoder, f"--default_root_dir={tmp_path}"])
    assert trained.metrics["num_samples"] > 100 and trained.metrics["top1"] > 0.3
