"""What an export cost is counted right, and what is too much is refused."""

import numpy as np
import pytest

from project.classification.certificate import (
    comparison,
    drop_bound,
    hash_of,
    reason_against,
)
from project.files import sha256

NAMES = ["a", "b"]


def answers(*first):
    """Probabilities whose first classes are given."""
    return np.array([[0.8, 0.2] if k == 0 else [0.3, 0.7] for k in first], np.float32)


def test_changes_are_counted_by_class_with_their_images():
    samples = [(f"{i}.png", name) for i, name in enumerate("aabb")]
    found = comparison(answers(0, 0, 1, 0), answers(0, 1, 1, 1), samples, NAMES, "test")
    assert found["agreement"] == 0.5 and found["top1"] == 0.75 and found["top1_drop"] == 0
    assert found["by_class"] == {"a": {"lost": ["1.png"], "won": []}, "b": {"lost": [], "won": ["3.png"]}}
    assert found["difference"]["max"] == pytest.approx(0.5) and found["difference"]["mean"] == pytest.approx(0.25)
    assert [image["path"] for image in found["worst"]] == ["1.png", "3.png", "0.png", "2.png"]
    assert found["worst"][0] == {
        "path": "1.png",
        "label": "a",
        "before": "a",
        "after": "b",
        "difference": pytest.approx(0.5),
    }
    assert found["agreement_interval"][0] < 0.5 < found["agreement_interval"][1]


def test_the_bounds_are_counted_in_whole_images():
    def of(total, changed, lost):
        return {"num_samples": total, "agreement": 1 - changed / total, "top1_drop": lost / total}

    assert reason_against(of(37, 1, 1), 0.01) is None  # one image of 37 is 0.027
    assert "agrees with the network on 0.946 of 37 images, below 0.98" in str(reason_against(of(37, 2, 0), 0.01))
    assert "agrees with the network on 0.900 of 10 images" in str(reason_against(of(10, 1, 0), 0.01))
    assert "agrees" in str(reason_against(of(24, 1, 0), 0.01)) and reason_against(of(25, 1, 1), 0.01) is None
    assert reason_against(of(10, 0, 0), 0) is None and reason_against(of(10, 0, 1), 0.1) is None
    assert "loses 0.1000 of the top-1" in str(reason_against(of(10, 0, 1), 0.09))
    assert reason_against(of(300, 6, 3), 0.01) is None
    assert "loses 0.0133 of the top-1 on 300 images, above --max_drop 0.01" in str(reason_against(of(300, 6, 4), 0.01))
    assert reason_against(of(300, 0, 0), 0) is None and reason_against(of(300, 1, 1), 0)
    assert reason_against(of(300, 1, -1), 0) is None  # it won one


def test_the_interval_of_the_drop_covers_as_often_as_it_says():
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(1000):
        kinds = generator.choice(3, 400, p=[0.02, 0.01, 0.97])  # lost, won, the same: a drop of 0.01
        covered += drop_bound(int((kinds == 0).sum()), int((kinds == 1).sum()), 400) >= 0.01
    assert 0.93 <= covered / 1000 <= 0.99
    assert 0 < drop_bound(0, 0, 37) < 0.1


def test_hashes_depend_on_content(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a").startswith("ba7816bf")
    assert hash_of([("a", "x")]) != hash_of([("a", "y")])
