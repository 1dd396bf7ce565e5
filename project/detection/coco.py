"""Read COCO's JSON files: images, boxes and categories of a split in one file."""

import json
import logging
import os
from typing import Any, TypeGuard

from project import UserError, first_few, quoted
from project.detection.records import Annotations, Record, Stated, bad, inside, numbers, read_bytes, whole_size
from project.listing import entries, is_folder
from project.splits import ORDER, split_of

log = logging.getLogger(__name__)

KEYS = ("images", "annotations", "categories")


def find_json(root: str) -> list[str]:
    """The files in a folder, in its `annotations`, or in those of its splits, that look like COCO's."""
    folders = [entry.path for entry in entries(root) if is_folder(entry)]
    inner = [path for path in folders if os.path.basename(path) == "annotations" or split_of(os.path.basename(path))]
    files = [
        entry.path for folder in (root, *inner) for entry in entries(folder) if entry.name.lower().endswith(".json")
    ]
    found = [path for path in files if b'"categories"' in (text := read_bytes(path)) and b'"annotations"' in text]
    instances = [path for path in found if os.path.basename(path).startswith("instances")]
    if instances and len(instances) < len(found):
        log.info(f"{root}: of its annotations, only those named instances_* are used, as they hold the boxes")
    return instances or found


def read_coco(files: list[str]) -> Annotations:
    """Read one file for each split, or a single one.

    Boxes are `[x, y, width, height]` in pixels, from the left and the top. Those with `iscrowd`, which stand for many
    objects at once, are left out, which is logged.

    Raises:
        UserError: A file is not in this format; the message names it, and the index in it.
    """
    splits: dict[str, list[Record]] = {}
    classes: dict[int, str] = {}
    problems: list[str] = []
    crowds = 0
    for path in files:
        split = split_of_file(path) if len(files) > 1 else split_of_file(path) or "all"
        if split is None:
            raise UserError(
                f"{path}: its name says no split: call it train.json, val.json or test.json, or name it alone"
            )
        if split in splits:
            raise UserError(f"{path}: a second file of the {split} split; move one away")
        content = read_json(path)
        own = read_categories(path, content["categories"])
        if differing := [name for number, name in own.items() if classes.get(number, name) != name]:
            raise UserError(f"{path}: {quoted(differing)} have other names in {files[0]}")
        classes |= own
        splits[split], loose, crowd = read_records(path, split, content, own)
        problems += loose
        crowds += crowd
    if crowds:
        log.warning(f"{first_few(files, 3)}: {crowds} crowd regions (iscrowd) are left out")
    ordered = {split: splits[split] for split in ORDER if split in splits}
    names = list(
        dict.fromkeys(classes[number] for number in sorted(classes))
    )  # two files may number a class differently
    return Annotations("COCO", ordered, names, problems)


def split_of_file(path: str) -> str | None:
    """The split that the name of a file or of its folder stands for, as `instances_train2017.json` for `train`."""
    stem = os.path.basename(path).rsplit(".", 1)[0]
    return split_of(stem.removeprefix("instances_")) or split_of(os.path.basename(os.path.dirname(path)))


def read_json(path: str) -> dict[str, Any]:
    """The content of a file with the three lists. Raises `UserError`."""
    try:
        content = json.loads(read_bytes(path))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict) or (absent := [key for key in KEYS if key not in content]):
        what = (
            "a list"
            if isinstance(content, list)
            else f"no {quoted(absent)}"
            if isinstance(content, dict)
            else "no object"
        )
        raise UserError(f"{path}: not COCO's format: {what}, where images, annotations and categories are expected")
    for key in KEYS:
        if not isinstance(content[key], list):
            raise UserError(f"{path}: {key} is not a list")
        for i, part in enumerate(content[key]):
            if not isinstance(part, dict):
                raise UserError(f"{path}, {key}[{i}]: not an object, but {str(part)[:40]!r}")
    return content


