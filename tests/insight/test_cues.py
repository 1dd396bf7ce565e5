import numpy as np

from project.insight.cues import find_cues


def test_a_format_that_gives_a_class_away():
    labels = np.arange(100) % 2
    properties = {"format": np.where(labels == 1, "PNG", "JPEG").astype(object)}
    [cue] = find_cues(properties, labels, ["cat", "ship"])
    assert cue.prop == "format" and cue.sentence == "every cat is a JPEG, and nothing else is"
