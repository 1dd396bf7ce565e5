"""What annotation files say about images and boxes, in one form for all formats, before it has been judged."""

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from project import UserError
from project.listing import check_regular

Corners = tuple[float, float, float, float]  # left, top, right, bottom


class Stated(NamedTuple):
    """A box as a file states it.

    Attributes:
        where: The file, with the line or index.
        label: The name of its class.
        corners: Left, top, right and bottom edge, in pixels, or as shares of the image if the record says so.
        problem: Why it cannot be used, for example since a number is missing; empty if nothing is known against it.
    """

    where: str
    label: str
    corners: Corners
    problem: str = ""


class Record(NamedTuple):
    """An image as a file lists it.

    Attributes:
        path: Of the image, which need not exist.
        where: The file that describes it, with the index if it describes several.
        boxes: Its boxes; none if it is a negative.
        size: Its width and height in pixels as the file states them, if it does.
        shares: Whether the corners of the boxes are shares of its width and height.
    """

    path: str
    where: str
    boxes: list[Stated]
    size: tuple[int, int] | None = None
    shares: bool = False


@dataclass
class Annotations:
    """All that a data set says.

    Attributes:
        format: Its name, for the log.
        splits: Records by split: `train`, `val`, `test`; or all of them under `all` if there are no splits.
        class_names: In the order of the files, or in natural order if they have none.
        problems: Boxes that belong to no image, each with its place.
    """

    format: str
    splits: dict[str, list[Record]]
    class_names: list[str]
    problems: list[str] = field(default_factory=list)


def bad(where: str, problem: str, label: str = "") -> Stated:
    """A box that cannot be used."""
    return Stated(where, label, (0.0, 0.0, 0.0, 0.0), problem)


def numbers(values: Iterable[object]) -> list[float] | None:
    """Finite numbers, of texts or numbers; None if any is something else."""
    found = []
    for value in values:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            return None
        try:
            number = float(value)
        except (ValueError, OverflowError):
            return None
        if not math.isfinite(number):
            return None
        found.append(number)
    return found


def whole_size(width: object, height: object, where: str) -> tuple[int, int] | None:
    """Width and height in pixels; None if they are missing or zero, as some tools write them. Raises `UserError`."""
    if width is None or height is None:
        return None
    found = numbers((width, height))
    if found is None or min(found) < 0 or any(value % 1 for value in found):
        raise UserError(f"{where}: the size of the image is {width!r} x {height!r}, which are no numbers of pixels")
    return (int(found[0]), int(found[1])) if min(found) > 0 else None


def read_bytes(path: str) -> bytes:
    """The content of a file. Raises `UserError` if it cannot be read."""
    check_regular(path)
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def read_lines(path: str) -> list[tuple[int, str]]:
    """The lines of a text file that are not blank, without blanks around them, with their numbers from 1.

    Raises:
        UserError: It cannot be read, or is not text.
    """
    try:
        text = read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not text in UTF-8 ({error.reason} at byte {error.start})") from error
    if "\0" in text:
        raise UserError(f"{path}: not text: it contains zero bytes")
    return [(i, line.strip()) for i, line in enumerate(text.split("\n"), start=1) if line.strip()]


def inside(base: str, name: str, where: str) -> str:
    """The path of a file that an annotation names relative to a folder. Raises `UserError` if it leads out of that."""
    name = name.replace("\\", "/") if os.sep == "/" else name
    path = os.path.normpath(name)
    if not name or "\0" in name or os.path.isabs(path) or path.split(os.sep)[0] in (os.pardir, os.curdir):
        raise UserError(f"{where}: {name!r} is not the name of a file in the data set's folder")
    return os.path.join(base, path)
