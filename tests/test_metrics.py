import json
import logging
import time

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, f1_score, precision_recall_fscore_support
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassF1Score

from project import IGNORE
from project.metrics import (
    EvalMetrics,
    Mean,
    confusion_figure,
    most_probable,
    report,
    summarize,
    wilson_interval,
)

NAMES = ["a", "b", "c"]


def evaluate(logits, labels, batch=2):
    metrics = EvalMetrics(logits.shape[1])
    for i in range(0, len(labels), batch):
        metrics.update(logits[i : i + batch], labels[i : i + batch])
    return metrics.compute()


def test_figures_by_hand():
    predicted, labels = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0, 1, 1, 2, 0])
    summary = summarize(evaluate(torch.eye(3)[predicted] * 100, labels), NAMES, "val")
    assert (summary["split"], summary["num_samples"], summary["top5"]) == ("val", 5, None)
    assert summary["top1"] == pytest.approx(3 / 5)
    assert summary["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3, abs=1e-6)
    assert summary["ece"] == pytest.approx(2 / 5, abs=1e-6)  # always certain, right 3 times out of 5
    assert summary["per_class"]["a"] == {"precision": 0.5, "recall": 0.5, "support": 2}
    assert all(v == round(v, 6) for row in summary["per_class"].values() for v in row.values())
    assert summary["per_class"]["b"] == {"precision": 1.0, "recall": 0.5, "support": 2}
    json.dumps(summary)


def test_top5_where_there_are_more_classes():
    torch.manual_seed(0)
    logits, labels = torch.randn(40, 21), torch.randint(0, 21, (40,))
    values = evaluate(logits, labels)
    assert "top5" not in evaluate(logits[:, :20], labels.clamp(max=19))
    top5 = (logits.topk(5).indices == labels[:, None]).any(dim=1).float().mean()
    assert values["top5"] == pytest.approx(top5.item())
    assert values["loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-5)


def test_the_interval_of_top1_is_wilsons():
    """Values of R's `prop.test(22, 37, correct = FALSE)` and `prop.test(0, 10, correct = FALSE)`."""
    assert wilson_interval(22, 37) == pytest.approx((0.4350, 0.7365), abs=5e-4)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=5e-4)
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_padding_counts_nowhere_even_in_a_batch_of_its_own():
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 8), torch.randint(0, 8, (6,))
    padded = evaluate(torch.cat([logits, torch.randn(2, 8)]), torch.cat([labels, torch.full((2,), IGNORE)]))
    for name, value in evaluate(logits, labels).items():
        assert torch.allclose(padded[name].float(), value.float()), name


def test_small_logits_are_not_taken_for_probabilities():
    logits = torch.tensor([[0.9, 0.1, 0.0]] * 4)
    confidence = logits.softmax(dim=1)[0, 0].item()
    assert evaluate(logits, torch.zeros(4, dtype=torch.long))["ece"] == pytest.approx(1 - confidence, abs=1e-5)


@pytest.mark.parametrize("num_classes", [2, 60, 100])
def test_report_writes_files_and_prints_class_names(tmp_path, capsys, num_classes):
    names = [f"kind-{i}" for i in range(num_classes)]
    labels = torch.arange(num_classes).repeat(2)
    values = evaluate(torch.eye(num_classes)[labels], labels, batch=50)
    report(summarize(values, names, "test"), values["confusion"], tmp_path / "new")
    assert json.loads((tmp_path / "new/metrics.json").read_text())["top1"] == 1.0
    assert (tmp_path / "new/confusion_matrix.png").stat().st_size > 5000
    printed = capsys.readouterr().out
    assert "kind-1" in printed and "1.0000" in printed
    assert ("in metrics.json" in printed) == (num_classes > 50)


def test_confusion_figure_has_true_classes_as_rows():
    figure = confusion_figure(torch.tensor([[0, 7], [0, 5]]), ["cat", "dog"])
    axes = figure.axes[0]
    assert {(t.get_position(), t.get_text()) for t in axes.texts} == {((1, 0), "7"), ((1, 1), "5")}
    assert [label.get_text() for label in axes.get_yticklabels()] == ["cat", "dog"]


