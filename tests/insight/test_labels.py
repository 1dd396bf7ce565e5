"""Wrong labels are found on real images by their pixels alone, and nothing is reported where nothing is wrong."""

from functools import cache

import numpy as np
import pytest
from helpers import SAMPLE
from PIL import Image

from project.insight.labels import doubtful_labels, judge


@cache
def pixels() -> tuple[np.ndarray, np.ndarray]:
    """The sample's training images at 14 x 14 pixels, float32 (1000, 196), and their labels."""
    root = SAMPLE / "fashion-mnist/train"
    files = sorted(root.glob("*/*.png"))
    images = [np.asarray(Image.open(file).convert("L").resize((14, 14), Image.Resampling.BOX)) for file in files]
    names = sorted({file.parent.name for file in files})
    return np.stack(images).reshape(len(files), -1).astype(np.float32), np.array(
        [names.index(f.parent.name) for f in files]
    )


def flipped(labels: np.ndarray, share: float, seed: int, num_classes: int = 10) -> np.ndarray:
    """The labels, of which a share is replaced by another class."""
    generator = np.random.default_rng(seed)
    some = generator.choice(len(labels), round(share * len(labels)), replace=False)
    changed = labels.copy()
    changed[some] = (labels[some] + generator.integers(1, num_classes, len(some))) % num_classes
    return changed


def test_nothing_is_reported_on_clean_labels():
    doubts = doubtful_labels(*pixels(), 10)
    assert (doubts.wrong > 0.5).sum() <= 5  # pixels are no good features; of a network's, none is reported
    assert doubts.rate < 0.015 and 0.7 < doubts.accuracy < 0.9


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_flipped_labels_are_found_and_counted(seed):
    features, labels = pixels()
    given = flipped(labels, 0.1, seed)
    doubts = doubtful_labels(features, given, 10)
    reported, wrong = doubts.wrong > 0.5, given != labels
    assert wrong[reported].mean() >= 0.7
    assert (reported & wrong).sum() >= 0.5 * wrong.sum()
    assert 0.7 <= doubts.wrong[reported].sum() / wrong[reported].sum() <= 1.3
    assert 0.07 < doubts.rate < 0.13
    found = reported & wrong
    assert (doubts.suggestion[found] == labels[found]).mean() > 0.7
    assert (doubts.suggestion != given).all()


def test_a_copied_wrong_label_does_not_vouch_for_itself():
    features, labels = pixels()
    given = flipped(labels, 0.05, 0)
    copies = np.flatnonzero(given != labels)
    twice = np.concatenate([np.arange(1000), np.repeat(copies, 4)])
    alone = doubtful_labels(features[twice], given[twice], 10)
    grouped = doubtful_labels(features[twice], given[twice], 10, groups=twice)
    assert grouped.wrong[copies].mean() > alone.wrong[copies].mean() + 0.2


def test_the_order_of_images_and_classes_does_not_matter():
    features, labels = pixels()
    given = flipped(labels, 0.1, 0)
    doubts = doubtful_labels(features, given, 10)
    generator = np.random.default_rng(1)
    order, names = generator.permutation(1000), generator.permutation(10)
    other = doubtful_labels(features[order], names[given[order]], 10)
    np.testing.assert_allclose(other.wrong, doubts.wrong[order], atol=1e-4)
    assert other.rate == pytest.approx(doubts.rate, abs=1e-5) and other.accuracy == doubts.accuracy
    sure = doubts.wrong[order] > 0.3
    assert (other.suggestion == names[doubts.suggestion[order]])[sure].all()


def test_memory_in_blocks_changes_nothing(monkeypatch):
    features, labels = pixels()
    whole = doubtful_labels(features, labels, 10)
    monkeypatch.setattr("project.insight.probe.BLOCK", 64)
    np.testing.assert_allclose(doubtful_labels(features, labels, 10).wrong, whole.wrong, atol=1e-5)


def test_half_precision_and_features_that_are_not_finite():
    features, labels = pixels()
    broken = features.astype(np.float16)
    broken[3, 5], broken[7] = np.nan, np.inf
    rest = np.delete(np.arange(1000), [3, 7])
    doubts = doubtful_labels(broken, labels, 10)
    assert doubts.wrong[[3, 7]].tolist() == [0, 0] and (doubts.suggestion[[3, 7]] == labels[[3, 7]]).all()
    np.testing.assert_allclose(doubts.wrong[rest], doubtful_labels(features[rest], labels[rest], 10).wrong, atol=0.02)


@pytest.mark.parametrize(
    ("count", "num_classes"), [(0, 3), (1, 1), (1, 3), (2, 2), (3, 3), (10, 10), (4, 2), (600, 300), (300, 300)]
)
def test_too_few_images_report_nothing(count, num_classes):
    features = np.random.default_rng(0).normal(size=(count, 24)).astype(np.float32)
    labels = np.arange(count) % num_classes
    doubts = doubtful_labels(features, labels, num_classes)
    assert (doubts.wrong <= 0.5).all() and doubts.wrong.shape == doubts.suggestion.shape == (count,)


@pytest.mark.parametrize("num_classes", [2, 10])
def test_features_that_tell_nothing_report_nothing(num_classes):
    labels = np.arange(1000) % num_classes
    assert (doubtful_labels(np.ones((1000, 8), np.float32), labels, num_classes).wrong <= 0.5).all()
    for seed in range(5):
        features = np.random.default_rng(seed).normal(size=(1000, 64)).astype(np.float32)
        assert (doubtful_labels(features, labels, num_classes).wrong > 0.5).mean() <= 0.002


def test_a_probe_that_is_often_wrong_ranks_labels_but_reports_none():
    features, labels = pixels()
    of_class = [np.random.default_rng(0).permutation(np.flatnonzero(labels == c))[:12] for c in range(10)]
    some = np.concatenate(of_class)
    doubts = doubtful_labels(features[some], flipped(labels[some], 0.1, 0), 10)
    assert doubts.accuracy < 0.6 and "any label" in judge(doubts.accuracy)
    assert 0.25 < doubts.wrong.max() <= 0.5  # twice as high, these would have been reported


def test_a_class_without_images_is_never_suggested():
    features, labels = pixels()
    assert 3 not in doubtful_labels(features[labels != 3], labels[labels != 3], 10).suggestion


def test_one_image_of_a_class_is_not_judged():
    features, labels = pixels()
    rows = np.flatnonzero((labels != 3) | (np.cumsum(labels == 3) <= 1))
    doubts = doubtful_labels(features[rows], labels[rows], 10)
    assert doubts.wrong[labels[rows] == 3].tolist() == [0]


def test_a_thousand_classes_of_two_images_report_nothing():
    features = np.random.default_rng(0).normal(size=(2000, 24)).astype(np.float32)
    assert (doubtful_labels(features, np.arange(2000) % 1000, 1000).wrong <= 0.5).all()
