import numpy as np
import pytest
from PIL import Image

from project import UserError
from project.detection.boxes import Header, fitted, judge, tell, upright, without_unknown
from project.detection.records import Record, Stated, bad
from project.pixels import TURNS

HEADER = Header((80, 60), (80, 60), 1)


def record(*boxes, **more) -> Record:
    stated = [Stated(f"a.xml, line {i}", "cat", box) for i, box in enumerate(boxes, start=2)]
    return Record("a.png", "a.xml", stated, **more)


def test_a_box_may_reach_out_by_a_pixel_which_is_clipped():
    assert fitted((-0.5, 0, 80.9, 60), 80, 60) == ("", (0, 0, 80, 60))
    problem, kept = fitted((-5, 10, 20, 30), 80, 60)
    assert "reaches out of the image of 80 x 60 pixels: -5, 10, 20, 30" in problem and kept == (0, 10, 20, 30)


@pytest.mark.parametrize(
    ("box", "said"),
    [((9, 1, 5, 8), "reversed"), ((5, 1, 5, 8), "empty"), ((80, 0, 90, 9), "outside"), ((-9, 0, 0, 9), "outside")],
)
def test_boxes_of_which_nothing_lies_in_the_image(box, said):
    problem, kept = fitted(box, 80, 60)
    assert problem.startswith(said) and kept is None


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_turn_with_the_pixels(orientation):
    pixels = np.zeros((60, 80), np.uint8)
    pixels[5:25, 10:70] = 255
    image = Image.fromarray(pixels)
    turned = np.asarray(image.transpose(TURNS[orientation]) if orientation > 1 else image)
    rows, columns = np.nonzero(turned)
    expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert upright((10, 5, 70, 25), 80, 60, orientation) == expected


def test_boxes_are_turned_only_if_the_stated_size_is_that_of_the_stored_image():
    header = Header((60, 80), (80, 60), 6)
    box = (0.0, 0.0, 20.0, 10.0)
    for size, expected in (((60, 80), box), (None, box), ((80, 60), (50, 0, 60, 20))):
        [kept], problems = judge(record(box, size=size), header)
        assert kept.corners == expected and not problems


def test_shares_become_pixels_of_the_upright_image():
    [kept], _ = judge(record((0.25, 0.5, 0.5, 1.0), shares=True), HEADER)
    assert kept.corners == (20, 30, 40, 60)


def test_the_same_box_counts_once_but_not_of_another_class():
    boxes = [Stated(f"a.xml, line {i}", label, (1, 2, 3, 4)) for i, label in enumerate(("cat", "dog", "cat"))]
    good, problems = judge(Record("a.png", "a.xml", boxes), HEADER)
    assert good is not None and [box.label for box in good] == ["cat", "dog"]
    assert problems == ["a.xml, line 2: the same box stands in line 0, too"]


def test_what_readers_found_is_a_problem_and_no_box():
    assert judge(Record("a.png", "a.xml", [bad("a.xml, line 3", "no numbers")]), HEADER) == (
        [],
        ["a.xml, line 3: no numbers"],
    )


def test_annotations_of_an_image_of_another_size_are_not_used():
    good, problems = judge(record((1, 2, 3, 4), size=(160, 120)), HEADER)
    assert good is None and problems == [
        "a.xml: it is of an image of 160 x 120 pixels, but a.png has 80 x 60: no box is used"
    ]


def test_boxes_of_unknown_classes_are_set_aside():
    cat, dog = Stated("a", "cat", (1, 2, 3, 4)), Stated("b", "dog", (1, 2, 3, 4))
    kept, problems = without_unknown({"x": [cat, dog], "y": [dog]}, ["cat"], "the model")
    assert kept == {"x": [cat], "y": []} and problems == ["b: class 'dog', which the model does not have"] * 2


def test_problems_stop_or_are_logged(caplog):
    with pytest.raises(UserError, match=r"2 of 1,000 boxes cannot be used .*: a, b$"):
        tell(["a", "b"], 1000, "error")
    tell([], 5, "error")
    assert not caplog.text
    tell(["a"], 5, "skip")
    assert "1 of 5 boxes cannot be used: left out, or clipped to the image: a" in caplog.text
