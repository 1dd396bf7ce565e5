"""Read YOLO's text files: one for each image, with a box in each line; class names in `data.yaml` or `classes.txt`."""

import logging
import os
from collections.abc import Iterator
from typing import Any

import yaml

from project import UserError
from project.detection.records import Annotations, Record, Stated, bad, numbers, read_bytes, read_lines
from project.listing import EXTENSIONS, entries, images_in, list_images, subfolders
from project.splits import ORDER, split_of

log = logging.getLogger(__name__)

NAMES = ("classes.txt", "obj.names", "_darknet.labels", "labels.txt")
LAYOUT = "it needs images/ and labels/ in it, or in train/ and val/, or train/ and val/ in these two"


def find_yaml(root: str) -> list[str]:
    """The YAML files right in a folder that name classes."""
    files = [entry.path for entry in entries(root) if entry.name.lower().endswith((".yaml", ".yml"))]
    return [path for path in files if b"names:" in read_bytes(path)]


def find_names(root: str) -> str | None:
    """The text file right in a folder, or in its `labels`, that names the classes."""
    places = [os.path.join(root, folder, name) for name in NAMES for folder in ("", "labels")]
    return next(filter(os.path.isfile, places), None)


def read_yolo(path: str) -> Annotations:
    """Read the data set of a `data.yaml`, or the folder of a list of class names.

    Raises:
        UserError: A file is not in this format; the message names it, and the line.
    """
    folders: dict[str, list[str]] = {}
    if path.lower().endswith((".yaml", ".yml")):
        content = read_yaml(path)
        names = class_names(path, content)
        folders = named_splits(path, content)
    else:
        names = [name for _, name in read_lines(path)]
    if not names or len(set(names)) < len(names):
        raise UserError(f"{path}: {'it names no classes' if not names else 'a class name stands in it twice'}")
    base = os.path.dirname(path)
    folders = folders or find_splits(os.path.dirname(base) if os.path.basename(base) == "labels" else base)
    if not folders:
        raise UserError(f"{path}: it names no split, and there are no images beside it; {LAYOUT}")
    splits: dict[str, list[Record]] = {}
    outlines = 0
    for split, places in folders.items():
        images = list(dict.fromkeys(image for place in places for image in images_of(place)))
        if not images:
            raise UserError(f"{path}: no images of the {split} split in {places[0]}")
        files = {image: label_path(image) for image in images}
        if not any(map(os.path.exists, files.values())):
            raise UserError(
                f"{path}: the {split} split has no boxes: there is no {files[images[0]]}, nor any other text file of "
                "its images; add them, or leave the split out"
            )
        splits[split] = []
        for image, file in {**files, **without_image(files)}.items():
            boxes, found = read_labels(file, names)
            outlines += found
            splits[split].append(Record(image, file, boxes, shares=True))
    if outlines:
        log.warning(f"{path}: {outlines} outlines of three points or more: the boxes around them are used")
    return Annotations("YOLO", {split: splits[split] for split in ORDER if split in splits}, names)


def read_yaml(path: str) -> dict[str, Any]:
    """The content of a `data.yaml`. Raises `UserError`."""
    try:
        content = yaml.safe_load(read_bytes(path))
    except (yaml.YAMLError, UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict) or "names" not in content:
        raise UserError(f"{path}: it has no `names` with the class names")
    return content


