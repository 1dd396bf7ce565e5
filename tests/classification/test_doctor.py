"""The doctor within a run: it says what it finds, changes nothing about training, and stops nothing."""

import json
import shutil
from pathlib import Path

import evaluate
import pytest
import torch
import train
import yaml
from helpers import COLOURS, WEIGHTS, last_of, make_data, run_train, save_image

from project.classification import doctor
from project.classification.diagnosis import diagnose
from project.classification.doctor import examine, in_order, without_leaks
from project.classification.features import compute_features
from project.classification.model import ResNetClassifier
from project.decoding import BadImage
from project.insight.issues import ISSUES, read_issues, write_issues
from project.predictions import Evaluation, Predictions
from project.trainer import build_trainer


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def leaky(tmp_path):
    """Data of noise, no image like another, but for two of test that are in train, too."""
    for k, (name, count) in enumerate({"train": 6, "val": 3, "test": 3}.items()):
        for j, (label, colour) in enumerate(COLOURS.items()):
            for i in range(count):
                save_image(tmp_path / "data" / name / label / f"{i}.png", colour, seed=100 * k + 10 * j + i)
    for i in range(2):
        shutil.copy(tmp_path / f"data/test/red/{i}.png", tmp_path / f"data/train/red/leak-{i}.png")
    return tmp_path / "data"


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*.png")}


def test_a_run_says_what_is_leaked_and_gives_the_figure_without(leaky, tmp_path, caplog):
    before = state_of(leaky)
    caplog.set_level("INFO")
    run = run_train(tmp_path, leaky, WEIGHTS, "--max_epochs=0")
    issues = read_issues(run / ISSUES, str(leaky))
    assert {Path(i.path).name for i in issues if i.kind == "leak" and i.split == "train" and i.leave_out} == {
        "leak-0.png",
        "leak-1.png",
    }
    assert state_of(leaky) == before
    lines = [line for line in caplog.messages if line.endswith("  leak") or "data_report.html" in line]
    assert len(lines) == 2 and lines[0].startswith("Data:  ") and lines[1].startswith("       -> ")
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["num_samples_without_leaks"] == 7 and 0 <= metrics["top1_without_leaks"] <= 1
    again = evaluate.main([f"--ckpt={run / 'checkpoints/best.ckpt'}", "--accelerator=cpu"])
    assert again["top1_without_leaks"] == metrics["top1_without_leaks"]
    assert any(line.startswith("Unleaked: ") for line in caplog.messages)
    html = (run / "data_report.html").read_text()
    assert "Copies in another split" in html and "<script" not in html and "http:" not in html and "https:" not in html


def test_what_the_list_says_is_left_out(leaky, tmp_path, caplog):
    run = run_train(tmp_path, leaky, WEIGHTS, "--max_epochs=0")
    caplog.set_level("INFO")
    caplog.clear()
    again = run_train(tmp_path, leaky, WEIGHTS, "--max_epochs=0", f"--data.exclude={run / ISSUES}")
    assert any("train images left out, as " in line for line in caplog.messages)
    left = [
        issue for issue in read_issues(again / ISSUES, str(leaky)) if issue.kind == "leak" and issue.split == "train"
    ]
    assert not left and "top1_without_leaks" not in json.loads((again / "metrics.json").read_text())
    config = yaml.safe_load((again / "config.yaml").read_text())
    assert config["data"]["exclude"] == str(run / ISSUES)


@pytest.mark.slow
def test_a_run_is_resumed_with_its_list(leaky, tmp_path, caplog):
    run = run_train(tmp_path, leaky, WEIGHTS, "--max_epochs=0")
    run_train(tmp_path, leaky, "--max_epochs=1", f"--data.exclude={run / ISSUES}", "--name=less")
    caplog.set_level("INFO")
    caplog.clear()
    train.main(["--ckpt_path=last", f"--default_root_dir={tmp_path}", "--name=less", "--max_epochs=2"])
    assert any("train images left out" in line for line in caplog.messages)
    assert not [line for line in caplog.messages if "are not those that" in line]
    (run / ISSUES).write_text("leave_out,kind,path\n")
    train.main(["--ckpt_path=last", f"--default_root_dir={tmp_path}", "--name=less", "--max_epochs=3"])
    assert any("The train images are not those that" in line for line in caplog.messages)


