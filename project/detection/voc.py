"""Read Pascal VOC's XML files: one for each image, and lists of the splits in `ImageSets/Main`."""

import logging
import os
import xml.etree.ElementTree as ET
from collections import defaultdict
from xml.parsers import expat

from project import UserError, first_few, natural_sort
from project.detection.records import Annotations, Record, Stated, bad, numbers, read_bytes, read_lines, whole_size
from project.listing import EXTENSIONS, entries, is_folder, list_images
from project.splits import ORDER, split_of

log = logging.getLogger(__name__)

EDGES = ("xmin", "ymin", "xmax", "ymax")
LISTS = os.path.join("ImageSets", "Main")
LINE = "line"  # attribute in which `parsed` keeps where an element begins


def find_xml(root: str) -> dict[str, list[str]]:
    """The XML files of a folder by split, or under `all`: in `Annotations`, right in it, or in those of its splits."""
    folders = {entry.name: entry.path for entry in entries(root) if is_folder(entry)}
    for folder in (folders.get("Annotations"), folders.get("annotations"), root):
        if folder and (files := xml_in(folder)):
            return {"all": files}
    found: dict[str, list[str]] = {}
    for name, path in folders.items():
        if (split := split_of(name)) and (files := xml_in(path) or xml_in(os.path.join(path, "Annotations"))):
            if split in found:
                raise UserError(f"{path}: a second {split} split; rename or remove one")
            found[split] = files
    return found


def xml_in(folder: str) -> list[str]:
    """The XML files right in a folder."""
    return [e.path for e in entries(folder) if e.name.lower().endswith(".xml")] if os.path.isdir(folder) else []


def read_voc(root: str, files: dict[str, list[str]]) -> Annotations:
    """Read XML files, divided by the lists in `ImageSets/Main` if there are any.

    The edges are taken as they stand. The original data of 2012 counts pixels from 1, most programs from 0; it makes a
    difference of one pixel. Objects marked as difficult count like any other.

    Raises:
        UserError: A file is not in this format; the message names it, and the line.
    """
    images: dict[str, list[str]] = defaultdict(list)
    for path in list_images(root)[0]:
        images[stem_of(path)].append(path)
    records = {split: {stem_of(path): read_file(path, images) for path in paths} for split, paths in files.items()}
    splits = {split: list(of_split.values()) for split, of_split in records.items()}
    if "all" in records and (lists := find_lists(root)):
        splits = {split: read_list(path, records["all"]) for split, path in lists.items()}
        used = {record.path for listed in splits.values() for record in listed}
        if unused := [record.where for record in records["all"].values() if record.path not in used]:
            log.warning(f"{root}: {len(unused)} images in no list of {LISTS}, left out: {first_few(unused, 3)}")
    names = {box.label for listed in splits.values() for record in listed for box in record.boxes if box.label}
    return Annotations("Pascal VOC", {s: splits[s] for s in ORDER if s in splits}, natural_sort(names))


def stem_of(path: str) -> str:
    """The name of a file without its extension."""
    return os.path.splitext(os.path.basename(path))[0]


def find_lists(root: str) -> dict[str, str]:
    """The list of each split. `trainval` stands for `train` if there is no such list."""
    folder = os.path.join(root, LISTS)
    if not os.path.isdir(folder):
        return {}
    names = [entry.name for entry in entries(folder) if entry.name.lower().endswith(".txt")]
    found = {split: os.path.join(folder, name) for name in names if (split := split_of(stem_of(name)))}
    if "train" not in found and "trainval.txt" in names:
        aside = f", and {os.path.basename(found['val'])} is not used" if "val" in found else ""
        log.warning(f"{root}: {os.path.join(LISTS, 'trainval.txt')} is taken as the train split{aside}")
        found = {"train": os.path.join(folder, "trainval.txt"), **{s: p for s, p in found.items() if s == "test"}}
    return found


def read_list(path: str, records: dict[str, Record]) -> list[Record]:
    """The records that a list names. Raises `UserError` if there is no XML file of a name, or it is there twice."""
    lines: dict[str, int] = {}
    for number, name in read_lines(path):
        stem = os.path.splitext(name)[0] if name.lower().endswith(EXTENSIONS) else name
        if stem not in records:
            raise UserError(f"{path}, line {number}: there is no annotation file {stem[:80]}.xml")
        if (other := lines.setdefault(stem, number)) != number:
            raise UserError(f"{path}, line {number}: {stem} stands in line {other}, too")
    return [records[stem] for stem in lines]


def parsed(path: str) -> ET.Element:
    """The root element of a file; all elements keep their line. Raises `UserError`."""
    builder, parser = ET.TreeBuilder(), expat.ParserCreate()

    def refuse(*_: object) -> None:  # entities, which could grow without bound or name other files, are declared there
        raise UserError(f"{path}, line {parser.CurrentLineNumber}: a DOCTYPE, which is not read: remove it")

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = lambda name, _: builder.start(name, {LINE: str(parser.CurrentLineNumber)})
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(read_bytes(path), True)
        return builder.close()
    except (expat.ExpatError, LookupError, ValueError) as error:
        raise UserError(f"{path}: not XML ({error})") from error


def read_file(path: str, images: dict[str, list[str]]) -> Record:
    """The image that a file describes. Raises `UserError`.

    Args:
        path: The XML file.
        images: Paths of all images by their names without extension.
    """
    top = parsed(path)
    if top.tag != "annotation":
        raise UserError(f"{path}: not Pascal VOC's format: it begins with <{top.tag[:40]}>, not with <annotation>")
    named = (top.findtext("filename") or "").strip().replace("\\", "/").rsplit("/", 1)[-1]
    found = images.get(stem_of(path)) or images.get(stem_of(named)) or []
    beside = [image for image in found if os.path.dirname(image) == os.path.dirname(path)]
    folder = os.path.join(os.path.dirname(os.path.dirname(path)), "JPEGImages")
    own = [image for image in found if os.path.dirname(image) == folder]
    if len(found) > 1 and not (beside or own):
        raise UserError(f"{path}: its image may be {first_few(found, 3)}: put it into {folder}")
    # If there is none, where it should be
    image = (beside or own or found or [os.path.join(folder, named or f"{stem_of(path)}.jpg")])[0]
    size = top.find("size")
    stated = None if size is None else whole_size(size.findtext("width"), size.findtext("height"), path)
    return Record(image, path, [read_box(path, box) for box in top.findall("object")], stated)


def read_box(path: str, element: ET.Element) -> Stated:
    """The box of an object."""
    where = f"{path}, line {element.get(LINE)}"
    label = (element.findtext("name") or "").strip()
    box = element.find("bndbox")
    if not label:
        return bad(where, "an object without a name")
    texts = [None if box is None else box.findtext(edge) for edge in EDGES]
    values = numbers(texts)
    if values is None:
        said = ", ".join(
            f"{edge} {'missing' if text is None else repr(text.strip()[:20])}"
            for edge, text in zip(EDGES, texts, strict=True)
        )
        return bad(where, f"not four numbers: {said}", label)
    return Stated(where, label, (values[0], values[1], values[2], values[3]))
