import json
from pathlib import Path

from box_files import SPLITS, save, write_coco

from project.detection.coco import find_json, read_coco


def test_files_and_folders_named_like_splits(tmp_path):
    root = write_coco(tmp_path)
    found = read_coco(find_json(str(root)))
    assert list(found.splits) == ["train", "val", "test"] and found.class_names == ["dog", "cat"]
    for split, name in (("train", "train"), ("val", "valid"), ("test", "test")):  # as Roboflow writes them
        folder = tmp_path / "other" / name
        folder.mkdir(parents=True)
        (root / f"annotations/instances_{split}.json").rename(folder / "_annotations.coco.json")
        for image in (root / split).iterdir():
            image.rename(folder / image.name)
    found = read_coco(find_json(str(tmp_path / "other")))
    assert list(found.splits) == ["train", "val", "test"]
    assert all(Path(record.path).is_file() for records in found.splits.values() for record in records)


def test_files_that_hold_no_boxes_stand_aside(tmp_path):
    root = write_coco(tmp_path)
    (root / "annotations/captions_train.json").write_text('{"annotations": [], "categories": []}')
    (root / "package.json").write_text('{"name": "x"}')
    assert {Path(path).name for path in find_json(str(root))} == {f"instances_{split}.json" for split in SPLITS}


def test_a_single_file_has_its_images_beside_it_or_in_images(tmp_path):
    for name in ("a.png", "b.png"):
        save(tmp_path / "images" / name)
    images = [{"id": i, "file_name": name} for i, name in enumerate(("a.png", "b.png", "c.png"))]
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": []}))
    [record, _, missing] = read_coco([str(path)]).splits["all"]
    assert record.path == str(tmp_path / "images/a.png") and record.size is None
    assert missing.path == str(tmp_path / "images/c.png")


def test_crowd_regions_are_left_out_and_counted(tmp_path, caplog):
    root = write_coco(tmp_path, {"train": SPLITS["train"]})
    path = root / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["iscrowd"] = 1
    path.write_text(json.dumps(content))
    assert len(read_coco([str(path)]).splits["train"][0].boxes) == 1
    assert "1 crowd regions (iscrowd) are left out" in caplog.text
