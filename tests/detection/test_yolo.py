import shutil
from pathlib import Path

import pytest
from box_files import SPLITS, save, write_yolo

from project.detection.yolo import find_names, find_yaml, label_path, read_box, read_yolo


def counts(path: object) -> dict[str, int]:
    return {split: len(records) for split, records in read_yolo(str(path)).splits.items()}


def test_splits_from_the_folders_if_the_file_names_none(tmp_path):
    root = write_yolo(tmp_path / "a")
    (root / "data.yaml").write_text("names: {0: dog, 1: cat}\n")
    assert counts(root / "data.yaml") == {"train": 4, "val": 1, "test": 2}
    for split in SPLITS:  # <split>/images and <split>/labels
        for kind in ("images", "labels"):
            shutil.copytree(root / kind / split, tmp_path / "b" / split / kind)
    (tmp_path / "b/classes.txt").write_text("dog\ncat\n")
    assert counts(find_names(str(tmp_path / "b"))) == {"train": 4, "val": 1, "test": 2}
    assert len(read_yolo(str(tmp_path / "b/classes.txt")).splits["train"][0].boxes) == 2


def test_a_folder_without_splits_and_a_list_of_images(tmp_path):
    root = write_yolo(tmp_path, {"train": SPLITS["train"]})
    for kind in ("images", "labels"):
        for path in (root / kind / "train").iterdir():
            path.rename(root / kind / path.name)
        (root / kind / "train").rmdir()
    (root / "classes.txt").write_text("dog\ncat")
    assert counts(root / "classes.txt") == {"all": 4}
    (root / "train.txt").write_text("images/a.png\nimages/b.png\n")
    (root / "val.txt").write_text("./images/d.png\n")
    (root / "data.yaml").write_text("path: .\ntrain: train.txt\nval: [val.txt]\nnames: [dog, cat]")
    assert counts(root / "data.yaml") == {"train": 2, "val": 1}


@pytest.mark.parametrize("named", ["../images/train", "images/train"])
def test_folders_as_exporters_write_them(tmp_path, named):
    root = write_yolo(tmp_path)
    (root / "data.yaml").write_text(f"path: /somewhere/else\ntrain: {named}\nvalid: images/val\nnames: [dog, cat]")
    assert counts(root / "data.yaml") == {"train": 4, "val": 1}
    assert find_yaml(str(root)) == [str(root / "data.yaml")]


def test_the_last_folder_images_becomes_labels_unless_the_text_lies_beside_the_image(tmp_path):
    assert label_path("/images/x/images/train/a.b.jpg") == "/images/x/labels/train/a.b.txt"
    assert label_path("/data/train/a.jpg") == "/data/train/a.txt"
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.txt").touch()
    assert label_path(f"{tmp_path}/images/a.jpg") == f"{tmp_path}/images/a.txt"


def test_text_files_without_an_image_name_one_that_is_missing(tmp_path):
    root = write_yolo(tmp_path)
    (root / "images/train/a.png").unlink()
    (root / "labels/train/classes.txt").write_text("dog\ncat\n")
    *_, missing = read_yolo(str(root / "data.yaml")).splits["train"]
    assert missing.path == str(root / "images/train/a.jpg") and missing.where == str(root / "labels/train/a.txt")
    assert counts(root / "data.yaml") == {"train": 4, "val": 1, "test": 2}


def test_a_split_of_which_no_text_file_is_found_is_not_taken_as_negatives(tmp_path, fails):
    root = write_yolo(tmp_path)
    (root / "labels/train").rename(root / "labels/Train")
    line = fails(lambda argv: read_yolo(argv[0]), root / "data.yaml")
    assert "the train split has no boxes: there is no" in line and "labels/train/a.txt, nor any" in line


def test_boxes_are_centre_and_size_or_around_an_outline():
    assert read_box("x", ["1", ".5", ".4", ".2", ".6"], ["dog", "cat"])[1:] == (
        "cat",
        pytest.approx((0.4, 0.1, 0.6, 0.7)),
        "",
    )
    assert read_box("x", ["0", ".1", ".2", ".5", ".1", ".3", ".7"], ["dog"])[1:] == ("dog", (0.1, 0.1, 0.5, 0.7), "")


def test_outlines_are_said_once(tmp_path, caplog):
    root = write_yolo(tmp_path)
    (root / "labels/train/a.txt").write_text("0 .1 .2 .5 .1 .3 .7\n")
    read_yolo(str(root / "data.yaml"))
    assert "1 outlines of three points or more: the boxes around them are used" in caplog.text


def test_a_split_without_images_is_refused(tmp_path, fails):
    root = write_yolo(tmp_path)
    shutil.rmtree(root / "images/val")
    (root / "images/val").mkdir()
    line = fails(lambda argv: read_yolo(argv[0]), Path(root) / "data.yaml")
    assert "no images of the val split in" in line
    save(root / "images/val/e.png")
    assert counts(root / "data.yaml")["val"] == 1
