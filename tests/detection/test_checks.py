import pytest
from box_files import save

from project.detection.checks import copied, examine
from project.detection.records import Stated


def look(tmp_path, boxes, classes=("cat", "dog"), enough=True):
    """What is said of an image of 1000 x 800 pixels with these boxes, in a set with many others."""
    save(tmp_path / "a.png")
    of_image = [Stated(f"a.xml, line {i}", label, box) for i, (label, box) in enumerate(boxes, start=2)]
    path, others = str(tmp_path / "a.png"), str(tmp_path / "b.png")
    many = [
        Stated("b", label, (20 * i, 100 * k, 20 * i + 15, 100 * k + 90))
        for k, label in enumerate(classes)
        for i in range(20 * enough)
    ]
    sizes = dict.fromkeys((path, others), (1000, 800))
    return examine({"train": [(path, ""), (others, "")]}, {path: of_image, others: many}, sizes, list(classes))


def test_nothing_is_said_of_clean_data(tmp_path):
    assert (
        look(tmp_path, [("cat", (10, 10, 200, 200)), ("dog", (100, 100, 300, 300)), ("cat", (5, 500, 15, 510))]) == []
    )


@pytest.mark.parametrize(
    ("boxes", "said"),
    [
        ([("cat", (10, 10, 14, 200))], "1 boxes with a side below 0.5% of the longer side of the image: a.xml, line 2"),
        ([("cat", (0, 0, 1000, 799))], "1 boxes over 98% of the image: a.xml, line 2"),
        (
            [("cat", (10, 10, 200, 200)), ("dog", (300, 300, 350, 350)), ("cat", (11, 11, 201, 201))],
            "1 pairs of boxes of one class at nearly the same place: a.xml, line 2 and line 4",
        ),
        (
            [("cat", (10, 10, 200, 200)), ("dog", (10, 10, 200, 200))],
            "1 pairs of boxes of two classes at nearly the same place: a.xml, line 2 and line 3",
        ),
    ],
)
def test_each_kind_is_one_line(tmp_path, boxes, said):
    assert look(tmp_path, boxes) == [said]


def test_rare_classes_are_named_with_their_numbers(tmp_path):
    assert look(tmp_path, [("dog", (10, 10, 200, 200))], enough=False) == [
        "2 classes with fewer than 10 boxes in train: cat (0), dog (1)"
    ]


def test_many_are_counted_and_a_few_named(tmp_path):
    boxes = [("cat", (0, 50 * i, 2, 50 * i + 9)) for i in range(9)]
    [line] = look(tmp_path, boxes)
    assert line.startswith("9 boxes with a side") and line.endswith("… and 6 more")


def test_copies_in_another_split_are_found_by_their_bytes(tmp_path):
    for split, name in (("train", "a.png"), ("train", "b.png"), ("val", "c.png")):
        save(tmp_path / split / name)
    samples = {
        split: [(str(tmp_path / split / name), "") for name in names]
        for split, names in {"train": ["a.png", "b.png"], "val": ["c.png", "d.png"]}.items()
    }
    (tmp_path / "val/d.png").write_bytes((tmp_path / "train/b.png").read_bytes())
    (tmp_path / "train/a.png").write_bytes((tmp_path / "train/b.png").read_bytes())  # within a split it is no leak
    [found] = copied({"val": samples["val"], "train": samples["train"][:1]})
    assert found == f"{tmp_path}/train/a.png (train) and {tmp_path}/val/d.png (val)"
    assert len(copied(samples)) == 1
