"""The parts of the page stay small with many classes, and name what they leave out."""

import numpy as np
import torch
from insight_page import check_offline

from project.classification.findings import Material, by_class, mixed_up, seen_in
from project.classification.report_parts import about_data, class_table, mixed_pictures, trust
from project.insight import page as p
from project.insight.issues import Issue
from project.predictions import Evaluation, Predictions


def material(classes, images, issues=None):
    random = np.random.default_rng(0)
    labels = torch.from_numpy(random.integers(0, classes, images))
    predicted = torch.where(torch.from_numpy(random.uniform(size=images) < 0.7), labels, (labels + 1) % classes)
    values = torch.from_numpy(random.uniform(0.4, 1, images).astype(np.float32))
    names = [f"<class> {i}" for i in range(classes)]
    samples = [(f"/{i}.png", names[label]) for i, label in enumerate(labels)]
    main = Evaluation(
        {"split": "test"}, None, samples, Predictions(predicted[:, None], values[:, None], values, labels)
    )
    pixels = random.integers(0, 256, (224, 224, 3), dtype=np.uint8)
    return Material(main, [], seen_in(main), names, lambda place: pixels, issues, None)


def page_of(m):
    rows = by_class(m.seen, len(m.class_names))
    return p.page("", *class_table(m, rows), *mixed_pictures(m, mixed_up(m.seen)), *trust(m), *about_data(m))


def test_a_thousand_classes_and_a_hundred_thousand_images_are_below_two_megabytes():
    content = page_of(material(1000, 100_000))
    parsed = check_offline(content)
    assert len(content) < 2e6 and "980 more classes" in parsed.words and "<class> 999" in parsed.words


def test_of_more_classes_the_page_says_where_the_rest_is():
    assert "The other 500 classes are in metrics.json" in check_offline(page_of(material(1500, 30_000))).words


def test_what_was_found_in_the_data_is_counted_and_nothing_is_said_to_be_nothing():
    assert "has not been looked through" in page_of(material(3, 60))
    assert "Nothing suspicious" in page_of(material(3, 60, []))
    assert "Nothing suspicious" in page_of(material(3, 60, [Issue("unlike", "/1.png")]))
    words = check_offline(page_of(material(3, 60, [Issue("leak", "/train.png", other="/7.png")]))).words
    assert "1 of these test images look like copies" in words and "7.png" in words


def test_overstated_percentages_are_called_so_and_good_ones_are_not():
    m = material(3, 500)
    sure = m._replace(seen=m.seen._replace(confidence=np.full(500, 0.99, np.float32)))
    assert "too high nearly everywhere" in page_of(sure)
    fair = m._replace(seen=m.seen._replace(confidence=np.full(500, m.seen.right.mean(), np.float32)))
    assert "as good as these images can tell" in page_of(fair)
