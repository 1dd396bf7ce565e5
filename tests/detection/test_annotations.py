import json
import re

import pytest
from box_files import WRITERS, save, write_coco, write_voc, write_yolo

from project import UserError
from project.detection.annotations import read_annotations


@pytest.mark.parametrize("name", WRITERS)
def test_the_format_is_recognized_from_the_folder(tmp_path, name):
    found = read_annotations(str(WRITERS[name](tmp_path)))
    assert found.format == name and not found.problems
    assert {split: len(records) for split, records in found.splits.items()} == {"train": 4, "val": 1, "test": 2}


def test_a_single_file_can_be_named(tmp_path):
    assert read_annotations(str(write_yolo(tmp_path / "a") / "data.yaml")).format == "YOLO"
    found = read_annotations(str(write_coco(tmp_path / "b") / "annotations/instances_val.json"))
    assert list(found.splits) == ["val"]


def test_what_is_not_recognized_is_refused_with_the_formats(tmp_path):
    save(tmp_path / "cat/a.png")
    for place in (tmp_path, tmp_path / "cat/a.png"):
        with pytest.raises(UserError, match=r"COCO.*YOLO.*Pascal VOC") as error:
            read_annotations(str(place))
        assert str(place) in str(error.value)
    with pytest.raises(UserError, match="no such folder or file"):
        read_annotations(str(tmp_path / "nothing"))


def test_two_formats_in_a_folder_are_refused_but_one_of_the_files_can_be_named(tmp_path):
    root = write_yolo(write_coco(tmp_path))
    with pytest.raises(UserError, match=r"several formats: .*instances_\w+\.json, .*data\.yaml"):
        read_annotations(str(root))
    assert read_annotations(str(root / "data.yaml")).format == "YOLO"


def test_images_without_annotations_are_said(tmp_path, caplog):
    root = write_voc(tmp_path)
    save(root / "JPEGImages/z.png")
    read_annotations(str(root))
    assert re.search(r"1 images are not listed in its annotations, left out: .*z\.png", caplog.text)


def test_an_image_in_two_splits_is_said_and_refused_if_its_boxes_differ(tmp_path, caplog):
    root = write_coco(tmp_path)
    train, val = (root / f"annotations/instances_{split}.json" for split in ("train", "val"))
    content = json.loads(train.read_text())
    for image in content["images"]:
        image["file_name"] = f"train/{image['file_name']}"
    (root / "images").mkdir()
    (root / "train").rename(root / "images/train")
    train.write_text(json.dumps(content))
    val.write_text(json.dumps(content))
    read_annotations(str(root))
    assert "4 images are in two splits" in caplog.text
    content["annotations"].pop()
    val.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"instances_val\.json, images\[3\]: .*d\.png is in train, too, with other"):
        read_annotations(str(root))