def class_names(path: str, content: dict[str, Any]) -> list[str]:
    """The names, of a list or of a dictionary by number. Raises `UserError`."""
    names = content["names"]
    if isinstance(names, dict):
        if set(names) != set(range(len(names))):
            raise UserError(f"{path}: the numbers of `names` are not 0 to {len(names) - 1}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not all(isinstance(name, str | int | float) for name in names):
        raise UserError(f"{path}: `names` is not a list of names")
    if content.get("nc", len(names)) != len(names):
        raise UserError(f"{path}: nc is {content['nc']!r}, but there are {len(names)} names")
    return [str(name).strip() for name in names]


def named_splits(path: str, content: dict[str, Any]) -> dict[str, list[str]]:
    """The folders, or lists of images, of each split that the file names. Raises `UserError`."""
    base = os.path.dirname(path)
    found: dict[str, list[str]] = {}
    for split in ("train", "val", "test"):
        given = content.get(split) or (content.get("valid") if split == "val" else None)
        for name in given if isinstance(given, list) else [given] if given else []:
            if not isinstance(name, str):
                raise UserError(f"{path}: {split} is {str(name)[:60]!r}, not a folder")
            bases = (os.path.join(base, str(content.get("path") or "")), base)
            # Roboflow writes ../train/images for what lies beside the file
            places = [os.path.join(folder, part) for part in (name, name.removeprefix("../")) for folder in bases]
            place = next(filter(os.path.exists, places), None)
            if place is None:
                raise UserError(f"{path}: {split} is {name}, which does not exist, neither at {places[0]}")
            found.setdefault(split, []).append(os.path.normpath(place))
    return found


def find_splits(root: str) -> dict[str, list[str]]:
    """The folder of the images of each split, or of all."""
    inner = os.path.join(root, "images")
    found: dict[str, list[str]] = {}
    for above in filter(os.path.isdir, (inner, root)):
        for name in subfolders(above):
            if split := split_of(name):
                if split in found:
                    raise UserError(f"{os.path.join(above, name)}: a second {split} split; rename or remove one")
                found[split] = [os.path.join(above, name)]
        if found:
            return found
    return {"all": [inner]} if os.path.isdir(inner) else {}


def images_of(place: str) -> Iterator[str]:
    """The images in a folder, or those that a text file lists. Raises `UserError`."""
    if os.path.isdir(place):
        yield from list_images(place)[0]
        return
    for number, name in read_lines(place):
        if not name.lower().endswith(EXTENSIONS):
            raise UserError(f"{place}, line {number}: {name[:80]!r} is not the name of an image")
        yield os.path.normpath(os.path.join(os.path.dirname(place), name))


def label_path(image: str) -> str:
    """The text file of an image: in `labels` in place of the last `images` of its path, otherwise beside it."""
    beside = os.path.splitext(image)[0] + ".txt"
    folder, name = os.path.split(beside)
    parts = folder.split(os.sep)
    if "images" not in parts or os.path.isfile(beside):
        return beside
    parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
    return os.path.join(os.sep.join(parts), name)


def without_image(files: dict[str, str]) -> dict[str, str]:
    """The text files of images that do not exist, in the folders of others: by the path where the image should be."""
    folders = {os.path.dirname(file): os.path.dirname(image) for image, file in files.items()}
    missing = {}
    for folder, above in folders.items():
        if folder == above or not os.path.isdir(folder) or not os.path.isdir(above):
            continue  # beside images, there may be other text files
        known = {os.path.splitext(name)[0] for name in images_in(above)}
        for entry in entries(folder):
            stem, extension = os.path.splitext(entry.name)
            if extension == ".txt" and entry.name not in NAMES and stem not in known:
                missing[os.path.join(above, f"{stem}.jpg")] = entry.path
    return missing


def read_labels(path: str, names: list[str]) -> tuple[list[Stated], int]:
    """The boxes of an image, which has none without a file, and how many of them were outlines. Raises `UserError`."""
    if not os.path.lexists(path):
        return [], 0
    boxes, outlines = [], 0
    for number, line in read_lines(path):
        cells = line.split()
        boxes.append(read_box(f"{path}, line {number}", cells, names))
        outlines += len(cells) > 6
    return boxes, outlines


def read_box(where: str, cells: list[str], names: list[str]) -> Stated:
    """A box from the cells of its line: class, centre x and y, width, height; or class and the points of an outline."""
    values = numbers(cells)
    if values is None:
        return bad(where, f"not numbers: {' '.join(cells)[:60]!r}")
    if len(cells) != 5 and (len(cells) < 7 or len(cells) % 2 == 0):
        return bad(where, f"{len(cells)} numbers, where class, centre x, y, width and height are expected")
    number, *rest = values
    if number % 1 or not 0 <= number < len(names):
        return bad(where, f"class {cells[0]} is not one of 0 to {len(names) - 1}")
    label = names[int(number)]
    if len(rest) > 4:
        x, y = rest[::2], rest[1::2]
        return Stated(where, label, (min(x), min(y), max(x), max(y)))
    centre_x, centre_y, width, height = rest
    left, top = centre_x - width / 2, centre_y - height / 2
    return Stated(where, label, (left, top, left + width, top + height))
