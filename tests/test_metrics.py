import json

import pytest
import torch

from project import IGNORE
from project.metrics import EvalMetrics, Mean, confusion_figure, report, summarize, wilson_interval

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


def test_a_mean_is_weighted():
    mean = Mean()
    mean.update(torch.tensor(1.0), 3)
    mean.update(torch.tensor(5.0), 1)
    assert mean.compute() == 2
