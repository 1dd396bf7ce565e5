import csv
import json
import shutil
import subprocess
import sys

import evaluate
import numpy as np
import predict
import pytest
from helpers import COLOURS, FAST, ROOT, fill, forged
from sklearn.metrics import f1_score, log_loss

from project import UserError, shortest
from project.classification.model import load

CPU = ["--accelerator=cpu"]


def test_evaluate_repeats_the_figures_of_the_training(trained, tmp_path, capsys):
    evaluate.main([*CPU, "--ckpt", str(trained / "checkpoints/best.ckpt"), "--output", str(tmp_path)])
    again, first = (json.loads((folder / "metrics.json").read_text()) for folder in (tmp_path, trained))
    assert {*again, "val"} == {*first} and again["num_samples"] == first["num_samples"]
    assert again["per_class"] == first["per_class"] and again["loss"] == pytest.approx(first["loss"], rel=1e-4)
    assert (tmp_path / "confusion_matrix.png").stat().st_size > 5000
    printed = capsys.readouterr().out
    assert "macro_f1" in printed and "green" in printed and "recall" in printed


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_evaluate_predict_and_scikit_learn_agree_also_on_ties(trained, tmp_path, precision):
    """The last two classes have the same row in the head, so that their probabilities are always equal."""

    def twins(state):
        for name in ("net.fc.1.weight", "net.fc.1.bias"):
            state[name][1] = state[name][2]

    ckpt, data = forged(trained, tmp_path / "twins.ckpt", twins), trained.parents[1] / "data/test"
    common = [*CPU, f"--ckpt={ckpt}", f"--precision={precision}"]
    found = evaluate.main([*common, f"--output={tmp_path / 'out'}"])
    predict.main([*common, str(data), f"--output={tmp_path / 'p.csv'}", "--batch_size=8", "--num_workers=0"])
    rows = {}
    for path in (tmp_path / "p.csv", tmp_path / "out/predictions.csv"):
        with open(path, newline="", encoding="utf-8-sig") as file:
            rows[path.name] = list(csv.DictReader(file))
    classes, probabilities, labels = ["blue", "green", "red"], [], []
    for row, same in zip(rows["p.csv"], rows["predictions.csv"], strict=True):
        assert row["path"] == same["path"] and row["label"] == same["predicted"]
        by_class = {row[f"label{rank}"]: float(row[f"probability{rank}"]) for rank in ("", "_2", "_3")}
        assert by_class["green"] == by_class["red"]
        probabilities.append([by_class[name] for name in classes])
        labels.append(classes.index(same["label"]))
    p, y = np.array(probabilities, dtype=np.float64), np.array(labels)
    assert (p.argmax(1) == 1).any() and not (p.argmax(1) == 2).any()  # ties decide, and the first class wins
    assert [row["label"] for row in rows["p.csv"]] == [classes[i] for i in p.argmax(1)]
    assert found["top1"] == pytest.approx(np.mean(p.argmax(1) == y), abs=1e-6)
    assert found["macro_f1"] == pytest.approx(f1_score(y, p.argmax(1), average="macro"), abs=1e-6)
    p /= p.sum(axis=1, keepdims=True)  # they are rounded to six digits
    assert found["loss"] == pytest.approx(log_loss(y, p), abs=1e-5)
    bins = np.minimum((p.max(1) * 15).astype(int), 14)
    gaps = [(p.max(1) - (p.argmax(1) == y))[bins == i].sum() for i in range(15)]
    assert found["ece"] == pytest.approx(np.abs(gaps).sum() / len(y), abs=1e-4)


def test_weights_that_give_no_numbers_are_refused(fails, trained, tmp_path):
    def damage(state):
        state["net.fc.1.weight"].fill_(3e38)  # finite, but its products are not

    ckpt, image = forged(trained, tmp_path / "nan.ckpt", damage), trained.parents[1] / "data/test/red/red-0.png"
    for main, rest in ((evaluate.main, [f"--output={tmp_path / 'out'}"]), (predict.main, [image, "--num_workers=0"])):
        assert "the model's output is not a number" in fails(main, *CPU, f"--ckpt={ckpt}", *rest)
    assert not list((tmp_path / "out").iterdir())
    with pytest.raises(UserError, match="not a number"):
        load(ckpt).predict([image])


def test_no_evaluation_overwrites_another(away, caplog):
    new = fill(away / "new", 5)
    caplog.set_level("INFO", logger="project")
    for options in (["--split=all"], [], ["--split=test"]):
        evaluate.main([*CPU, "--ckpt=model.ckpt", f"--data.root={new}", *options])
    written = {path.name: path for path in (away / "evaluations").iterdir()}
    assert sorted(written) == ["new-all", "new-all_1", "new-test"]
    metrics = json.loads((written["new-all_1"] / "metrics.json").read_text())
    assert metrics["split"] == "all" and metrics["num_samples"] == 15 and "val" not in metrics
    assert metrics["checkpoint"] == str(away / "model.ckpt") and metrics["data"] == str(new)
    assert metrics["step"] > 0 and metrics["epoch"] > 0
    with open(written["new-all"] / "predictions.csv", newline="", encoding="utf-8-sig") as file:
        assert len({row["path"] for row in csv.DictReader(file)}) == 15
    assert f"{shortest(written['new-all'] / 'mistakes.png')} (" in caplog.text and "of 15 images)" in caplog.text


