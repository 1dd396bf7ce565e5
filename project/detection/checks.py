"""What looks wrong with boxes that can be used: sizes, copies of boxes and of images, rare classes."""

import os
from collections import defaultdict
from collections.abc import Iterable, Mapping
from hashlib import blake2b

import torch
from torchvision.ops import box_iou

from project import first_few
from project.detection.records import Stated
from project.splits import Samples

TINY = 0.005  # of the longer side of the image, below which hardly a detector finds anything
WHOLE = 0.98  # of the area of the image
SAME = 0.9  # intersection over union of two boxes of one object
FEW = 10  # boxes of a class, from which little can be learned
SHOWN = 3


def examine(
    samples: Mapping[str, Samples],
    boxes: Mapping[str, list[Stated]],
    sizes: Mapping[str, tuple[int, int]],
    class_names: list[str],
) -> list[str]:
    """Look for what may be wrong.

    Args:
        samples: By split.
        boxes: By path of the image, with corners in pixels.
        sizes: Width and height of the images in pixels, by path.
        class_names: The classes.

    Returns:
        At most six lines, one for each kind; none if nothing was found.
    """
    paths = list(dict.fromkeys(path for listed in samples.values() for path, _ in listed))
    twice, in_doubt = overlapping(paths, boxes)
    train = [box for path, _ in samples.get("train", []) for box in boxes[path]]
    found = {
        f"boxes with a side below {TINY:.1%} of the longer side of the image": tiny(paths, boxes, sizes),
        f"boxes over {WHOLE:.0%} of the image": whole(paths, boxes, sizes),
        "pairs of boxes of one class at nearly the same place": twice,
        "pairs of boxes of two classes at nearly the same place": in_doubt,
        "images that are copies of one in another split": copied(samples),
        f"classes with fewer than {FEW} boxes in train": rare(train, class_names),
    }
    return [f"{len(places)} {kind}: {first_few(places, SHOWN)}" for kind, places in found.items() if places]


def tiny(paths: Iterable[str], boxes: Mapping[str, list[Stated]], sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    """Places of the boxes that are very small."""
    return [
        box.where
        for path in paths
        for box in boxes[path]
        if min(box.corners[2] - box.corners[0], box.corners[3] - box.corners[1]) < TINY * max(sizes[path])
    ]


def whole(paths: Iterable[str], boxes: Mapping[str, list[Stated]], sizes: Mapping[str, tuple[int, int]]) -> list[str]:
    """Places of the boxes that are as large as the image."""
    return [
        box.where
        for path in paths
        for box in boxes[path]
        if (box.corners[2] - box.corners[0]) * (box.corners[3] - box.corners[1])
        > WHOLE * sizes[path][0] * sizes[path][1]
    ]


def overlapping(paths: Iterable[str], boxes: Mapping[str, list[Stated]]) -> tuple[list[str], list[str]]:
    """Places of the pairs of boxes that nearly coincide: those of one class, and those of two."""
    same: list[str] = []
    other: list[str] = []
    for path in paths:
        of_image = boxes[path]
        if len(of_image) < 2:
            continue
        corners = torch.tensor([box.corners for box in of_image], dtype=torch.float64)
        for i, j in (box_iou(corners, corners).triu(1) >= SAME).nonzero().tolist():
            places = same if of_image[i].label == of_image[j].label else other
            places.append(f"{of_image[i].where} and {of_image[j].where.rsplit(', ', 1)[-1]}")
    return same, other


def copied(samples: Mapping[str, Samples]) -> list[str]:
    """Pairs of images in different splits whose files have the same bytes; only files of one size are read."""
    by_size: dict[int, list[tuple[str, str]]] = defaultdict(list)
    for split, listed in samples.items():
        for path, _ in listed:
            if split != "all" and os.path.isfile(path):
                by_size[os.path.getsize(path)].append((path, split))
    found = []
    for alike in (group for group in by_size.values() if len({split for _, split in group}) > 1):
        first: dict[bytes, tuple[str, str]] = {}
        for path, split in alike:
            with open(path, "rb") as file:
                digest = blake2b(file.read(), digest_size=16).digest()
            other, other_split = first.setdefault(digest, (path, split))
            if other_split != split:
                found.append(f"{path} ({split}) and {other} ({other_split})")
    return found


def rare(train: Iterable[Stated], class_names: list[str]) -> list[str]:
    """The classes of which there are few boxes, with their number."""
    counts = dict.fromkeys(class_names, 0)
    for box in train:
        counts[box.label] += 1
    return [f"{name} ({count})" for name, count in counts.items() if count < FEW]
