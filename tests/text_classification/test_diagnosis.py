"""What is found in sets of texts with planted faults, and that nothing is found in clean ones."""

import numpy as np
import pytest
import torch
from helpers import SAMPLE
from text_data import rows

from project.text_classification.diagnosis import KINDS, diagnose, summary
from project.text_classification.texts import find_texts

CLASSES = ["a", "b", "c", "d"]


def clean():
    """Texts of four classes: 200 to train, 40 to validate, 40 to test."""
    every = rows(280, CLASSES)
    return {"train": every[:200], "val": every[200:240], "test": every[240:]}


def features(samples, seed=0):
    """Features of texts that tell their classes well, as an encoder's do."""
    rng = np.random.default_rng(seed)
    centres = 3 * rng.standard_normal((len(CLASSES), 16))
    parts = {split: np.array([CLASSES.index(label) for _, label in some]) for split, some in samples.items()}
    return {split: centres[part] + rng.standard_normal((len(part), 16)) for split, part in parts.items()}


def kinds(diagnosis):
    return {kind: [diagnosis.texts.texts[i.text] for i in diagnosis.of(kind) if i.text >= 0] for kind in KINDS}


def test_nothing_is_found_in_clean_texts():
    samples = clean()
    diagnosis = diagnose(samples, CLASSES, None, features(samples))
    assert summary(diagnosis) == [] and diagnosis.accuracy > 0.97


def test_nothing_is_found_in_the_built_in_sample():
    found = find_texts(str(SAMPLE / "banking77"))
    samples = {split: [(row.text, row.label) for row in some] for split, some in found.items()}
    assert {split: len(some) for split, some in samples.items()} == {"train": 800, "val": 200, "test": 400}
    assert summary(diagnose(samples, sorted({label for _, label in samples["train"]}))) == []


def test_copies_are_found_whatever_their_case_blanks_and_punctuation():
    samples = clean()
    (t0, l0), (t1, l1), (t2, l2), (t3, _) = samples["train"][:4]
    samples["test"] += [(t0, l0), (f"{t1.upper()}!", l1)]
    samples["val"] += [(f" {t2} ", l2)]
    samples["train"] += [(t3, "a"), (t0, l0), (f"{t0}?", l0)]
    found = diagnose(samples, CLASSES)
    assert sorted(kinds(found)["leak"]) == sorted([t0, f"{t1.upper()}!", f" {t2} "])
    assert kinds(found)["conflict"] == [t3] and kinds(found)["copy"] == [t0, f"{t0}?"]
    exact = {issue.score for issue in found.issues if found.texts.texts[issue.text] == found.texts.texts[issue.other]}
    others = {issue.score for issue in found.issues} - exact
    assert exact == {1.0} and others and all(0.8 < score < 1 for score in others)
    assert [text for text, _ in summary(found)] == [
        "2 of 42 test and 1 of 41 val texts are also in an earlier split",
        "1 copy of a text has another label",
        "2 copies of texts of the same split and label",
    ]


def test_a_leak_with_another_label_is_both():
    samples = clean()
    text, label = samples["train"][0]
    samples["test"].append((text, "d"))
    found = diagnose(samples, CLASSES)
    assert [(i.kind, i.label, i.suggestion) for i in found.issues] == [("leak", "d", label), ("conflict", "d", label)]


def test_planted_wrong_labels_are_found_with_their_number():
    samples = clean()
    given = features(samples)
    flipped = np.random.default_rng(1).choice(200, 12, replace=False)
    for i in flipped:
        text, label = samples["train"][i]
        samples["train"][i] = (text, CLASSES[(CLASSES.index(label) + 1) % 4])
    found = diagnose(samples, CLASSES, None, {split: torch.from_numpy(part).half() for split, part in given.items()})
    reported = {issue.text: issue.suggestion for issue in found.of("label")}
    assert reported.keys() == set(flipped.tolist()) and found.expected == pytest.approx(12, abs=1)
    assert all(suggestion == rows(280, CLASSES)[i][1] for i, suggestion in reported.items())
    assert summary(found) == [("12 likely wrong labels, of which about 12 are wrong (5.0% of train and val)", "label")]
    without = diagnose(samples, CLASSES)
    assert not without.of("label") and np.isnan(without.accuracy)


def test_features_of_some_splits_are_enough():
    samples = clean()
    given = features(samples)
    assert diagnose(samples, CLASSES, None, {"train": given["train"]}).accuracy > 0.97


def test_small_classes_and_odd_texts():
    samples = clean()
    samples["train"] += [("one of few", "e"), ("?!", "a"), ("12 34", "a"), ("cafÃ© au lait", "a"), ("a\x07b", "a")]
    samples["train"] += [("👍👍", "a"), ("card " * 300, "b")]
    found = diagnose(samples, [*CLASSES, "e"])
    assert [(issue.label, issue.score) for issue in found.of("few")] == [("e", 1)]
    assert {found.texts.texts[i.text]: i.suggestion.split(":")[0].split(",")[0] for i in found.of("odd")} == {
        "?!": "no words",
        "12 34": "no words",
        "cafÃ© au lait": "garbled",
        "a\x07b": "control characters",
        "card " * 300: "1",
    }
    assert [kind for _, kind in summary(found)] == ["few", "odd"]