def test_all_of_other_data_is_evaluated_unless_a_split_is_asked_for(away, caplog):
    new = fill(away / "new", 5)
    caplog.set_level("INFO", logger="project")
    assert evaluate.main([*CPU, "--ckpt=model.ckpt", f"--data.root={new}"])["num_samples"] == 15
    assert "all 15 images, no splits given" in caplog.text and "drew" not in caplog.text
    assert "Not the training data: all of it is evaluated; if it was moved here: --split test" in caplog.text
    caplog.clear()
    assert evaluate.main([*CPU, "--ckpt=model.ckpt", f"--data.root={new}", "--split=test"])["num_samples"] == 3
    assert "drew 15% for val and 15% for test" in caplog.text and "Not the training data" not in caplog.text


def counts(metrics):
    return {name: values["support"] for name, values in metrics["per_class"].items()}


def test_new_data_needs_neither_a_train_split_nor_two_images_a_class(away):
    one_each = fill(away / "one_each", 1)
    only_test = fill(away / "tests/test", 4).parent
    rows = [f"tests/test/{name}/{name}-{i}.png,{name},test" for name in COLOURS for i in range(3)]
    (away / "only_test.csv").write_text("\n".join(["path,label,split", *rows]))
    for root, options, number in [(one_each, [], 1), (only_test, ["--split=test"], 4), (away / "only_test.csv", [], 3)]:
        metrics = evaluate.main([*CPU, "--ckpt=model.ckpt", f"--data.root={root}", *options])
        assert counts(metrics) == dict.fromkeys(COLOURS, number)


def test_a_subset_of_the_classes_is_evaluated_and_the_table_says_what_macro_f1_is(away, capsys):
    root = fill(away / "new", 6, ("blue", "red"))
    metrics = evaluate.main([*CPU, "--ckpt=model.ckpt", f"--data.root={root}"])
    assert counts(metrics) == {"blue": 6, "green": 0, "red": 6}
    assert "1 without images: macro_f1 leaves them out" in " ".join(capsys.readouterr().out.split())
    with open(next((away / "evaluations").glob("new-all/predictions.csv")), encoding="utf-8-sig") as file:
        labels, predicted = zip(*((row["label"], row["predicted"]) for row in csv.DictReader(file)), strict=True)
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"), abs=1e-5)
    metrics = evaluate.main([*CPU, "--ckpt=model.ckpt", f"--data.root={fill(away / 'one', 3, ('red',))}"])
    assert counts(metrics) == {"blue": 0, "green": 0, "red": 3}


def test_a_split_that_is_not_there_is_refused(fails, away):
    root = fill(away / "new/test", 2).parent
    line = fails(evaluate.main, *CPU, "--ckpt=model.ckpt", f"--data.root={root}", "--split=val")
    assert f"{root} has no val split, only 'test'" in line


@pytest.mark.slow
def test_moved_training_data_has_the_same_test_split(flat, tmp_path):
    import train

    train.main([*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}"])
    run = tmp_path / "lightning_logs/version_0"
    flat.rename(tmp_path / "moved")
    options = [*CPU, f"--ckpt={run / 'checkpoints/best.ckpt'}", f"--data.root={tmp_path / 'moved'}", "--split=test"]
    again, first = evaluate.main(options), json.loads((run / "metrics.json").read_text())
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-4) and counts(again) == counts(first)


def test_an_output_folder_with_results_is_refused_before_the_work(fails, away):
    new = fill(away / "new", 5)
    evaluate.main([*CPU, "--ckpt=model.ckpt", f"--data.root={new}", "--output=mine"])
    before = {path: path.stat().st_mtime_ns for path in (away / "mine").iterdir()}
    line = fails(evaluate.main, *CPU, "--ckpt=model.ckpt", "--data.root=nowhere", "--output=mine")
    assert "--output mine already holds metrics.json" in line
    assert before == {path: path.stat().st_mtime_ns for path in (away / "mine").iterdir()}
    assert not (away / "evaluations").exists()


def test_evaluate_says_that_the_data_is_gone_and_how_to_name_it(fails, trained, away):
    line = fails(evaluate.main, *CPU, "--ckpt=model.ckpt")
    assert f"{trained.parents[1] / 'data'}: no such folder or file: the checkpoint was trained on it" in line
    assert "name where it is now with --data.root" in line


def test_evaluate_draws_the_same_split_again(flat, tmp_path):
    import train

    train.main([*FAST, f"--data.root={flat}", f"--default_root_dir={tmp_path}", "--data.split_seed=3"])
    run = tmp_path / "lightning_logs/version_0"
    evaluate.main([*CPU, f"--ckpt={run / 'checkpoints/best.ckpt'}"])
    again, first = (json.loads((f / "metrics.json").read_text()) for f in (run / "evaluations/test", run))
    assert again["loss"] == pytest.approx(first["loss"], rel=1e-4)


