"""Fine-tune a pretrained ResNet on a folder of images. In this file: what every other file may use."""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

INFINITY = float("inf")
IGNORE = -100  # the label of padding: the default ignore_index of cross_entropy, and that of every metric here


class UserError(Exception):
    """A mistake that the user can fix. The scripts print its text as one line, without a traceback, and exit with 1."""


def check_ranges(group: str, ranges: Mapping[str, tuple[float, float]], options: Mapping[str, Any]) -> None:
    """Refuse options that are out of range; None is always in range.

    Args:
        group: What the options' names begin with on the command line, such as `model.`, or an empty string.
        ranges: Smallest and largest value by name, both allowed.
        options: The options, of which those in `ranges` are checked.

    Raises:
        UserError: An option is out of range; the text names it and its limits.
    """
    for name, (low, high) in ranges.items():
        value = options.get(name)
        if value is not None and not low <= value <= high:
            limits = f"at least {low}" if high == INFINITY else f"from {low} to {high}"
            raise UserError(f"--{group}{name} {value}: must be {limits}")


def shortest(path: str | os.PathLike[str]) -> str:
    """A path as one would type it: relative if it lies below the working folder, else as it was given."""
    relative = os.path.relpath(path)
    return os.fspath(path) if relative.startswith("..") else relative


def natural_sort(names: Iterable[str]) -> list[str]:
    """Sort with numbers by value: `2` before `10`."""

    def key(name: str) -> tuple[list[int | str], str]:
        return [int(part) if i % 2 else part for i, part in enumerate(re.split(r"(\d+)", name))], name

    return sorted(names, key=key)


def quoted(names: Iterable[str]) -> str:
    """The first few names, in natural order and quotation marks."""
    return first_few([repr(name) for name in natural_sort(names)])


def first_few(items: list[str], limit: int = 10) -> str:
    """The first items, separated by commas, and how many more there are."""
    more = f", … and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or the name of its type."""
    return str(error).strip().split("\n")[0] or type(error).__name__
