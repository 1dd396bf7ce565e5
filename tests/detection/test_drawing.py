import pytest

from project import UserError
from project.detection.drawing import draw_splits
from project.detection.records import Stated


def draw(classes: dict[str, str], seed: int = 0, split: str = "all"):
    """Draw from images whose classes are given as letters."""
    boxes = {path: [Stated(path, label, (0, 0, 1, 1)) for label in labels] for path, labels in classes.items()}
    return draw_splits({split: [(path, "") for path in classes]}, boxes, 0.2, 0.2, seed)


def test_every_class_is_in_every_split_even_if_it_never_stands_alone():
    classes = {f"{i}.png": "abc" if i % 20 == 0 else "ab" if i % 5 == 0 else "a" if i % 2 else "" for i in range(60)}
    for seed in range(10):
        drawn = draw(classes, seed)
        assert sorted(path for samples in drawn.values() for path, _ in samples) == sorted(classes)
        for samples in drawn.values():
            assert {label for path, _ in samples for label in classes[path]} == set("abc")
            assert any(not classes[path] for path, _ in samples)  # negatives are drawn like a class


def test_a_class_that_hides_behind_a_rarer_one_reaches_every_split_by_another_draw():
    # b is never the rarest: by chance, a split may get the other half of the images
    classes = {f"{i}.png": label for i, label in enumerate(["ba", "bc", "bd", "a", "c", "d"] * 2)}
    for seed in range(20):
        for samples in draw(classes, seed).values():
            assert {label for path, _ in samples for label in classes[path]} == set("abcd")


def test_only_val_is_drawn_if_train_is_given():
    assert list(draw({f"{i}.png": "a" for i in range(10)}, split="train")) == ["train", "val"]


def test_too_few_images(caplog):
    with pytest.raises(UserError, match="too few images"):
        draw({"a.png": "a"})
    drawn = draw({"a.png": "a", "b.png": "a"})
    assert [len(samples) for samples in drawn.values()] == [1, 1] and not caplog.text


def test_a_class_that_cannot_be_in_every_split_is_said(caplog):
    classes = {f"{i}.png": "a" for i in range(8)} | {"x.png": "ab", "y.png": "ab"}
    draw(classes)
    assert not caplog.text  # two images for three splits
    classes |= {f"z{i}.png": "dc" for i in range(3)}
    classes |= {f"w{i}.png": "d" for i in range(3)}
    drawn = draw(classes)
    assert all("c" in {label for path, _ in samples for label in classes[path]} for samples in drawn.values())
