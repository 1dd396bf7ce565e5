"""Each advice carries its counts, and is left out where there is nothing to say."""

import numpy as np
import torch
from insight_page import check_offline

from project.classification.findings import Material, by_class, mixed_up, seen_in
from project.classification.next_steps import next_steps
from project.insight import page as p
from project.predictions import Evaluation, Predictions


def evaluation(split, labels, predicted, confidence):
    classes = torch.tensor(predicted)[:, None]
    values = torch.tensor(confidence, dtype=torch.float32)
    samples = [(f"/{split}/{i}.png", "ab"[label]) for i, label in enumerate(labels)]
    return Evaluation(
        {"split": split}, None, samples, Predictions(classes, values[:, None], values, torch.tensor(labels))
    )


def words_of(main, others=(), issues=None, growth=None):
    m = Material(main, list(others), seen_in(main), ["cat", "<dog>"], lambda place: None, issues, growth)
    steps = next_steps(m, by_class(m.seen, 2), mixed_up(m.seen))
    return check_offline(p.steps([step for step in steps if step is not None])).words


def test_a_perfect_model_with_many_images_needs_nothing():
    main = evaluation("test", [0, 1] * 100, [0, 1] * 100, [0.99] * 200)
    assert words_of(main).strip() == ""
    assert words_of(main, issues=[], growth=(100, 0.9, 0.904, 0.91)).strip() == ""


def test_what_there_is_is_counted():
    labels, predicted = [0] * 60 + [1] * 60, [0] * 60 + [1] * 30 + [0] * 30
    confidence = np.r_[np.full(90, 0.9), np.full(10, 0.97), np.full(20, 0.6)]
    main = evaluation("test", labels, predicted, confidence)
    val = evaluation("val", [0] * 100, [0] * 80 + [1] * 20, np.r_[np.full(80, 0.9), np.full(20, 0.6)])
    words = words_of(main, [val], growth=(100, 0.8, 0.85, 0.88))
    assert "Look at cat and <dog>: 30 of 30 mistakes are between them" in words
    assert "<dog> is right on 30 of 60, surely below the others together" in words
    assert "10 of 30 mistakes were made with 95% or more" in words
    assert "about 5.0 points more from twice as many" in words
    assert "90.0% sure or more" in words and "and is right on 90 of these 100: 90.0%" in words