def test_evaluate_refuses_other_classes_by_name(fails, away):
    root = fill(away / "new", 3, ("blue", "green", "zebra"))
    line = fails(evaluate.main, *CPU, "--ckpt=model.ckpt", f"--data.root={root}")
    assert "the data has classes that the checkpoint does not have: 'zebra'; it has 'blue', 'green', 'red'" in line
    root = fill(away / "close", 1, ("Blue", "green"))
    line = fails(evaluate.main, *CPU, "--ckpt=model.ckpt", f"--data.root={root}")
    assert "does not have: 'Blue'; the nearest to 'Blue' is 'blue'" in line
    assert not list(away.rglob("metrics.json"))


@pytest.mark.slow
def test_two_processes_count_every_image_once(trained, tmp_path):
    """11 test images on 2 processes: the smaller part is padded, and the padding is not counted."""
    data = tmp_path / "data"
    shutil.copytree(trained.parents[1] / "data", data)
    (data / "test/red/red-0.png").unlink()
    base = [
        sys.executable,
        ROOT / "scripts/evaluate.py",
        f"--ckpt={trained / 'checkpoints/best.ckpt'}",
        *CPU,
        "--split=test",
    ]
    for devices in ("1", "2"):
        command = [
            *base,
            f"--data.root={data}",
            f"--devices={devices}",
            f"--output={tmp_path / devices}",
            "--split=test",
        ]
        subprocess.run(command, check=True, capture_output=True)
    rows = []
    for devices in ("1", "2"):
        with open(tmp_path / devices / "predictions.csv", newline="", encoding="utf-8-sig") as file:
            rows.append([[row[name] for name in ("path", "label", "predicted")] for row in csv.DictReader(file)])
    assert rows[0] == rows[1] and len(rows[0]) == 11
    one, two = (json.loads((tmp_path / devices / "metrics.json").read_text()) for devices in ("1", "2"))
    assert two["num_samples"] == 11 and two["per_class"] == one["per_class"]
    for name in ("loss", "top1", "macro_f1", "ece"):
        assert two[name] == pytest.approx(one[name], abs=1e-5), name


def test_an_exported_model_has_the_same_figures_and_files(trained, exported, tmp_path, caplog):
    caplog.set_level("INFO", logger="project")
    data = f"--data.root={trained.parents[1] / 'data'}"
    checkpoint = [*CPU, f"--ckpt={trained / 'checkpoints/best.ckpt'}", "--precision=32-true"]
    found = []
    for name, options in {"ckpt": checkpoint, "onnx": [f"--ckpt={exported}"]}.items():
        evaluate.main([*options, data, "--split=test", "--data.num_workers=0", f"--output={tmp_path / name}"])
        with open(tmp_path / name / "predictions.csv", newline="", encoding="utf-8-sig") as file:
            found.append((json.loads((tmp_path / name / "metrics.json").read_text()), list(csv.DictReader(file))))
    (ours, our_rows), (theirs, their_rows) = found
    differ = {"checkpoint", "epoch", "step", "fine_tuned_share"}
    assert theirs.keys() - ours.keys() == {"runtime", "precision"} and ours.keys() <= theirs.keys()
    for name in ours.keys() - differ:
        assert theirs[name] == (pytest.approx(ours[name], abs=1e-5) if isinstance(ours[name], float) else ours[name])
    assert theirs["checkpoint"] == str(exported) and theirs["epoch"] is None and theirs["precision"] == "fp32"
    assert theirs["runtime"].startswith("onnxruntime ") and f"fp32, run by {theirs['runtime']}" in caplog.text
    for ours, theirs in zip(our_rows, their_rows, strict=True):
        for column, value in ours.items():
            if "probability" in column:
                assert float(theirs[column]) == pytest.approx(float(value), abs=2e-5)
            else:
                assert theirs[column] == value
    for name in ("confusion_matrix.png", "mistakes.png"):
        assert (tmp_path / "ckpt" / name).read_bytes() == (tmp_path / "onnx" / name).read_bytes()


def test_an_exported_model_needs_the_name_of_its_data_and_takes_any_split(trained, exported, tmp_path, fails, caplog):
    model = shutil.copy(exported, tmp_path / "model.onnx")
    line = fails(evaluate.main, f"--ckpt={model}")
    assert "an exported model does not know its data: name it with --data.root" in line
    data = f"--data.root={trained.parents[1] / 'data'}"
    assert "--devices 2: does not apply" in fails(evaluate.main, f"--ckpt={model}", data, "--devices=2")
    caplog.set_level("INFO", logger="project")
    for split, number in {"auto": 48, "val": 12, "train": 24}.items():
        options = [f"--ckpt={model}", data, f"--split={split}", "--data.num_workers=0"]
        assert evaluate.main(options)["num_samples"] == number
    assert "Not known as the training data: all of it is evaluated" in caplog.text
    written = sorted(path.name for path in (tmp_path / "evaluations").iterdir())
    assert written == ["data-all", "data-train", "data-val"]
