"""Recognize the format of a data set of boxes, COCO, YOLO or Pascal VOC, and read its annotations."""

import logging
import os

from project import UserError, first_few
from project.detection.coco import find_json, read_coco
from project.detection.records import Annotations
from project.detection.voc import find_xml, read_voc
from project.detection.yolo import find_names, find_yaml, read_yolo
from project.listing import check_there, expanded, list_images

log = logging.getLogger(__name__)

FORMATS = (
    "it should be or hold one of: COCO (instances_train.json …, or a single .json), YOLO (data.yaml, or classes.txt "
    "with images/ and labels/), Pascal VOC (Annotations/*.xml, JPEGImages/ and ImageSets/Main/*.txt)"
)


def read_annotations(root: str) -> Annotations:
    """Read a folder, or the JSON or YAML file of a data set.

    Raises:
        UserError: The format is not recognized, or a file is broken; the message names it, with the line or index.
    """
    check_there(root)
    root = expanded(root)
    if os.path.isdir(root):
        found = read_folder(root)
        say_what_is_not_listed(root, found)
    elif root.lower().endswith(".json"):
        found = read_coco([os.path.abspath(root)])
    elif root.lower().endswith((".yaml", ".yml")):
        found = read_yolo(os.path.abspath(root))
    else:
        raise UserError(f"--data.root {root}: not recognized as annotations of boxes; {FORMATS}")
    if not any(found.splits.values()):
        raise UserError(f"{root}: {found.format}, but it lists no images")
    say_what_is_twice(found)
    return found


def read_folder(root: str) -> Annotations:
    """Read the one format that there is in a folder. Raises `UserError`."""
    json_files, xml_files, yaml_files = find_json(root), find_xml(root), find_yaml(root)
    places = [files[0] for files in (json_files, [p for f in xml_files.values() for p in f], yaml_files) if files]
    if len(places) > 1 or len(yaml_files) > 1:
        choices = first_few(places if len(places) > 1 else yaml_files)
        raise UserError(
            f"{root} holds annotations in several formats: move away all but one, or name its file: {choices}"
        )
    if json_files:
        return read_coco(json_files)
    if xml_files:
        return read_voc(root, xml_files)
    names = yaml_files[0] if yaml_files else find_names(root)
    if names is None:
        raise UserError(f"--data.root {root}: no annotations of boxes found; {FORMATS}")
    return read_yolo(names)


def say_what_is_not_listed(root: str, found: Annotations) -> None:
    """Log how many images of the folder no annotation file describes."""
    listed = {os.path.realpath(record.path) for records in found.splits.values() for record in records}
    if others := [path for path in list_images(root)[0] if os.path.realpath(path) not in listed]:
        log.warning(f"{root}: {len(others)} images are not listed in its annotations, left out: {first_few(others, 3)}")


def say_what_is_twice(found: Annotations) -> None:
    """Log which images are in two splits: the test has been seen in training. Raises `UserError` if boxes differ."""
    first: dict[str, tuple[str, list[object]]] = {}
    twice = []
    for split, records in found.splits.items():
        for record in records:
            boxes: list[object] = [box[1:] for box in record.boxes]
            other, others = first.setdefault(record.path, (split, boxes))
            if other != split:
                twice.append(record.path)
                if boxes != others:
                    raise UserError(f"{record.where}: {record.path} is in {other}, too, with other boxes")
    if twice:
        log.warning(f"{len(twice)} images are in two splits, so that figures tell nothing: {first_few(twice, 3)}")
