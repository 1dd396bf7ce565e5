import numpy as np
import pytest
from helpers import SAMPLE

from project.insight.cues import find_cues
from project.insight.glances import glance

NAMES = ["cat", "dog", "ship"]
LABELS = np.arange(300) % 3


def properties(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "format": np.full(300, "JPEG", object),
        "brightness": rng.normal(100, 20, 300).astype(np.float32),
        "width": np.full(300, 32, np.float32),
    }


def test_a_format_that_gives_a_class_away():
    given = properties()
    given["format"][LABELS == 2] = "PNG"
    [cue] = find_cues(given, LABELS, NAMES)
    assert (cue.label, cue.prop, cue.accuracy) == (2, "format", 1)
    assert cue.sentence == "every ship is a PNG, and nothing else is"
    assert LABELS[cue.examples[0]] == 2 != LABELS[cue.examples[1]]


def test_of_two_classes_one_says_it_all():
    labels = np.arange(100) % 2
    given = {"format": np.where(labels == 1, "PNG", "JPEG").astype(object)}
    assert len(find_cues(given, labels, ["cat", "ship"])) == 1


@pytest.mark.parametrize("share", [1.0, 0.8])
@pytest.mark.parametrize("name", ["format", "width", "brightness"])
def test_a_cue_on_most_of_a_class(name, share):
    given = properties()
    planted = (LABELS == 1) & (np.random.default_rng(1).random(300) < share)
    given[name][planted] = "PNG" if name == "format" else 7
    [cue] = find_cues(given, LABELS, NAMES)
    assert (cue.label, cue.prop) == (1, name)
    assert planted[cue.examples[0]] and not planted[cue.examples[1]]


@pytest.mark.parametrize("seed", range(5))
def test_chance_is_no_cue(seed):
    labels = np.random.default_rng(seed).integers(20, size=300)
    assert not find_cues(properties(seed), labels, [f"class {i}" for i in range(20)])


def test_the_sample_has_no_cue():
    paths = sorted((SAMPLE / "fashion-mnist").rglob("*.png"))
    names = sorted({path.parent.name for path in paths})
    labels = np.array([names.index(path.parent.name) for path in paths])
    assert not find_cues(glance(list(map(str, paths))).properties, labels, names)


def test_unreadable_files_and_small_classes_say_nothing():
    given = properties()
    given["format"][LABELS == 2] = ""
    given["brightness"][LABELS == 2] = np.nan
    assert not find_cues(given, LABELS, NAMES)
    few = np.where(np.arange(300) < 5, 1, 0)
    assert not find_cues({"width": few.astype(np.float32)}, few, ["cat", "dog"])
    assert not find_cues(given, np.zeros(300, int), ["cat"])
