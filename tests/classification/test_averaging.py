"""Averages of the weights before and after fine-tuning: computed right, chosen by validation, never by half."""

import json

import pytest
import torch
import train
from helpers import FAST, WEIGHTS, last_of, reload
from lightning.pytorch import Trainer

from project.checkpoint import load_checkpoint
from project.classification import averaging
from project.classification.averaging import choose, interpolate, measure, what_it_is


def test_an_average_lies_between_the_two():
    start = {"w": torch.tensor([0.0, 4.0]), "n": torch.tensor(3)}
    tuned = {"w": torch.tensor([2.0, 0.0]), "n": torch.tensor(9)}
    mixed = interpolate(start, tuned, 0.25)
    assert mixed["w"].tolist() == [0.5, 3.0] and mixed["n"] == 9
    assert start["w"].tolist() == [0.0, 4.0]  # as it was


def metrics(*pairs):
    return [{"top1": top1, "loss": loss} for top1, loss in pairs]


def test_what_chance_explains_is_decided_by_the_loss():
    candidates = metrics((0.62, 1.3), (0.59, 1.2), (0.60, 1.1), (0.55, 1.0))
    assert choose(candidates, "top1", "max", 37) == 2  # one standard error is 0.08; the last is below the head start
    assert choose(candidates, "top1", "max", 100_000) == 0
    assert choose(candidates, "loss", "min", 37) == 3
    assert choose(metrics((0.5, 1.0), (0.5, 1.0)), "top1", "max", 37) == 0
    assert choose(metrics((1.0, 0.2), (1.0, 0.1), (0.9, 0.0)), "top1", "max", 10) == 1


@pytest.fixture
def options(flat, tmp_path):
    return [*FAST, WEIGHTS, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--model.lr=0.01"]


def test_the_average_that_is_chosen_becomes_best(options, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="project")
    monkeypatch.setattr(averaging, "choose", lambda measured, *rest: 3)
    train.main(options)
    folder = tmp_path / "lightning_logs/version_0/checkpoints"
    best, start, last = (load_checkpoint(folder / f"{name}.ckpt").content for name in ("best", "head_start", "last"))
    assert best["fine_tuned_share"] == 0.5 and best["global_step"] == last["global_step"] > start["global_step"] == 0
    expected = interpolate(start["state_dict"], last["state_dict"], 0.5)
    assert all(torch.equal(best["state_dict"][name], tensor) for name, tensor in expected.items())
    (line,) = [r.message for r in caplog.records if r.message.startswith("best.ckpt is now")]
    assert "the average of the head start (50%) and epoch 1 (50%), not the head start: val loss" in line
    assert "Best: the average" in caplog.text
    assert json.loads((folder.parent / "metrics.json").read_text())["num_samples"] == 6


def test_every_candidate_is_measured_as_in_validation(options, tmp_path):
    train.main(options)
    folder = tmp_path / "lightning_logs/version_0/checkpoints"
    model, config = reload(folder / "last.ckpt")
    data = train.ImageData(model.hparams["preprocessing"], **config["data"])
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    (validated,) = trainer.validate(model, datamodule=data, verbose=False)
    start = load_checkpoint(folder / "head_start.ckpt").content["state_dict"]
    first, last = measure(trainer, model.eval(), data, [start, {k: v.clone() for k, v in model.state_dict().items()}])
    assert {f"val/{name}": value for name, value in last.items()} == pytest.approx(validated)
    assert first["loss"] != last["loss"]


@pytest.mark.slow
def test_a_run_that_was_cut_short_is_averaged_only_once_it_has_ended(options, tmp_path, monkeypatch):
    monkeypatch.setattr(averaging, "choose", lambda measured, *rest: 3)
    train.main([*options, "--max_epochs=999", "--max_time=00:00:00:05"])
    best = tmp_path / "lightning_logs/version_0/checkpoints/best.ckpt"
    assert "fine_tuned_share" not in load_checkpoint(best).content
    end = last_of(tmp_path)["epoch"] + 2
    train.main([f"--default_root_dir={tmp_path}", "--ckpt_path=last", f"--max_epochs={end}", "--max_time=null"])
    content = load_checkpoint(best).content
    assert content["fine_tuned_share"] == 0.5 and what_it_is(content).endswith(f"epoch {end} (50%)")


def test_without_a_head_start_there_is_nothing_to_average(options, tmp_path, monkeypatch):
    monkeypatch.setattr(averaging, "choose", lambda measured, *rest: 3)
    train.main([*options, "--model.head_start=false"])
    best = load_checkpoint(tmp_path / "lightning_logs/version_0/checkpoints/best.ckpt").content
    assert "fine_tuned_share" not in best and what_it_is(best) == "epoch 1"


@pytest.mark.slow
def test_a_run_that_was_killed_before_its_end_is_not_averaged_twice(options, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", logger="project")
    monkeypatch.setattr(averaging, "choose", lambda measured, *rest: 3)
    train.main(options)
    run = tmp_path / "lightning_logs/version_0"
    first = load_checkpoint(run / "checkpoints/best.ckpt").content
    (run / "metrics.json").unlink()
    monkeypatch.setattr(averaging, "choose", lambda measured, *rest: 4)
    caplog.clear()
    train.main([f"--default_root_dir={tmp_path}", "--ckpt_path=last"])
    again = load_checkpoint(run / "checkpoints/best.ckpt").content
    assert again["fine_tuned_share"] == first["fine_tuned_share"] == 0.5
    assert f"Best: the average of the head start (50%) and epoch 1 (50%), val top1 {first['score']:.4f}" in caplog.text
    assert json.loads((run / "metrics.json").read_text())["fine_tuned_share"] == 0.5


def test_a_frozen_backbone_keeps_no_second_head_start(options, tmp_path):
    train.main([*options, "--model.fine_tune=head"])
    assert not (tmp_path / "lightning_logs/version_0/checkpoints/head_start.ckpt").exists()
