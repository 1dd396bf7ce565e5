import torch

from project.metrics import EvalMetrics, summarize
from project.predictions import Evaluation, Predictions
from project.text_classification.report import mixed_up, next_steps, write_report

NAMES = ["card", "<pin>", "refund"]


def evaluation(labels, predicted, probability=0.95):
    """What is known of texts that are predicted with one probability."""
    shares = torch.full((len(labels), 3), (1 - probability) / 2)
    shares[torch.arange(len(labels)), torch.tensor(predicted)] = probability
    metrics = EvalMetrics(3)
    metrics.update(shares.log(), torch.tensor(labels))
    values = metrics.compute()
    ranked = shares.sort(dim=1, descending=True, stable=True)
    predictions = Predictions(ranked.indices, ranked.values, shares[:, 0], torch.tensor(labels))
    samples = [(f"text {i} of <b>", NAMES[label]) for i, label in enumerate(labels)]
    return Evaluation(summarize(values, NAMES, "test"), values["confusion"], samples, predictions)


def test_pairs_are_counted_by_their_direction_the_most_frequent_first():
    found = mixed_up(evaluation([0, 0, 0, 1, 1, 2, 2], [1, 1, 1, 0, 0, 0, 2]))
    assert [(true, predicted, len(texts)) for true, predicted, texts in found] == [(0, 1, 3), (1, 0, 2)]


def test_what_to_do_next_is_said_with_counts():
    steps = next_steps(evaluation([0, 0, 0, 1, 2], [1, 1, 1, 1, 2]), NAMES, [100, 7, 100])
    assert "3 of the 3 mistakes: the model is at least 90% sure" in steps[0]
    assert "Tell card from <pin>: 3 of the 3 mistakes" in steps[1]
    assert "1 of 3 classes, which have fewer than 20 to learn from: <pin>." in steps[2]
    assert "with 5, the share that is right" in steps[3]
    few = evaluation([0, 1], [0, 1])
    leaked = few._replace(summary={**few.summary, "num_samples_without_leaks": 1, "top1_without_leaks": 1.0})
    assert "Remove 1 of the 2 texts" in next_steps(leaked, NAMES, [])[0]
    assert len(next_steps(evaluation([0, 0, 1], [1, 0, 1], 0.5), NAMES, [])) == 1


def test_nothing_to_do_is_said():
    perfect = evaluation([0, 1, 2] * 100, [0, 1, 2] * 100)
    assert next_steps(perfect, NAMES, [100] * 3) == ["Nothing stands out: 0 of 300 texts are wrong."]


def test_the_page_shows_texts_as_text(tmp_path):
    path = write_report(tmp_path, evaluation([0, 0, 1, 2], [1, 1, 1, 2]), NAMES, [])
    page = path.read_text(encoding="utf-8")
    assert "50.0% of 4 test texts are right" in page and "Between 15.0% and 85.0%" in page
    assert "text 0 of &lt;b&gt;" in page and "&lt;pin&gt;" in page and "<b>" not in page and "<pin>" not in page
    assert "text 3 of" not in page  # it is right
    assert "There is none." in write_report(tmp_path, evaluation([0, 1], [0, 1]), NAMES, []).read_text()
