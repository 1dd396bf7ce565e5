"""Small data sets of real images with boxes, written in each of the three formats."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

Boxes = Sequence[tuple[str, tuple[float, float, float, float]]]  # class, and left, top, right, bottom in pixels
Images = Mapping[str, Boxes]  # by name of the file

SIZE = (80, 60)
SPLITS: dict[str, Images] = {
    "train": {
        "a.png": [("cat", (10, 5, 50, 45)), ("dog", (40, 20, 80, 60))],
        "b.png": [("dog", (0, 0, 20, 30))],
        "c.png": [],
        "d.png": [("cat", (5, 6, 25, 36))],
    },
    "val": {"e.png": [("cat", (1, 2, 33, 44)), ("dog", (30, 10, 70, 50))]},
    "test": {"f.png": [("dog", (8, 8, 48, 28))], "g.png": [("cat", (16, 4, 60, 40))]},
}


def save(path: Path, size: tuple[int, int] = SIZE) -> None:
    """An image of noise, another one for each name."""
    noise = np.random.default_rng(list(path.name.encode())).integers(0, 255, (size[1], size[0], 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(noise.astype(np.uint8)).save(path)


def write_coco(root: Path, splits: Mapping[str, Images] = SPLITS) -> Path:
    """`annotations/instances_<split>.json` and `<split>/*`; ids with gaps, classes in another order than by name."""
    ids = {"dog": 3, "cat": 7}
    for split, images in splits.items():
        content: dict[str, Any] = {key: [] for key in ("images", "annotations")}
        content["categories"] = [{"id": number, "name": name} for name, number in ids.items()]
        for i, (name, boxes) in enumerate(images.items()):
            save(root / split / name)
            content["images"].append({"id": 5 * i, "file_name": name, "width": SIZE[0], "height": SIZE[1]})
            for label, (left, top, right, bottom) in boxes:
                box = {"image_id": 5 * i, "category_id": ids[label], "bbox": [left, top, right - left, bottom - top]}
                content["annotations"].append(box)
        path = root / f"annotations/instances_{split}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
    return root


def voc_text(name: str, boxes: Boxes, size: tuple[int, int] = SIZE) -> str:
    """The content of an XML file, with an object in each line from the second on."""
    lines = [f"<annotation><filename>{name}</filename><size><width>{size[0]}</width><height>{size[1]}</height></size>"]
    for label, box in boxes:
        edges = "".join(f"<{e}>{v}</{e}>" for e, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
        lines.append(f"<object><name>{label}</name><bndbox>{edges}</bndbox></object>")
    return "\n".join([*lines, "</annotation>"])


def write_voc(root: Path, splits: Mapping[str, Images] = SPLITS) -> Path:
    """`JPEGImages`, `Annotations`, and `ImageSets/Main/<split>.txt`."""
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    for split, images in splits.items():
        for name, boxes in images.items():
            save(root / "JPEGImages" / name)
            (root / "Annotations" / name).with_suffix(".xml").write_text(voc_text(name, boxes))
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{Path(name).stem}\n" for name in images))
    return root


def write_yolo(root: Path, splits: Mapping[str, Images] = SPLITS) -> Path:
    """`data.yaml`, `images/<split>` and `labels/<split>`; no text file for a negative."""
    names = ["dog", "cat"]
    for split, images in splits.items():
        for name, boxes in images.items():
            save(root / "images" / split / name)
            path = (root / "labels" / split / name).with_suffix(".txt")
            path.parent.mkdir(parents=True, exist_ok=True)
            lines = []
            for label, (left, top, right, bottom) in boxes:
                shares = ((left + right) / 2 / SIZE[0], (top + bottom) / 2 / SIZE[1])
                sides = ((right - left) / SIZE[0], (bottom - top) / SIZE[1])
                lines.append(" ".join(map(str, (names.index(label), *shares, *sides))))
            if lines:
                path.write_text("\n".join(lines))
    splits_named = "".join(f"{split}: images/{split}\n" for split in splits)
    (root / "data.yaml").write_text(f"{splits_named}nc: 2\nnames: [dog, cat]\n")
    return root


WRITERS = {"COCO": write_coco, "Pascal VOC": write_voc, "YOLO": write_yolo}
