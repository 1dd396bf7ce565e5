"""Judge the boxes that annotation files state: in pixels of the upright image, inside it, each once."""

import logging
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from project import UserError, first_few
from project.decoding import opened
from project.detection.records import Corners, Record, Stated
from project.pixels import Picture
from project.preprocessing import WHITE

log = logging.getLogger(__name__)

ROUNDING = 1.0  # pixels that a box may reach out of the image by, unsaid: edges are rounded, or counted from 1
SMALLEST = 0.01  # pixels of width and height, below which a box is empty


class Header(NamedTuple):
    """What the header of an image file says.

    Attributes:
        size: Width and height in pixels of the upright image.
        stored: Those of the image as it is stored.
        orientation: The Exif orientation that turns it, from 1 to 8.
    """

    size: tuple[int, int]
    stored: tuple[int, int]
    orientation: int


def read_header(path: str) -> Header:
    """The header of an image file. Raises `BadImage`."""
    with opened(path) as image:
        picture = Picture(image, WHITE)
        return Header(picture.size, image.size, picture.orientation)


def judge(record: Record, header: Header) -> tuple[list[Stated] | None, list[str]]:
    """The boxes of an image that can be used, and what is wrong with the others.

    Boxes belong to the upright image unless `is_of_stored` tells otherwise: then they are turned with it.

    Returns:
        The boxes, with corners in pixels of the upright image; None if the annotations are of another image. And the
        problems, each with its place; a box that reaches out of the image is one, but is returned, clipped.
    """
    width, height = header.size
    if record.size not in (None, header.size, header.stored):
        stated, real = (" x ".join(map(str, size)) for size in (record.size or (), header.size))
        return None, [
            f"{record.where}: it is of an image of {stated} pixels, but {record.path} has {real}: no box is used"
        ]
    turned = is_of_stored(record, header)
    good: list[Stated] = []
    problems: list[str] = []
    seen: dict[tuple[str, Corners], str] = {}
    for box in record.boxes:
        problem, corners = box.problem, box.corners
        if not problem:
            left, top, right, bottom = corners
            if record.shares:
                corners = (left * width, top * height, right * width, bottom * height)
            if turned:
                corners = upright(corners, *header.stored, header.orientation)
            problem, kept = fitted(corners, width, height)
            if kept and (other := seen.setdefault((box.label, kept), box.where)) != box.where:
                problem, kept = f"the same box stands in {other.removeprefix(f'{record.where}, ')}, too", None
            if kept:
                good.append(box._replace(corners=kept))
        if problem:
            problems.append(f"{box.where}: {problem}")
    return good, problems


def is_of_stored(record: Record, header: Header) -> bool:
    """Whether the boxes of a photo that Exif turns are those of the image as it is stored.

    Most programs for labelling (labelme, Label Studio, browsers) show a photo upright, and YOLO's tools read it so;
    some (labelImg) ignore Exif. The width and height that a file states tell which: if they are those of the stored
    image, and not those of the upright one, so are the boxes. If they cannot tell, since the image is square or turned
    by 180 degrees or there are none, as in YOLO's files, the boxes are those of the upright image.
    """
    return record.size == header.stored != header.size


def fitted(corners: Corners, width: int, height: int) -> tuple[str, Corners | None]:
    """What is wrong with a box in an image of this size, and what of it lies inside, None if that is nothing."""
    left, top, right, bottom = corners
    shown = ", ".join(f"{edge:g}" for edge in corners)
    if right < left or bottom < top:
        return f"reversed: the edges left, top, right, bottom are {shown}", None
    if right - left < SMALLEST or bottom - top < SMALLEST:
        return f"empty: the edges left, top, right, bottom are {shown}", None
    inner = (max(left, 0.0), max(top, 0.0), min(right, float(width)), min(bottom, float(height)))
    if inner[2] - inner[0] < SMALLEST or inner[3] - inner[1] < SMALLEST:
        return f"outside the image of {width} x {height} pixels: {shown}", None
    reach = max(abs(a - b) for a, b in zip(corners, inner, strict=True))
    return f"reaches out of the image of {width} x {height} pixels: {shown}" if reach > ROUNDING else "", inner


def upright(corners: Corners, width: int, height: int, orientation: int) -> Corners:
    """A box of a stored image of this size, in the upright image.

    Args:
        corners: Left, top, right and bottom edge, in pixels.
        width: Of the image as it is stored, in pixels.
        height: Likewise.
        orientation: The Exif orientation, from 1 to 8.
    """
    left, top, right, bottom = corners
    if orientation in (2, 3, 7, 8):
        left, right = width - right, width - left
    if orientation in (3, 4, 6, 7):
        top, bottom = height - bottom, height - top
    return (top, left, bottom, right) if orientation >= 5 else (left, top, right, bottom)


def without_unknown(
    boxes: Mapping[str, list[Stated]], class_names: Iterable[str], lacking: str
) -> tuple[dict[str, list[Stated]], list[str]]:
    """The boxes of known classes, by image, and the others as problems.

    Args:
        boxes: By path of the image.
        class_names: The classes that are known.
        lacking: What has only these, for the message.
    """
    known = set(class_names)
    unknown = [box for of_image in boxes.values() for box in of_image if box.label not in known]
    problems = [f"{box.where}: class {box.label!r}, which {lacking} does not have" for box in unknown]
    return {path: [box for box in of_image if box.label in known] for path, of_image in boxes.items()}, problems


def tell(problems: list[str], number: int, policy: str) -> None:
    """Report the bad ones of a number of boxes. Raises `UserError` if the policy is `error`."""
    if not problems:
        return
    listing = first_few(problems)
    if policy == "error":
        raise UserError(
            f"{len(problems)} of {number:,} boxes cannot be used (fix them, or leave them out, and clip those that "
            f"reach out of the image, with --data.bad_boxes skip): {listing}"
        )
    log.warning(f"{len(problems)} of {number:,} boxes cannot be used: left out, or clipped to the image: {listing}")
