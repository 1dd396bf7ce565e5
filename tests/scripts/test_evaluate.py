import json
import shutil
import subprocess
import sys

import evaluate
import pytest
from helpers import FAST, ROOT, fill

CPU = ["--accelerator=cpu"]


def test_evaluate_repeats_the_figures_of_the_training(trained, tmp_path, capsys):
    evaluate.main([*CPU, "--ckpt", str(trained / "checkpoints/best.ckpt"), "--output", str(tmp_path)])
    again, first = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, trained))
    assert again.keys() == first.keys() and again["num_samples"] == first["num_samples"]
    assert again["per_class"] == first["per_class"] and again["loss"] == pytest.approx(first["loss"], rel=1e-4)
    assert (tmp_path / "confusion_matrix.png").stat().st_size > 5000
    printed = capsys.readouterr().out
    assert "macro_f1" in printed and "green" in printed and "recall" in printed


def test_evaluate_writes_beside_the_checkpoint(away):
    evaluate.main([*CPU, "--ckpt=model.ckpt", f"--data.root={fill(away / 'new', 5)}", "--split=all"])
    metrics = json.loads((away / "metrics.json").read_text())
    assert metrics["split"] == "all" and metrics["num_samples"] == 15


def test_evaluate_says_that_the_data_is_gone(fails, away):
    assert "no such folder" in fails(evaluate.main, *CPU, "--ckpt=model.ckpt")


def test_evaluate_draws_the_same_split_again(flat, tmp_path):
    import train

    train.main([*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--data.split_seed=3"])
    run = tmp_path / "lightning_logs/version_0"
    evaluate.main([*CPU, f"--ckpt={run / 'checkpoints/best.ckpt'}"])
    again, first = (json.loads(path.read_text()) for path in (run / "checkpoints/metrics.json", run / "metrics.json"))
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-4)


def test_evaluate_refuses_other_classes_by_name(fails, away):
    root = fill(away / "new", 3, ("blue", "green", "zebra"))
    line = fails(evaluate.main, *CPU, "--ckpt=model.ckpt", f"--data.root={root}")
    assert "only in the data: zebra; only in the checkpoint: red" in line
    assert not (away / "metrics.json").exists()


@pytest.mark.slow
def test_two_processes_count_every_image_once(trained, tmp_path):
    """11 test images on 2 processes: the smaller part is padded, and the padding is not counted."""
    data = tmp_path / "data"
    shutil.copytree(trained.parents[1] / "data", data)
    (data / "test/red/red-0.png").unlink()
    base = [sys.executable, ROOT / "scripts/evaluate.py", f"--ckpt={trained / 'checkpoints/best.ckpt'}", *CPU]
    for devices in ("1", "2"):
        command = [*base, f"--data.root={data}", f"--devices={devices}", f"--output={tmp_path / devices}"]
        subprocess.run(command, check=True, capture_output=True)
    one, two = (json.loads((tmp_path / devices / "metrics.json").read_text()) for devices in ("1", "2"))
    assert two["num_samples"] == 11 and two["per_class"] == one["per_class"]
    for name in ("loss", "top1", "macro_f1", "ece"):
        assert two[name] == pytest.approx(one[name], abs=1e-5), name