def read_categories(path: str, categories: list[dict[str, Any]]) -> dict[int, str]:
    """Class names by id. Raises `UserError`."""
    found: dict[int, str] = {}
    for i, category in enumerate(categories):
        where = f"{path}, categories[{i}]"
        number, name = category.get("id"), category.get("name")
        if not is_id(number):
            raise UserError(f"{where}: id is {number!r}, not a number")
        if not isinstance(name, str) or not name.strip():
            raise UserError(f"{where}: name is {name!r}, not a text")
        if number in found or name in found.values():
            raise UserError(f"{where}: id {number} or name {name!r} stands in another category, too")
        found[number] = name
    return found


def read_records(
    path: str, split: str, content: dict[str, Any], classes: dict[int, str]
) -> tuple[list[Record], list[str], int]:
    """The images with their boxes, the boxes of no image, and the number of crowd regions. Raises `UserError`."""
    records: dict[int, Record] = {}
    listed: dict[str, int] = {}
    find = ImageFinder(path, split)
    for i, image in enumerate(content["images"]):
        where = f"{path}, images[{i}]"
        number, name = image.get("id"), image.get("file_name")
        if not is_id(number):
            raise UserError(f"{where}: id is {number!r}, not a number")
        if number in records:
            raise UserError(f"{where}: id {number} stands in another image, too")
        if not isinstance(name, str):
            raise UserError(f"{where}: file_name is {name!r}, not a text")
        file = find(name, where)
        if (other := listed.setdefault(file, i)) != i:
            raise UserError(f"{where}: {name} stands in images[{other}], too")
        records[number] = Record(file, where, [], whole_size(image.get("width"), image.get("height"), where))
    loose, crowds = [], 0
    for i, annotation in enumerate(content["annotations"]):
        where = f"{path}, annotations[{i}]"
        of_image = annotation.get("image_id")
        if annotation.get("iscrowd") == 1:
            crowds += 1
        elif not is_id(of_image) or of_image not in records:
            loose.append(f"{where}: image_id {of_image!r} is no image's")
        else:
            records[of_image].boxes.append(read_box(annotation, classes, where))
    return list(records.values()), loose, crowds


def read_box(annotation: dict[str, Any], classes: dict[int, str], where: str) -> Stated:
    """One box."""
    box, number = annotation.get("bbox"), annotation.get("category_id")
    if not is_id(number) or number not in classes:
        return bad(where, f"category_id {number!r} is no category's")
    values = numbers(box) if isinstance(box, list) and not any(isinstance(value, str) for value in box) else None
    if values is None or len(values) != 4:
        return bad(where, f"bbox is {str(box)[:60]}, not four numbers", classes[number])
    left, top, width, height = values
    return Stated(where, classes[number], (left, top, left + width, top + height))


def is_id(value: object) -> TypeGuard[int]:
    """Whether this is a whole number, as ids are."""
    return isinstance(value, int) and not isinstance(value, bool)


class ImageFinder:
    """Where the images of a file lie: beside it, in `images`, or in the split's folder, there or one folder up.

    Args:
        path: The JSON file.
        split: Its split.
    """

    def __init__(self, path: str, split: str) -> None:
        above = os.path.dirname(path)
        stem = os.path.basename(path).rsplit(".", 1)[0].removeprefix("instances_")
        bases = (
            [above, os.path.dirname(os.path.abspath(above))] if os.path.basename(above) == "annotations" else [above]
        )
        inner = ("", "images", split, stem, os.path.join("images", split), os.path.join("images", stem))
        self.folders = [folder for base in bases for name in inner if os.path.isdir(folder := os.path.join(base, name))]

    def __call__(self, name: str, where: str) -> str:
        """The path of an image; if it is nowhere, that in the folder where the last one was. Raises `UserError`."""
        for folder in self.folders:
            if os.path.isfile(path := inside(folder, name, where)):
                self.folders.remove(folder)
                self.folders.insert(0, folder)
                return path
        return inside(self.folders[0], name, where)