@pytest.mark.parametrize("present", [7, 3])
def test_counts_by_class_are_those_of_torchmetrics_and_scikit_learn(present):
    """Also where classes have no images: macro-F1 is over the classes that occur, as true or as predicted ones."""
    torch.manual_seed(present)
    logits, labels = torch.randn(50, 7), torch.randint(0, present, (50,))
    logits[:, 6] = -9  # never predicted
    labels[::9] = IGNORE
    values = evaluate(logits, labels, batch=8)
    for name, metric in {"macro_f1": MulticlassF1Score, "confusion": MulticlassConfusionMatrix}.items():
        theirs = metric(num_classes=7, ignore_index=IGNORE)
        assert torch.allclose(values[name].float(), theirs(logits, labels).float(), atol=1e-6), name
    known = labels != IGNORE
    true, predicted = labels[known].numpy(), logits[known].argmax(dim=1).numpy()
    assert values["macro_f1"] == pytest.approx(f1_score(true, predicted, average="macro"), abs=1e-6)
    assert (values["confusion"].numpy() == confusion_matrix(true, predicted, labels=range(7))).all()
    rows = summarize(values, list("abcdefg"), "test")["per_class"].values()
    theirs = precision_recall_fscore_support(true, predicted, labels=range(7), zero_division=0)
    for name, column in zip(("precision", "recall", "support"), (theirs[0], theirs[1], theirs[3]), strict=True):
        assert [row[name] for row in rows] == pytest.approx(list(column), abs=1e-6)


def test_ten_thousand_classes_cost_little_time_and_memory_and_get_no_matrix(tmp_path, capsys, caplog, figure):
    caplog.set_level(logging.INFO, logger="project")
    metrics = EvalMetrics(10_000)
    logits, labels = torch.randn(32, 10_000), torch.arange(32)
    metrics.update(logits, labels)
    seconds = 60.0
    for _ in range(5):
        start = time.perf_counter()
        metrics.update(logits, labels)
        seconds = min(seconds, time.perf_counter() - start)
    figure("metrics of 32 images at 10,000 classes", f"{1000 * seconds:.0f} ms")
    values = metrics.compute()
    assert "confusion" not in values and max(value.numel() for value in values.values()) == 30_000
    names = [f"kind-{i}" for i in range(10_000)]
    report(summarize(values, names, "test"), None, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.json"]
    assert (tmp_path / "metrics.json").stat().st_size < 2_000_000
    assert "No confusion matrix is drawn, since there are more than 1,000 classes" in caplog.text
    assert len(capsys.readouterr().out.splitlines()) < 70


def test_of_equal_probabilities_the_first_class_wins():
    equal = torch.tensor([[0.1, 0.3, 0.3, 0.3], [0.25, 0.25, 0.25, 0.25]])
    values, classes = most_probable(equal, 3)
    assert classes.tolist() == [[1, 2, 3], [0, 1, 2]] and values[:, 0].tolist() == pytest.approx([0.3, 0.25])
    assert (classes[:, 0] == equal.argmax(dim=1)).all() and (np.argmax(equal.numpy(), 1) == [1, 0]).all()
    assert evaluate(equal.log(), torch.tensor([1, 0]))["top1"] == 1
    assert most_probable(equal, 9)[0].shape == (2, 4)


def test_letters_that_the_font_lacks_are_named_once(tmp_path, caplog):
    values = evaluate(torch.eye(3), torch.arange(3))
    report(summarize(values, ["猫", "犬", "chat"], "test"), values["confusion"], tmp_path)
    assert caplog.text.count("Pictures show 犬, 猫 as boxes") == 1


def test_names_are_text_in_the_table_the_picture_and_the_json(tmp_path, capsys):
    """`tests/faults/test_names.py` has many more."""
    names = ["dog [small]", "cat[/red]", ":cat:", "$1_vs_$5", "a\x1b[31m\nb", "caf\udce9"]
    values = evaluate(torch.eye(6), torch.arange(6))
    report(summarize(values, names, "test"), values["confusion"], tmp_path)
    printed = capsys.readouterr().out
    shown = [*names[:4], r"a\x1b[31m\nb", r"caf\xe9"]
    assert all(f"│ {name} " in printed for name in shown) and "\x1b" not in printed
    (axes, _) = confusion_figure(values["confusion"], names).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == shown
    assert list(json.loads((tmp_path / "metrics.json").read_text())["per_class"]) == [*names[:5], r"caf\xe9"]


def test_a_mean_is_weighted():
    mean = Mean()
    mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor(5.0), 1)
    assert mean.compute() == 2