@pytest.mark.slow
@pytest.mark.parametrize("more", [["--model.fine_tune=head"], ["--model.dropout=0.2", "--data.mixup=0.2"], []])
def test_training_is_the_same_with_and_without(leaky, tmp_path, more):
    states = []
    for asked in ("true", "false"):
        run = run_train(tmp_path / asked, leaky, WEIGHTS, "--max_epochs=2", f"--data.doctor={asked}", *more)
        states.append(last_of(tmp_path / asked)["state_dict"])
        assert (run / "data_report.html").exists() == (asked == "true")
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.slow
def test_random_numbers_are_those_of_before(leaky, tmp_path):
    """Nearly the test above, within the default tests: after one step."""
    weights = []
    for asked in ("true", "false"):
        run_train(tmp_path / asked, leaky, WEIGHTS, "--max_epochs=1", "--data.batch_size=20", f"--data.doctor={asked}")
        weights.append(last_of(tmp_path / asked)["state_dict"]["net.conv1.weight"])
    assert torch.equal(*weights)


@pytest.mark.slow
def test_it_runs_only_after_a_head_start_and_says_so(split, tmp_path, caplog):
    caplog.set_level("INFO")
    run = run_train(tmp_path, split)
    assert not (run / ISSUES).exists()
    run_train(tmp_path, split, "--data.doctor=false")
    assert len([line for line in caplog.messages if "doctor uses: left out" in line]) == 1


def test_too_many_images_are_not_looked_at_unasked(split, tmp_path, caplog, monkeypatch):
    caplog.set_level("INFO")
    monkeypatch.setattr(doctor, "MAX_UNASKED", 20)
    run = run_train(tmp_path, split, WEIGHTS, "--max_epochs=0")
    assert not (run / ISSUES).exists() and any(
        "27 images unasked" in line or "36 images unasked" in line for line in caplog.messages
    )


def test_a_failure_is_a_warning(split, tmp_path, caplog, monkeypatch):
    def explode(*given):
        raise RuntimeError("boom\nbang")

    monkeypatch.setattr(doctor, "diagnose", explode)
    run = run_train(tmp_path, split, WEIGHTS, "--max_epochs=0")
    assert (run / "metrics.json").exists()
    assert [line for line in caplog.messages if "doctor has failed" in line and line.endswith("RuntimeError: boom")]


def test_a_folder_that_cannot_be_written_is_a_warning(split, tmp_path, caplog):
    (tmp_path / "file").touch()
    data = make_data(split)
    assert examine(data, None, tmp_path / "file/folder") is not None
    (line,) = [line for line in caplog.messages if "cannot write to" in line]
    assert "\n" not in line


def test_names_that_are_html_or_not_utf8_are_shown_escaped(split, tmp_path):
    for i, name in enumerate(("<img src=x onerror=alert(1)>.png", "caf\udce9.png", "&amp;\n.png")):
        shutil.copy(split / f"test/red/red-{i}.png", split / "train/red" / name)
    examine(make_data(split), None, tmp_path)
    html = (tmp_path / "data_report.html").read_bytes().decode()
    assert "<img src=x" not in html and "&lt;img src=x onerror=alert(1)&gt;" in html and "caf\\xe9.png" in html
    assert "&amp;amp;\\n.png" in html
    assert {Path(issue.path).name for issue in read_issues(tmp_path / ISSUES, str(split))} >= {
        "caf\udce9.png",
        "&amp;\n.png",
    }


def test_features_of_some_images():
    samples = [("a", "x"), ("b", "x"), ("c", "x")]
    known = in_order([samples[2], samples[0]], torch.tensor([[2.0], [0.0]]), samples)
    assert known[[0, 2]].tolist() == [[0.0], [2.0]] and known[1].isnan().all()


def test_the_figure_without_leaks_counts_the_others(leaky, tmp_path):
    data = make_data(leaky)
    diagnosis, test = diagnose(None, data.samples, data.class_names), data.samples["test"]
    labels = data.labels(test)
    leaked = torch.tensor([path.endswith(("red/0.png", "red/1.png")) for path, _ in test])
    predicted = torch.where(leaked, labels, (labels + 1) % 3)  # right on the leaked ones alone
    predictions = Predictions(predicted[:, None], torch.ones(9, 1), torch.ones(9), labels)
    evaluation = Evaluation({"split": "test"}, None, test, predictions)
    assert without_leaks(evaluation, tmp_path, data) == without_leaks(evaluation, None, data) == {}
    write_issues(tmp_path / ISSUES, diagnosis.issues, data.folder)
    assert without_leaks(evaluation, tmp_path, data) == {"top1_without_leaks": 0.0, "num_samples_without_leaks": 7}
    (tmp_path / ISSUES).write_text("a list of something else")
    assert without_leaks(evaluation, tmp_path, data) == {}


def test_features_that_cannot_be_computed_leave_the_model_in_training(split, tmp_path):
    data = make_data(split)
    model = ResNetClassifier(data.class_names, data.preprocessing, arch="resnet18", weights="none").train()
    trainer = build_trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    with pytest.raises(BadImage):
        compute_features(trainer, model, data, [(str(tmp_path / "gone.png"), data.class_names[0])])
    assert model.training
