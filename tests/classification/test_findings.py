"""What is counted in an evaluation agrees with counting by hand, and never calls chance a weakness."""

import numpy as np
import pytest
import torch

from project import IGNORE
from project.classification.findings import (
    Seen,
    by_class,
    leaked,
    least_confidence,
    mixed_up,
    seen_in,
)
from project.insight.issues import Issue
from project.predictions import Evaluation, Predictions


def seen_of(labels, predicted, confidence=None):
    n = len(labels)
    confidence = np.linspace(1, 0.5, n) if confidence is None else np.array(confidence)
    return Seen(np.arange(n), np.array(labels), np.array(predicted), confidence.astype(np.float32))


def test_images_that_could_not_be_read_are_left_out():
    classes = torch.tensor([[1, 0], [0, 1], [1, 0]])
    predictions = Predictions(classes, torch.full((3, 2), 0.5), torch.full((3,), 0.5), torch.tensor([1, IGNORE, 0]))
    seen = seen_in(Evaluation({"split": "test"}, None, [("a", "x"), ("b", "x"), ("c", "x")], predictions))
    assert seen.place.tolist() == [0, 2] and seen.right.tolist() == [True, False]


def test_classes_are_counted_and_the_surely_weak_one_comes_first():
    labels = [0] * 50 + [1] * 50 + [2] * 2
    predicted = [0] * 20 + [1] * 25 + [2] * 5 + [1] * 49 + [2] + [2, 0]
    rows = by_class(seen_of(labels, predicted), 4)
    assert [(r.label, r.right, r.total, r.answers) for r in rows] == [(0, 20, 50, 21), (2, 1, 2, 7), (1, 49, 50, 74)]
    assert [r.weak for r in rows] == [True, False, False]  # 1 of 2 may be chance
    assert (rows[0].taken_for, rows[0].mistaken) == (1, 25) and 0 < rows[0].low < 0.4 < rows[0].high < 0.6


def test_a_single_class_is_no_weaker_than_the_rest():
    (row,) = by_class(seen_of([0] * 9, [1] * 9), 2)
    assert not row.weak and row.right == 0


def test_pairs_are_counted_in_both_directions():
    labels, predicted = [0, 0, 1, 2, 2, 1, 1], [1, 1, 0, 0, 0, 1, 1]
    assert mixed_up(seen_of(labels, predicted)) == [(0, 1, 2, 1)]
    assert mixed_up(seen_of([0, 1], [0, 1])) == []


def test_copies_of_images_in_other_splits_are_found(tmp_path):
    samples = [(str(tmp_path / f"{i}.png"), "a") for i in range(4)]
    evaluation = Evaluation({"split": "test"}, None, samples, None)
    train = str(tmp_path / "train.png")
    issues = [
        Issue("leak", train, other=samples[2][0]),
        Issue("conflict", samples[0][0], other=train),
        Issue("copy", samples[1][0], other=train),
        Issue("conflict", samples[1][0], other=samples[3][0]),  # both in test
        Issue("leak", train, other="elsewhere.png"),
    ]
    assert leaked(evaluation, issues).tolist() == [0, 2] and leaked(evaluation, []).tolist() == []


@pytest.mark.parametrize(("share", "expected"), [(0.5, True), (1.0, False), (0.0, False)])
def test_the_least_confidence_keeps_the_promise_where_it_was_found(share, expected):
    confidence = np.linspace(1, 0, 200)
    right = np.arange(200) < 200 * share
    seen = seen_of(np.zeros(200, int), (~right).astype(int), confidence)
    limit = least_confidence(seen)
    assert (limit is not None) == expected  # none if it may answer always, or never
    if limit is not None:
        answered = seen.only(seen.confidence >= limit)
        assert answered.right.mean() >= 0.95 and 100 <= len(answered.labels) <= 106
